"""Where settings come from, how values are read, what is refused and what is warned about."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tserve.errors import BadConfiguration
from tserve.settings import Address, Certificates, Options, Settings, load_settings
from tserve.settings_keys import KEYS, Effect

Load = Callable[..., Settings]
NO_OPTIONS = Options()


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A working directory with the default model store in it."""
    (tmp_path / "model_store").mkdir()
    return tmp_path


@pytest.fixture
def load(cwd: Path) -> Load:
    """Load `text` as ./config.properties (no file when it is None)."""

    def load(text: str | bytes | None = None, options: Options = NO_OPTIONS, **environ: str) -> Settings:
        if text is not None:
            (cwd / "config.properties").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_settings(options, environ, cwd)

    return load


# ---- defaults, file discovery, precedence --------------------------------------------------------------------------


def test_without_anything_the_defaults_count(load: Load, cwd: Path) -> None:
    assert load() == Settings(
        model_store=cwd / "model_store",
        state_dir=cwd / ".tserve",
        inference=Address("127.0.0.1", 8080),
        management=Address("127.0.0.1", 8081),
        metrics=Address("127.0.0.1", 8082),
        load_models=(),
        model_settings={},
        default_workers_per_model=0,
        default_response_timeout=120,
        default_startup_timeout=120,
        unregister_model_timeout=120,
        job_queue_size=100,
        max_request_size=6553500,
        max_response_size=6553500,
        initial_worker_port=9000,
        allowed_urls=("file://.*", "http(s)?://.*", "s3://.*"),
        allow_private_addresses=False,
        allowed_networks=(),
        max_download_size=32768,
        min_free_space=256,
        max_archive_entries=100_000,
        max_archive_size=262144,
        max_archive_ratio=200,
        download_connect_timeout=10,
        download_idle_timeout=60,
        download_timeout=3600,
        download_retries=3,
        s3_endpoint_url=None,
        digest_required=False,
        signature_required=False,
        trusted_keys=None,
        enable_model_api=True,
        default_register_synchronous=False,
        list_page_tokens="cursor",
        cors_headers=(),
        default_service_handler=None,
        decode_input_request=True,
        limit_max_image_pixels=True,
        warnings=(),
    )


@pytest.mark.parametrize(
    ("variable", "option", "local", "expected"),
    [
        (False, False, False, 100),
        (False, False, True, 1),
        (False, True, True, 2),
        (True, False, True, 3),
        (True, True, True, 3),
    ],
)
def test_the_first_file_that_is_given_is_the_only_one_read(
    load: Load, cwd: Path, variable: bool, option: bool, local: bool, expected: int
) -> None:
    (cwd / "option.properties").write_text("job_queue_size=2\n")
    (cwd / "variable.properties").write_text("job_queue_size=3\n")
    settings = load(
        "job_queue_size=1\ndefault_response_timeout=7\n" if local else None,
        Options(ts_config="option.properties" if option else None),
        **({"TS_CONFIG_FILE": str(cwd / "variable.properties")} if variable else {}),
    )
    assert settings.job_queue_size == expected
    assert settings.default_response_timeout == (7 if expected == 1 else 120)


def test_an_empty_ts_config_file_variable_is_unset(load: Load) -> None:
    assert load("job_queue_size=1", TS_CONFIG_FILE="").job_queue_size == 1


ENVIRONMENT_ON = "enable_envvars_config=true\n"


@pytest.mark.parametrize(
    ("text", "options", "environ", "expected"),
    [
        ("load_models=file.mar", Options(), {}, ("file.mar",)),
        ("load_models=file.mar", Options(models=("cli.mar", "b=c.mar")), {}, ("cli.mar", "b=c.mar")),
        ("load_models=file.mar", Options(models=("cli.mar",)), {"TS_LOAD_MODELS": "env.mar"}, ("cli.mar",)),
        (ENVIRONMENT_ON, Options(models=("cli.mar",)), {"TS_LOAD_MODELS": "env.mar"}, ("env.mar",)),
        (ENVIRONMENT_ON + "load_models=file.mar", Options(), {"TS_LOAD_MODELS": ""}, ()),
        (None, Options(models=("ALL",)), {}, ("all",)),
        ("load_models=All", Options(), {}, ("all",)),
        ("load_models= a.mar , ,b=c.mar", Options(), {}, ("a.mar", "b=c.mar")),
        (None, Options(models=("a.mar,b.mar", "https://h/d.mar?x=y")), {}, ("a.mar", "b.mar", "https://h/d.mar?x=y")),
    ],
)
def test_environment_beats_command_line_beats_file(
    load: Load, text: str | None, options: Options, environ: Mapping[str, str], expected: tuple[str, ...]
) -> None:
    assert load(text, options, **environ).load_models == expected


def test_the_environment_cannot_turn_itself_on(load: Load) -> None:
    settings = load("", TS_ENABLE_ENVVARS_CONFIG="true", TS_JOB_QUEUE_SIZE="5")
    assert settings.job_queue_size == 100
    assert settings.warnings == (
        "set in the environment but not read: TS_JOB_QUEUE_SIZE; the properties file must say "
        "enable_envvars_config=true, and for TS_ALLOWED_URLS also use_env_allowed_urls=true",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("allowed_urls=http://a/.*", ("http://a/.*",)),
        (ENVIRONMENT_ON + "allowed_urls=http://a/.*", ("http://a/.*",)),
        ("use_env_allowed_urls=true\nallowed_urls=http://a/.*", ("http://a/.*",)),
        (ENVIRONMENT_ON + "use_env_allowed_urls=TRUE\nallowed_urls=http://a/.*", ("http://env/.*", "file:///x")),
    ],
)
def test_allowed_urls_come_from_the_environment_only_if_the_file_says_so_twice(
    load: Load, text: str, expected: tuple[str, ...]
) -> None:
    settings = load(text, TS_ALLOWED_URLS="http://env/.*, file:///x")
    assert settings.allowed_urls == expected
    assert bool(settings.warnings) == (expected == ("http://a/.*",)), "a variable that is not read is warned about"


def test_flags_switch_on_what_the_file_switches_off(load: Load) -> None:
    text = "enable_model_api=false\ndisable_token_authorization=false\n"
    assert load(text, Options(enable_model_api=True, disable_token_auth=True)).enable_model_api
    assert not load(ENVIRONMENT_ON, Options(enable_model_api=True), TS_ENABLE_MODEL_API="false").enable_model_api


def test_every_variable_of_a_key_in_use_is_read(load: Load, cwd: Path) -> None:
    """Each gets a text other than its default; the variables of the three remaining keys have tests of their own."""
    (file := cwd / "metrics.yaml").touch()
    texts = {
        "inference_address": "http://localhost:1",
        "management_address": "http://localhost:2",
        "metrics_address": "http://localhost:3",
        "model_store": str(cwd),
        "state_dir": "elsewhere",
        "load_models": "a.mar",
        "default_service_handler": "a:b",
        "service_envelope": "kservev2",
        "list_page_tokens": "offset",
        "worker_start": "fresh",
        "worker_kill_grace": "0.5",
        **dict.fromkeys(NUMBERS, "41"),
        "blacklist_env_vars": ".*SECRET",
        "worker_env_vars": "AWS_.*",
        "metrics_config": str(file),
        "keystore": str(file),
        "keystore_pass": "secret",
        "allowed_networks": "10.1.2.3",
        "s3_endpoint_url": "http://localhost:9000",
        "trusted_keys": str(file.parent),
        "tls_client_ca": str(file),
        "metrics_mode": "prometheus",
        "allowed_hosts": "a.example",
        "disable_token_authorization": "true",
        "key_file": str(cwd / "key.json"),
        "grpc_inference_address": "localhost",
        "grpc_management_address": "localhost",
        **dict.fromkeys(SEQUENCE_HEADERS, "X-Name"),
        **{name: str(name in OFF).lower() for name in SWITCHES},
    }
    used = {key.name: key for key in KEYS if key.effect is Effect.USED and key.env is not None}
    cors = {name for name in used if name.startswith("cors")}
    others = {"allowed_urls", "token_expiration_min", "ts_open_inference_protocol"}
    others |= {
        "certificate_file",
        "private_key_file",
        "keystore_type",
        "enable_grpc_ssl",
    }  # each needs another
    assert used.keys() - cors - texts.keys() == others
    for name in set(texts) - {"metric_time_interval"}:  # upstream has no variable for that one
        text = texts[name]
        field, variable = used[name].field, used[name].env
        assert field is not None
        assert variable == f"TS_{name.upper().removeprefix('TS_')}"
        read = load(ENVIRONMENT_ON, **{variable: text})
        assert getattr(read, field) != getattr(load(ENVIRONMENT_ON), field), name
    for name in cors:
        assert [value for _, value in load(ENVIRONMENT_ON, **{f"TS_{name.upper()}": "x"}).cors_headers] == ["x"]


def test_every_variable_of_the_other_keys_is_read(load: Load) -> None:
    by_name = {key.name: key.env for key in KEYS}
    assert by_name["token_expiration_min"] == "TS_TOKEN_EXPIRATION_TIME_MIN"
    assert by_name["ts_header_key_sequence_id"] == "TS_HEADER_KEY_SEQUENCE_ID"
    for key in KEYS:
        if key.effect is Effect.NOT_YET and key.env is not None:
            assert load(ENVIRONMENT_ON, **{key.env: "x"}).warnings == (f"without effect in this release: {key.name}",)


def test_certificates(load: Load, cwd: Path) -> None:
    """The keystore wins over https addresses, the PEM files win over gRPC, either serves both."""
    pem, key, store, ca = (cwd / name for name in ("cert.pem", "key.pem", "store.p12", "ca.pem"))
    for file in (pem, key, store, ca):
        file.touch()
    pair = "certificate_file=cert.pem\nprivate_key_file=key.pem\n"
    tls = "inference_address=https://127.0.0.1\nenable_grpc_ssl=true\n"
    read = load(pair + tls + "tls_client_ca=ca.pem")
    assert read.inference == Address("127.0.0.1", 443, secure=True)
    assert read.https_certificates == read.grpc_certificates == Certificates(pem, key, client_ca=ca)
    read = load(pair + tls + "keystore=store.p12")
    assert read.https_certificates == Certificates(keystore=store, password="changeit")
    assert read.grpc_certificates == Certificates(pem, key)
    read = load(tls + "keystore=store.p12\nkeystore_pass=other\nkeystore_type=pkcs12")
    assert read.https_certificates == read.grpc_certificates == Certificates(keystore=store, password="other")
    assert "other" not in repr(read)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("management_address=https://127.0.0.1", "management_address=https://127.0.0.1:8444: TLS needs a certificate"),
        ("enable_grpc_ssl=true", "enable_grpc_ssl=true: TLS needs a certificate"),
        ("certificate_file=config.properties", "private_key_file: it is missing; certificate_file does not go without"),
        ("private_key_file=config.properties", "certificate_file: it is missing; private_key_file does not go without"),
    ],
)
def test_certificates_that_are_missing(load: Load, text: str, message: str) -> None:
    with pytest.raises(BadConfiguration, match=message):
        load(text)


# ---- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        "default_service_handler=modèle:lé".encode(),
        "\ufeffdefault_service_handler=modèle:lé".encode(),
        "default_service_handler=modèle:lé".encode("latin-1"),
        b"default_service_handler=mod\\u00e8le:l\\u00e9",
        "! a comment\ndefault_service_handler : mod\\\n    èle\\:lé\r\n".encode(),
        "default_service_handler=first\ndefault_service_handler=modèle:lé".encode(),
    ],
)
def test_the_file_is_read_as_java_writes_it_and_as_editors_do(load: Load, data: bytes) -> None:
    assert load(data).default_service_handler == "modèle:lé"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("$$HOST$$.handler:f", "box.handler:f"),
        ("$$HOST$$$$PORT$$", "box80"),
        ("$HOST$ $$", "$HOST$ $$"),
        ("$$RAW$$", "\\1$$HOST$$"),
    ],
)
def test_variables_are_put_into_values_once(load: Load, value: str, expected: str) -> None:
    settings = load(f"default_service_handler={value}", HOST="box", PORT="80", RAW="\\1$$HOST$$")
    assert settings.default_service_handler == expected


def test_a_missing_variable_stops_the_start_wherever_it_stands(load: Load) -> None:
    with pytest.raises(BadConfiguration, match=r"^Invalid Environment Variable NOT_THERE$"):
        load("job_queue_size=5\nunknown_key=$$NOT_THERE$$")


def test_command_line_texts_are_not_substituted(load: Load) -> None:
    assert load(None, Options(models=("$$HOST$$.mar",)), HOST="box").load_models == ("$$HOST$$.mar",)


def test_paths_start_at_the_working_directory(load: Load, cwd: Path) -> None:
    (cwd / "conf").mkdir()
    (cwd / "store").mkdir()
    (cwd / "conf" / "ts.properties").write_text("model_store=store\nstate_dir=/var/lib/state\n")
    settings = load(None, Options(ts_config="conf/ts.properties"))
    assert (settings.model_store, settings.state_dir) == (cwd / "store", Path("/var/lib/state"))
    settings = load(None, Options(ts_config="conf/ts.properties", model_store=str(cwd), state_dir="s"))
    assert (settings.model_store, settings.state_dir) == (cwd, cwd / "s")


# ---- single values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://127.0.0.1:31480", Address("127.0.0.1", 31480)),
        ("HTTP://localhost:0", Address("localhost", 0)),
        ("http://127.0.0.2", Address("127.0.0.2", 80)),
        (" http://[::1]:8080 ", Address("::1", 8080)),
        ("http://[::1]", Address("::1", 80)),
        ("http://127.0.0.1:65535", Address("127.0.0.1", 65535)),
    ],
)
def test_addresses(load: Load, text: str, expected: Address) -> None:
    assert load(f"inference_address={text}").inference == expected


def test_ports_left_out_differ_per_listener(load: Load) -> None:
    names = ("inference", "management", "metrics")
    settings = load("".join(f"{name}_address=http://localhost\n" for name in names))
    assert [getattr(settings, name).port for name in names] == [80, 8081, 8082]


@pytest.mark.parametrize(
    ("address", "url", "loopback"),
    [
        (Address("127.0.0.1", 80), "http://127.0.0.1:80", True),
        (Address("127.8.9.10", 80), "http://127.8.9.10:80", True),
        (Address("LocalHost", 80), "http://LocalHost:80", True),
        (Address("::1", 8080), "http://[::1]:8080", True),
        (Address("0.0.0.0", 80), "http://0.0.0.0:80", False),
        (Address("::", 80), "http://[::]:80", False),
        (Address("localhost.example.org", 80), "http://localhost.example.org:80", False),
    ],
)
def test_address_url_and_loopback(address: Address, url: str, loopback: bool) -> None:
    assert (address.url, address.is_loopback) == (url, loopback)


def test_cors_headers_keep_their_values_and_order(load: Load) -> None:
    text = "cors_allowed_headers=X-Custom-Header\ncors_allowed_methods=GET, POST\ncors_allowed_origin=*\n"
    assert load(text).cors_headers == (
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, POST"),
        ("access-control-allow-headers", "X-Custom-Header"),
    )
    settings = load("cors_allowed_origin=\ncors_allowed_methods=GET")
    assert settings.cors_headers == (("access-control-allow-methods", "GET"),)


def test_an_empty_list_of_urls_allows_none(load: Load) -> None:
    assert load("allowed_urls=").allowed_urls == ()


NUMBERS = [
    *("default_workers_per_model", "default_response_timeout", "default_startup_timeout", "unregister_model_timeout"),
    *("job_queue_size", "max_request_size", "max_response_size", "initial_worker_port", "number_of_gpu"),
    *("max_archive_entries", "max_archive_size", "max_archive_ratio"),
    *("max_connections", "max_download_size", "min_free_space", "download_connect_timeout"),
    *("download_idle_timeout", "download_timeout", "download_retries"),
    *("worker_threads", "worker_memory_limit", "worker_process_limit", "worker_file_limit"),
    *("max_worker_restarts", "worker_restart_period", "environment_timeout", "metric_time_interval"),
    *("grpc_inference_port", "grpc_inference_max_connection_age_ms", "grpc_inference_max_connection_age_grace_ms"),
    *("grpc_management_port", "grpc_management_max_connection_age_ms", "grpc_management_max_connection_age_grace_ms"),
]
FROM_ONE = {
    *("default_response_timeout", "default_startup_timeout", "job_queue_size", "max_request_size", "max_response_size"),
    *("worker_restart_period", "environment_timeout", "metric_time_interval", "max_connections"),
    *("max_download_size", "download_connect_timeout", "download_idle_timeout", "download_timeout"),
    *("max_archive_entries", "max_archive_size", "max_archive_ratio"),
    *(name for name in NUMBERS if "max_connection_age" in name),
}
MOST = {
    "initial_worker_port": 65535,
    "worker_threads": 4096,
    "download_retries": 100,
    "grpc_inference_port": 65535,
    "grpc_management_port": 65535,
}


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_are_read_and_refused(load: Load, cwd: Path, key: str) -> None:
    least = 1 if key in FROM_ONE else 0
    most = MOST.get(key, 2147483647)
    for text in (str(least), " +77 ", str(most)):
        assert getattr(load(f"{key}={text}"), key) == int(text)
    for text in ("", "many", "1.5", "1e3", "0x10", str(least - 1), str(most + 1), "9" * 5000, "٣"):
        with pytest.raises(BadConfiguration) as refusal:
            load(f"{key}={text}")
        assert str(refusal.value).startswith(f"{key}={text[:200]}")
        assert f"({cwd / 'config.properties'}): allowed is a whole number from {least} to {most}" in str(refusal.value)


def test_the_file_of_the_metrics_must_exist(load: Load, cwd: Path) -> None:
    (cwd / "metrics.yaml").touch()
    assert load("metrics_config=metrics.yaml").metrics_config == cwd / "metrics.yaml"
    assert load("metrics_config=").metrics_config is None
    with pytest.raises(BadConfiguration, match=r"allowed is the path of a file that exists$"):
        load("metrics_config=nowhere.yaml")


SEQUENCE_HEADERS = [f"ts_header_key_sequence_{what}" for what in ("id", "start", "end")]


@pytest.mark.parametrize("key", SEQUENCE_HEADERS)
def test_names_of_headers_are_read_and_refused(load: Load, key: str) -> None:
    assert getattr(load(f"{key}= X-Sequence "), key) == "X-Sequence"
    for text in ("", "two words", "x:y", "grün"):
        with pytest.raises(BadConfiguration, match=r"allowed is the name of an HTTP header$"):
            load(f"{key}={text}")


SWITCHES = [
    *("allow_private_addresses", "enable_model_api", "default_register_synchronous", "decode_input_request"),
    *("limit_max_image_pixels", "install_py_dep_per_model", "enable_grpc", "enable_metrics_api"),
    *("model_metrics_auto_detect", "disable_system_metrics", "require_metrics_token"),
    *("digest_required", "signature_required"),
]
OFF = {  # unless switched on
    *("allow_private_addresses", "default_register_synchronous", "install_py_dep_per_model"),
    *("model_metrics_auto_detect", "disable_system_metrics", "require_metrics_token"),
    *("digest_required", "signature_required"),
}


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.1.2.3", "fd00::/8 , 127.0.0.1/32", ""])
def test_networks(load: Load, text: str) -> None:
    assert load(f"allowed_networks={text}").allowed_networks == tuple(item.strip() for item in text.split(",") if item)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "host", "10.0.0.0/33", "*", "10.0.0.0-10.0.0.9"])
def test_what_is_no_network(load: Load, text: str) -> None:
    with pytest.raises(BadConfiguration, match="a comma list of networks"):
        load(f"allowed_networks={text}")


@pytest.mark.parametrize("text", ["minio:9000", "ftp://h", "http://", "http://user@h", "http://h/?x", "http://h /"])
def test_what_is_no_endpoint(load: Load, text: str) -> None:
    with pytest.raises(BadConfiguration, match="s3_endpoint_url"):
        load(f"s3_endpoint_url={text}")


@pytest.mark.parametrize("key", SWITCHES)
def test_switches_are_read_and_refused(load: Load, key: str) -> None:
    assert getattr(load(f"{key}=TRUE "), key) is True
    assert getattr(load(f"{key}=false"), key) is False
    for text in ("yes", "1", ""):
        with pytest.raises(BadConfiguration, match=rf"^{key}={text} \(.*\): allowed is true or false$"):
            load(f"{key}={text}")


# ---- refusals and warnings -----------------------------------------------------------------------------------------

NOT_BUILT = "not built yet, not ignored"
NO_ADDRESSES = [
    *(
        "",
        "127.0.0.1:8080",
        "ftp://127.0.0.1",
        "http://",
        "http://:8080",
        "http://127.0.0.1:",
        "http://127.0.0.1:8080/",
    ),
    *("http://a:b", "http://127.0.0.1:65536", "http://127.0.0.1:99999999999", "http://127.0.0.1:-1", "http://a:٣"),
    *("http://::1:8080", "http://[localhost]", "http://[127.0.0.1]", "http://999.1.1.1", "http://user@127.0.0.1"),
]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("management_address=unix:/run/ts.sock", NOT_BUILT),
        *((f"inference_address={bad}", "allowed is http://host[:port] or https://host[:port]") for bad in NO_ADDRESSES),
        ("model_store=nowhere", "--model-store directory not found: nowhere"),
        ("model_store=", "allowed is the path of a folder"),
        ("state_dir=", "allowed is the path of a folder"),
        ("load_models=a.mar,=b.mar", "allowed is all, or a list of archive or name=archive"),
        ("load_models=name=", "allowed is all, or a list of archive or name=archive"),
        ("allowed_urls=http://ok/.*,http://(", "http://( is none"),
        ("list_page_tokens=none", "allowed is cursor or offset"),
        ("cors_allowed_origin=*\\r\\nset-cookie: a=b", "allowed is printable ASCII"),
        ("cors_allowed_origin=é", "allowed is printable ASCII"),
        ("enable_envvars_config=yes", "allowed is true or false"),
        ("use_env_allowed_urls=yes", "allowed is true or false"),
        ("disable_token_authorization=yes", "allowed is true or false"),
        ("private_key_file=key.pem", "allowed is the path of a file that exists"),
        ("keystore_type=JKS", "allowed is PKCS12; a Java keystore is made one by keytool"),
        *(
            (f"allowed_hosts={bad}", "allowed is a comma list of host names")
            for bad in ("a b", "http://a", "a:80", "*.a", "a..b")
        ),
        ("key_file=nowhere/key.json", "allowed is the path of a file in a folder that exists"),
        ("key_file=.", "allowed is the path of a file in a folder that exists"),
        *((f"service_envelope={name}", "allowed is body or json or kserve or kservev2") for name in ("base", "KServe")),
        ("ts_open_inference_protocol=oip", "allowed is true or false"),
        ("blacklist_env_vars=.*(SECRET", "allowed is a regular expression in Python's syntax; this is none: missing )"),
        ("job_queue_size=\\u12", "config.properties: Invalid \\u escape sequence"),
    ],
)
def test_what_stops_the_start(load: Load, text: str, message: str) -> None:
    with pytest.raises(BadConfiguration) as refusal:
        load(text)
    assert message in str(refusal.value)
    key, value = text.split("=", 1)
    if message == NOT_BUILT or (message.startswith("allowed") and "\\r" not in value):
        assert str(refusal.value).startswith(f"{key}={value} (")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        *("private_key_file=", "certificate_file=", "keystore=", "enable_grpc_ssl=false", "service_envelope="),
        *("ts_open_inference_protocol=false", "install_py_dep_per_model=false", "blacklist_env_vars="),
        *("allowed_hosts=", "key_file="),
    ],
)
def test_keys_that_refuse_the_start_may_say_no(load: Load, text: str) -> None:
    assert load(text) == load("")


@pytest.mark.parametrize("first", ["", ENVIRONMENT_ON])
@pytest.mark.parametrize(
    ("text", "word", "on"),
    [
        ("", None, False),
        ("ts_open_inference_protocol=true", None, True),
        ("ts_open_inference_protocol=true", "", True),
        ("ts_open_inference_protocol=true", "true", False),
        ("ts_open_inference_protocol=false", "oip", True),
        ("", "oip", True),
        ("", "kserve", False),
        ("", "", False),
    ],
)
def test_open_inference_protocol_is_read_from_the_environment_always(
    load: Load, first: str, text: str, word: str | None, on: bool
) -> None:
    settings = load(first + text, **({} if word is None else {"TS_OPEN_INFERENCE_PROTOCOL": word}))
    assert settings.ts_open_inference_protocol is on
    assert settings.warnings == ()


@pytest.mark.parametrize("name", ["body", "json", "kserve", "kservev2"])
def test_envelopes(load: Load, name: str) -> None:
    assert load(f"service_envelope= {name} ").service_envelope == name
    assert load("service_envelope=").service_envelope is None


OPEN_HOSTS = ["0.0.0.0", "[::]", "10.0.0.1", "model-host"]


@pytest.mark.parametrize("listener", ["inference", "management", "metrics"])
@pytest.mark.parametrize("host", OPEN_HOSTS)
def test_an_address_that_others_can_reach_turns_tokens_on(load: Load, listener: str, host: str) -> None:
    text = f"{listener}_address=http://{host}:8085\n"
    settings = load(text)
    assert (settings.tokens_on, list(settings.open_addresses), settings.warnings) == (True, [f"{listener}_address"], ())
    declined = load(text + "disable_token_authorization=true")
    assert not declined.tokens_on
    assert f"other machines can reach {listener}_address" in declined.warnings[0]
    assert load(text, Options(disable_token_auth=True)) == declined
    assert load(text + ENVIRONMENT_ON, TS_DISABLE_TOKEN_AUTHORIZATION="true") == declined


@pytest.mark.parametrize("host", [*OPEN_HOSTS, "::"])
@pytest.mark.parametrize("listener", ["grpc_inference", "grpc_management"])
def test_so_does_one_of_grpc(load: Load, listener: str, host: str) -> None:
    """Upstream bound gRPC to every interface while its pages said loopback."""
    text = f"{listener}_address={host}\n"
    assert load(text).tokens_on
    assert not load(text, Options(disable_token_auth=True)).tokens_on
    assert not load(text + "enable_grpc=false").tokens_on


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]"])
def test_loopback_needs_no_tokens(load: Load, host: str) -> None:
    text = "".join(f"{listener}_address=http://{host}:0\n" for listener in ("inference", "management", "metrics"))
    assert not load(text).tokens_on
    assert load(text + "disable_token_authorization=false").tokens_on
    assert not load(text + "metrics_address=http://0.0.0.0:1\nenable_metrics_api=false").tokens_on


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("60", 60), ("0.2", 0.2), ("1", 1), ("abc", 60), ("", 60), ("0", 60), ("-1", 60), ("nan", 60), ("1e9", 60)],
)
def test_a_life_that_cannot_be_read_is_an_hour(load: Load, text: str, minutes: float) -> None:
    settings = load(f"token_expiration_min={text}")
    assert settings.token_expiration_min == minutes
    assert (minutes == 60 and text != "60") == bool(settings.warnings)


def test_names_of_the_server(load: Load) -> None:
    assert load("allowed_hosts=Model.example., .example.org , *").allowed_hosts == (
        "model.example",
        ".example.org",
        "*",
    )
    assert "any web page" in load("allowed_hosts=*").warnings[0]
    assert load("allowed_hosts=*\ndisable_token_authorization=false").warnings == ()


@pytest.mark.parametrize("text", ["", "a b", "http://127.0.0.1", "127.0.0.1:7070", "[::1", "[::1]:7070", "300.1.1.1"])
def test_grpc_hosts_that_are_none(load: Load, text: str) -> None:
    with pytest.raises(BadConfiguration, match=r"^grpc_inference_address=.*: allowed is a host name or an IP address"):
        load(f"grpc_inference_address={text}")


@pytest.mark.parametrize("text", ["0", "0.5", " 12 ", "3.000001"])
def test_seconds(load: Load, text: str) -> None:
    assert load(f"worker_kill_grace={text}").worker_kill_grace == float(text)


@pytest.mark.parametrize("text", ["", "-1", "1e3", ".5", "nan", "inf", "1,5"])
def test_seconds_that_are_none(load: Load, text: str) -> None:
    with pytest.raises(BadConfiguration, match=r"^worker_kill_grace=.*: allowed is a number of seconds, 0 or more"):
        load(f"worker_kill_grace={text}")


def test_another_python(load: Load, cwd: Path) -> None:
    """A link stays what it is: the Python of a virtual environment is one."""
    assert load("python=").python is None
    assert load(f"python={sys.executable}").python == sys.executable
    (cwd / "venv").symlink_to(sys.executable)
    assert load("python=./venv").python == str(cwd / "venv")
    assert Path(load("python=sh").python or "").name == "sh"
    (cwd / "data").write_text("no program")
    for text in ("./data", "./nowhere", "no-such-program-anywhere", "."):
        with pytest.raises(BadConfiguration, match=r"^python=.*: allowed is the path of a program that exists"):
            load(f"python={text}")


def test_how_workers_start(load: Load) -> None:
    assert load("worker_start=fresh").worker_start == "fresh"
    with pytest.raises(BadConfiguration, match=r"^worker_start=thread .*: allowed is zygote or fresh$"):
        load("worker_start=thread")


@pytest.mark.parametrize(
    ("text", "threads"),
    [("4", 4), ("4,2", 4), (" 3 ", 3), ("", None), ("0", None), ("-1", None), ("many", None)],
)
def test_variables_that_workers_read_as_well(load: Load, text: str, threads: int | None) -> None:
    """They count whatever the file says about the environment."""
    assert load(OMP_NUM_THREADS=text).omp_num_threads == threads
    assert load(CUDA_VISIBLE_DEVICES=text).cuda_visible_devices == text


def test_missing_files(load: Load, cwd: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"^--ts-config file not found: x\.properties$"):
        load(None, Options(ts_config="x.properties"))
    with pytest.raises(BadConfiguration, match=r"^--ts-config file not found: y \(TS_CONFIG_FILE\)$"):
        load("", Options(ts_config="x.properties"), TS_CONFIG_FILE="y")
    with pytest.raises(BadConfiguration, match=r"^--model-store directory not found: /nowhere/at/all$"):
        load(None, Options(model_store="/nowhere/at/all"))
    (cwd / "model_store").rmdir()
    with pytest.raises(BadConfiguration, match=r"^--model-store directory not found: \./model_store$"):
        load("")
    (cwd / "model_store").write_text("a file")
    with pytest.raises(BadConfiguration, match=r"^--model-store directory not found: \./model_store$"):
        load("")


def test_origins_are_told(load: Load) -> None:
    with pytest.raises(BadConfiguration, match=r"^load_models=a= \(command line\)"):
        load(None, Options(models=("a=",)))
    with pytest.raises(BadConfiguration, match=r"^job_queue_size=x \(TS_JOB_QUEUE_SIZE\)"):
        load(ENVIRONMENT_ON, TS_JOB_QUEUE_SIZE="x")


def test_secrets_are_not_told(load: Load) -> None:
    with pytest.raises(BadConfiguration) as refusal:
        load("keystore_pass=changeit\nkeystore=k.p12\nother=$$SECRET$$", SECRET="s3cret")
    assert "changeit" not in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


def test_keys_without_effect_give_one_warning(load: Load) -> None:
    names = [key.name for key in KEYS if key.effect is Effect.NOT_YET and key.name != "model_snapshot"]
    settings = load("".join(f"{name}=anything\n" for name in names), Options(without_effect=("--log-config",)))
    assert settings.warnings == (f"without effect in this release: {', '.join(names)}, --log-config",)


def test_keys_without_meaning_are_accepted_in_silence(load: Load) -> None:
    assert load("".join(f"{key.name}=x\n" for key in KEYS if key.effect is Effect.NONE)) == load("")


def test_unknown_keys_give_one_warning(load: Load) -> None:
    settings = load("NUM_WORKERS=1\nmax_workers=4\nmin_workers=\njob_queue_size=3\n")
    assert settings.job_queue_size == 3
    assert settings.warnings == ("unknown keys, without effect: NUM_WORKERS, max_workers, min_workers",)


def test_model_snapshot_is_warned_about(load: Load) -> None:
    (warning,) = load('model_snapshot={"name":"startup.cfg","modelCount":1}').warnings
    assert warning.startswith("model_snapshot is not restored: the registry lives in the state folder")


def test_variables_hidden_from_workers(load: Load) -> None:
    assert load("blacklist_env_vars = AWS_.*|.{1,3}_KEY ").blacklist_env_vars == "AWS_.*|.{1,3}_KEY"
    assert load("blacklist_env_vars=(?i).*secret", MY_SECRET="1", SECRETS="1").hidden_variables == ("MY_SECRET",)


def test_secrets_of_the_server_are_hidden_from_workers(load: Load) -> None:
    """What archives are fetched with, and what a key with a secret in it comes from, by whichever way."""
    environ = {
        "AWS_SECRET_ACCESS_KEY": "1",
        "AWS_REGION": "1",
        "STORE_PASS": "1",
        "OTHER": "1",
        "TS_KEYSTORE_PASS": "1",
    }
    text = "keystore_pass=$$STORE_PASS$$\njob_queue_size=$$OTHER$$\n"
    settings = load(text, **environ)
    assert settings.hidden_variables == ("AWS_SECRET_ACCESS_KEY", "STORE_PASS", "TS_KEYSTORE_PASS")
    kept = (
        "kept from workers: AWS_SECRET_ACCESS_KEY, STORE_PASS, TS_KEYSTORE_PASS; worker_env_vars names those they need"
    )
    assert kept in settings.warnings
    settings = load(f"{text}worker_env_vars=AWS_.*\nblacklist_env_vars=OTHER|TS_.*", **environ)
    assert settings.hidden_variables == ("OTHER", "STORE_PASS", "TS_KEYSTORE_PASS")
    assert "kept from workers: STORE_PASS; worker_env_vars names those they need" in settings.warnings
    # What is hidden on purpose stays so.
    assert "AWS_REGION" in load("worker_env_vars=AWS_.*\nblacklist_env_vars=AWS_.*", **environ).hidden_variables


def test_variables_that_say_what_pip_finds(load: Load) -> None:
    environ = {"PIP_INDEX_URL": "https://example.org/simple", "PIP_NO_INDEX": "1", "PIP_NO_COLOR": "1", "OTHER": "1"}
    assert load("", **environ).pip_options == (("PIP_INDEX_URL", "https://example.org/simple"), ("PIP_NO_INDEX", "1"))
