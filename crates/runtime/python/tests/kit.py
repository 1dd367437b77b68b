"""What the tests share: trained models with stored outputs, small models written by hand, and ONNX's bytes without the package onnx."""

import atexit
import functools
import tempfile
from pathlib import Path

import infc
import numpy as np

EXAMPLES = Path(__file__).resolve().parents[4] / "examples" / "models"
TRAINED = ["digits_mlp", "glyphs_cnn", "language_gru", "snippets_transformer"]
F32, U8, I8, U16, I16, I32, I64, BOOL, F16, F64, U32, U64, BF16 = 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16
DTYPES = {
    F32: "float32", U8: "uint8", I8: "int8", U16: "uint16", I16: "int16", I32: "int32", I64: "int64", BOOL: "bool", F16: "float16",
    F64: "float64", U32: "uint32", U64: "uint64",
}  # fmt: skip

_folder = tempfile.TemporaryDirectory(prefix="infc-tests-")
atexit.register(_folder.cleanup)
FOLDER = Path(_folder.name)


@functools.lru_cache(None)
def trained(name: str) -> str:
    """The artifact of an example model."""
    return infc.compile(EXAMPLES / name / "model.onnx", FOLDER / f"{name}.infc")


@functools.lru_cache(None)
def by_hand(model: bytes, *args: str) -> str:
    """The artifact of a model that a test has written."""
    return infc.compile(model, FOLDER / f"by-hand-{by_hand.cache_info().currsize}.infc", args=args)


def stored(name: str, number: int):
    """Input and output of a stored run, with their names."""
    folder = EXAMPLES / name / f"test_data_set_{number}"
    return [read_tensor((folder / f"{kind}_0.pb").read_bytes()) for kind in ("input", "output")]


def read_tensor(data: bytes):
    """Name and values of a TensorProto with raw data."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        value = varint()
        if key & 7 == 2:
            length = value
            value = data[at : at + length]
            at += length
        fields.setdefault(key >> 3, []).append(value)
    values = np.frombuffer(fields[9][0], DTYPES[fields[2][0]]).reshape(fields.get(1, []))
    return fields[8][0].decode(), values


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _message(*fields) -> bytes:
    """A protobuf message of (number, value) pairs."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(value)) + value
    return out


def _port(name: str, dtype: int, dims) -> bytes:
    sizes = [(1, _message((1, d) if isinstance(d, int) else (2, d))) for d in dims]
    return _message((1, name), (2, _message((1, _message((1, dtype), (2, _message(*sizes)))))))


def model(nodes, inputs, outputs) -> bytes:
    """An ONNX model. A node is 'y = Op a b', a port (name, dtype, dims)."""
    graph = []
    for node in nodes:
        results, _, (op, *operands) = (part.split() for part in node.partition("="))
        graph.append((1, _message(*((1, o) for o in operands), *((2, r) for r in results), (3, f"node_{op}"), (4, op))))
    graph.append((2, "by hand"))
    graph += [(11, _port(*p)) for p in inputs] + [(12, _port(*p)) for p in outputs]
    return _message((1, 9), (7, _message(*graph)), (8, _message((2, 18))))
