"""What the server was told: properties file, command line and environment, read once into one frozen object.

Order and rules are those of spec/server.md section 2; the keys stand in settings_keys.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from tserve.errors import BadConfiguration
from tserve.settings_keys import KEYS, Effect
from tserve.settings_values import Address, Certificates, Given, ModelSettings
from tserve.settings_values import path as read_path
from tserve.settings_values import secret as read_secret

__all__ = ["Address", "Certificates", "ModelSettings", "Options", "Settings", "load_settings", "state_dir"]

_INFERENCE, _MANAGEMENT, _METRICS = (Address("127.0.0.1", port) for port in (8080, 8081, 8082))
_CORS_HEADERS = {
    "cors_allowed_origin": "access-control-allow-origin",
    "cors_allowed_methods": "access-control-allow-methods",
    "cors_allowed_headers": "access-control-allow-headers",
}
# Where the AWS SDK finds the credentials that archives are fetched with.
_CREDENTIALS = frozenset(
    f"AWS_{name}"
    for name in (
        *("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "SECURITY_TOKEN", "WEB_IDENTITY_TOKEN_FILE"),
        *("CONTAINER_CREDENTIALS_RELATIVE_URI", "CONTAINER_CREDENTIALS_FULL_URI"),
        *("CONTAINER_AUTHORIZATION_TOKEN", "CONTAINER_AUTHORIZATION_TOKEN_FILE"),
    )
)
_REFERENCE = re.compile(r"\$\$([^$]+)\$\$")  # to a variable of the environment, in any value of the file
# What pip finds depends on them; other options of its own do not make another environment.
_PIP_OPTIONS = (
    *("PIP_CONFIG_FILE", "PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_NO_BINARY"),
    *("PIP_NO_INDEX", "PIP_ONLY_BINARY", "PIP_PRE", "PIP_PREFER_BINARY"),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the server needs to know at start.

    Paths are absolute, timeouts and periods seconds, sizes bytes but for `worker_memory_limit` and
    those of downloads, which are in MiB.
    `metrics_logs` is what upstream's variables name, None for the folder `logs` in the state folder.
    `cuda_visible_devices` and `omp_num_threads` are what those variables say, None when they are not set;
    `pip_options` are pip's variables that decide what it finds.
    """

    model_store: Path
    state_dir: Path
    inference: Address = _INFERENCE
    management: Address = _MANAGEMENT
    metrics: Address = _METRICS
    enable_grpc: bool = True
    grpc_inference_address: str = "127.0.0.1"
    grpc_inference_port: int = 7070
    grpc_inference_max_connection_age_ms: int | None = None
    grpc_inference_max_connection_age_grace_ms: int | None = None
    grpc_management_address: str = "127.0.0.1"
    grpc_management_port: int = 7071
    grpc_management_max_connection_age_ms: int | None = None
    grpc_management_max_connection_age_grace_ms: int | None = None
    private_key_file: Path | None = None
    certificate_file: Path | None = None
    keystore: Path | None = None
    keystore_pass: str = field(default="changeit", repr=False)
    keystore_type: str = "PKCS12"
    enable_grpc_ssl: bool = False
    tls_client_ca: Path | None = None
    metrics_mode: Literal["log", "prometheus", "legacy"] = "log"
    metrics_config: Path | None = None
    model_metrics_auto_detect: bool = False
    enable_metrics_api: bool = True
    disable_system_metrics: bool = False
    metric_time_interval: int = 60
    metrics_logs: Path | None = None
    load_models: tuple[str, ...] = ()
    model_settings: Mapping[tuple[str, str], ModelSettings] = field(default_factory=lambda: MappingProxyType({}))
    default_workers_per_model: int = 0
    default_response_timeout: int = 120
    default_startup_timeout: int = 120
    unregister_model_timeout: int = 120
    ts_open_inference_protocol: bool = False
    job_queue_size: int = 100
    max_connections: int = 4096
    max_request_size: int = 6553500
    max_response_size: int = 6553500
    initial_worker_port: int = 9000
    allowed_urls: tuple[str, ...] = ("file://.*", "http(s)?://.*", "s3://.*")
    allow_private_addresses: bool = False
    allowed_networks: tuple[str, ...] = ()
    max_download_size: int = 32768
    min_free_space: int = 256
    max_archive_entries: int = 100_000
    max_archive_size: int = 256 << 10
    max_archive_ratio: int = 200
    download_connect_timeout: int = 10
    download_idle_timeout: int = 60
    download_timeout: int = 3600
    download_retries: int = 3
    s3_endpoint_url: str | None = None
    digest_required: bool = False
    signature_required: bool = False
    trusted_keys: Path | None = None
    enable_model_api: bool = True
    default_register_synchronous: bool = False
    list_page_tokens: Literal["cursor", "offset"] = "cursor"
    cors_headers: tuple[tuple[str, str], ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    disable_token_authorization: bool | None = None
    token_expiration_min: float = 60.0
    key_file: Path | None = None
    require_metrics_token: bool = False
    default_service_handler: str | None = None
    service_envelope: str | None = None
    decode_input_request: bool = True
    limit_max_image_pixels: bool = True
    ts_header_key_sequence_id: str = "ts_request_sequence_id"
    ts_header_key_sequence_start: str = "ts_request_sequence_start"
    ts_header_key_sequence_end: str = "ts_request_sequence_end"
    install_py_dep_per_model: bool = False
    environment_timeout: int = 600
    number_of_gpu: int | None = None
    python: str | None = None
    blacklist_env_vars: str | None = None
    worker_env_vars: str | None = None
    worker_start: Literal["zygote", "fresh"] = "zygote"
    worker_threads: int = 0
    worker_memory_limit: int = 0
    worker_process_limit: int = 0
    worker_file_limit: int = 0
    worker_kill_grace: float = 2.0
    max_worker_restarts: int = 200
    worker_restart_period: int = 60
    cuda_visible_devices: str | None = None
    omp_num_threads: int | None = None
    pip_options: tuple[tuple[str, str], ...] = ()
    hidden_variables: tuple[str, ...] = ()  # those of the environment that workers do not get
    warnings: tuple[str, ...] = ()

    @property
    def https_certificates(self) -> Certificates:
        """The keystore wins (spec/server.md section 3)."""
        if self.keystore is not None:
            return Certificates(keystore=self.keystore, password=self.keystore_pass, client_ca=self.tls_client_ca)
        return Certificates(self.certificate_file, self.private_key_file, client_ca=self.tls_client_ca)

    @property
    def grpc_certificates(self) -> Certificates:
        """The PEM files win, which is all that the recorded server knows here."""
        if self.certificate_file is None:
            return self.https_certificates
        return Certificates(self.certificate_file, self.private_key_file, client_ca=self.tls_client_ca)

    @property
    def tokens_on(self) -> bool:
        """Unset, the check is off while every address is loopback and on as soon as one is not (DESIGN.md 9)."""
        if self.disable_token_authorization is not None:
            return not self.disable_token_authorization
        return bool(self.open_addresses)

    @property
    def open_addresses(self) -> dict[str, Address]:
        """Those that other machines can reach, by the names of their keys."""
        addresses = {"inference_address": self.inference, "management_address": self.management}
        if self.enable_metrics_api:
            addresses["metrics_address"] = self.metrics
        if self.enable_grpc:
            addresses |= {
                "grpc_inference_address": self.grpc_inference,
                "grpc_management_address": self.grpc_management,
            }
        return {name: address for name, address in addresses.items() if not address.is_loopback}

    @property
    def grpc_inference(self) -> Address:
        return Address(self.grpc_inference_address, self.grpc_inference_port)

    @property
    def grpc_management(self) -> Address:
        return Address(self.grpc_management_address, self.grpc_management_port)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line gave, as given.  `without_effect` names flags that are accepted and do nothing yet."""

    ts_config: str | None = None
    model_store: str | None = None
    state_dir: str | None = None
    models: tuple[str, ...] | None = None
    key_file: str | None = None
    disable_token_auth: bool = False
    enable_model_api: bool = False
    without_effect: tuple[str, ...] = ()


_Sourced = tuple[str, str]  # a text, and where it came from


def load_settings(options: Options, environ: Mapping[str, str], cwd: Path) -> Settings:
    """Read file, command line and environment in upstream's order (spec/server.md section 2); later wins.

    `cwd` is where ./config.properties is looked for and what relative paths start from.  Raises BadConfiguration
    with key, value and what is allowed, also for what asks for a feature that this release does not have.
    """
    warnings: list[str] = []
    written, file = _read_file(options, environ, cwd)
    texts = _collect(written, file, options, environ, warnings)
    read = {
        key.name: key.parse(Given(key.name, *texts[key.name], cwd, warnings))
        for key in KEYS
        if key.parse is not None and key.name in texts
    }
    members = {key.field: read[key.name] for key in KEYS if key.field is not None and key.name in read}
    members["cors_headers"] = tuple((header, read[name]) for name, header in _CORS_HEADERS.items() if read.get(name))
    named = environ.get("METRICS_LOCATION") or environ.get("LOG_LOCATION")
    members["metrics_logs"] = (cwd / named).absolute() if named else None
    members["cuda_visible_devices"] = environ.get("CUDA_VISIBLE_DEVICES")
    members["omp_num_threads"] = _omp_threads(environ.get("OMP_NUM_THREADS", ""))
    members["pip_options"] = tuple((name, environ[name]) for name in _PIP_OPTIONS if name in environ)
    settings = Settings(**members)  # type: ignore[arg-type]
    _check_certificates(settings)
    listed = _matching(environ, settings.blacklist_env_vars)
    kept = (_secrets(written) & environ.keys()) - _matching(environ, settings.worker_env_vars)
    notices = [*warnings, *_notices(texts, options), *_dangers(settings)]
    if kept - listed:
        notices.append(f"kept from workers: {', '.join(sorted(kept - listed))}; worker_env_vars names those they need")
    return replace(settings, hidden_variables=tuple(sorted(listed | kept)), warnings=tuple(notices))


def state_dir(options: Options, environ: Mapping[str, str], cwd: Path) -> Path:
    """The state folder alone, for commands that need nothing else.  Raises BadConfiguration."""
    written, file = _read_file(options, environ, cwd)
    text, origin = _collect(written, file, options, environ, [])["state_dir"]
    return read_path(Given("state_dir", text, origin, cwd, []))


def _read_file(options: Options, environ: Mapping[str, str], cwd: Path) -> tuple[Mapping[str, str], str]:
    """The properties as they are written, and the file's path; nothing where there is none."""
    path = _find_file(options, environ, cwd)
    return ({}, "") if path is None else (_read_properties(path), str(path))


def _collect(
    written: Mapping[str, str], file: str, options: Options, environ: Mapping[str, str], warnings: list[str]
) -> dict[str, _Sourced]:
    """The text that wins for each key."""
    texts = {"model_store": ("./model_store", "default"), "state_dir": ("./.tserve", "default")}
    texts |= {key: (_substitute(text, environ), file) for key, text in written.items()}
    from_environ = dict(_from_environ(texts, environ))
    unread = [key.env for key in KEYS if key.env and environ.get(key.env) and key.name not in from_environ]
    if unread:
        warnings.append(
            f"set in the environment but not read: {', '.join(unread)}; the properties file must say "
            "enable_envvars_config=true, and for TS_ALLOWED_URLS also use_env_allowed_urls=true"
        )
    return texts | dict(_from_options(options)) | from_environ


def _from_options(options: Options) -> Iterator[tuple[str, _Sourced]]:
    for name in ("model_store", "state_dir", "key_file"):
        if (value := getattr(options, name)) is not None:
            yield name, (value, "command line")
    if options.models is not None:
        yield "load_models", (",".join(options.models), "command line")
    if options.disable_token_auth:
        yield "disable_token_authorization", ("true", "command line")
    if options.enable_model_api:
        yield "enable_model_api", ("true", "command line")


def _from_environ(texts: Mapping[str, _Sourced], environ: Mapping[str, str]) -> Iterator[tuple[str, _Sourced]]:
    """Variables count only if the file says so, the list of allowed URLs only if it says so twice."""

    def is_on(name: str) -> bool:
        return texts.get(name, ("false", ""))[0].strip().lower() == "true"

    if protocol := environ.get("TS_OPEN_INFERENCE_PROTOCOL"):  # read whatever the file says, in words of its own
        yield "ts_open_inference_protocol", (str(protocol == "oip").lower(), f"TS_OPEN_INFERENCE_PROTOCOL={protocol}")
    if not is_on("enable_envvars_config"):
        return
    closed = {"ts_open_inference_protocol"} | (set() if is_on("use_env_allowed_urls") else {"allowed_urls"})
    for key in KEYS:
        if key.env is not None and key.env in environ and key.name not in closed:
            yield key.name, (environ[key.env], key.env)


def _find_file(options: Options, environ: Mapping[str, str], cwd: Path) -> Path | None:
    for named, origin in ((environ.get("TS_CONFIG_FILE"), " (TS_CONFIG_FILE)"), (options.ts_config, "")):
        if named:
            if not (cwd / named).is_file():
                raise BadConfiguration(f"--ts-config file not found: {named}{origin}")
            return cwd / named
    default = cwd / "config.properties"
    return default if default.is_file() else None


def _read_properties(path: Path) -> dict[str, str]:
    """The file as Java reads it.  Java's own encoding is Latin-1, but editors write UTF-8: that is tried first."""
    import javaproperties  # late: `tserve --version` has no use for it

    try:
        data = path.read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        return javaproperties.loads(text)
    except (OSError, ValueError) as error:
        raise BadConfiguration(f"cannot read {path}: {error}") from error


def _substitute(text: str, environ: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise BadConfiguration(f"Invalid Environment Variable {match[1]}")
        return environ[match[1]]

    return _REFERENCE.sub(value, text)


def _secrets(written: Mapping[str, str]) -> set[str]:
    """The variables that are for the server itself: what fetches archives, and what its keys take secrets from."""
    keys = [key for key in KEYS if key.parse is read_secret]
    referred = {name for key in keys for name in _REFERENCE.findall(written.get(key.name, ""))}
    return referred | {key.env for key in keys if key.env is not None} | _CREDENTIALS


def _matching(environ: Mapping[str, str], pattern: str | None) -> set[str]:
    return {name for name in environ if pattern is not None and re.fullmatch(pattern, name)}


def _omp_threads(text: str) -> int | None:
    """The outermost level of OpenMP's list; None for what OpenMP itself would not take."""
    first = text.partition(",")[0].strip()
    return int(first) if re.fullmatch(r"[0-9]{1,6}", first) and int(first) > 0 else None


def _notices(texts: Mapping[str, _Sourced], options: Options) -> Iterator[str]:
    """Warnings about what was given and does nothing."""
    idle = [key.name for key in KEYS if key.effect is Effect.NOT_YET and key.name in texts]
    if "model_snapshot" in idle:
        idle.remove("model_snapshot")
        yield (
            "model_snapshot is not restored: the registry lives in the state folder and survives restarts; "
            "name models to have at start in load_models"
        )
    if idle or options.without_effect:
        yield f"without effect in this release: {', '.join((*idle, *options.without_effect))}"
    if unknown := sorted(texts.keys() - {key.name for key in KEYS}):
        yield f"unknown keys, without effect: {', '.join(unknown)}"


def _check_certificates(settings: Settings) -> None:
    """That TLS has what it needs; whether the files can be used is seen when they are read."""
    if (settings.private_key_file is None) != (settings.certificate_file is None):
        missing, there = "private_key_file", "certificate_file"
        if settings.certificate_file is None:
            missing, there = there, missing
        raise BadConfiguration(f"{missing}: it is missing; {there} does not go without it")
    secure = [name for name in ("inference", "management", "metrics") if getattr(settings, name).secure]
    asking = "enable_grpc_ssl=true" if settings.enable_grpc_ssl else ""
    if secure:
        asking = f"{secure[0]}_address={getattr(settings, secure[0]).url}"
    if asking and settings.keystore is None and settings.certificate_file is None:
        raise BadConfiguration(
            f"{asking}: TLS needs a certificate; allowed is certificate_file with private_key_file, or keystore"
        )


def _dangers(settings: Settings) -> Iterator[str]:
    """What was asked for, and is worth a second thought."""
    names = ", ".join(settings.open_addresses)
    if names and not settings.tokens_on:
        yield f"no token check, and other machines can reach {names}: whoever does can run code on this one"
    if "*" in settings.allowed_hosts and not settings.tokens_on:
        yield "allowed_hosts=* and no token check: any web page in a browser on this machine can send requests"
