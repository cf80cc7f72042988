"""The model that ships with tserve: its archive is whole, the stock handler reads it, and refuses bad images."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from ts.context import RequestProcessor
from tserve.child.loader import load
from tserve.domain.plan import WorkerSpec

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = ROOT / "model_store" / "digits.mar"
EXAMPLE = ROOT / "examples" / "digits"
DIGITS = [str(digit) for digit in range(10)]
FILES = {"model.py", "digits.pt", "index_to_name.json"}

Ask = Callable[[Sequence[object]], tuple[list[dict[str, Any]], list[tuple[int, str | None]]]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Hand rows to the unpacked archive as a worker has loaded it; its answers and the status of each."""
    folder = tmp_path_factory.mktemp("digits")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    manifest = json.loads((folder / "MAR-INF/MANIFEST.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", "")
        patch.setattr(sys, "path", list(sys.path))
        model = load(WorkerSpec("digits", str(folder), manifest["model"]["handler"], 8, manifest=manifest))

        def ask(rows: Sequence[object]) -> tuple[list[dict[str, Any]], list[tuple[int, str | None]]]:
            model.context.request_processor = [RequestProcessor({}) for _ in rows]
            answers = model.entry(rows, model.context)
            return answers, [model.context.get_response_status(row) for row in range(len(rows))]

        yield ask
    sys.modules.pop("model", None)


def sample(digit: str) -> bytearray:
    return bytearray((EXAMPLE / "samples" / f"{digit}.png").read_bytes())


def file_of(image: Image.Image, kind: str = "PNG") -> bytearray:
    file = io.BytesIO()
    image.save(file, kind)
    return bytearray(file.getvalue())


def as_colours(image: Image.Image) -> bytearray:
    return file_of(image.convert("RGB"))


def as_jpeg(image: Image.Image) -> bytearray:
    return file_of(image, "JPEG")


def as_ink_on_glass(image: Image.Image) -> bytearray:
    """All pixels are white; how much ink there is stands in the alpha channel alone."""
    glass = Image.new("RGBA", image.size, "white")
    glass.putalpha(image)
    return file_of(glass)


def as_grey_and_alpha(image: Image.Image) -> bytearray:
    return file_of(image.convert("LA"))


def as_sixteen_bits(image: Image.Image) -> bytearray:
    return file_of(image.convert("I").point(lambda value: value * 257).convert("I;16"))


def as_palette(image: Image.Image) -> bytearray:
    """16 colours from the lightest to the darkest, so that an index is no brightness."""
    indices = image.point(lambda value: 15 - value // 17).tobytes()
    coloured = Image.frombytes("P", image.size, indices)
    coloured.putpalette([255 - 17 * (index // 3) for index in range(48)])
    return file_of(coloured)


def as_eight_by_eight(image: Image.Image) -> bytearray:
    return file_of(image.resize((8, 8), Image.Resampling.NEAREST))


def as_large_one(image: Image.Image) -> bytearray:
    return file_of(image.resize((1000, 1000), Image.Resampling.NEAREST))


SHAPES = [
    as_colours,
    as_jpeg,
    as_ink_on_glass,
    as_grey_and_alpha,
    as_sixteen_bits,
    as_palette,
    as_eight_by_eight,
    as_large_one,
]


def read(answers: list[dict[str, Any]]) -> list[str]:
    return [next(iter(answer)) for answer in answers]


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
        "handler": "image_classifier",
    }
    assert names == {"MAR-INF/MANIFEST.json", *FILES}
    assert ARCHIVE.stat().st_size < 300_000


@pytest.mark.parametrize("name", sorted(FILES))
def test_archive_was_built_from_the_files_beside_it(name: str) -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        assert archive.read(name) == (EXAMPLE / name).read_bytes()


@pytest.mark.parametrize("key", ["body", "data"])
def test_every_sample_is_read_right_in_one_batch(ask: Ask, key: str) -> None:
    answers, statuses = ask([{key: sample(digit)} for digit in DIGITS])
    assert read(answers) == DIGITS
    assert statuses == [(200, None)] * 10


def test_answer_ranks_the_five_likeliest_digits(ask: Ask) -> None:
    (answer,), _ = ask([{"body": sample("7")}])
    chances = list(answer.values())
    assert len(answer) == 5
    assert set(answer) <= set(DIGITS)
    assert chances == sorted(chances, reverse=True)
    assert 0.9 < chances[0] < sum(chances) < 1


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_image_is_read(ask: Ask, shape: Callable[[Image.Image], bytearray]) -> None:
    images = [Image.open(io.BytesIO(sample(digit))) for digit in DIGITS]
    answers, _ = ask([{"body": shape(image)} for image in images])
    assert read(answers) == DIGITS


def test_dark_ink_is_another_picture(ask: Ask) -> None:
    """As the README says, the ink must be light; otherwise this test, and that sentence, can go."""
    inverted = [ImageChops.invert(Image.open(io.BytesIO(sample(digit)))) for digit in DIGITS]
    answers, _ = ask([{"body": file_of(image)} for image in inverted])
    assert read(answers) != DIGITS


def test_a_mixed_batch_answers_as_each_image_alone(ask: Ask) -> None:
    images = [Image.open(io.BytesIO(sample(digit))) for digit in DIGITS]
    rows = [{"body": shape(image)} for shape, image in zip(SHAPES, images, strict=False)]
    together, _ = ask(rows)
    for row, answer in zip(rows, together, strict=True):
        assert ask([row])[0] == [pytest.approx(answer, abs=2e-6)]


BAD_ROWS = {
    "text": ({"body": bytearray(b"hello")}, "Not an image: "),
    "empty body": ({"body": bytearray()}, "No image: "),
    "form without fields": ({}, "No image: "),
    "json": ({"body": {"image": "x"}}, "Not an image: "),
    "cut off": ({"body": sample("3")[:-60]}, "The image is broken: "),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_image_fails_its_own_row_only(ask: Ask, case: str) -> None:
    row, reason = BAD_ROWS[case]
    answers, statuses = ask([{"body": sample("2")}, row, {"data": sample("9")}])
    assert statuses == [(200, None), (400, "Bad Request"), (200, None)]
    assert list(answers[1]) == ["error"]
    assert reason in answers[1]["error"]
    assert read([answers[0], answers[2]]) == ["2", "9"]
