"""Which word wins: parameter of the call, archive yaml, `models` property, default (DESIGN.md section 9)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tserve.domain.model_config import read_model_config
from tserve.domain.plan import MOST_WORKERS
from tserve.domain.versions import Archive, Key, Manifest, Version
from tserve.errors import BadRequest, InvalidModel, WorkerInitialization
from tserve.runtime.processors import processors
from tserve.services.desired import (
    ADDRESSABLE,
    RegisterRequest,
    check_runtime,
    pool_spec,
    threads_per_worker,
    version_of,
)
from tserve.settings import ModelSettings, Settings

PLACE: dict[str, Any] = {"model_store": Path("/store"), "state_dir": Path("/state")}
MANIFEST = Manifest(model_name="noop", model_version="1.11", handler="noop.py", raw={"model": {}})
NUMBERS = ("batch_size", "max_batch_delay", "response_timeout", "startup_timeout")
DEFAULTS = (1, 100, 120, 120)


def wanted(
    ask: dict[str, Any] | None = None,
    yaml: dict[str, object] | None = None,
    given: dict[str, int] | None = None,
    *,
    at_startup: bool = False,
    gpus: int = 0,
    manifest: Manifest = MANIFEST,
    **settings: Any,
) -> Version:
    config = read_model_config(yaml)[0] if yaml is not None else None
    key = (manifest.model_name or "", manifest.model_version)
    models = {key: ModelSettings(**given)} if given else {}
    return version_of(
        RegisterRequest(**{"url": "noop.mar", **(ask or {})}),
        Archive("d", 1, manifest, config),
        Settings(**PLACE, model_settings=models, **settings),
        at_startup=at_startup,
        gpus=gpus,
    )


def numbers(version: Version) -> tuple[int, ...]:
    return tuple(getattr(version, name) for name in NUMBERS)


ASK = {"batch_size": 2, "max_batch_delay": 3, "response_timeout": 4, "startup_timeout": 5}
YAML: dict[str, object] = {"batchSize": 12, "maxBatchDelay": 13, "responseTimeout": 14, "startupTimeout": 15}
GIVEN = {"batch_size": 22, "max_batch_delay": 23, "response_timeout": 24, "startup_timeout": 25}
SET = {"default_response_timeout": 34, "default_startup_timeout": 35}


@pytest.mark.parametrize(
    ("file", "on", "wanted_file"), [("r.txt", True, "r.txt"), ("r.txt", False, ""), (None, True, "")]
)
def test_what_its_workers_get_installed(file: str | None, on: bool, wanted_file: str) -> None:
    archive = Archive("d", 1, replace(MANIFEST, requirements_file=file))
    settings = Settings(**PLACE, install_py_dep_per_model=on, hidden_variables=("A_SECRET",))
    worker = pool_spec(wanted(), archive, Path("/kept"), settings).worker
    assert (worker.requirements, worker.hidden_env) == (wanted_file, ("A_SECRET",))


def test_the_whole_version() -> None:
    assert wanted() == Version(
        key=Key("noop", "1.11"),
        url="noop.mar",
        digest="d",
        handler="noop.py",
        runtime="python",
        batch_size=1,
        max_batch_delay=100,
        response_timeout=120,
        startup_timeout=120,
        min_workers=0,
        max_workers=0,
    )


@pytest.mark.parametrize("at_startup", [False, True])
@pytest.mark.parametrize(
    ("ask", "yaml", "given", "settings", "expected"),
    [
        (ASK, YAML, GIVEN, SET, (2, 3, 4, 5)),
        ({}, YAML, GIVEN, SET, (12, 13, 14, 15)),
        ({}, None, GIVEN, SET, (22, 23, 24, 25)),
        ({}, None, {}, SET, (1, 100, 34, 35)),
        ({}, None, {}, {}, DEFAULTS),
        # A yaml speaks only for what it names; upstream's 120 s of any yaml do not count as named.
        ({}, {}, GIVEN, SET, (22, 23, 24, 25)),
        ({}, {"batchSize": 12}, GIVEN, SET, (12, 23, 24, 25)),
        ({}, {"responseTimeout": 14}, {}, SET, (1, 100, 14, 35)),
        # A delay of 0 cannot be said in a yaml; a batch size below 1 is raised, a bad timeout left out.
        ({}, {"maxBatchDelay": 0, "batchSize": 0, "responseTimeout": 0}, {}, {}, (1, 100, 120, 120)),
        ({}, {"maxBatchDelay": 0}, GIVEN, {}, (22, 23, 24, 25)),
        # Sentinels of the call mean unset; its other negatives and zeros are kept.
        (dict.fromkeys(NUMBERS, -1), YAML, {}, {}, (12, -1, 14, 15)),
        ({"max_batch_delay": -100}, YAML, {}, {}, (12, 13, 14, 15)),
        ({"max_batch_delay": -100, "batch_size": -1}, None, GIVEN, {}, (22, 23, 24, 25)),
        (dict.fromkeys(NUMBERS, -1), None, {}, {}, (1, -1, 120, 120)),
        (dict.fromkeys(NUMBERS, 0), YAML, GIVEN, SET, (0, 0, 0, 0)),
        (dict.fromkeys(NUMBERS, -7), YAML, GIVEN, SET, (-7, -7, -7, -7)),
        ({"batch_size": -100}, None, {}, {}, (-100, 100, 120, 120)),
    ],
)
def test_numbers(
    ask: dict[str, Any],
    yaml: dict[str, object] | None,
    given: dict[str, int],
    settings: dict[str, Any],
    expected: tuple[int, ...],
    at_startup: bool,
) -> None:
    assert numbers(wanted(ask, yaml, given, at_startup=at_startup, **settings)) == expected


@pytest.mark.parametrize("winner", NUMBERS)
def test_each_number_has_its_own_source(winner: str) -> None:
    """One named in the call, the rest from the yaml."""
    version = wanted({winner: ASK[winner]}, YAML)
    expected = [ASK[name] if name == winner else number for name, number in zip(NUMBERS, YAML.values(), strict=True)]
    assert list(numbers(version)) == expected


CPUS = processors()


@pytest.mark.parametrize(
    ("ask", "yaml", "given", "default", "called", "started"),
    [
        ({}, None, {}, 0, (0, 0), (CPUS, CPUS)),
        ({}, None, {}, 3, (3, 3), (3, 3)),
        ({"initial_workers": 2}, None, {}, 3, (2, 2), (2, 2)),
        ({"initial_workers": 0}, None, {}, 3, (0, 0), (0, 0)),
        ({"initial_workers": -1}, None, {}, 3, (0, 0), (0, 0)),
        ({"initial_workers": -9}, None, {}, 0, (0, 0), (0, 0)),
        # The `models` property counts at start only.
        ({}, None, {"min_workers": 4, "max_workers": 6}, 3, (3, 3), (4, 6)),
        ({}, None, {"min_workers": 4}, 3, (3, 3), (3, 3)),
        ({}, None, {"min_workers": 6, "max_workers": 4}, 3, (3, 3), (3, 3)),
        # A yaml needs both, in order.
        ({}, {"minWorkers": 1, "maxWorkers": 2}, {"min_workers": 4, "max_workers": 6}, 3, (1, 2), (1, 2)),
        ({}, {"minWorkers": 2, "maxWorkers": 2}, {}, 0, (2, 2), (2, 2)),
        ({}, {"minWorkers": 2}, {}, 3, (3, 3), (3, 3)),
        ({}, {"maxWorkers": 2}, {}, 3, (3, 3), (3, 3)),
        ({}, {"minWorkers": 3, "maxWorkers": 2}, {}, 0, (0, 0), (CPUS, CPUS)),
        ({"initial_workers": 5}, {"minWorkers": 1, "maxWorkers": 2}, {}, 3, (5, 5), (5, 5)),
        ({"initial_workers": 0}, {"minWorkers": 1, "maxWorkers": 2}, {}, 3, (0, 0), (0, 0)),
    ],
)
def test_workers(
    ask: dict[str, Any],
    yaml: dict[str, object] | None,
    given: dict[str, int],
    default: int,
    called: tuple[int, int],
    started: tuple[int, int],
) -> None:
    for at_startup, expected in ((False, called), (True, started)):
        version = wanted(ask, yaml, given, at_startup=at_startup, default_workers_per_model=default)
        assert (version.min_workers, version.max_workers) == expected


@pytest.mark.parametrize("at_startup", [False, True])
def test_the_models_property_is_looked_up_by_the_final_name_and_version(at_startup: bool) -> None:
    settings = Settings(**PLACE, model_settings={("other", "1.11"): ModelSettings(batch_size=9)})
    archive = Archive("d", 1, MANIFEST)
    for name, size in (("other", 9), (None, 1)):
        version = version_of(RegisterRequest(url="u", model_name=name), archive, settings, at_startup=at_startup)
        assert version.batch_size == size


@pytest.mark.parametrize(
    ("asked", "manifest", "name"),
    [("given", "own", "given"), (None, "own", "own"), ("", "own", "own"), ("a/b ?%", None, "a/b ?%")],
)
def test_the_name(asked: str | None, manifest: str | None, name: str) -> None:
    assert wanted({"model_name": asked}, manifest=Manifest(model_name=manifest)).key == Key(name, "1.0")


@pytest.mark.parametrize("asked", [None, ""])
def test_no_name(asked: str | None) -> None:
    with pytest.raises(InvalidModel) as refused:
        wanted({"model_name": asked}, manifest=Manifest())
    assert refused.value.message == "Model name is not defined."


@pytest.mark.parametrize(
    ("asked", "manifest", "default", "handler"),
    [
        ("a:b", "own.py", "d.py", "a:b"),
        (None, "own.py", "d.py", "own.py"),
        ("", "own.py", None, "own.py"),
        (None, None, "d.py", "d.py"),
        (None, None, None, ""),
    ],
)
def test_the_handler(asked: str | None, manifest: str | None, default: str | None, handler: str) -> None:
    described = Manifest(model_name="n", handler=manifest)
    assert wanted({"handler": asked}, manifest=described, default_service_handler=default).handler == handler


@pytest.mark.parametrize(
    ("asked", "manifest", "runtime"),
    [
        (None, "python", "python"),
        (None, "python3", "python3"),
        (None, "LSP", "LSP"),
        ("python3", "python", "python3"),
        ("PYTHON", "LSP", "python"),
        ("PYTHON3", None, "python3"),
        ("LSP", None, "LSP"),
    ],
)
def test_the_runtime(asked: str | None, manifest: str | None, runtime: str) -> None:
    check_runtime(asked)
    assert wanted({"runtime": asked}, manifest=Manifest(model_name="n", runtime=manifest)).runtime == runtime


def test_an_unknown_runtime_in_the_manifest() -> None:
    with pytest.raises(InvalidModel) as refused:
        wanted(manifest=Manifest(model_name="n", runtime=None))
    assert refused.value.message == "Runtime is not defined or invalid."


@pytest.mark.parametrize("runtime", ["", "python4", "Python", "lsp", "python "])
def test_a_runtime_that_is_refused(runtime: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_runtime(runtime)
    assert refused.value.message == f"Invalid RuntimeType value: {runtime}"
    assert refused.value.cause["field"] == "runtime"
    check_runtime(None)


# ---- what the machine is told


def test_a_pool_spec() -> None:
    archive = Archive("d", 1, MANIFEST, read_model_config({"maxRetryTimeoutInSec": 7, "jobQueueSize": 5})[0])
    version = wanted({"initial_workers": 2, **ASK})
    spec = pool_spec(version, archive, Path("/kept/d"), Settings(**PLACE, decode_input_request=False))
    assert (spec.key, spec.min_workers, spec.max_workers) == (version.key, 2, 2)
    assert (spec.batch_size, spec.batch_delay_s) == (2, 0.003)
    assert (spec.response_timeout_s, spec.startup_timeout_s, spec.retry_window_s) == (4.0, 5.0, 7.0)
    assert spec.queue_size == 5
    worker = spec.worker
    assert (worker.model_name, worker.model_dir, worker.handler) == ("noop", "/kept/d", "noop.py")
    assert (worker.batch_size, worker.runtime, worker.manifest) == (2, "python", {"model": {}})
    assert (worker.decode_input, worker.limit_max_image_pixels, worker.max_response_size) == (False, True, 6553500)


def test_a_pool_spec_of_an_archive_without_a_yaml() -> None:
    spec = pool_spec(wanted(), Archive("d", 1, MANIFEST), Path("/kept/d"), Settings(**PLACE, job_queue_size=8))
    assert (spec.queue_size, spec.retry_window_s) == (8, 300.0)


@pytest.mark.parametrize(
    ("manifest", "setting", "envelope"),
    [(None, None, ""), (None, "kserve", "kserve"), ("json", "kserve", "json"), ("other", None, "other")],
)
def test_the_manifests_envelope_wins(manifest: str | None, setting: str | None, envelope: str) -> None:
    archive = Archive("d", 1, replace(MANIFEST, envelope=manifest))
    spec = pool_spec(wanted(), archive, Path("/kept/d"), Settings(**PLACE, service_envelope=setting))
    assert spec.worker.envelope == envelope


def test_numbers_that_mean_nothing_are_clamped_in_effect() -> None:
    """They are stored and shown as given (DESIGN.md section 11)."""
    version = wanted(dict.fromkeys(NUMBERS, -7))
    spec = pool_spec(version, Archive("d", 1, MANIFEST), Path("/kept/d"), Settings(**PLACE))
    assert (spec.batch_size, spec.worker.batch_size, spec.batch_delay_s) == (1, 1, 0.0)
    assert (spec.response_timeout_s, spec.startup_timeout_s) == (0.0, 0.0)


PAIRS: dict[str, object] = {"parallelType": "tp", "parallelLevel": 2}


@pytest.mark.parametrize(
    ("ask", "yaml", "gpus", "expected"),
    [
        ({}, None, 3, (3, 3)),  # at start a worker for each GPU
        ({}, {"deviceType": "cpu"}, 3, (3, 3)),
        ({"initial_workers": 5}, None, 3, (5, 5)),
        ({}, PAIRS, 5, (2, 2)),
        ({"initial_workers": 1}, PAIRS, 5, (1, 1)),
        ({"initial_workers": 9}, PAIRS, 4, (2, 2)),
        ({"initial_workers": 9}, PAIRS, 0, (9, 9)),  # on the processor nothing is cut
        ({"initial_workers": 9}, {**PAIRS, "deviceType": "cpu"}, 4, (9, 9)),
        ({"initial_workers": 9}, {**PAIRS, "deviceIds": [0, 1]}, 4, (1, 1)),
        ({}, {**PAIRS, "minWorkers": 1, "maxWorkers": 8}, 4, (1, 2)),
        ({"initial_workers": 0}, PAIRS, 1, (0, 0)),
    ],
)
def test_workers_on_gpus(
    ask: dict[str, Any], yaml: dict[str, object] | None, gpus: int, expected: tuple[int, int]
) -> None:
    version = wanted(ask, yaml, gpus=gpus, at_startup=True)
    assert (version.min_workers, version.max_workers) == expected


def test_no_room_on_the_gpus_for_one_worker() -> None:
    with pytest.raises(WorkerInitialization) as refused:
        wanted({"initial_workers": 1}, {**PAIRS, "parallelLevel": 4, "deviceIds": [0, 1, 2]}, gpus=8)
    assert refused.value.message == "No enough gpu devices for model:noop parallelLevel:4"
    assert refused.value.cause["detail"] == "3 GPUs may be used, a worker takes 4"


@pytest.mark.parametrize(
    ("yaml", "gpus", "expected"),
    [
        ({}, 0, (0, None, 0)),
        ({}, 2, (2, None, 0)),
        ({"deviceIds": [1]}, 2, (2, (1,), 0)),
        ({"deviceIds": [2]}, 2, (2, None, 0)),
        (PAIRS, 2, (2, None, 2)),
        ({**PAIRS, "deviceType": "cpu"}, 2, (0, None, 0)),
    ],
)
def test_the_devices_of_a_pool_spec(
    yaml: dict[str, object], gpus: int, expected: tuple[int, tuple[int, ...] | None, int]
) -> None:
    archive = Archive("d", 1, MANIFEST, read_model_config(yaml)[0])
    spec = pool_spec(wanted(), archive, Path("/kept/d"), Settings(**PLACE), gpus=gpus)
    assert (spec.gpus, spec.device_ids, spec.parallel_level) == expected


@pytest.mark.parametrize(
    ("settings", "workers", "cores", "threads"),
    [
        ({}, 1, 8, 8),
        ({}, 3, 8, 2),
        ({}, 9, 8, 1),
        ({}, 0, 8, 8),
        ({"omp_num_threads": 5}, 3, 8, 5),
        ({"worker_threads": 6}, 3, 8, 6),
        ({"worker_threads": 6, "omp_num_threads": 5}, 3, 8, 6),
    ],
)
def test_threads_of_a_worker(settings: dict[str, Any], workers: int, cores: int, threads: int) -> None:
    assert threads_per_worker(Settings(**PLACE, **settings), workers=workers, cores=cores) == threads


def test_what_a_worker_may_use() -> None:
    settings = Settings(
        **PLACE,
        worker_memory_limit=3,
        worker_process_limit=4,
        worker_file_limit=5,
        worker_kill_grace=0.5,
        max_worker_restarts=6,
        worker_restart_period=7,
        python="/venv/bin/python",
    )
    version = wanted({"initial_workers": 2})
    spec = pool_spec(version, Archive("d", 1, MANIFEST), Path("/kept/d"), settings, cores=9)
    worker = spec.worker
    assert (worker.memory_limit, worker.process_limit, worker.file_limit) == (3 << 20, 4, 5)
    assert (worker.threads, worker.interpreter, worker.kill_grace_s) == (4, "/venv/bin/python", 0.5)
    assert (spec.most_restarts, spec.restart_period_s) == (6, 7.0)


def test_the_servers_own_python_is_no_other() -> None:
    """So that its workers can be forked."""
    archive, here = Archive("d", 1, MANIFEST), Path("/kept/d")
    for python in (None, sys.executable):
        assert pool_spec(wanted(), archive, here, Settings(**PLACE, python=python)).worker.interpreter is None


def test_as_many_threads_as_the_most_workers_leave() -> None:
    version = wanted(yaml={"minWorkers": 1, "maxWorkers": 4})
    spec = pool_spec(version, Archive("d", 1, MANIFEST), Path("/kept/d"), Settings(**PLACE), cores=8)
    assert spec.worker.threads == 2


def test_a_name_that_no_path_can_hold() -> None:
    """It could never be described, scaled or unregistered."""
    room = ADDRESSABLE - len("1.11")
    assert wanted({"model_name": "n" * room}).key.name == "n" * room
    with pytest.raises(InvalidModel, match="too long"):
        wanted({"model_name": "n" * (room + 1)})
    with pytest.raises(InvalidModel, match="too long"):
        wanted({"model_name": "é" * (room // 6 + 1)})


@pytest.mark.parametrize(
    ("ask", "yaml"),
    [({"initial_workers": MOST_WORKERS + 1}, None), (None, {"minWorkers": 2**31 - 1, "maxWorkers": 2**31 - 1})],
)
def test_more_workers_than_a_version_may_have(ask: dict[str, Any] | None, yaml: dict[str, object] | None) -> None:
    with pytest.raises(BadRequest) as refused:
        wanted(ask, yaml)
    assert refused.value.cause["allowed"] == f"at most {MOST_WORKERS}"
