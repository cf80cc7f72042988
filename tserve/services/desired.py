"""From what a client, the archive and the configuration say to the desired state of a version, and on to a pool's.

Precedence, highest first: parameter of the call, archive yaml, `models` property, default (DESIGN.md section 9).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tserve.archive.integrity import Claim
from tserve.domain.devices import usable
from tserve.domain.model_config import ModelConfig
from tserve.domain.plan import MOST_WORKERS, PoolSpec, SequenceLimits, WorkerSpec
from tserve.domain.versions import Archive, Key, Version
from tserve.errors import BadRequest, IntegrityFailed, InvalidModel, WorkerInitialization
from tserve.runtime.processors import processors
from tserve.settings import ModelSettings, Settings
from tserve.settings_values import DIGEST, digest_in

UNSET = -1  # also what clients send for "default" (spec/management.md section 2.1)
UNSET_DELAY = -100
ADDRESSABLE = 3900  # bytes of name and version in a path: a request line has 4096 (spec/management.md section 0)
RUNTIMES = {"python": "python", "python3": "python3", "LSP": "LSP", "PYTHON": "python", "PYTHON3": "python3"}
_NO_CONFIG = ModelConfig()


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    """Parameters of a registration as given; None where the client said nothing or nothing that can be read.

    `max_batch_delay` is in milliseconds, timeouts in whole seconds.
    """

    url: str | None = None
    model_name: str | None = None
    handler: str | None = None
    runtime: str | None = None
    batch_size: int | None = None
    max_batch_delay: int | None = None
    initial_workers: int | None = None
    synchronous: bool | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    s3_sse_kms: bool = False
    sha256: str | None = None
    signature: str | None = None


def check_runtime(runtime: str | None) -> None:
    """Raises BadRequest."""
    if runtime is not None and runtime not in RUNTIMES:
        raise BadRequest(
            f"Invalid RuntimeType value: {runtime}",
            cause={"field": "runtime", "value": runtime, "allowed": sorted(RUNTIMES)},
        )


def claim_of(ask: RegisterRequest) -> Claim:
    """What the call says that the archive is.  Raises BadRequest."""
    digest = None if ask.sha256 is None else digest_in(ask.sha256)
    if ask.sha256 is not None and digest is None:
        cause = {"field": "sha256", "value": ask.sha256, "allowed": DIGEST}
        raise BadRequest("Parameter sha256 is no digest.", cause=cause)
    return Claim(digest, ask.signature)


def check_pin(version: Version, settings: Settings) -> bool:
    """Whether `models` names a digest for this version.  Raises IntegrityFailed where that means another archive."""
    pin = settings.model_settings.get((version.key.name, version.key.version), ModelSettings()).sha256
    if pin is not None and pin != version.digest:
        raise IntegrityFailed(
            version.url,
            cause={
                "reason": "digest_mismatch",
                "detail": f"the archive is sha256:{version.digest}, models has sha256:{pin} for {version.key}",
                "expected": f"sha256:{pin}",
                "actual": f"sha256:{version.digest}",
            },
        )
    return pin is not None


def check_workers(field: str, count: int) -> None:
    """Raises BadRequest for more workers than one version may have."""
    if count > MOST_WORKERS:
        allowed = f"at most {MOST_WORKERS}"
        raise BadRequest(
            f"{field} must be {allowed}: {count}", cause={"field": field, "value": count, "allowed": allowed}
        )


def version_of(
    ask: RegisterRequest, archive: Archive, settings: Settings, *, at_startup: bool, gpus: int = 0
) -> Version:
    """The version that a registration asks for on a machine with `gpus`.

    Raises InvalidModel for an archive that does not say enough, BadRequest for too many workers, and
    WorkerInitialization.
    """
    manifest, config = archive.manifest, archive.config or _NO_CONFIG
    name = ask.model_name or manifest.model_name
    if not name:
        raise InvalidModel("Model name is not defined.", cause={"reason": "no_model_name"})
    if len(quote(name)) + len(quote(manifest.model_version)) > ADDRESSABLE:
        raise InvalidModel(
            "Model name and version are too long to be addressed.",
            cause={"reason": "name_too_long", "allowed": f"{ADDRESSABLE} bytes in a URL, both together"},
        )
    runtime = ask.runtime or manifest.runtime
    if runtime is None:
        raise InvalidModel("Runtime is not defined or invalid.", cause={"allowed": sorted(RUNTIMES)})
    key = Key(name, manifest.model_version)
    given = settings.model_settings.get((key.name, key.version), ModelSettings())
    fewest, most = _workers(ask, config, given, settings, at_startup=at_startup, gpus=gpus)
    check_workers("minWorkers" if ask.initial_workers is None else "initial_workers", fewest)
    fewest, most = cut_to_devices(key.name, archive, (fewest, most), gpus)
    return Version(
        key=key,
        url=ask.url or "",
        digest=archive.digest,
        handler=ask.handler or manifest.handler or settings.default_service_handler or "",
        runtime=RUNTIMES[runtime],
        batch_size=_first(_said(ask.batch_size), config.batch_size or None, given.batch_size, 1),
        max_batch_delay=_first(
            _said(ask.max_batch_delay, UNSET_DELAY), config.max_batch_delay_ms or None, given.max_batch_delay, 100
        ),
        response_timeout=_first(
            _said(ask.response_timeout),
            config.response_timeout_s if "response_timeout_s" in config.given else None,
            given.response_timeout,
            settings.default_response_timeout,
        ),
        startup_timeout=_first(
            _said(ask.startup_timeout),
            config.startup_timeout_s if "startup_timeout_s" in config.given else None,
            given.startup_timeout,
            settings.default_startup_timeout,
        ),
        min_workers=fewest,
        max_workers=most,
    )


def _said(asked: int | None, unset: int = UNSET) -> int | None:
    return None if asked == unset else asked


def _first(*choices: int | None) -> int:
    return next(value for value in choices if value is not None)


def _workers(
    ask: RegisterRequest, config: ModelConfig, given: ModelSettings, settings: Settings, *, at_startup: bool, gpus: int
) -> tuple[int, int]:
    """Minimum and maximum.

    The `models` property counts only at start; then the default is one per GPU, without GPUs one per processor.
    """
    if ask.initial_workers is not None:
        count = max(0, ask.initial_workers)
        return count, count
    if 0 < config.min_workers <= config.max_workers:
        return config.min_workers, config.max_workers
    count = settings.default_workers_per_model
    if not at_startup:
        return count, count
    if given.min_workers and given.max_workers and given.min_workers <= given.max_workers:
        return given.min_workers, given.max_workers
    count = count or gpus or processors()
    return count, count


def cut_to_devices(name: str, archive: Archive, workers: tuple[int, int], gpus: int) -> tuple[int, int]:
    """Minimum and maximum as far as there are GPUs for them, where a worker takes several (section 4.1).

    Raises WorkerInitialization when there are too few for one, unless none is wanted.
    """
    devices = usable(archive.config or _NO_CONFIG, gpus)
    room = devices.most_workers
    if room is None or workers[1] <= 0:
        return workers
    if room == 0:
        raise WorkerInitialization.no_devices(name, devices.parallel_level, gpus=len(devices.ids or range(gpus)))
    return min(workers[0], room), min(workers[1], room)


def threads_per_worker(settings: Settings, *, workers: int, cores: int) -> int:
    """What tserve is told to, what OpenMP is told to, else a worker's share of the processors; never 0."""
    return settings.worker_threads or settings.omp_num_threads or max(1, cores // max(1, workers))


def queue_size(archive: Archive, settings: Settings) -> int:
    return (archive.config or _NO_CONFIG).job_queue_size or settings.job_queue_size


def _sequences(config: ModelConfig) -> SequenceLimits | None:
    """Only with an idle time are requests grouped by sequence (spec/inference.md section 9.3)."""
    if not config.sequence_batching or config.sequence_max_idle_ms <= 0:
        return None
    return SequenceLimits(
        most=config.max_num_sequence,
        most_waiting=config.max_sequence_job_queue_size,
        max_idle_s=config.sequence_max_idle_ms / 1000,
        timeout_s=config.sequence_timeout_ms / 1000 or math.inf,
    )


def requirements_of(archive: Archive, settings: Settings) -> str:
    """The file of packages that the archive's workers get installed; empty for none."""
    return (archive.manifest.requirements_file or "") if settings.install_py_dep_per_model else ""


def pool_spec(
    version: Version, archive: Archive, model_dir: Path, settings: Settings, *, gpus: int = 0, cores: int | None = None
) -> PoolSpec:
    """What the machine needs to serve a version: numbers clamped to where they mean something.

    `cores` are this process's processors unless given.
    """
    config = archive.config or _NO_CONFIG
    batch_size = max(1, version.batch_size)
    devices = usable(config, gpus)
    workers = min(max(version.min_workers, version.max_workers), MOST_WORKERS)
    return PoolSpec(
        key=version.key,
        worker=WorkerSpec(
            model_name=version.key.name,
            model_dir=str(model_dir),
            handler=version.handler,
            runtime=version.runtime,
            batch_size=batch_size,
            manifest=archive.manifest.raw,
            config_file=archive.manifest.config_file,
            decode_input=settings.decode_input_request,
            metrics_config=str(settings.metrics_config or ""),
            limit_max_image_pixels=settings.limit_max_image_pixels,
            max_response_size=settings.max_response_size,
            asynchronous=config.async_communication,
            sequence_headers=(
                settings.ts_header_key_sequence_id,
                settings.ts_header_key_sequence_start,
                settings.ts_header_key_sequence_end,
            ),
            interpreter=settings.python if settings.python != sys.executable else None,
            requirements=requirements_of(archive, settings),
            hidden_env=settings.hidden_variables,
            envelope=archive.manifest.envelope or settings.service_envelope or "",
            threads=threads_per_worker(settings, workers=workers, cores=processors() if cores is None else cores),
            memory_limit=settings.worker_memory_limit << 20,
            process_limit=settings.worker_process_limit,
            file_limit=settings.worker_file_limit,
            kill_grace_s=settings.worker_kill_grace,
        ),
        min_workers=version.min_workers,
        max_workers=version.max_workers,
        batch_size=batch_size,
        batch_delay_s=max(0, version.max_batch_delay) / 1000,
        response_timeout_s=float(max(0, version.response_timeout)),
        startup_timeout_s=float(max(0, version.startup_timeout)),
        retry_window_s=float(config.max_retry_timeout_s),
        queue_size=queue_size(archive, settings),
        client_timeout_s=config.client_timeout_ms / 1000 or math.inf,
        job_ticket=config.use_job_ticket,
        continuous=config.continuous_batching,
        sequences=_sequences(config),
        most_restarts=settings.max_worker_restarts,
        restart_period_s=float(settings.worker_restart_period),
        gpus=devices.gpus,
        device_ids=devices.ids,
        parallel_level=devices.parallel_level,
    )
