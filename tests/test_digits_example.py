"""The model that ships with tserve: its archive is whole, its handler reads the samples and refuses bad images."""

from __future__ import annotations

import ast
import importlib.util
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = ROOT / "model_store" / "digits.mar"
EXAMPLE = ROOT / "examples" / "digits"
DIGITS = [str(digit) for digit in range(10)]

Pixels = list[bytes]  # lines of 8-bit grey pixels


@dataclass
class Context:
    """As much of a worker's context as the handler uses."""

    system_properties: dict[str, Any]
    manifest: dict[str, Any]
    statuses: dict[int, tuple[int, str]] = field(default_factory=dict)

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.statuses[idx] = (code, phrase)


Ask = Callable[[Sequence[object]], tuple[list[dict[str, Any]], dict[int, tuple[int, str]]]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Hand rows to the handler of the unpacked archive; its answers and the statuses it set, by row."""
    folder = tmp_path_factory.mktemp("digits")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    context = Context({"model_dir": str(folder)}, json.loads((folder / "MAR-INF/MANIFEST.json").read_text()))
    spec = importlib.util.spec_from_file_location("digits_handler", folder / context.manifest["model"]["handler"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.DigitsHandler()
    handler.initialize(context)

    def ask(rows: Sequence[object]) -> tuple[list[dict[str, Any]], dict[int, tuple[int, str]]]:
        context.statuses = {}
        return handler.handle(rows, context), context.statuses

    return ask


def sample(digit: str) -> bytearray:
    return bytearray((EXAMPLE / "samples" / f"{digit}.png").read_bytes())


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(lines: Pixels, width: int, colour: int, depth: int, *, before: bytes = b"", interlace: int = 0) -> bytes:
    """A PNG of lines that each start with their filter byte."""
    header = struct.pack(">IIBBBBB", width, len(lines), depth, colour, 0, 0, interlace)
    data = zlib.compress(b"".join(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pixels_of(digit: str) -> Pixels:
    """The pixels of a sample, which are stored as 8-bit grey without line filters."""
    image = bytes(sample(digit))
    width, height, depth, colour = struct.unpack_from(">IIBB", image, 16)
    assert (depth, colour) == (8, 0)
    at = image.index(b"IDAT")
    size = struct.unpack_from(">I", image, at - 4)[0]
    raw = zlib.decompress(image[at + 4 : at + 4 + size])
    lines = [raw[y * (width + 1) : (y + 1) * (width + 1)] for y in range(height)]
    assert {line[0] for line in lines} == {0}
    return [line[1:] for line in lines]


def filtered(lines: Pixels, kind: int, step: int) -> Pixels:
    """Apply one PNG line filter (PNG specification, chapter 9) to every line."""
    result = []
    above = bytes(len(lines[0]))
    for line in lines:
        out = bytearray([kind])
        for i, value in enumerate(line):
            left, corner = (line[i - step], above[i - step]) if i >= step else (0, 0)
            guess = left + above[i] - corner
            nearest = min((left, above[i], corner), key=lambda byte: abs(byte - guess))
            out.append((value - (0, left, above[i], (left + above[i]) // 2, nearest)[kind]) & 255)
        result.append(bytes(out))
        above = line
    return result


def unfiltered(lines: Pixels) -> Pixels:
    return [b"\0" + line for line in lines]


def grey(lines: Pixels) -> bytes:
    return png(unfiltered(lines), len(lines[0]), 0, 8)


def as_colours(lines: Pixels) -> bytes:
    wide = [b"".join(bytes([v, v, v]) for v in line) for line in lines]
    return png(unfiltered(wide), len(lines[0]), 2, 8)


def as_ink_on_glass(lines: Pixels) -> bytes:
    """All pixels are white; how much ink there is stands in the alpha channel alone."""
    wide = [b"".join(bytes([255, 255, 255, v]) for v in line[::4]) for line in lines[::4]]
    return png(filtered(wide, 4, 4), len(wide), 6, 8)


def as_grey_and_alpha(lines: Pixels) -> bytes:
    wide = [b"".join(bytes([v, 255]) for v in line) for line in lines]
    return png(filtered(wide, 1, 2), len(lines[0]), 4, 8)


def as_sixteen_bits(lines: Pixels) -> bytes:
    wide = [b"".join(bytes([v, 7]) for v in line) for line in lines]
    return png(filtered(wide, 3, 2), len(lines[0]), 0, 16)


def in_four_bits(lines: Pixels) -> Pixels:
    """Eight lines of eight pixels, two to a byte; neighbours differ, so that a swap would show."""
    small = [line[::8] for line in lines[::8]]
    return [bytes(a & 0xF0 | b >> 4 for a, b in zip(line[::2], line[1::2], strict=True)) for line in small]


def as_four_bit_grey(lines: Pixels) -> bytes:
    return png(unfiltered(in_four_bits(lines)), 8, 0, 4)


def as_four_bit_palette(lines: Pixels) -> bytes:
    """16 colours from the lightest to the darkest, so that an index is no brightness."""
    palette = b"".join(bytes([255 - 17 * i] * 3) for i in range(16))
    inverted = [bytes(255 - pair for pair in line) for line in in_four_bits(lines)]
    return png(unfiltered(inverted), 8, 3, 4, before=chunk(b"PLTE", palette))


def as_eight_by_eight(lines: Pixels) -> bytes:
    return grey([line[::8] for line in lines[::8]])


def as_larger_oblong(lines: Pixels) -> bytes:
    return grey([b"".join(bytes([v]) * 3 for v in line) for line in lines for _ in range(2)])


SHAPES = [
    as_colours,
    as_ink_on_glass,
    as_grey_and_alpha,
    as_sixteen_bits,
    as_four_bit_grey,
    as_four_bit_palette,
    as_eight_by_eight,
    as_larger_oblong,
]


def test_manifest_names_what_the_archive_holds() -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
        names = set(archive.namelist())
    assert manifest["runtime"] == "python"
    assert manifest["model"] == {
        "modelName": "digits",
        "modelVersion": "1.0",
        "modelFile": "model.py",
        "serializedFile": "digits.pt",
        "handler": "handler.py",
    }
    assert names == {"MAR-INF/MANIFEST.json", "model.py", "digits.pt", "handler.py"}
    assert ARCHIVE.stat().st_size < 300_000


@pytest.mark.parametrize("name", ["model.py", "handler.py", "digits.pt"])
def test_archive_was_built_from_the_files_beside_it(name: str) -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        assert archive.read(name) == (EXAMPLE / name).read_bytes()


def test_handler_needs_the_standard_library_and_torch_only() -> None:
    tree = ast.parse((EXAMPLE / "handler.py").read_text())
    plain = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    sources = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"importlib", "pathlib", "struct", "torch", "typing", "zlib"}
    assert {name.split(".")[0] for name in plain | sources} <= allowed


@pytest.mark.parametrize("key", ["body", "data"])
def test_every_sample_is_read_right_in_one_batch(ask: Ask, key: str) -> None:
    answers, statuses = ask([{key: sample(digit)} for digit in DIGITS])
    assert [next(iter(answer)) for answer in answers] == DIGITS
    assert statuses == {}


def test_answer_ranks_all_ten_digits(ask: Ask) -> None:
    (answer,), _ = ask([{"body": sample("7")}])
    chances = list(answer.values())
    assert sorted(answer) == DIGITS
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1, abs=1e-5)
    assert chances == [round(chance, 6) for chance in chances]


@pytest.mark.parametrize("kind", range(5))
def test_line_filters_change_nothing(ask: Ask, kind: int) -> None:
    lines = pixels_of("5")
    plain, coded = ask([{"body": sample("5")}, {"body": png(filtered(lines, kind, 1), len(lines[0]), 0, 8)}])[0]
    assert coded == plain


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_png_is_read(ask: Ask, shape: Callable[[Pixels], bytes]) -> None:
    answers, statuses = ask([{"body": bytearray(shape(pixels_of(digit)))} for digit in DIGITS])
    assert [next(iter(answer)) for answer in answers] == DIGITS
    assert statuses == {}


def test_a_mixed_batch_answers_as_each_image_alone(ask: Ask) -> None:
    rows = [{"body": bytearray(shape(pixels_of(digit)))} for shape, digit in zip(SHAPES, DIGITS, strict=False)]
    together, _ = ask(rows)
    for row, answer in zip(rows, together, strict=True):
        assert ask([row])[0] == [pytest.approx(answer, abs=2e-6)]


def spoilt(at: int) -> bytearray:
    image = sample("3")
    image[at] ^= 0xFF
    return image


BAD_ROWS = {
    "text": ({"body": bytearray(b"hello")}, "Not a PNG image."),
    "empty body": ({"body": bytearray()}, "No image: "),
    "form without fields": ({}, "No image: "),
    "json": ({"body": {"image": "x"}}, "Not an image: "),
    "cut off": ({"body": sample("3")[:-20]}, "ends too early"),
    "flipped byte": ({"body": spoilt(60)}, "checksum"),
    "no header": ({"body": sample("3")[:8] + chunk(b"IEND", b"")}, "header is missing"),
    "unknown depth": ({"body": png([b"\0\0"], 1, 0, 3)}, "bit depth 3"),
    "interlaced": ({"body": png([b"\0\0"], 1, 0, 8, interlace=1)}, "Interlaced"),
    "no pixels": ({"body": png([b"\0"], 0, 0, 8)}, "0 x 1 pixels"),
    "too large": ({"body": png([b"\0"], 1 << 21, 0, 8)}, "pixels; send between"),
    "not compressed": (
        {"body": png([b"\0\0"], 1, 0, 8).replace(chunk(b"IDAT", zlib.compress(b"\0\0")), chunk(b"IDAT", b"junk"))},
        "cannot be decompressed",
    ),
    "missing pixels": ({"body": png([b"\0\0", b"\0"], 1, 0, 8)}, "pixels are missing"),
    "unknown filter": ({"body": png([b"\5\0"], 1, 0, 8)}, "line filter 5"),
    "outside the palette": ({"body": png([b"\0\1"], 1, 3, 8, before=chunk(b"PLTE", b"abc"))}, "not in the palette"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_image_fails_its_own_row_only(ask: Ask, case: str) -> None:
    row, reason = BAD_ROWS[case]
    answers, statuses = ask([{"body": sample("2")}, row, {"data": sample("9")}])
    assert statuses == {1: (400, "Bad Request")}
    assert list(answers[1]) == ["error"]
    assert reason in answers[1]["error"]
    assert [next(iter(answers[0])), next(iter(answers[2]))] == ["2", "9"]


def test_a_batch_of_bad_images_is_answered_row_by_row(ask: Ask) -> None:
    answers, statuses = ask([{"body": bytearray(b"x")}, {}])
    assert statuses == {0: (400, "Bad Request"), 1: (400, "Bad Request")}
    assert all(list(answer) == ["error"] for answer in answers)
