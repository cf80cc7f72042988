"""Tensors of the Open Inference Protocol: from a request to nested lists, and from a handler's results to a response.

Bytes are those of the protocol's binary extension: numbers in little-endian order, each element of BYTES after its
length in four bytes.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from ts.torch_handler.request_envelope._rows import plain

_DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}
_FLOATS = ("FP16", "FP32", "FP64", "BF16")
_KNOWN = (*_DTYPES, "BF16", "BYTES")
_MOST_AXES = 64  # numpy has no more, and each is a level of nested lists


def read_tensor(tensor: Any, where: str, raw: memoryview | None) -> dict[str, Any]:
    """The tensor of a request, its `data` nested as its `shape` says; one element of BYTES is not nested at all.

    `raw` is its data when these came as bytes, else they stand in `data`, flat or nested.  A tensor without elements
    is an empty list.  Raises ValueError, naming the field of the request, which `where` leads to.
    """
    if not isinstance(tensor, dict):
        raise ValueError(f"{where} is not an object")
    for field in ("name", "shape", "datatype"):
        if field not in tensor:
            raise ValueError(f"{where}.{field} is missing")
    shape, datatype = tensor["shape"], tensor["datatype"]
    if not isinstance(tensor["name"], str):
        raise ValueError(f"{where}.name is not a string")
    where = f"{where} ({tensor['name'][:80]!r})"
    if datatype not in _KNOWN:
        raise ValueError(f"{where}.datatype is {str(datatype)[:80]!r}; known are {', '.join(_KNOWN)}")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{where}.shape is not a list of at most {_MOST_AXES} whole numbers, 0 or more")
    if raw is not None:
        values = _from_bytes(raw, datatype, where)
    elif "data" in tensor:
        values = _flat(tensor["data"], where)
    else:
        raise ValueError(f"{where}.data is missing")
    if len(values) != math.prod(shape):
        raise ValueError(f"{where}.data has {len(values)} elements, its shape {shape} asks for {math.prod(shape)}")
    if datatype in _FLOATS:
        values = [float(value) if type(value) is int else value for value in values]  # JSON has one kind of number
    one = datatype == "BYTES" and len(values) == 1
    return {**tensor, "data": values[0] if one else _nested(values, shape)}


def write_tensor(name: str, value: Any, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """A tensor of a response, without its data when these shall be `binary`: then they are the bytes.

    A number, a text or an object is a tensor of one element.  What is no array of numbers or booleans is BYTES, with
    the elements as JSON.  Raises TypeError for numbers that the protocol does not know.
    """
    datatype, shape, values = _described(value)
    if binary:
        raw = values.tobytes() if isinstance(values, np.ndarray) else b"".join(_counted(each) for each in values)
        return {
            "name": name,
            "datatype": datatype,
            "shape": shape,
            "parameters": {"binary_data_size": len(raw)},
        }, raw
    if isinstance(values, np.ndarray):
        return {"name": name, "datatype": datatype, "data": values.ravel().tolist(), "shape": shape}, b""
    texts, is_base64 = _texts(values)
    written = {"name": name, "datatype": datatype, "data": texts, "shape": shape}
    return ({**written, "parameters": {"content_type": "base64"}} if is_base64 else written), b""


def _flat(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError(f"{where}.data is not a list")
    values: list[Any] = data
    for _ in range(_MOST_AXES):
        if not any(isinstance(each, list) for each in values):
            return values
        if not all(isinstance(each, list) for each in values):
            break
        values = [value for each in values for value in each]
    raise ValueError(f"{where}.data is not nested evenly")


def _nested(values: list[Any], shape: list[int]) -> list[Any]:
    if not values or not shape:
        return values
    for size in reversed(shape[1:]):
        values = [values[at : at + size] for at in range(0, len(values), size)]
    return values


def _from_bytes(raw: memoryview, datatype: str, where: str) -> list[Any]:
    if datatype == "BYTES":
        return list(_elements(raw, where))
    size = 2 if datatype == "BF16" else np.dtype(_DTYPES[datatype]).itemsize
    if len(raw) % size:
        raise ValueError(f"{where} has {len(raw)} bytes of data, which is no multiple of {size}")
    if datatype == "BF16":  # the upper half of a float32
        values: np.ndarray[Any, Any] = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(raw, np.dtype(_DTYPES[datatype]).newbyteorder("<"))
    return list(values.tolist())


def _elements(raw: memoryview, where: str) -> Iterator[str | bytes]:
    """Text as it would have come in JSON, and bytes only where they are no text."""
    at = 0
    while at < len(raw):
        end = at + 4 + (struct.unpack_from("<I", raw, at)[0] if at + 4 <= len(raw) else 0)
        if at + 4 > len(raw) or end > len(raw):
            raise ValueError(f"{where} has an element of BYTES that ends after its data")
        element = bytes(raw[at + 4 : end])
        try:
            yield element.decode()
        except UnicodeDecodeError:
            yield element
        at = end


def _described(value: Any) -> tuple[str, list[int], np.ndarray[Any, Any] | list[Any]]:
    """Datatype, shape, and the elements: an array in the protocol's order of bytes, or a list for BYTES."""
    if hasattr(value, "detach"):  # a tensor of torch
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if isinstance(value, (list, tuple)):
        value = _array(value)
    elif not isinstance(value, (np.ndarray, np.generic)):
        value = np.array(value) if isinstance(value, (bool, int, float)) else _objects([value])
    shape = list(value.shape) or [1]
    if value.dtype.kind in "OSU":
        return "BYTES", shape, value.ravel().tolist()
    datatype = _DATATYPES.get(value.dtype.newbyteorder("=").name)
    if datatype is None:
        raise TypeError(f"an array of {value.dtype} cannot be sent as a tensor; known are {', '.join(_DTYPES)}")
    return datatype, shape, np.ascontiguousarray(value, value.dtype.newbyteorder("<"))


def _array(items: Any) -> np.ndarray[Any, Any]:
    """Lists of numbers, evenly nested, as an array of the kind that holds them; of anything else one of objects."""
    items = plain(items)
    elements, shape = items, [len(items)]
    while elements and all(isinstance(each, list) for each in elements):
        if len({len(each) for each in elements}) > 1 or len(shape) == _MOST_AXES:
            break
        shape.append(len(elements[0]))
        elements = [value for each in elements for value in each]
    kinds = {type(each) for each in elements}
    if kinds <= {int, float} or kinds == {bool}:
        array = np.array(elements)
        if array.dtype.kind != "O":  # whole numbers beyond 64 bits
            return array.reshape(shape)
    return _objects(elements, shape)


def _objects(elements: list[Any], shape: list[int] | None = None) -> np.ndarray[Any, Any]:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array if shape is None else array.reshape(shape)


def _texts(elements: list[Any]) -> tuple[list[Any], bool]:
    """Elements of BYTES for JSON, and whether those are Base64, since some are bytes that are no text."""
    try:
        return [each.decode() if isinstance(each, (bytes, bytearray)) else plain(each) for each in elements], False
    except UnicodeDecodeError:
        return [base64.b64encode(_raw(each)).decode() for each in elements], True


def _counted(element: Any) -> bytes:
    raw = _raw(element)
    return struct.pack("<I", len(raw)) + raw


def _raw(element: Any) -> bytes:
    if isinstance(element, (bytes, bytearray)):
        return bytes(element)
    return (element if isinstance(element, str) else json.dumps(plain(element))).encode()
