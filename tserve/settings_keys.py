"""The table of all keys of the properties file: what each does, how it is read, which member of Settings it fills.

docs/configuration.md is tested against it.  A key that asks for protection or behaviour this release lacks refuses the
start, other keys without a feature behind them are warned about: nothing is ignored in silence but Java's own matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tserve import settings_values as read
from tserve.settings_values import Parser


class Effect(Enum):
    """What a key does; the values are the headings of docs/configuration.md."""

    USED = "Keys in use"
    NOT_YET = "Keys without effect yet"
    NONE = "Keys without meaning here"


_WITHOUT_ENV = {
    *("models", "model_snapshot", "use_env_allowed_urls", "enable_envvars_config", "system_metrics_cmd"),
    *("metric_time_interval", "use_native_io", "io_ratio", "vmargs", "plugins_path", "python", "version"),
    "tsConfigFile",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key; `field` names the member of Settings that it fills, None when it fills none by itself."""

    name: str
    effect: Effect
    description: str
    parse: Parser | None = None
    field: str | None = None

    @property
    def env(self) -> str | None:
        """The environment variable that overrides the key, as upstream names it; None where upstream has none."""
        if self.name in _WITHOUT_ENV:
            return None
        if self.name == "token_expiration_min":
            return "TS_TOKEN_EXPIRATION_TIME_MIN"
        return "TS_" + self.name.upper().removeprefix("TS_")


def _used(name: str, parse: Parser, description: str) -> Key:
    """A key that fills the member of its own name."""
    return Key(name, Effect.USED, description, parse, name)


_LISTENERS = (
    Key(
        "inference_address",
        Effect.USED,
        "Listener of predictions, `http://host[:port]` or `https://…`; port 80 or 443 if left out",
        read.address(80, 443),
        "inference",
    ),
    Key(
        "management_address",
        Effect.USED,
        "Listener of model management; port 8081 or 8444 if left out",
        read.address(8081, 8444),
        "management",
    ),
    Key(
        "metrics_address",
        Effect.USED,
        "Listener of metrics; port 8082 or 8445 if left out",
        read.address(8082, 8445),
        "metrics",
    ),
    Key("cors_allowed_origin", Effect.USED, "Sent as `access-control-allow-origin`", read.header_value),
    Key("cors_allowed_methods", Effect.USED, "Sent as `access-control-allow-methods`", read.header_value),
    Key("cors_allowed_headers", Effect.USED, "Sent as `access-control-allow-headers`", read.header_value),
    _used("max_request_size", read.number(1), "Largest request body in bytes"),
    _used("max_response_size", read.number(1), "Largest answer of a worker in bytes"),
    _used("max_connections", read.number(1), "Connections that a port may have; see below (tserve's own key)"),
    _used(
        "allowed_hosts",
        read.host_names,
        "Further names of this server that clients may have in `Host`; see [security.md](security.md) "
        "(tserve's own key)",
    ),
    _used(
        "disable_token_authorization", read.boolean, "`true`: no token check; `false`: token check; unset: see below"
    ),
    _used("token_expiration_min", read.minutes(60), "Minutes the keys of the key file live, such as `60` or `0.5`"),
    _used(
        "key_file",
        read.written_file,
        "Where those keys are written; none: `key_file.json` in the state folder (tserve's own key)",
    ),
    _used("require_metrics_token", read.boolean, "`true`: metrics, too, need a token (tserve's own key)"),
    _used(
        "ts_open_inference_protocol",
        read.boolean,
        "`true`: `/v2` and what is below it answer as in KServe's v2 protocol; see below",
    ),
    Key(
        "enable_envvars_config",
        Effect.USED,
        "`true` in the file: variables of the environment beat the file and the command line",
        read.boolean,
    ),
)

_GRPC = (
    _used("enable_grpc", read.boolean, "`false`: no gRPC listeners, and no memory for them (tserve's own key)"),
    _used("grpc_inference_address", read.host, "Host of the gRPC inference listener, without a port"),
    _used("grpc_inference_port", read.number(0, 65535), "Its port; 0: any that is free"),
    _used("grpc_inference_max_connection_age_ms", read.number(1), "Longest life of its connections; unset: no limit"),
    _used("grpc_inference_max_connection_age_grace_ms", read.number(1), "Time their calls get after that"),
    _used("grpc_management_address", read.host, "Host of the gRPC management listener, without a port"),
    _used("grpc_management_port", read.number(0, 65535), "Its port; 0: any that is free"),
    _used("grpc_management_max_connection_age_ms", read.number(1), "Longest life of its connections; unset: no limit"),
    _used("grpc_management_max_connection_age_grace_ms", read.number(1), "Time their calls get after that"),
)

_METRICS = (
    _used(
        "metrics_mode",
        read.choice("log", "prometheus", "legacy"),
        "Where the metrics of the contract go: to files, or to `/metrics` of the metrics listener; see below",
    ),
    _used("metrics_config", read.file, "YAML file that lists the metrics there are; see below"),
    _used("model_metrics_auto_detect", read.boolean, "`true`: take handlers' metrics that the file does not list, too"),
    _used("enable_metrics_api", read.boolean, "`false`: no metrics listener"),
    _used("disable_system_metrics", read.boolean, "`true`: no metrics of the host"),
    _used("metric_time_interval", read.number(1), "Seconds between two measurements of the host"),
)

_MODELS = (
    _used("model_store", read.store, "Folder of the archives; it must exist"),
    _used("state_dir", read.path, "Folder of the registry and of the kept archives (tserve's own key)"),
    _used("load_models", read.start_models, "What to have registered at start: `all`, or `a.mar,name=b.mar`"),
    Key("models", Effect.USED, "Settings per model version, as JSON; see below", read.model_table, "model_settings"),
    _used("default_workers_per_model", read.number(0), "Workers of a model when nobody says how many; see below"),
    _used("default_response_timeout", read.number(1), "Seconds a worker may take for one batch"),
    _used("default_startup_timeout", read.number(1), "Seconds a worker may take to load its model"),
    _used("unregister_model_timeout", read.number(0), "Seconds to drain a model that is unregistered"),
    _used("job_queue_size", read.number(1), "Requests that may wait, per model version"),
    _used("initial_worker_port", read.number(0, 65535), "First worker id; ids count up from here"),
    _used(
        "allowed_urls",
        read.patterns,
        "Comma list of regular expressions; a source's whole URL must match one, in any case; empty allows none",
    ),
    Key(
        "use_env_allowed_urls",
        Effect.USED,
        "Lets `TS_ALLOWED_URLS` count, together with `enable_envvars_config`",
        read.boolean,
    ),
    _used(
        "allow_private_addresses",
        read.boolean,
        "`true`: sources may be fetched from any address; see [sources.md](sources.md) (tserve's own key)",
    ),
    _used(
        "allowed_networks",
        read.networks,
        "Comma list of networks that sources may be fetched from although they are not public (tserve's own key)",
    ),
    _used("max_download_size", read.number(1), "Largest download in MiB (tserve's own key)"),
    _used(
        "min_free_space",
        read.number(0),
        "MiB that downloading and unpacking must leave free on the state folder's disk (tserve's own key)",
    ),
    _used("max_archive_entries", read.number(1), "Most files and folders of an archive (tserve's own key)"),
    _used("max_archive_size", read.number(1), "Most that an archive may unpack to, in MiB (tserve's own key)"),
    _used(
        "max_archive_ratio",
        read.number(1),
        "Most times its own size that an archive may unpack to, if that is more than 1 GiB (tserve's own key)",
    ),
    _used(
        "download_connect_timeout",
        read.number(1),
        "Seconds to resolve a source's host and to connect to it (tserve's own key)",
    ),
    _used("download_idle_timeout", read.number(1), "Seconds a download may go without a byte (tserve's own key)"),
    _used("download_timeout", read.number(1), "Seconds a download may take with all its tries (tserve's own key)"),
    _used(
        "download_retries",
        read.number(0, 100),
        "Times in a row that a download may break off without getting further (tserve's own key)",
    ),
    _used(
        "s3_endpoint_url",
        read.s3_endpoint,
        "Where `s3://` sources are asked for, in place of AWS; see [sources.md](sources.md) (tserve's own key)",
    ),
    _used(
        "digest_required",
        read.boolean,
        "`true`: only archives whose sha-256 the call or the configuration names; see [integrity.md](integrity.md) "
        "(tserve's own key)",
    ),
    _used(
        "signature_required",
        read.boolean,
        "`true`: only archives that one of `trusted_keys` has signed; see [integrity.md](integrity.md) "
        "(tserve's own key)",
    ),
    _used("trusted_keys", read.folder, "Folder of the public keys, `*.pub`, whose signatures count (tserve's own key)"),
    _used("enable_model_api", read.boolean, "Register and unregister over the API; upstream's default is `false`"),
    _used(
        "default_register_synchronous",
        read.boolean,
        "`true`: a register call that does not say `synchronous` waits for its workers (tserve's own key)",
    ),
    _used(
        "list_page_tokens",
        read.choice("cursor", "offset"),
        "Page tokens of the model list: `cursor` survives changes, `offset` is upstream's way (tserve's own key)",
    ),
    _used("default_service_handler", read.optional, "Handler of archives that name none"),
    _used(
        "service_envelope",
        read.optional_choice("body", "json", "kserve", "kservev2"),
        "What request and response bodies look like, for all models; see below",
    ),
    _used("decode_input_request", read.boolean, "Workers decode JSON and text bodies for the handler"),
    _used("ts_header_key_sequence_id", read.header_name, "Header with the id of a sequence, for stateful models"),
    _used("ts_header_key_sequence_start", read.header_name, "Header that says `true` on a sequence's first request"),
    _used("ts_header_key_sequence_end", read.header_name, "Header that ends a sequence, in requests and in answers"),
    _used("limit_max_image_pixels", read.boolean, "`false` lifts Pillow's limit on image size in vision handlers"),
    _used(
        "install_py_dep_per_model",
        read.boolean,
        "`true`: a model whose manifest names a `requirementsFile` gets an environment that has them; see below",
    ),
    _used(
        "environment_timeout",
        read.number(1),
        "Seconds such an environment may take to be made; see below (tserve's own key)",
    ),
)

_WORKERS = (
    _used("number_of_gpu", read.number(0), "Most GPUs to use, of those that are there; unset: all"),
    _used("python", read.program, "Another Python for all workers, a path or a name on PATH; see below"),
    _used(
        "blacklist_env_vars",
        read.pattern,
        "Regular expression; variables whose whole names match are hidden from workers; see below",
    ),
    _used(
        "worker_env_vars",
        read.pattern,
        "Regular expression; variables that workers get although they hold credentials of the server; see below "
        "(tserve's own key)",
    ),
    _used(
        "worker_start",
        read.choice("zygote", "fresh"),
        "`zygote`: workers are forked from a process that has imported torch; `fresh`: each is a new Python "
        "(tserve's own key)",
    ),
    _used(
        "worker_threads",
        read.number(0, 4096),
        "Threads of OpenMP, MKL and torch in each worker; 0: processors divided by workers, see below "
        "(tserve's own key)",
    ),
    _used(
        "worker_memory_limit",
        read.number(0),
        "MiB of private memory a worker may have; 0: no limit; see below (tserve's own key)",
    ),
    _used(
        "worker_process_limit",
        read.number(0),
        "Processes a worker may have, itself included; 0: no limit; see below (tserve's own key)",
    ),
    _used(
        "worker_file_limit",
        read.number(0),
        "Files and sockets a worker may have open; 0: no limit of tserve's (tserve's own key)",
    ),
    _used(
        "worker_kill_grace",
        read.seconds,
        "Seconds a worker gets to end by itself before it is killed (tserve's own key)",
    ),
    _used(
        "max_worker_restarts",
        read.number(0),
        "Restarts of one version's workers, within `worker_restart_period`, after which they stay down; "
        "0: no limit (tserve's own key)",
    ),
    _used("worker_restart_period", read.number(1), "Seconds in which those restarts are counted (tserve's own key)"),
)

_TLS = (
    _used("private_key_file", read.file, "Key of `https` addresses and of gRPC with TLS, PEM without a password"),
    _used("certificate_file", read.file, "Its certificate, PEM, with those that lead to the root behind it"),
    _used("keystore", read.file, "Both in one PKCS #12 file, in place of the PEM files for `https` addresses"),
    _used("keystore_pass", read.secret, "Its password"),
    _used("keystore_type", read.keystore_type, "`PKCS12`; a Java keystore has to be converted, see below"),
    _used("enable_grpc_ssl", read.boolean, "TLS on both gRPC ports, with the PEM files if they are given"),
    _used(
        "tls_client_ca",
        read.file,
        "PEM file: with TLS only clients whose certificate one of these has signed (tserve's own key)",
    ),
)

_NOT_YET = {
    "model_snapshot": "Not restored: the registry lives in the state folder",
    "workflow_store": "Folder of workflow archives",
    "initial_distribution_port": "First port of torchrun workers",
    "cpu_launcher_enable": "Pin workers to cores",
    "cpu_launcher_args": "How to pin them",
    "ipex_enable": "Intel's extension for PyTorch",
    "ipex_gpu_enable": "Intel's extension on GPUs",
}

_NO_MEANING = {
    "vmargs": "Options of the Java machine",
    "number_of_netty_threads": "Threads of the Java front end",
    "netty_client_threads": "Threads of the Java front end",
    "prefer_direct_buffer": "Buffers of the Java front end",
    "use_native_io": "Sockets of the Java front end",
    "io_ratio": "Scheduling of the Java front end",
    "async_logging": "Logging of the Java front end",
    "plugins_path": "Java plug-ins",
    "model_server_home": "Where the Java front end finds its Python code",
    "version": "Written by upstream into its snapshots",
    "tsConfigFile": "Written by upstream into its snapshots",
    "cpp_log_config": "Logging of the C++ backend",
    "debug": "For developers of the Java front end",
    "system_metrics_cmd": "The server measures the host itself, without a process of its own",
}

KEYS: tuple[Key, ...] = (
    *_LISTENERS,
    *_GRPC,
    *_METRICS,
    *_MODELS,
    *_WORKERS,
    *_TLS,
    *(Key(name, Effect.NOT_YET, description) for name, description in _NOT_YET.items()),
    *(Key(name, Effect.NONE, description) for name, description in _NO_MEANING.items()),
)
