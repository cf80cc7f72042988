"""The front-end keys of an archive's model yaml: types, defaults and clamps (spec/management.md section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Durations keep upstream's unit, which the field's suffix names.  0 means unset where a default exists.

    `inputs` and `outputs` are objects of name, datatype and shape, as the metadata of the Open Inference Protocol
    shows them.
    """

    min_workers: int = 0
    max_workers: int = 0
    batch_size: int = 0
    max_batch_delay_ms: int = 0
    response_timeout_s: int = 120
    startup_timeout_s: int = 120
    max_retry_timeout_s: int = 300
    client_timeout_ms: int = 0
    job_queue_size: int = 0
    device_type: str = ""
    device_ids: tuple[int, ...] | None = None
    parallel_type: str = ""
    parallel_level: int = 0
    use_job_ticket: bool = False
    use_venv: bool = False
    continuous_batching: bool = False
    sequence_batching: bool = False
    async_communication: bool = False
    sequence_max_idle_ms: int = 0
    sequence_timeout_ms: int = 0
    max_sequence_job_queue_size: int = 1
    max_num_sequence: int = 1
    inputs: tuple[Mapping[str, object], ...] = ()
    outputs: tuple[Mapping[str, object], ...] = ()
    # Upstream's default of 120 s counts as given as soon as a yaml exists; tserve lets a parameter of the call
    # win over a value that nobody wrote (DESIGN.md section 9), so it must know which were written.
    given: frozenset[str] = frozenset()


_PARALLEL_TYPES = ("pp", "tp", "pptp", "custom")
_AT_LEAST: dict[str, tuple[str, int]] = {  # yaml key -> (field, smallest value that means something)
    "minWorkers": ("min_workers", 1),
    "maxWorkers": ("max_workers", 0),
    "batchSize": ("batch_size", 1),
    "maxBatchDelay": ("max_batch_delay_ms", 0),
    "responseTimeout": ("response_timeout_s", 1),
    "startupTimeout": ("startup_timeout_s", 1),
    "maxRetryTimeoutInSec": ("max_retry_timeout_s", 0),
    "clientTimeoutInMills": ("client_timeout_ms", 0),
    "jobQueueSize": ("job_queue_size", 1),
    "sequenceMaxIdleMSec": ("sequence_max_idle_ms", 0),
    "sequenceTimeoutMSec": ("sequence_timeout_ms", 0),
    "maxSequenceJobQueueSize": ("max_sequence_job_queue_size", 1),
    "maxNumSequence": ("max_num_sequence", 1),
}
_RAISED = frozenset({"minWorkers", "batchSize", "maxSequenceJobQueueSize", "maxNumSequence"})  # raised, not dropped
_FLAGS = {
    "useJobTicket": "use_job_ticket",
    "useVenv": "use_venv",
    "continuousBatching": "continuous_batching",
    "sequenceBatching": "sequence_batching",
    "asyncCommunication": "async_communication",
}
_INT32 = range(-(2**31), 2**31)
TENSORS = ("inputs", "outputs")
MOST_TENSORS = 64  # of a model, and axes of a tensor
_MOST_NAME = 256


def read_model_config(yaml: Mapping[str, object]) -> tuple[ModelConfig, list[str]]:
    """Front-end keys of a parsed model yaml, and a warning for each one that is left out for its type or value."""
    fields: dict[str, object] = {}
    warnings: list[str] = []
    for key, (name, least) in _AT_LEAST.items():
        if key not in yaml:
            continue
        value = yaml[key]
        if not isinstance(value, int) or isinstance(value, bool) or value not in _INT32:
            warnings.append(f"{key}: {value!r} is not a 32-bit whole number; key ignored")
        elif value >= least:
            fields[name] = value
        elif key in _RAISED:
            fields[name] = least
        else:
            warnings.append(f"{key}: {value} is below {least}; key ignored")
    for key, name in _FLAGS.items():
        if isinstance(yaml.get(key), bool):
            fields[name] = yaml[key]
        elif key in yaml:
            warnings.append(f"{key}: {yaml[key]!r} is not true or false; key ignored")
    _read_devices(yaml, fields, warnings)
    _read_tensors(yaml, fields, warnings)
    return ModelConfig(**fields, given=frozenset(fields)), warnings  # type: ignore[arg-type]


def _read_devices(yaml: Mapping[str, object], fields: dict[str, object], warnings: list[str]) -> None:
    for key, name, allowed in (
        ("deviceType", "device_type", ("cpu", "gpu")),
        ("parallelType", "parallel_type", _PARALLEL_TYPES),
    ):
        if yaml.get(key) in allowed:
            fields[name] = yaml[key]
        elif key in yaml:
            warnings.append(f"{key}: {yaml[key]!r} is none of {', '.join(allowed)}; key ignored")
    ids = yaml.get("deviceIds")
    if isinstance(ids, list) and ids and all(type(i) is int and i >= 0 for i in ids):
        fields["device_ids"] = tuple(ids)
    elif ids is not None:
        warnings.append(f"deviceIds: {ids!r} is not a list of device numbers; key ignored")
    torchrun = yaml.get("torchrun")
    level = torchrun.get("nproc-per-node", 1) if isinstance(torchrun, Mapping) else yaml.get("parallelLevel")
    if "parallel_type" in fields and type(level) is int and level > 0:
        fields["parallel_level"] = level


def _read_tensors(yaml: Mapping[str, object], fields: dict[str, object], warnings: list[str]) -> None:
    """tserve's own keys; a handler may have had others of these names, which then are no tensors."""
    for key in TENSORS:
        value = yaml.get(key)
        if isinstance(value, list) and len(value) <= MOST_TENSORS and all(_is_tensor(each) for each in value):
            fields[key] = tuple({part: each[part] for part in ("name", "datatype", "shape")} for each in value)
        elif key in yaml:
            warnings.append(f"{key}: not a list of name, datatype and shape; not shown in the model's metadata")


def _is_tensor(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    texts, shape = (value.get("name"), value.get("datatype")), value.get("shape")
    return (
        all(isinstance(text, str) and 0 < len(text) <= _MOST_NAME for text in texts)
        and isinstance(shape, list)
        and len(shape) <= MOST_TENSORS
        and all(type(size) is int and size in _INT32 for size in shape)
    )
