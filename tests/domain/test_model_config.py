"""The front-end keys of a model yaml: types, defaults and clamps (spec/management.md section 3.5)."""

from __future__ import annotations

import pytest

from tserve.domain.model_config import ModelConfig, read_model_config

PIXELS = {"name": "pixels", "datatype": "FP32", "shape": [-1, 784]}
DROPPED = object()  # the key is ignored, with a warning


def test_nothing_said_is_the_defaults() -> None:
    assert read_model_config({}) == (ModelConfig(), [])
    config = ModelConfig()
    assert (config.min_workers, config.max_workers, config.batch_size, config.max_batch_delay_ms) == (0, 0, 0, 0)
    assert (config.response_timeout_s, config.startup_timeout_s, config.max_retry_timeout_s) == (120, 120, 300)
    assert (config.client_timeout_ms, config.job_queue_size, config.parallel_level) == (0, 0, 0)
    assert (config.sequence_max_idle_ms, config.sequence_timeout_ms) == (0, 0)
    assert (config.max_sequence_job_queue_size, config.max_num_sequence) == (1, 1)
    assert config.given == frozenset()


def test_keys_for_the_handler_are_left_alone() -> None:
    assert read_model_config({"handler": {"a": 1}, "MinWorkers": 3, "": None}) == (ModelConfig(), [])


@pytest.mark.parametrize(
    ("key", "field", "value", "expected"),
    [
        ("minWorkers", "min_workers", 4, 4),
        ("minWorkers", "min_workers", 0, 1),
        ("minWorkers", "min_workers", -7, 1),
        ("maxWorkers", "max_workers", 4, 4),
        ("maxWorkers", "max_workers", 0, 0),
        ("maxWorkers", "max_workers", -1, DROPPED),
        ("batchSize", "batch_size", 8, 8),
        ("batchSize", "batch_size", 0, 1),
        ("batchSize", "batch_size", -8, 1),
        ("maxBatchDelay", "max_batch_delay_ms", 5000, 5000),
        ("maxBatchDelay", "max_batch_delay_ms", -1, DROPPED),
        ("responseTimeout", "response_timeout_s", 1, 1),
        ("responseTimeout", "response_timeout_s", 0, DROPPED),
        ("responseTimeout", "response_timeout_s", -1, DROPPED),
        ("startupTimeout", "startup_timeout_s", 9, 9),
        ("startupTimeout", "startup_timeout_s", 0, DROPPED),
        ("startupTimeout", "startup_timeout_s", -1, DROPPED),
        ("maxRetryTimeoutInSec", "max_retry_timeout_s", 0, 0),
        ("maxRetryTimeoutInSec", "max_retry_timeout_s", -1, DROPPED),
        ("clientTimeoutInMills", "client_timeout_ms", 0, 0),
        ("clientTimeoutInMills", "client_timeout_ms", -1, DROPPED),
        ("jobQueueSize", "job_queue_size", 1, 1),
        ("jobQueueSize", "job_queue_size", 0, DROPPED),
        ("jobQueueSize", "job_queue_size", -1, DROPPED),
        ("sequenceMaxIdleMSec", "sequence_max_idle_ms", -1, DROPPED),
        ("sequenceTimeoutMSec", "sequence_timeout_ms", 7, 7),
        ("maxSequenceJobQueueSize", "max_sequence_job_queue_size", 0, 1),
        ("maxNumSequence", "max_num_sequence", -3, 1),
        ("batchSize", "batch_size", 2**31 - 1, 2**31 - 1),
        ("batchSize", "batch_size", 2**31, DROPPED),
        ("batchSize", "batch_size", "8", DROPPED),
        ("batchSize", "batch_size", 8.0, DROPPED),
        ("batchSize", "batch_size", True, DROPPED),
        ("batchSize", "batch_size", None, DROPPED),
        ("batchSize", "batch_size", [8], DROPPED),
        ("useJobTicket", "use_job_ticket", True, True),
        ("useVenv", "use_venv", False, False),
        ("useVenv", "use_venv", 1, DROPPED),
        ("useVenv", "use_venv", "true", DROPPED),
        ("continuousBatching", "continuous_batching", True, True),
        ("sequenceBatching", "sequence_batching", True, True),
        ("asyncCommunication", "async_communication", None, DROPPED),
        ("deviceType", "device_type", "cpu", "cpu"),
        ("deviceType", "device_type", "gpu", "gpu"),
        ("deviceType", "device_type", "CPU", DROPPED),
        ("deviceType", "device_type", ["cpu"], DROPPED),
        ("parallelType", "parallel_type", "pptp", "pptp"),
        ("parallelType", "parallel_type", "dp", DROPPED),
        ("deviceIds", "device_ids", [0, 3], (0, 3)),
        ("deviceIds", "device_ids", [0, -1], DROPPED),
        ("deviceIds", "device_ids", [0, "1"], DROPPED),
        ("deviceIds", "device_ids", [True], DROPPED),
        ("deviceIds", "device_ids", 3, DROPPED),
        ("inputs", "inputs", [], ()),
        ("inputs", "inputs", [PIXELS], (PIXELS,)),
        ("outputs", "outputs", [{**PIXELS, "shape": [], "more": 1}], ({**PIXELS, "shape": []},)),
        ("outputs", "outputs", PIXELS, DROPPED),
        ("outputs", "outputs", ["pixels"], DROPPED),
        ("outputs", "outputs", [PIXELS, {"name": "x", "shape": [1]}], DROPPED),
        ("outputs", "outputs", [{**PIXELS, "name": ""}], DROPPED),
        ("outputs", "outputs", [{**PIXELS, "name": "x" * 257}], DROPPED),
        ("outputs", "outputs", [{**PIXELS, "datatype": 32}], DROPPED),
        ("outputs", "outputs", [{**PIXELS, "shape": [1.5]}], DROPPED),
        ("outputs", "outputs", [{**PIXELS, "shape": [1] * 65}], DROPPED),
        ("outputs", "outputs", [PIXELS] * 65, DROPPED),
    ],
)
def test_one_key(key: str, field: str, value: object, expected: object) -> None:
    config, warnings = read_model_config({key: value})
    if expected is DROPPED:
        assert config == ModelConfig()
        assert len(warnings) == 1
        assert warnings[0].startswith(f"{key}: ")
    else:
        assert getattr(config, field) == expected
        assert config.given == {field}
        assert warnings == []


def test_one_bad_key_spares_the_others() -> None:
    config, warnings = read_model_config({"minWorkers": 2, "batchSize": "many", "responseTimeout": 7})
    assert (config.min_workers, config.batch_size, config.response_timeout_s) == (2, 0, 7)
    assert config.given == {"min_workers", "response_timeout_s"}
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("yaml", "level"),
    [
        ({"parallelType": "tp", "parallelLevel": 2}, 2),
        ({"parallelType": "tp", "parallelLevel": 0}, 0),
        ({"parallelType": "tp", "parallelLevel": -1}, 0),
        ({"parallelLevel": 2}, 0),
        ({"parallelType": "no", "parallelLevel": 2}, 0),
        ({"parallelType": "pp", "torchrun": {"nproc-per-node": 4}}, 4),
        ({"parallelType": "pp", "torchrun": {"nproc-per-node": 4}, "parallelLevel": 2}, 4),
        ({"parallelType": "pp", "torchrun": {}}, 1),
        ({"torchrun": {"nproc-per-node": 4}}, 0),
    ],
)
def test_parallel_level_needs_a_parallel_type(yaml: dict[str, object], level: int) -> None:
    assert read_model_config(yaml)[0].parallel_level == level


def test_a_key_written_with_its_default_counts_as_given() -> None:
    assert read_model_config({"responseTimeout": 120})[0].given == {"response_timeout_s"}
