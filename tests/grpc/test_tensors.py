"""Tensor data there and back, in every form the protocol has."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tserve.errors import BadRequest
from tserve.grpc.messages import message
from tserve.grpc.tensors import fill_contents, json_of_raw, raw_of_contents, raw_of_values

INTEGERS = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
VALUES = (
    {name: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for name, bits in INTEGERS.items()}
    | {f"U{name}": st.integers(0, 2**bits - 1) for name, bits in INTEGERS.items()}
    | {"BOOL": st.booleans(), "BYTES": st.binary(), "FP32": st.floats(width=32), "FP64": st.floats()}
)
Contents = message("inference.InferTensorContents")
FIELDS = {"BOOL": "bool_contents", "BYTES": "bytes_contents", "FP32": "fp32_contents", "FP64": "fp64_contents"}
FIELDS |= dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents") | {"INT64": "int64_contents"}
FIELDS |= dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents") | {"UINT64": "uint64_contents"}


@given(st.data())
def test_typed_contents_come_back(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from(sorted(VALUES)))
    values = data.draw(st.lists(VALUES[datatype], max_size=20))
    raw = raw_of_contents(datatype, Contents(**{FIELDS[datatype]: values}), "x")
    back = Contents()
    fill_contents(back, datatype, raw, "x")
    assert raw_of_contents(datatype, back, "x") == raw
    assert len(getattr(back, FIELDS[datatype])) == len(values)
    if datatype not in ("FP32", "FP64"):  # NaN is not itself
        assert list(getattr(back, FIELDS[datatype])) == values
        if datatype != "BYTES":
            assert json_of_raw(datatype, raw, "x") == values


@pytest.mark.parametrize(
    ("datatype", "raw", "values"),
    [
        ("INT32", b"\x01\x00\x00\x00\xfe\xff\xff\xff", [1, -2]),
        ("FP16", struct.pack("<2e", 0.5, -2.0), [0.5, -2.0]),
        ("BOOL", b"\x00\x01", [False, True]),
        ("BYTES", b"\x02\x00\x00\x00hi\x00\x00\x00\x00", ["aGk=", ""]),
    ],
)
def test_raw_bytes_as_json(datatype: str, raw: bytes, values: list[object]) -> None:
    assert json_of_raw(datatype, raw, "x") == values
    if datatype != "BYTES":
        assert raw_of_values(datatype, values, "x") == raw


@pytest.mark.parametrize(
    ("datatype", "raw"),
    [("INT32", b"abc"), ("BYTES", b"\x02\x00"), ("BYTES", b"\x02\x00\x00\x00h"), ("BF16", b"ab"), ("INT7", b"")],
)
def test_raw_bytes_that_are_no_values(datatype: str, raw: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^x: "):
        json_of_raw(datatype, raw, "x")


@pytest.mark.parametrize(("datatype", "values"), [("UINT8", [-1]), ("INT8", [200]), ("FP32", ["a"]), ("INT64", [0.5])])
def test_values_that_are_of_another_type(datatype: str, values: list[object]) -> None:
    with pytest.raises(BadRequest, match=f"its data are not {datatype}"):
        raw_of_values(datatype, values, "x")
