"""A request that is a stream: audio goes out chunk by chunk, and what an engine hears comes back meanwhile.

The engine finds speech in 16-bit mono PCM by its loudness: a voice-activity detector as telephones have long
had one. `python live_audio.py` sends a recording that it makes itself, ten times as fast as it would be
spoken; `python live_audio.py FILE.wav` sends a file.
"""

import asyncio
import math
import random
import sys
import tempfile
import wave
from array import array
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import headrace as hr

RATE_HZ = 16_000
CHUNK_S = 0.02
SPEED = 10

# Louder than the background by this much is speech: a conversation's share over a room's noise.
LOUDER_DB = 12.0
# So many loud chunks in a row begin it, so many quiet ones end it: a click is no word, a pause for breath no
# end.
LOUD_CHUNKS_MIN = 2
QUIET_CHUNKS_MIN = 8


def level_db(samples: "array[int]") -> float:
    """Loudness of a chunk in decibels; 0 is the loudest possible square wave."""
    power = sum(sample * sample for sample in samples) / max(len(samples), 1)
    return 10 * math.log10(max(power, 1.0) / 32_768**2)


async def detect(chunks: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any], None]:
    """The engine: yields each beginning and end of speech as soon as it is sure of it, and a summary."""
    background_db: float | None = None
    heard_s = speech_s = began_s = ended_s = 0.0
    loud = quiet = utterances = 0
    async for chunk in chunks:
        samples = array("h", chunk)
        level = level_db(samples)
        if background_db is None:
            background_db = level
        heard_s += len(samples) / RATE_HZ
        if level > background_db + LOUDER_DB:
            loud, quiet = loud + 1, 0
            ended_s = heard_s
            if loud == LOUD_CHUNKS_MIN:
                began_s = heard_s - LOUD_CHUNKS_MIN * CHUNK_S
                utterances += 1
                yield {"event": "begins", "at_s": round(began_s, 2)}
            continue
        background_db += (level - background_db) * 0.1
        quiet += 1
        if loud >= LOUD_CHUNKS_MIN and quiet == QUIET_CHUNKS_MIN:
            speech_s += ended_s - began_s
            yield {"event": "ends", "at_s": round(ended_s, 2)}
        if loud < LOUD_CHUNKS_MIN or quiet >= QUIET_CHUNKS_MIN:
            loud = 0
    if loud >= LOUD_CHUNKS_MIN:
        speech_s += ended_s - began_s
    yield {"utterances": utterances, "speech_s": round(speech_s, 2), "heard_s": round(heard_s, 2)}


async def microphone(path: Path) -> AsyncIterator[bytes]:
    """The request: chunks of a WAV file, each when it would have been spoken."""
    with wave.open(str(path)) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, RATE_HZ):
            raise ValueError(f"{path} is not mono, 16 bit, {RATE_HZ} Hz")
        while chunk := file.readframes(int(RATE_HZ * CHUNK_S)):
            await asyncio.sleep(CHUNK_S / SPEED)
            yield chunk


def record(path: Path) -> None:
    """Make a recording: three utterances of a humming voice in a quiet room."""
    spoken = ((0.5, 1.2), (1.8, 2.2), (2.8, 3.4))
    noise = random.Random(7)
    samples = array("h")
    for index in range(4 * RATE_HZ):
        at_s = index / RATE_HZ
        value = noise.uniform(-60, 60)
        if any(begin <= at_s < end for begin, end in spoken):
            value += 9_000 * math.sin(math.tau * 180 * at_s) * (0.7 + 0.3 * math.sin(math.tau * 5 * at_s))
        samples.append(int(value))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(samples.tobytes())


async def listen(path: Path) -> None:
    """Send a recording and print what is heard in it, while it is still being sent."""
    async with hr.serve(detect) as worker, hr.Router(worker.address) as router:
        async for found in await router.generate(microphone(path), timeout=60):
            if "event" in found:
                print(f"{found['at_s']:5.2f} s  speech {found['event']}", flush=True)
            else:
                print("{utterances} utterances, {speech_s} s of speech in {heard_s} s".format(**found))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder, "recording.wav")
        if len(sys.argv) == 1:
            record(path)
        asyncio.run(listen(path))


if __name__ == "__main__":
    main()
