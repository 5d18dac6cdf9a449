"""What objects mean on the wire: msgpack through msgspec for values, a typed header and raw bytes for
arrays. Raw ``bytes`` never come here. Nothing is ever pickled.

The layout of arrays is specified in ``docs/protocol.md``.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any, cast

import msgspec
from headrace._headrace import Codec

ARRAY_EXTENSION = 1
"""The msgpack extension type of an array inside a value."""

_RAW, _MSGPACK, _NDARRAY = 0, 1, 2
"""The encodings of items in the protocol."""

_ALIGNMENT = 16
"""Array data begin at a multiple of this: the alignment of the widest vector loads that numpy relies on."""

_PLAIN_KINDS = frozenset("biufcSUV")
"""Kinds of element that are plain bytes. Objects, datetimes and structured types are not sent as arrays."""


_ELEMENT = re.compile(f"[<>|][{''.join(sorted(_PLAIN_KINDS))}][0-9]{{1,9}}")
"""What ``numpy.dtype.str`` is for these kinds. numpy itself would take much more from a peer."""


class Unencodable(TypeError):
    """A value, or a part of it, is of a type that is not sent."""


def encode_array(value: object) -> bytes | None:
    """Encode a numpy array: its element type, its shape, its data in C order.

    Args:
        value: anything; only ``numpy.ndarray`` is encoded.

    Returns:
        The payload, or ``None`` when the value is no array.

    Raises:
        TypeError: the array's elements are not plain numbers or bytes.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray):
        return None
    array: Any = value
    if array.dtype.kind not in _PLAIN_KINDS or array.dtype.names is not None:
        raise Unencodable(f"an array of dtype {array.dtype} cannot be sent; convert it to numbers")
    element = array.dtype.str.encode()
    header = bytearray([len(element)])
    header += element
    header.append(array.ndim)
    for extent in array.shape:
        header += int(extent).to_bytes(8, "little")
    header += bytes(-len(header) % _ALIGNMENT)
    contiguous = numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8)
    return b"".join((header, contiguous.data))


def decode_array(payload: Any) -> Any:
    """Decode a payload of :func:`encode_array`.

    Args:
        payload: a buffer; the array shares its memory and is read-only.

    Returns:
        A ``numpy.ndarray``.

    Raises:
        ValueError: the payload is malformed.
        ModuleNotFoundError: numpy is not installed.
    """
    import numpy

    view = memoryview(payload)
    try:
        length = view[0]
        name = bytes(view[1 : 1 + length]).decode("ascii")
        if not _ELEMENT.fullmatch(name):
            raise ValueError(f"element type {name!r} is not allowed")
        element = numpy.dtype(name)
        dimensions = view[1 + length]
        start = 2 + length
        if start + 8 * dimensions > len(view):
            raise ValueError("the array is malformed: its shape is cut off")
        shape = tuple(
            int.from_bytes(view[start + 8 * axis : start + 8 * axis + 8], "little")
            for axis in range(dimensions)
        )
        start += 8 * dimensions
        start += -start % _ALIGNMENT
        return numpy.frombuffer(view[start:], dtype=element).reshape(shape)
    except (IndexError, TypeError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"the array is malformed: {error}") from error


def _extension(code: int, data: memoryview) -> Any:
    if code == ARRAY_EXTENSION:
        return decode_array(bytes(data))
    raise ValueError(f"msgpack extension {code} is not known")


def _encode_hook(value: Any) -> Any:
    array = encode_array(value)
    if array is not None:
        return msgspec.msgpack.Ext(ARRAY_EXTENSION, array)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    dump = getattr(cast("Any", type(value)), "model_dump", None)
    if dump is not None:
        return dump(value)
    raise NotImplementedError


def _find_unsupported(value: Any, path: str, depth: int = 0) -> tuple[str, type[Any]] | None:
    """The first part of a value that cannot be encoded: its path and its type."""
    if depth > 32:
        return None
    try:
        _encoder.encode(value)
    except Exception:
        pass
    else:
        return None
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        entries = cast("dict[Any, Any]", value)
        parts = [(f"{path}[{key!r}]", part) for key, part in entries.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        sequence = cast("list[Any]", value)
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(sequence)]
    else:
        fields: Any = getattr(value, "__struct_fields__", None) or getattr(value, "__dataclass_fields__", ())
        names = [str(name) for name in fields]
        parts = [(f"{path}.{name}", getattr(cast("object", value), name, None)) for name in names]
    for name, part in parts:
        found = _find_unsupported(part, name, depth + 1)
        if found is not None:
            return found
    return path, type(cast("object", value))


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_hook)


def encode(value: Any) -> bytes:
    """Encode a value as msgpack, saying which part of it cannot be.

    Raises:
        TypeError: a part is of a type that is not sent; the message names its path and its type.
    """
    try:
        return _encoder.encode(value)
    except RecursionError:
        raise Unencodable("the value is nested too deeply, or contains itself") from None
    except Exception as error:
        found = _find_unsupported(value, "item")
        if found is None:
            raise
        path, kind = found
        raise Unencodable(
            f"{path} of type {kind.__module__}.{kind.__qualname__} cannot be sent: {error}"
        ) from None


def encode_item(value: Any) -> tuple[int, bytes]:
    """An item as its encoding and its bytes: what :class:`Codec` does natively, for threads of synchronous
    engines. They may end anywhere as the interpreter exits, but not in Python code below a native frame.

    Raises:
        TypeError: as :func:`encode`.
    """
    if isinstance(value, bytes):
        return _RAW, value
    if isinstance(value, bytearray | memoryview):
        return _RAW, bytes(cast("bytearray", value))
    array = encode_array(value)
    return (_MSGPACK, encode(value)) if array is None else (_NDARRAY, array)


def _decoder(kind: Any) -> Callable[[Any], Any]:
    dec_hook: Callable[[Any, Any], Any] | None = None
    validate = getattr(kind, "model_validate", None)
    if validate is not None:
        untyped = msgspec.msgpack.Decoder(ext_hook=_extension)
        return lambda payload: validate(untyped.decode(payload))
    return msgspec.msgpack.Decoder(kind, ext_hook=_extension, dec_hook=dec_hook).decode


@functools.lru_cache(maxsize=256)
def codec(kind: Any = None) -> Codec:
    """The codec that decodes into ``kind``.

    Args:
        kind: a type that msgspec decodes into, a pydantic model, ``memoryview`` for raw items without a
            copy, or ``None`` for plain values.

    Raises:
        TypeError: msgspec does not know how to decode into the type.
    """
    views = kind is memoryview
    typed: Any = Any if kind is None or kind in (bytes, memoryview) else kind
    return Codec(_encoder.encode, encode, encode_array, _decoder(typed), decode_array, views)
