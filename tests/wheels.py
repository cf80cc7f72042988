"""Packages made by hand, so that pip has something to install without a network."""

from __future__ import annotations

import io
import zipfile

# A source package whose build, run by pip, never ends: `{mark}` is touched once it runs.
STUCK_BACKEND = """
import pathlib, time

def build_wheel(*args, **kwargs):
    pathlib.Path({mark!r}).touch()
    time.sleep(3600)
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def wheel_name(package: str, version: str) -> str:
    return f"{package}-{version}-py3-none-any.whl"


def wheel(package: str, version: str, *, requires: str = "") -> bytes:
    """A package with one module of its name that knows its `VERSION`, and a script `{package}-says`."""
    about = f"{package}-{version}.dist-info"
    files = {
        f"{package}.py": f"VERSION = {version!r}\n\ndef main():\n    print(VERSION)\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": f"[console_scripts]\n{package}-says = {package}:main\n",
    }
    record = f"{about}/RECORD"
    files[record] = "".join(f"{name},,\n" for name in [*files, record])
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def stuck_package(mark: str) -> dict[str, str]:
    """Files of a folder that pip never gets done with."""
    return {"pyproject.toml": PYPROJECT, "backend.py": STUCK_BACKEND.format(mark=mark)}
