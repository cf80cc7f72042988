"""Handler of the digits example: PNG bytes in, a probability for each of the ten digits out.

It imports nothing of the server and needs no image library: the PNG reader below knows every colour type and depth,
but no interlacing.  Any image becomes 8 x 8 grey, light ink on a dark ground, as the training scans are.
"""

import importlib.util
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

SIDE = 8
MAX_PIXELS = 1 << 20  # A worker must not spend seconds, or gigabytes, on one hostile image.
SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by PNG colour type
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # grey, RGB, palette index, grey + alpha, RGB + alpha
LUMA = torch.tensor([0.299, 0.587, 0.114])


class DigitsHandler:
    """Answers a whole batch with one forward pass; a bad image costs its own request only."""

    def initialize(self, context: Any) -> None:
        """Load the eager model that the manifest names out of the unpacked archive."""
        torch.set_num_threads(1)  # 8 x 8 pixels are too little work to share; more threads only slow workers down.
        folder = Path(context.system_properties["model_dir"])
        files = context.manifest["model"]
        spec = importlib.util.spec_from_file_location("digits_model", folder / files["modelFile"])
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.model = module.DigitNet()
        self.model.load_state_dict(torch.load(folder / files["serializedFile"], map_location="cpu", weights_only=True))
        self.model.eval()

    def handle(self, data: list[Any], context: Any) -> list[dict[str, Any]]:
        """One answer a row: `{"7": 0.998, "1": 0.001, ...}`, the likeliest first, or 400 and `{"error": ...}`."""
        answers: list[dict[str, Any]] = [{} for _ in data]
        scans: dict[int, torch.Tensor] = {}
        for index, row in enumerate(data):
            try:
                scans[index] = scan_of(image_bytes(row))
            except ValueError as error:
                context.set_response_status(code=400, phrase="Bad Request", idx=index)
                answers[index] = {"error": str(error)}
        if scans:
            with torch.inference_mode():
                chances = self.model(torch.stack(list(scans.values()))).softmax(dim=1)
            for index, chance in zip(scans, chances, strict=True):
                ranked = chance.sort(descending=True, stable=True)
                pairs = zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
                answers[index] = {str(digit): round(value, 6) for digit, value in pairs}
        return answers


def image_bytes(row: Any) -> bytes:
    """The PNG bytes of one request: its form field `data` or its body.  ValueError if there are none."""
    image = (row.get("data") or row.get("body")) if isinstance(row, dict) else None
    if not image:
        raise ValueError("No image: send the bytes of a PNG as the request body or as the form field 'data'.")
    if not isinstance(image, bytes | bytearray):
        raise ValueError("Not an image: send the raw bytes of a PNG, not text or JSON.")
    return bytes(image)


def scan_of(image: bytes) -> torch.Tensor:
    """What the network sees of a PNG: (1, 8, 8), brightness between 0 and 1.  ValueError for a PNG it cannot read."""
    return interpolate(read_png(image)[None, None], size=(SIDE, SIDE), mode="area")[0]


def read_png(image: bytes) -> torch.Tensor:
    """Decode a PNG to (height, width) brightness between 0 and 1; what is transparent is black.

    Follows the PNG specification (W3C, second edition), chapters 5 to 10.  ValueError says what is wrong.
    """
    header, palette, alphas, packed = _chunks(image)
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    if depth not in DEPTHS.get(colour, ()):
        raise ValueError(f"Broken PNG: colour type {colour} with bit depth {depth} does not exist.")
    if interlace:
        raise ValueError("Interlaced PNGs are not supported: save the image without interlacing.")
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"The image has {width} x {height} pixels; send between 1 and {MAX_PIXELS}.")
    stride = (width * CHANNELS[colour] * depth + 7) // 8
    step = max(1, CHANNELS[colour] * depth // 8)
    try:
        filtered = zlib.decompressobj().decompress(packed, height * (stride + 1))
    except zlib.error as error:
        raise ValueError("Broken PNG: its pixels cannot be decompressed.") from error
    if len(filtered) < height * (stride + 1):
        raise ValueError("Broken PNG: pixels are missing.")
    lines = torch.frombuffer(_unfilter(filtered, stride, step), dtype=torch.uint8).view(height, stride)
    values = _samples(lines, depth)[:, : width * CHANNELS[colour]].reshape(height, width, CHANNELS[colour])
    if colour == 3:
        values = _look_up(values[:, :, 0], palette, alphas)
    elif depth < 8:
        values = values * (255 // (2**depth - 1))
    return _brightness(values.float() / 255)


def _chunks(image: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """The contents of IHDR, PLTE, tRNS and all IDAT chunks together."""
    if not image.startswith(SIGNATURE):
        raise ValueError("Not a PNG image.")
    found: dict[bytes, bytes] = {b"PLTE": b"", b"tRNS": b"", b"IDAT": b""}
    parts: list[bytes] = []
    kind, at = b"", len(SIGNATURE)
    while kind != b"IEND":
        if at + 12 > len(image):
            raise ValueError("Broken PNG: it ends too early.")
        size, kind = struct.unpack_from(">I4s", image, at)
        body = image[at + 8 : at + 8 + size]
        if at + 12 + size > len(image):
            raise ValueError("Broken PNG: it ends too early.")
        if zlib.crc32(kind + body) != struct.unpack_from(">I", image, at + 8 + size)[0]:
            raise ValueError("Broken PNG: a checksum does not match.")
        if kind == b"IDAT":
            parts.append(body)
        else:
            found[kind] = body
        at += 12 + size
    if len(found.get(b"IHDR", b"")) != 13:
        raise ValueError("Broken PNG: its header is missing.")
    return found[b"IHDR"], found[b"PLTE"], found[b"tRNS"], b"".join(parts)


def _unfilter(filtered: bytes, stride: int, step: int) -> bytearray:
    """Undo the five line filters; `step` is the distance in bytes to the pixel on the left."""
    out = bytearray()
    # Both lines carry one black pixel in front, so that the left edge is no special case.
    above = bytearray(step + stride)
    for start in range(0, len(filtered), stride + 1):
        kind = filtered[start]
        line = bytearray(step) + filtered[start + 1 : start + 1 + stride]
        if kind == 1:
            for i in range(step, len(line)):
                line[i] = (line[i] + line[i - step]) & 255
        elif kind == 2:
            line = bytearray((value + up) & 255 for value, up in zip(line, above, strict=True))
        elif kind == 3:
            for i in range(step, len(line)):
                line[i] = (line[i] + (line[i - step] + above[i]) // 2) & 255
        elif kind == 4:
            for i in range(step, len(line)):
                line[i] = (line[i] + _paeth(line[i - step], above[i], above[i - step])) & 255
        elif kind:
            raise ValueError(f"Broken PNG: line filter {kind} does not exist.")
        out += line[step:]
        above = line
    return out


def _paeth(left: int, up: int, corner: int) -> int:
    """Whichever neighbour is nearest to left + up - corner; ties go to the one named first."""
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner


def _samples(lines: torch.Tensor, depth: int) -> torch.Tensor:
    """Bytes of each line to samples: of 16 bits the high byte counts, smaller ones are unpacked, leftmost first."""
    if depth == 16:
        return lines[:, ::2]
    if depth == 8:
        return lines
    shifts = torch.arange(8 - depth, -1, -depth, dtype=torch.uint8)
    return (lines[:, :, None] >> shifts & (2**depth - 1)).flatten(1)


def _look_up(indices: torch.Tensor, palette: bytes, alphas: bytes) -> torch.Tensor:
    """Palette indices (height, width) to RGB + alpha (height, width, 4); a colour without an alpha is opaque."""
    size = len(palette) // 3
    if int(indices.max()) >= size:
        raise ValueError("Broken PNG: a pixel's colour is not in the palette.")
    colours = torch.full((size, 4), 255, dtype=torch.uint8)
    colours[:, :3] = torch.tensor(list(palette[: size * 3]), dtype=torch.uint8).view(size, 3)
    known = list(alphas[:size])
    colours[: len(known), 3] = torch.tensor(known, dtype=torch.uint8)
    return colours[indices.long()]


def _brightness(values: torch.Tensor) -> torch.Tensor:
    """(height, width, channels) to (height, width): weighted colours, times alpha where there is one."""
    channels = values.shape[2]
    grey = values[:, :, :3] @ LUMA if channels >= 3 else values[:, :, 0]
    return grey * values[:, :, -1] if channels in (2, 4) else grey
