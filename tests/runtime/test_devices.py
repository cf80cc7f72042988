"""GPUs as NVML tells of them; a module `pynvml` on the path answers in its place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import trio

from tests.services.stack import until
from tserve.domain.devices import USAGE_UNKNOWN
from tserve.runtime.devices import REFRESH_S, STALE_S, NvmlDevices

NVML = """
class NVMLError(Exception):
    pass

class Rates:
    gpu, memory = 7, 3

class Memory:
    used, total = 5 << 20, 8 << 20

UUIDS = ["GPU-aaaa-0000", "GPU-aabb-1111", "GPU-cccc-2222"]
broken = set()
raised = NVMLError
reads = 0

def nvmlInit():
    if "init" in broken:
        raise raised("no driver")

def nvmlDeviceGetCount():
    return len(UUIDS)

def nvmlDeviceGetHandleByIndex(number):
    return number

def nvmlDeviceGetHandleByUUID(uuid):
    if uuid != "MIG-7":
        raise NVMLError(uuid)
    return uuid

def nvmlDeviceGetUUID(handle):
    return UUIDS[handle].encode() if handle == 1 else UUIDS[handle]

def nvmlDeviceGetUtilizationRates(handle):
    global reads
    reads += 1
    if handle in broken:
        raise raised("lost")
    return Rates

def nvmlDeviceGetMemoryInfo(handle):
    return Memory
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Each test has a module of its own, or none."""
    yield
    sys.modules.pop("pynvml", None)


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.syspath_prepend(tmp_path)


def broken() -> set[object]:
    import pynvml  # type: ignore[import-not-found]

    found: set[object] = pynvml.broken
    return found


@pytest.mark.parametrize(
    ("visible", "most", "handles"),
    [
        (None, None, [0, 1, 2]),
        (None, 2, [0, 1]),
        (None, 9, [0, 1, 2]),
        (None, 0, []),
        ("", None, []),
        ("2,0", None, [2, 0]),
        (" 2 , 0 ", 1, [2]),
        ("0,3,1", None, [0]),  # CUDA stops at the first that is not there
        ("-1", None, []),
        ("GPU-cccc-2222,GPU-aabb", None, [2, 1]),
        ("GPU-dddd,0", None, []),
        ("MIG-7", None, ["MIG-7"]),
        ("MIG-8", None, []),
    ],
)
@pytest.mark.usefixtures("nvml")
async def test_which_there_are(visible: str | None, most: int | None, handles: list[object]) -> None:
    devices = NvmlDevices(most=most, visible=visible)
    assert devices.count() == 0, "not looked yet"
    await devices.detect()
    assert (devices.count(), devices._handles) == (len(handles), handles)


async def test_without_the_package() -> None:
    devices = NvmlDevices()
    with trio.fail_after(5):
        await devices.detect()
        assert devices.count() == 0
        await devices.run()  # there is nothing to do


@pytest.mark.usefixtures("nvml")
async def test_without_a_driver() -> None:
    broken().add("init")
    devices = NvmlDevices()
    await devices.detect()
    assert devices.count() == 0


async def test_with_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError('too old')")
    monkeypatch.syspath_prepend(tmp_path)
    devices = NvmlDevices()
    await devices.detect()
    assert devices.count() == 0


@pytest.mark.parametrize("kind", [ValueError, AttributeError])
@pytest.mark.usefixtures("nvml")
async def test_a_stub_in_its_place_without_gpus(kind: type[Exception]) -> None:
    broken().add("init")
    sys.modules["pynvml"].raised = kind  # type: ignore[attr-defined]
    devices = NvmlDevices()
    await devices.detect()
    assert devices.count() == 0


@pytest.mark.parametrize(
    "text", ["raise ValueError('stub')", "", "def nvmlInit(): ...\ndef nvmlDeviceGetCount(): return 'x'\n"]
)
async def test_packages_that_are_something_else(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    devices = NvmlDevices()
    await devices.detect()
    assert devices.count() == 0


async def test_a_module_without_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", ModuleType("pynvml"))
    devices = NvmlDevices()
    await devices.detect()
    assert devices.count() == 0


@pytest.mark.parametrize("kind", [ValueError, AttributeError, None])
@pytest.mark.usefixtures("nvml")
async def test_readings_that_raise_anything(kind: type[Exception] | None, caplog: pytest.LogCaptureFixture) -> None:
    """The figures are unknown, which is said once and not at each reading.  None: of a module without errors."""
    devices = NvmlDevices()
    await devices.detect()
    nvml = sys.modules["pynvml"]
    if kind is None:
        del nvml.nvmlDeviceGetMemoryInfo, nvml.NVMLError
    else:
        nvml.raised = kind  # type: ignore[attr-defined]
        broken().update({0, 1, 2})
    async with trio.open_nursery() as nursery:
        await nursery.start(devices.run)
        with trio.fail_after(10):
            while nvml.reads < 6:  # noqa: ASYNC110 - two rounds, in another thread
                await trio.sleep(0.01)
        assert [devices.usage(number) for number in range(3)] == [USAGE_UNKNOWN] * 3
        nursery.cancel_scope.cancel()
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1


@pytest.mark.usefixtures("nvml")
async def test_usage(autojump_clock: trio.testing.MockClock) -> None:
    """Kept fresh by a task; read from memory."""
    devices = NvmlDevices(visible="2,0")
    async with trio.open_nursery() as nursery:
        await nursery.start(devices.run)
        await devices.detect()
        assert devices.usage(0) == USAGE_UNKNOWN, "not read yet"
        await until(lambda: devices.usage(0) != USAGE_UNKNOWN)
        text = "utilization.gpu::7 % utilization.memory::3 % memory.used::5 MiB"
        assert [devices.usage(number) for number in range(3)] == [f"gpuId::0 {text}", f"gpuId::1 {text}", USAGE_UNKNOWN]
        figures = {"GPUUtilization": 7, "GPUMemoryUtilization": 62.5, "GPUMemoryUsed": 5}
        assert devices.readings() == [("0", figures), ("1", figures)]
        broken().add(0)
        with trio.fail_after(1000):  # of a clock that jumps while the thread reads
            while [devices.usage(number) for number in range(2)] != [f"gpuId::0 {text}", USAGE_UNKNOWN]:  # noqa: ASYNC110
                await trio.sleep(REFRESH_S)
        nursery.cancel_scope.cancel()
    await trio.sleep(STALE_S + 1)
    assert devices.usage(0) == USAGE_UNKNOWN, "figures grow old"
    assert devices.readings() == []


def test_the_server_does_not_import_it_before_there_is_a_model(tmp_path: Path) -> None:
    code = "import sys, tserve.server; print('pynvml' in sys.modules)"
    (tmp_path / "pynvml.py").write_text(NVML)
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    said = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert said.stdout == "False\n", said.stderr
