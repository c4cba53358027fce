"""Whether an ONNX file takes weights from another file, read from its bytes: a device has no onnx package.

ONNX is one protobuf message. Only its fields that can lead to a tensor are followed, however a writer orders or encodes
them. Source: onnx.proto of ONNX 1.23, and protobuf's "Encoding" (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

TENSOR_PARTS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
}
"""Message → number of a field → the message in it, for all that a tensor can be in."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
"""Fields of a tensor: where its numbers are, and whether they are elsewhere (0 is here)."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10


def has_external_data(content: bytes) -> bool:
    """Whether any tensor of an ONNX file, at any depth, says that its numbers are in another file.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    left = [
        ("Model", 0, len(content))
    ]  # a list and no recursion: graphs may lie in graphs as deep as a file is long
    while left:
        message, at, end = left.pop()
        while at < end:
            tag, at = _read_varint(content, at, end)
            if tag >> 32:  # readers keep 32 bits of it, and would find another field than we do
                raise ValueError("a field's number is too large")
            field, wire = tag >> 3, tag & 7
            value = 0
            if wire == _VARINT:
                value, at = _read_varint(content, at, end)
                start = at
            elif wire == _BYTES:
                length, start = _read_varint(content, at, end)
                at = start + length
            elif wire in (_FIXED64, _FIXED32):
                start = at
                at += 8 if wire == _FIXED64 else 4
            else:
                raise ValueError(f"no such wire type: {wire}")
            if at > end:
                raise ValueError("a field is cut off")
            if message == "Tensor":
                if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value):
                    return True
            elif wire == _BYTES and field in TENSOR_PARTS[message]:
                left.append((TENSOR_PARTS[message][field], start, at))
    return False


def _read_varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where the next field begins."""
    number = 0
    for n in range(_VARINT_BYTES):
        if at >= end:
            break
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            return number, at
    raise ValueError("a number does not end")
