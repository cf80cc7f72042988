"""Which GPUs a version may use and which one each worker gets (spec/management.md sections 3.5 and 4.1)."""

from __future__ import annotations

import pytest

from tserve.domain import devices
from tserve.domain.devices import Placement, Usable, usable
from tserve.domain.model_config import read_model_config
from tserve.domain.plan import PoolSpec, WorkerSpec
from tserve.domain.versions import Key

A, B = Key("a", "1.0"), Key("b", "1.0")
PAIRS = {"parallelType": "tp", "parallelLevel": 2}


def spec(
    key: Key = A, *, gpus: int = 0, device_ids: tuple[int, ...] | None = None, parallel_level: int = 0
) -> PoolSpec:
    worker = WorkerSpec(key.name, "/kept", "handler.py", 1)
    return PoolSpec(key, worker, 1, 1, gpus=gpus, device_ids=device_ids, parallel_level=parallel_level)


@pytest.mark.parametrize(
    ("yaml", "gpus", "kind", "expected"),
    [
        ({}, 0, "cpu", Usable()),
        ({}, 2, "gpu", Usable(2)),
        ({"deviceType": "gpu"}, 0, "cpu", Usable()),
        ({"deviceType": "gpu"}, 2, "gpu", Usable(2)),
        ({"deviceType": "cpu"}, 2, "cpu", Usable()),
        ({"deviceType": "tpu"}, 2, "gpu", Usable(2)),
        ({"deviceIds": [1, 0]}, 2, "gpu", Usable(2, (1, 0))),
        ({"deviceIds": [0, 2]}, 2, "gpu", Usable(2)),  # one that is not there drops the list
        ({"deviceIds": [0, "1"]}, 2, "gpu", Usable(2)),
        ({"deviceIds": [0, -1]}, 2, "gpu", Usable(2)),
        ({"deviceIds": [0]}, 0, "cpu", Usable()),
        ({"deviceIds": [1], "deviceType": "cpu"}, 2, "cpu", Usable(ids=(1,))),
        (PAIRS, 4, "gpu", Usable(4, None, 2)),
        (PAIRS, 0, "cpu", Usable()),
        ({**PAIRS, "deviceType": "cpu"}, 4, "cpu", Usable()),
        ({"parallelLevel": 2}, 4, "gpu", Usable(4)),  # only with a type
        ({"parallelType": "pp", "torchrun": {"nproc-per-node": 4}}, 4, "gpu", Usable(4, None, 4)),
    ],
)
def test_what_a_version_may_use(yaml: dict[str, object], gpus: int, kind: str, expected: Usable) -> None:
    found = usable(read_model_config(yaml)[0], gpus)
    assert (found, found.kind) == (expected, kind)


@pytest.mark.parametrize(
    ("devices", "most"),
    [
        (Usable(), None),
        (Usable(4), None),
        (Usable(4, (1, 2)), None),
        (Usable(4, None, 2), 2),
        (Usable(5, None, 2), 2),
        (Usable(4, (1, 2, 3), 2), 1),
        (Usable(1, None, 2), 0),
    ],
)
def test_how_many_workers_there_are_devices_for(devices: Usable, most: int | None) -> None:
    assert devices.most_workers == most


@pytest.mark.parametrize(
    ("placed", "expected"),
    [
        ([spec()] * 3, [None, None, None]),
        ([spec(gpus=1)] * 3, [0, 0, 0]),
        ([spec(gpus=3)] * 5, [1, 2, 0, 1, 2]),  # the counter moves before it is read
        ([spec(A, gpus=3), spec(B, gpus=3), spec(A, gpus=3)], [1, 2, 0]),  # one counter for all versions
        ([spec(gpus=4, device_ids=(3, 1))] * 3, [3, 1, 3]),  # from the first entry
        ([spec(A, gpus=4, device_ids=(3, 1)), spec(B, gpus=4, device_ids=(2, 0))] * 2, [3, 2, 1, 0]),
        ([spec(gpus=4, device_ids=(3, 1)), spec(B, gpus=4), spec(gpus=4, device_ids=(3, 1))], [3, 1, 1]),
        ([spec(gpus=4, parallel_level=2)] * 3, [0, 2, 0]),
        ([spec(gpus=4, device_ids=(3, 2, 1, 0), parallel_level=2)] * 3, [3, 1, 3]),
        ([spec(A, gpus=4, parallel_level=2), spec(B, gpus=4, parallel_level=2)], [0, 0]),
        ([spec(device_ids=(1,))], [None]),  # a list of a version that uses the processor
        ([spec(gpus=4, device_ids=(3, 1)), spec(gpus=2, device_ids=(1,))], [3, 1]),  # fewer after a restart of a driver
    ],
)
def test_which_device_each_worker_gets(placed: list[PoolSpec], expected: list[int | None]) -> None:
    placement = Placement()
    assert [placement.place(each) for each in placed] == expected


def test_what_is_counted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_MOST_COUNTED", 2)
    placement = Placement()
    placed = [placement.place(spec(Key(name, "1"), gpus=2, device_ids=(0, 1))) for name in "abcacb"]
    assert placed == [0, 0, 0, 0, 1, 0]
