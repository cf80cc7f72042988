"""The server profiles of the recorded cases, copied: those that start, and those that ask for what is not built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tserve.settings import Address, ModelSettings, Options, Settings, load_settings

COMMON = """\
inference_address=http://127.0.0.1:31480
management_address=http://127.0.0.1:31481
metrics_address=http://127.0.0.1:31482
grpc_inference_port=30470
grpc_management_port=30471
model_store={model_store}
enable_envvars_config=false
default_register_synchronous=true
list_page_tokens=offset
allow_private_addresses=true
"""
OFF = "disable_token_authorization=true\n"
OPEN = OFF + "enable_model_api=true\n"
CLI = Options(disable_token_auth=True, enable_model_api=True, models=("renamed=noop.mar", "tinyscript.mar"))
LIMITS = """\
max_request_size=2000
max_response_size=5000
job_queue_size=2
default_response_timeout=5
cors_allowed_origin=https://example.org
cors_allowed_methods=GET, POST, PUT, OPTIONS
cors_allowed_headers=X-Custom-Header
"""
STARTUP = (
    "load_models=my_noop=noop.mar,echo_batch.mar\ndefault_workers_per_model=2\n"
    'models={"my_noop":{"1.0":{"defaultVersion":true,"marName":"noop.mar","minWorkers":1,"maxWorkers":3,"batchSize":4,'
    '"maxBatchDelay":150,"responseTimeout":66}},"noop":{"2.0":{"batchSize":7,"maxBatchDelay":70,"responseTimeout":55}}}\n'
)
NOAPI = "load_models=noop.mar,noop_v2.mar\ndefault_workers_per_model=1\nenable_model_api=false\n"


def load(cwd: Path, lines: str, options: Options) -> Settings:
    (cwd / "profile.properties").write_text(COMMON.format(model_store=cwd) + lines)
    return load_settings(options, {"TS_CONFIG_FILE": "profile.properties"}, cwd)


@pytest.mark.parametrize(
    ("lines", "options", "expected"),
    [
        pytest.param(OPEN + "metrics_mode=prometheus\n", Options(), {"metrics_mode": "prometheus"}, id="open"),
        pytest.param(
            OFF + NOAPI,
            Options(),
            {"load_models": ("noop.mar", "noop_v2.mar"), "default_workers_per_model": 1, "enable_model_api": False},
            id="noapi",
        ),
        pytest.param(
            OPEN + "allowed_urls=http://127.0.0.1:31490/ok/.*,file:///allowed/.*\n",
            Options(),
            {"allowed_urls": ("http://127.0.0.1:31490/ok/.*", "file:///allowed/.*")},
            id="urls",
        ),
        pytest.param(
            OPEN + LIMITS,
            Options(),
            {
                "max_request_size": 2000,
                "max_response_size": 5000,
                "job_queue_size": 2,
                "default_response_timeout": 5,
                "cors_headers": (
                    ("access-control-allow-origin", "https://example.org"),
                    ("access-control-allow-methods", "GET, POST, PUT, OPTIONS"),
                    ("access-control-allow-headers", "X-Custom-Header"),
                ),
            },
            id="limits",
        ),
        pytest.param(
            OPEN + STARTUP,
            Options(),
            {
                "load_models": ("my_noop=noop.mar", "echo_batch.mar"),
                "default_workers_per_model": 2,
                "model_settings": {
                    ("my_noop", "1.0"): ModelSettings(1, 3, 4, 150, 66, None),
                    ("noop", "2.0"): ModelSettings(None, None, 7, 70, 55, None),
                },
            },
            id="startup",
        ),
        pytest.param(OPEN, Options(), {}, id="snapshot, s3"),
        pytest.param(OPEN, CLI, {"load_models": ("renamed=noop.mar", "tinyscript.mar")}, id="cli"),
        pytest.param(
            "load_models=noop.mar\ndefault_workers_per_model=1\ndisable_token_authorization=false\nenable_model_api=false\n",
            Options(),
            {
                "load_models": ("noop.mar",),
                "default_workers_per_model": 1,
                "disable_token_authorization": False,
                "enable_model_api": False,
            },
            id="default",
        ),
        pytest.param(
            "enable_model_api=true\nmetrics_mode=prometheus\ndisable_token_authorization=false\n",
            Options(),
            {"metrics_mode": "prometheus", "disable_token_authorization": False},
            id="token",
        ),
    ],
)
def test_profiles_that_start(tmp_path: Path, lines: str, options: Options, expected: Mapping[str, object]) -> None:
    settings = load(tmp_path, lines, options)
    common = {
        "model_store": tmp_path,
        "state_dir": tmp_path / ".tserve",
        "inference": Address("127.0.0.1", 31480),
        "management": Address("127.0.0.1", 31481),
        "metrics": Address("127.0.0.1", 31482),
        "grpc_inference_port": 30470,
        "grpc_management_port": 30471,
        "default_register_synchronous": True,
        "list_page_tokens": "offset",
        "allow_private_addresses": True,
        "disable_token_authorization": True,
    }
    assert settings == Settings(**(common | dict(expected)))  # type: ignore[arg-type]
