"""Trains the digits model on the scans that scikit-learn ships and builds model_store/digits.mar from it.

Needs tserve, scikit-learn and torch-model-archiver; no network.  Seeds and split are fixed.  The accuracy is measured
on scans that were never trained on, as PNG files through the stock handler; below 98 % no archive is written.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from model import DigitNet
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from ts.context import Context, RequestProcessor
from ts.torch_handler.image_classifier import ImageClassifier

HERE = Path(__file__).resolve().parent
STORE = HERE.parents[1] / "model_store"
WEIGHTS = HERE / "digits.pt"
LABELS = HERE / "index_to_name.json"
SEED = 0
EPOCHS = 30
BATCH = 64
LOWEST_ACCURACY = 0.98
ZOOM = 8  # each of the 8 x 8 values of a scan becomes a square of 8 x 8 pixels, so that people can see it too
CREATED_ON = "01/01/2026 00:00:00"  # fixed, so that the same weights give the same archive, byte for byte


def main() -> None:
    """Train, measure, and only then replace the archive and the samples."""
    began = time.monotonic()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    known, held_out = train_test_split(
        np.arange(len(digits.images)), test_size=0.2, stratify=digits.target, random_state=SEED
    )
    # In both sizes: the handler blurs the small ones when it scales them up.
    scans = torch.cat([seen(png_of(digits.images[i], zoom)) for zoom in (1, ZOOM) for i in known])
    net = train(scans, torch.tensor(np.tile(digits.target[known], 2)))
    torch.save(net.state_dict(), WEIGHTS)
    LABELS.write_text(json.dumps({str(digit): str(digit) for digit in range(10)}, indent=2) + "\n")
    print(f"trained on {len(known)} scans in {time.monotonic() - began:.1f} s")

    labels = digits.target[held_out].tolist()
    pngs = [png_of(digits.images[i]) for i in held_out]
    accuracy = measure(pngs, labels, "held-out accuracy")
    measure([png_of(digits.images[i], zoom=1) for i in held_out], labels, "the same as images of 8 x 8 pixels")
    if accuracy < LOWEST_ACCURACY:
        sys.exit(f"below {LOWEST_ACCURACY:.0%}: no archive written")
    write_samples(pngs, labels)
    print(f"wrote {build_archive()}")


def png_of(scan: np.ndarray, zoom: int = ZOOM) -> bytes:
    """An 8 x 8 scan of ink between 0 and 16 as a grey PNG, white ink on black."""
    pixels = np.rint(scan * 255 / 16).astype(np.uint8).repeat(zoom, axis=0).repeat(zoom, axis=1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def seen(png: bytes) -> torch.Tensor:
    """What the network makes of an image after the handler's transform: (1, 1, 8, 8)."""
    image = ImageClassifier.image_processing(Image.open(io.BytesIO(png)))
    return DigitNet().scans(image[None])


def train(scans: torch.Tensor, labels: torch.Tensor) -> DigitNet:
    """Train for a fixed number of epochs on scans (n, 1, 8, 8), each shifted by at most one pixel each time."""
    net = DigitNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(scans) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.02)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(scans)).split(BATCH):
            loss = loss_of(net.layers(shifted(scans[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net


def shifted(scans: torch.Tensor) -> torch.Tensor:
    """Move each scan by -1, 0 or 1 pixel in both directions; what comes in at the edge is black."""
    padded = nn.functional.pad(scans, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(scans), 2)).tolist()
    return torch.stack([scan[:, y : y + 8, x : x + 8] for scan, (y, x) in zip(padded, moves, strict=True)])


def measure(pngs: list[bytes], labels: list[int], what: str) -> float:
    """The share of PNGs whose likeliest digit is their label, by the stock handler as a worker would run it."""
    files = {"modelFile": "model.py", "serializedFile": WEIGHTS.name}
    context = Context("digits", str(HERE), {"model": files}, len(pngs), None, "0.12.0")
    context.request_processor = [RequestProcessor({}) for _ in pngs]
    handler = ImageClassifier()
    handler.initialize(context)
    answers = handler.handle([{"body": bytearray(png)} for png in pngs], context)
    right = sum(next(iter(answer)) == str(label) for answer, label in zip(answers, labels, strict=True))
    print(f"{what}: {right / len(labels):.2%} ({right} of {len(labels)})")
    return right / len(labels)


def write_samples(pngs: list[bytes], labels: list[int]) -> None:
    """The first held-out scan of each digit, as samples/0.png to samples/9.png."""
    folder = HERE / "samples"
    folder.mkdir(exist_ok=True)
    for digit in range(10):
        (folder / f"{digit}.png").write_bytes(pngs[labels.index(digit)])


def build_archive() -> Path:
    """Run torch-model-archiver, then pin the dates in its archive.  CalledProcessError if the tool fails."""
    bin_folder = Path(sys.executable).parent
    tool = shutil.which("torch-model-archiver", path=f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        sys.exit("torch-model-archiver is missing: pip install torch-model-archiver")
    STORE.mkdir(exist_ok=True)
    command = [tool, "--model-name", "digits", "--version", "1.0", "--model-file", "model.py"]
    command += ["--serialized-file", WEIGHTS.name, "--handler", "image_classifier", "--extra-files", LABELS.name]
    command += ["--export-path", str(STORE), "--force"]
    with tempfile.TemporaryDirectory() as scratch:
        # The tool stages files in <temporary folder>/digits and deletes what is there first: give it one of its own.
        subprocess.run(command, cwd=HERE, env=os.environ | {"TMPDIR": scratch}, check=True)
    archive = STORE / "digits.mar"
    pin_dates(archive)
    return archive


def pin_dates(archive: Path) -> None:
    """Rewrite the archive with sorted entries, fixed times and a fixed `createdOn`."""
    with zipfile.ZipFile(archive) as source:
        entries = {name: source.read(name) for name in sorted(source.namelist())}
    manifest = json.loads(entries["MAR-INF/MANIFEST.json"]) | {"createdOn": CREATED_ON}
    entries["MAR-INF/MANIFEST.json"] = json.dumps(manifest, indent=2).encode()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)  # its date is 1980-01-01 unless one is given
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            target.writestr(info, content)


if __name__ == "__main__":
    main()
