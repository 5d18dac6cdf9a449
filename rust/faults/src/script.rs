//! What happens to the bytes of one direction of one connection, as a function of their positions. There is
//! no socket and no clock here, so a script can be followed byte by byte. Positions count the bytes that have
//! been passed on; a fault at position `k` comes when exactly `k` bytes have.

use std::num::NonZeroUsize;
use std::time::Duration;

use fastrand::Rng;

/// How a direction ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The whole connection is reset, towards both ends.
    Reset,
    /// The receiver is told that nothing more comes; what still comes is read and dropped. The other direction
    /// goes on.
    HalfClose,
    /// Nothing more is read or passed on, and nobody is told: both ends stay connected, as over a network that
    /// drops every packet.
    BlackHole,
}

/// A fault and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes that pass before it.
    pub at: u64,
    /// What happens then.
    pub fault: Fault,
}

/// A byte that is changed on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The byte's position.
    pub at: u64,
    /// What it is combined with by exclusive or; 0 changes nothing.
    pub mask: u8,
}

/// What happens to one direction of one connection. The default passes everything on as it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// How much later everything arrives. Default none.
    pub delay: Duration,
    /// How much later still, at most: drawn anew for each read, never changing the order. Default none.
    pub jitter: Duration,
    /// Most bytes of one write. Default no limit.
    pub slice: Option<NonZeroUsize>,
    /// Bytes to change. Default none.
    pub corrupt: Vec<Corruption>,
    /// How the direction ends. Default as its ends decide.
    pub cut: Option<Cut>,
    /// What jitter is drawn from. Default 0.
    pub seed: u64,
}

impl Script {
    /// A script that only ends its direction, at byte `at`.
    #[must_use]
    pub fn cut(fault: Fault, at: u64) -> Self {
        Self { cut: Some(Cut { at, fault }), ..Self::default() }
    }

    /// A script that only changes one byte.
    #[must_use]
    pub fn corrupt(at: u64, mask: u8) -> Self {
        Self { corrupt: vec![Corruption { at, mask }], ..Self::default() }
    }

    /// A script that only writes `bytes` at a time; 0 stands for no limit.
    #[must_use]
    pub fn slices(bytes: usize) -> Self {
        Self { slice: NonZeroUsize::new(bytes), ..Self::default() }
    }
}

/// What to do with the bytes that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write this many of them, at least one.
    Write(usize),
    /// The direction ends here.
    Cut(Fault),
}

/// How far a direction has come in its script.
#[derive(Debug)]
pub(crate) struct Progress {
    script: Script,
    position: u64,
    dice: Rng,
}

impl Progress {
    pub(crate) fn new(script: Script) -> Self {
        let dice = Rng::with_seed(script.seed);
        Self { script, position: 0, dice }
    }

    /// The fault that comes now, before any further byte.
    pub(crate) fn due(&self) -> Option<Fault> {
        self.script.cut.filter(|cut| cut.at <= self.position).map(|cut| cut.fault)
    }

    /// What to do with `waiting` bytes, which are not none.
    pub(crate) fn next(&self, waiting: usize) -> Step {
        if let Some(fault) = self.due() {
            return Step::Cut(fault);
        }
        let slice = self.script.slice.map_or(waiting, |slice| waiting.min(slice.get()));
        let until_cut = self.script.cut.map_or(u64::MAX, |cut| cut.at - self.position);
        Step::Write(slice.min(usize::try_from(until_cut).unwrap_or(usize::MAX)))
    }

    /// Changes what is to be changed of `bytes`, which are the next to be written.
    pub(crate) fn corrupt(&self, bytes: &mut [u8]) {
        for change in &self.script.corrupt {
            let index = change.at.checked_sub(self.position).and_then(|index| usize::try_from(index).ok());
            if let Some(byte) = index.and_then(|index| bytes.get_mut(index)) {
                *byte ^= change.mask;
            }
        }
    }

    /// So many bytes have been written.
    pub(crate) const fn advance(&mut self, written: usize) {
        self.position += written as u64;
    }

    /// How much later the bytes of one read arrive.
    pub(crate) fn lateness(&mut self) -> Duration {
        let jitter_ns = u64::try_from(self.script.jitter.as_nanos()).unwrap_or(u64::MAX);
        if jitter_ns == 0 {
            return self.script.delay;
        }
        self.script.delay + Duration::from_nanos(self.dice.u64(..=jitter_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes `input` through a script in reads of `read` bytes: what comes out, in which writes, and how the
    /// direction ended.
    fn play(script: Script, input: &[u8], read: usize) -> (Vec<u8>, Vec<usize>, Option<Fault>) {
        let mut progress = Progress::new(script);
        let (mut out, mut writes) = (Vec::new(), Vec::new());
        for chunk in input.chunks(read) {
            let mut chunk = chunk.to_vec();
            progress.corrupt(&mut chunk);
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                match progress.next(rest.len()) {
                    Step::Write(bytes) => {
                        assert!((1..=rest.len()).contains(&bytes));
                        out.extend_from_slice(&rest[..bytes]);
                        writes.push(bytes);
                        progress.advance(bytes);
                        rest = &rest[bytes..];
                    }
                    Step::Cut(fault) => return (out, writes, Some(fault)),
                }
            }
        }
        (out, writes, progress.due())
    }

    const INPUT: &[u8] = b"the channel that carries water to the wheel";

    #[test]
    fn a_cut_comes_after_exactly_its_bytes_however_they_are_read_and_sliced() {
        for fault in [Fault::Reset, Fault::HalfClose, Fault::BlackHole] {
            for at in 0..=INPUT.len() {
                for (read, slice) in [(1, 0), (7, 3), (INPUT.len(), 0), (INPUT.len(), 1)] {
                    let script = Script { slice: NonZeroUsize::new(slice), ..Script::cut(fault, at as u64) };
                    let (out, _, ended) = play(script, INPUT, read);
                    assert_eq!((out, ended), (INPUT[..at].to_vec(), Some(fault)), "at {at}, read {read}");
                }
            }
        }
        let beyond = Script::cut(Fault::Reset, INPUT.len() as u64 + 1);
        assert_eq!(play(beyond, INPUT, 5).2, None);
    }

    #[test]
    fn slices_bound_every_write_and_keep_every_byte() {
        for slice in 1..10 {
            let (out, writes, ended) = play(Script::slices(slice), INPUT, 16);
            assert_eq!((out, ended), (INPUT.to_vec(), None));
            assert!(writes.iter().all(|&bytes| bytes <= slice), "{writes:?}");
        }
        assert_eq!(play(Script::slices(0), INPUT, 16).1, [16, 16, 11]);
    }

    #[test]
    fn exactly_the_named_bytes_change_wherever_reads_fall() {
        for read in 1..=INPUT.len() {
            for at in 0..INPUT.len() {
                let mut expected = INPUT.to_vec();
                expected[at] ^= 0x21;
                assert_eq!(play(Script::corrupt(at as u64, 0x21), INPUT, read).0, expected);
            }
        }
        let twice = vec![Corruption { at: 0, mask: 1 }, Corruption { at: 42, mask: 0xff }];
        let (out, ..) = play(Script { corrupt: twice, ..Script::default() }, INPUT, 40);
        assert_eq!((out[0], out[42]), (INPUT[0] ^ 1, INPUT[42] ^ 0xff));
        assert_eq!(out[1..42], INPUT[1..42]);
    }

    #[test]
    fn lateness_lies_between_delay_and_jitter_and_repeats_by_seed() {
        let (delay, jitter) = (Duration::from_millis(3), Duration::from_millis(5));
        let drawn = |seed| {
            let mut progress = Progress::new(Script { delay, jitter, seed, ..Script::default() });
            (0..100).map(|_| progress.lateness()).collect::<Vec<_>>()
        };
        assert!(drawn(1).iter().all(|late| (delay..=delay + jitter).contains(late)));
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_eq!(Progress::new(Script { delay, ..Script::default() }).lateness(), delay);
    }
}
