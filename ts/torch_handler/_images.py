"""What a request sends as an image: bytes of a file, the same in base64, or the numbers of a tensor."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ts.torch_handler._optional import needed
from ts.torch_handler._requests import UnreadableRows, content_of

# What Pillow raises for broken files, by format.
_BROKEN = (OSError, SyntaxError, ValueError, LookupError, EOFError, OverflowError, TypeError, struct.error, zlib.error)


def tensors_of(rows: Sequence[Any], transform: Callable[[Any], Any], handler: str) -> list[Any]:
    """One tensor a row.  Raises UnreadableRows naming every bad row, ModuleNotFoundError without Pillow."""
    tensors, reasons = [], {}
    for index, row in enumerate(rows):
        try:
            tensors.append(_tensor_of(row, transform, handler))
        except _NoImage as error:
            reasons[index] = str(error)
    if reasons:
        raise UnreadableRows(reasons)
    return tensors


class _NoImage(ValueError):
    pass


def _tensor_of(row: Any, transform: Callable[[Any], Any], handler: str) -> Any:
    sent = content_of(row)
    if not sent:
        raise _NoImage("No image: send it as the request body or as the form field 'data'.")
    if isinstance(sent, str):
        try:
            sent = base64.b64decode(sent)
        except ValueError as error:
            raise _NoImage(f"Not an image: the text is not base64 ({error}).") from error
    if isinstance(sent, (bytes, bytearray)):
        return transform(_opened(sent, handler))
    try:
        return torch.tensor(sent, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise _NoImage(f"Not an image: its numbers make no tensor ({error}).") from error


def _opened(content: bytes | bytearray, handler: str) -> Any:
    pillow = needed("PIL.Image", "pillow", f"{handler} reads images")
    try:
        image = pillow.open(io.BytesIO(content))
        image.load()
    except pillow.DecompressionBombError as error:
        raise _NoImage(f"The image is too large: {error}") from error
    except pillow.UnidentifiedImageError as error:
        raise _NoImage(f"Not an image: no known format begins as these {len(content)} bytes do.") from error
    except _BROKEN as error:
        raise _NoImage(f"The image is broken: {error}") from error
    return image


def prepare(handler: str, *, limited: bool) -> None:
    """Import Pillow and its common formats, so that no request waits for that; without a limit, read any size.

    Raises ModuleNotFoundError without Pillow.
    """
    pillow = needed("PIL.Image", "pillow", f"{handler} reads images")
    pillow.preinit()
    if not limited:
        pillow.MAX_IMAGE_PIXELS = None
