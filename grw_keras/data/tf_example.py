"""tf.train.Example in bytes, without TensorFlow: the messages that records are made of.

Only what records need: `encode` writes whole messages, always the same bytes for the same data
(protobuf itself promises no order of a map's entries), and `bytes_list` reads one list.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence

# The one wire type of protobuf that an Example needs: bytes that follow their length
# (protobuf.dev/programming-guides/encoding); its numbers are packed into such bytes too.
_LENGTH = 2
# Fields of tensorflow/core/example/feature.proto.
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def encode(features: Mapping[str, Sequence[bytes] | Sequence[float] | Sequence[int]]) -> bytes:
    """The bytes of a tf.train.Example.

    Args:
        features: lists by name, each of bytes, of floats (kept as float32), or of integers in
            [-2⁶³, 2⁶³).

    Raises:
        TypeError: a value of another type.

    Example:
        >>> [bytes(item) for item in bytes_list(encode({"frames": [b"a", b"b"]}), "frames")]
        [b'a', b'b']
    """
    entries = (
        _field(1, name.encode()) + _field(2, _feature(name, features[name]))
        for name in sorted(features)
    )
    return _field(1, b"".join(_field(1, entry) for entry in entries))


def bytes_list(example: bytes, name: str) -> list[memoryview]:
    """One list of bytes from an Example, without copying them.

    Raises:
        KeyError: it has no such list.
        ValueError: these bytes are no Example.
    """
    for _, features in _fields(memoryview(example)):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            if bytes(parts.get(1, b"")) == name.encode() and 2 in parts:
                lists = dict(_fields(parts[2]))
                if _BYTES_LIST in lists:
                    return [value for _, value in _fields(lists[_BYTES_LIST])]
    raise KeyError(name)


def _feature(name: str, values: Sequence) -> bytes:
    if all(isinstance(value, bytes) for value in values):
        return _field(_BYTES_LIST, b"".join(_field(1, value) for value in values))
    if all(isinstance(value, int) for value in values):
        packed = b"".join(_varint(value & 0xFFFF_FFFF_FFFF_FFFF) for value in values)
        return _field(_INT64_LIST, _field(1, packed))
    if all(isinstance(value, float) for value in values):
        return _field(_FLOAT_LIST, _field(1, struct.pack(f"<{len(values)}f", *values)))
    kinds = sorted({type(value).__name__ for value in values})
    raise TypeError(
        f"`features[{name!r}]` must be all bytes, all int or all float. Received: {kinds}"
    )


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, bytes) of every field of a message whose fields all carry their length."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        if tag & 7 != _LENGTH:
            raise ValueError(f"no tf.train.Example: wire type {tag & 7} at byte {position}")
        length, position = _read_varint(message, position)
        if position + length > len(message):
            raise ValueError(f"no tf.train.Example: it ends inside the field at byte {position}")
        yield tag >> 3, message[position : position + length]
        position += length


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 64:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError(f"no tf.train.Example: a number at byte {position} does not end")
