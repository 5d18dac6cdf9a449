"""What may be sent, how it arrives, and what is refused."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from typing import TypedDict

import headrace as hr
import msgspec
import numpy
import pytest
from headrace import codec as codec_module
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import serving

pytestmark = pytest.mark.asyncio


async def echo(request):
    return request


async def there_and_back(value, **options):
    async with serving(echo) as (_, router):
        return await router.call(value, **options)


class Point(msgspec.Struct):
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Reading:
    name: str
    points: list[Point]


class Colour(enum.Enum):
    RED = "red"


PLAIN = {
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "smallest integer": -(2**63),
    "largest integer": 2**64 - 1,
    "float": 1.5,
    "infinity": math.inf,
    "empty string": "",
    "string": "grüße \N{SNOWMAN} \x00",
    "long string": "x" * 200_000,
    "bytes": b"\x00\xff",
    "empty bytes": b"",
    "large bytes": bytes(300_000),
    "empty list": [],
    "list": [1, "two", [3.0, None]],
    "empty dict": {},
    "dict": {"a": {"b": [1, {"c": b"raw"}]}},
    "dict of integers": {1: "one", 2: "two"},
}


@pytest.mark.parametrize("name", PLAIN)
async def test_plain_values_arrive_as_they_were(name):
    value = PLAIN[name]
    arrived = await there_and_back(value)
    assert arrived == value
    assert type(arrived) is type(value)


MOMENT = datetime.datetime(2026, 11, 21, 10, 30, 1, 250_000, tzinfo=datetime.UTC)
IDENTITY = uuid.UUID("12345678123456781234567812345678")

CHANGED = {
    "tuple": ((1, (2, "x")), [1, [2, "x"]]),
    "set": ({1}, [1]),
    "bytearray": (bytearray(b"abc"), b"abc"),
    "large bytearray": (bytearray(100_000), bytes(100_000)),
    "memoryview": (memoryview(b"abcdef")[1:4], b"bcd"),
    "memoryview with gaps": (memoryview(b"abcdef")[::2], b"ace"),
    "memoryview of shorts": (memoryview(b"abcd").cast("H"), b"abcd"),
    "aware datetime": (MOMENT, MOMENT),
    "naive datetime": (MOMENT.replace(tzinfo=None), "2026-11-21T10:30:01.250000"),
    "date": (MOMENT.date(), "2026-11-21"),
    "uuid": (IDENTITY, str(IDENTITY)),
    "decimal": (decimal.Decimal("1.10"), "1.10"),
    "enum": (Colour.RED, "red"),
    "struct": (Point(1, 2.5), {"x": 1, "y": 2.5}),
    "dataclass": (Reading("r", [Point(1)]), {"name": "r", "points": [{"x": 1, "y": 0.0}]}),
    "numpy integer": (numpy.int64(7), 7),
    "numpy float": (numpy.float32(0.5), 0.5),
    "numpy boolean": (numpy.bool_(True), True),
    "numpy scalar inside": ({"a": [numpy.float64(0.25)]}, {"a": [0.25]}),
}


@pytest.mark.parametrize("name", CHANGED)
async def test_other_values_arrive_as_the_nearest_plain_value(name):
    value, expected = CHANGED[name]
    arrived = await there_and_back(value)
    assert arrived == expected
    assert type(arrived) is type(expected)


ARRAYS = {
    "vector": numpy.arange(5, dtype=numpy.int32),
    "matrix": numpy.arange(12, dtype=numpy.float64).reshape(3, 4),
    "without dimensions": numpy.array(3.5, dtype=numpy.float32),
    "empty": numpy.empty((0, 3), dtype=numpy.int16),
    "transposed": numpy.arange(12).reshape(3, 4).T,
    "every other": numpy.arange(10)[::2],
    "reversed": numpy.arange(10)[::-1],
    "broadcast": numpy.broadcast_to(numpy.float32(2), (2, 3)),
    "big-endian": numpy.arange(5, dtype=">i4"),
    "booleans": numpy.array([True, False]),
    "complex": numpy.array([1 + 2j]),
    "halves": numpy.array([1.5], dtype=numpy.float16),
    "fixed bytes": numpy.array([b"ab", b"c"]),
    "fixed strings": numpy.array(["ä", "bc"]),
    "large": numpy.arange(500_000, dtype=numpy.float32),
    "many dimensions": numpy.zeros((1,) * 12, dtype=numpy.uint8),
    "read-only": numpy.frombuffer(b"abcd", dtype=numpy.uint8),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("where", ["alone", "inside"])
async def test_arrays_arrive_with_their_type_shape_and_data(name, where):
    array = ARRAYS[name]
    if where == "alone":
        arrived = await there_and_back(array)
    else:
        value = await there_and_back({"a": [array, 1]})
        arrived, one = value["a"]
        assert one == 1
    assert isinstance(arrived, numpy.ndarray)
    assert arrived.dtype == array.dtype
    assert arrived.shape == array.shape
    assert (arrived == array).all()


async def test_received_arrays_are_aligned_and_keep_their_memory():
    async with serving(echo) as (_, router):
        arrived = [await router.call(numpy.full(n, n, numpy.float64)) for n in (1, 3000, 100_000)]
    for array in arrived:
        assert array.flags.aligned
        assert not array.flags.writeable
        assert (array == len(array)).all()


@pytest.mark.parametrize(
    "array",
    [
        numpy.array([{}], dtype=object),
        numpy.array(["2026-11-21"], dtype="datetime64[D]"),
        numpy.zeros(2, dtype=[("a", "i4")]),
    ],
)
async def test_arrays_of_other_elements_are_refused_by_name(array):
    async with serving(echo) as (_, router):
        with pytest.raises(TypeError, match="dtype"):
            router.generate(array)
        with pytest.raises(TypeError, match="dtype"):
            router.generate({"a": array})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "object"),
        ({"a": [object()]}, r"\['a'\]\[0\].*object"),
        (Reading("r", [object()]), r"\.points\[0\].*object"),  # type: ignore[list-item]
        (2**64, "int"),
        (1j, "complex"),
        (echo, "function"),
    ],
)
async def test_a_request_that_cannot_be_encoded_is_refused_at_once_naming_path_and_type(value, message):
    async with serving(echo) as (_, router):
        with pytest.raises((TypeError, OverflowError), match=message):
            router.generate(value)
        assert router.stats()["calls_total"] == 0


class Shape(TypedDict):
    sides: int


async def test_response_type_decodes_items():
    async with serving(echo) as (_, router):
        point = await router.call({"x": 1, "y": 2}, response_type=Point)
        assert point == Point(1, 2.0)
        reading = await router.call(Reading("r", [Point(1)]), response_type=Reading)
        assert reading == Reading("r", [Point(1)])
        assert await router.call([MOMENT], response_type=list[datetime.datetime]) == [MOMENT]
        assert await router.call({"sides": 3}, response_type=Shape) == {"sides": 3}
        assert await router.call(1, response_type=int | None) == 1
        stream = await router.generate({"x": 1}, response_type=Point)
        assert await stream.collect() == [Point(1)]


async def test_a_routers_response_type_is_the_default_for_its_calls():
    async with serving(echo, router={"response_type": Point}) as (_, router):
        assert await router.call({"x": 1}) == Point(1)
        assert await router.call({"x": 1}, response_type=dict) == {"x": 1}
        assert await (await router.generate({"x": 1})).collect() == [Point(1)]


@pytest.mark.parametrize("size", [0, 10, 100_000])
async def test_response_type_memoryview_gives_raw_items_without_a_copy(size):
    async with serving(echo) as (_, router):
        view = await router.call(bytes(size), response_type=memoryview)
        assert isinstance(view, memoryview)
        assert view.readonly
        assert view == bytes(size)
        array = numpy.frombuffer(view, numpy.uint8)
        del view
        assert array.sum() == 0


async def test_an_item_that_does_not_fit_its_response_type_is_a_validation_error():
    async def items(request):
        yield {"x": 1}
        yield {"x": "one"}
        yield {"x": 3}

    async with serving(items) as (_, router):
        stream = await router.generate(None, response_type=Point)
        assert await anext(stream) == Point(1)
        with pytest.raises(msgspec.ValidationError, match=r"\$\.x"):
            await anext(stream)
        # The stream itself is whole: the caller may go on.
        assert await anext(stream) == Point(3)


async def test_chunks_give_the_items_before_one_that_does_not_fit():
    async def items(request):
        for value in (1, 2, "three", 4):
            yield {"x": value}

    async with serving(items) as (_, router):
        stream = await router.generate(None, response_type=Point)
        seen: list[Point] = []
        with pytest.raises(msgspec.ValidationError):
            async for chunk in stream.chunks():
                seen += chunk
        assert seen == [Point(1), Point(2)]
        assert await stream.collect() == [Point(4)]


async def test_request_type_decodes_requests_and_names_what_does_not_fit():
    async def engine(request):
        assert isinstance(request, Point)
        return request.x

    async with serving(engine, request_type=Point) as (_, router):
        assert await router.call({"x": 5}) == 5
        assert await router.call(Point(6)) == 6
        with pytest.raises(hr.EngineError, match=r"cannot be decoded.*\$\.x"):
            await router.call({"x": "five"})


async def test_pydantic_models_travel_as_their_dump():
    pydantic = pytest.importorskip("pydantic")

    class Order(pydantic.BaseModel):
        name: str
        count: int = 1

    async with serving(echo) as (_, router):
        assert await router.call(Order(name="tea")) == {"name": "tea", "count": 1}
        assert await router.call({"name": "tea"}, response_type=Order) == Order(name="tea")
        with pytest.raises(pydantic.ValidationError):
            await router.call({"count": 2}, response_type=Order)


async def test_nothing_is_ever_pickled():
    class Evil:
        def __reduce__(self):
            raise AssertionError("pickled")

    async with serving(echo) as (_, router):
        with pytest.raises(TypeError, match="Evil"):
            router.generate({"a": Evil()})


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x03<i",
        b"\x03<i4\x01",
        b"\x03<i4\x02" + bytes(8),
        b"\x03|O8\x00" + bytes(27),
        b"\x03\xff\xff\xff\x00",
        b"\x03<i4\x01" + (2**62).to_bytes(8, "little") + bytes(32),
        b"\x03<i4\x01" + (2**64 - 1).to_bytes(8, "little") + bytes(64),
        b"\x03<i4\xff",
        b"\x02|a\x00",
        b"\x05i4,i4\x00",
        b"\x0b|S999999999\x01" + bytes(40),
    ],
)
async def test_a_malformed_array_is_a_value_error(payload):
    with pytest.raises(ValueError):
        codec_module.decode_array(payload)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(datetime.UTC)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(VALUES, min_size=1, max_size=20))
async def test_any_plain_value_round_trips(values):
    async def both(request):
        for value in request:
            yield value

    async with serving(both) as (_, router):
        assert await router.call([values]) == values
        assert await (await router.generate(values)).collect() == values


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=64))
async def test_any_bytes_decode_to_an_array_or_a_value_error(payload):
    try:
        array = codec_module.decode_array(payload)
    except ValueError:
        return
    assert isinstance(array, numpy.ndarray)
