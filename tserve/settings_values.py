"""Texts of the properties file made into values: one parser per kind, each refusing what it cannot read.

Syntax is that of spec/server.md sections 3 to 5.  Nothing here knows which key a parser is used for.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tserve.errors import BadConfiguration

_INT32_MAX = 2**31 - 1
DIGEST = "a sha-256: 64 hexadecimal digits"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener binds.  Port 0 lets the kernel choose, so two equal addresses with port 0 are two listeners."""

    host: str
    port: int
    secure: bool = False  # over TLS

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.netloc}"

    @property
    def is_loopback(self) -> bool:
        """True for `localhost` and loopback numbers only: what another name resolves to can change."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where a listener's key and certificate are: a keystore, or a pair of PEM files.

    `client_ca` names a file with the certificates that clients have to be signed by; None asks them for nothing.
    """

    certificate: Path | None = None
    key: Path | None = None
    keystore: Path | None = None
    password: str = ""
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One version's entry of the `models` property; None where it says nothing (spec/server.md section 4).

    `max_batch_delay` is in milliseconds, the timeouts are whole seconds.
    """

    min_workers: int | None = None
    max_workers: int | None = None
    batch_size: int | None = None
    max_batch_delay: int | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    sha256: str | None = None  # what the archive must be


@dataclass(frozen=True, slots=True)
class Given:
    """A key's text, who gave it, and what its parser may need: the folder of relative paths, a place for warnings."""

    key: str
    text: str
    origin: str
    cwd: Path
    warnings: list[str]

    def bad(self, allowed: str) -> BadConfiguration:
        return BadConfiguration(f"{self.shown()}: allowed is {allowed}")

    def not_built(self, instead: str) -> BadConfiguration:
        return BadConfiguration(f"{self.shown()}: not built yet, not ignored; {instead}")

    def shown(self) -> str:
        text = self.text if len(self.text) <= 200 else self.text[:200] + "…"
        return f"{self.key}={text if text.isprintable() else repr(text)} ({self.origin})"


Parser = Callable[[Given], object]


def boolean(given: Given) -> bool:
    """Upstream takes any other text for false, which would turn `yes` into its opposite."""
    lowered = given.text.strip().lower()
    if lowered not in ("true", "false"):
        raise given.bad("true or false")
    return lowered == "true"


def number(least: int, most: int = _INT32_MAX) -> Parser:
    def parse(given: Given) -> int:
        text = given.text.strip()
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,10}", text) else None
        if value is None or not least <= value <= most:
            raise given.bad(f"a whole number from {least} to {most}")
        return value

    return parse


def minutes(default: float) -> Parser:
    """Upstream takes its default for what it cannot read (spec/management.md section 1.10), and so does this."""

    def parse(given: Given) -> float:
        text = given.text.strip()
        value = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else 0.0
        if value > 0:
            return value
        given.warnings.append(f"{given.shown()}: no number of minutes above 0, taken for {default:g}")
        return default

    return parse


def host_names(given: Given) -> tuple[str, ...]:
    """Names without a port; `.example.org` is all below it, `*` is any."""
    items = tuple(item.lower().rstrip(".") for item in _items(given))
    for item in items:
        if item != "*" and not re.fullmatch(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*", item):
            raise given.bad("a comma list of host names without ports, .example.org for all names below that, or *")
    return items


def seconds(given: Given) -> float:
    text = given.text.strip()
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        raise given.bad("a number of seconds, 0 or more, such as 2 or 0.5")
    return float(text)


def choice(*choices: str) -> Parser:
    def parse(given: Given) -> str:
        if given.text.strip() not in choices:
            raise given.bad(" or ".join(choices))
        return given.text.strip()

    return parse


def address(default_port: int, default_secure_port: int) -> Parser:
    """`http://host[:port]` or `https://…`; an IPv6 number stands in brackets, as in any URL."""

    def parse(given: Given) -> Address:
        text = given.text.strip()
        if text.lower().startswith("unix:"):
            raise given.not_built("use http://host[:port] or https://host[:port]")
        found = re.fullmatch(r"(https?)://(\[[^\]]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", text, re.IGNORECASE | re.ASCII)
        if found is not None and _is_host(found[2]):
            secure = found[1].lower() == "https"
            port = int(found[3] or (default_secure_port if secure else default_port))
            if port <= 65535:
                return Address(found[2].strip("[]"), port, secure)
        raise given.bad("http://host[:port] or https://host[:port] with a port from 0 to 65535")

    return parse


def host(given: Given) -> str:
    """A name or a number; an IPv6 number may stand in brackets."""
    text = given.text.strip()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    named = re.fullmatch(r"[a-z0-9._-]+", text, re.IGNORECASE | re.ASCII)
    if not (_is_host(text) if named else set(bare).isdisjoint("[]") and _is_host(f"[{bare}]")):
        raise given.bad("a host name or an IP address, without a port")
    return bare


def _is_host(host: str) -> bool:
    bracketed = host.startswith("[")
    if not bracketed and not re.fullmatch(r"[0-9.]+", host):
        return True  # a name: binding will tell
    try:
        return ipaddress.ip_address(host.strip("[]")).version == (6 if bracketed else 4)
    except ValueError:
        return False


def folder(given: Given) -> Path | None:
    """A folder that must exist; none for an empty text."""
    if not given.text.strip():
        return None
    found = (given.cwd / given.text.strip()).absolute()
    if not found.is_dir():
        raise given.bad("the path of a folder that exists")
    return found


def path(given: Given) -> Path:
    if not given.text.strip():
        raise given.bad("the path of a folder")
    return (given.cwd / given.text.strip()).absolute()


def store(given: Given) -> Path:
    """A folder that must exist; the sentence is upstream's (spec/server.md section 1)."""
    folder = path(given)
    if not folder.is_dir():
        raise BadConfiguration(f"--model-store directory not found: {given.text.strip()}")
    return folder


def written_file(given: Given) -> Path | None:
    """A file in a folder that exists; none for an empty text."""
    if not given.text.strip():
        return None
    path = (given.cwd / given.text.strip()).absolute()
    if not path.parent.is_dir() or path.is_dir():
        raise given.bad("the path of a file in a folder that exists")
    return path


def file(given: Given) -> Path | None:
    """A file that must exist; none for an empty text."""
    if not given.text.strip():
        return None
    found = (given.cwd / given.text.strip()).absolute()
    if not found.is_file():
        raise given.bad("the path of a file that exists")
    return found


def secret(given: Given) -> str:
    """Any text, taken as it is."""
    return given.text


def keystore_type(given: Given) -> str:
    if given.text.strip().upper() != "PKCS12":
        raise given.bad("PKCS12; a Java keystore is made one by keytool -importkeystore -deststoretype PKCS12")
    return "PKCS12"


def program(given: Given) -> str | None:
    """A file that can be run: a path, or a name that PATH leads to.  Links stay: a virtual environment is one."""
    text = given.text.strip()
    if not text:
        return None
    found = shutil.which(given.cwd / text if "/" in text else text)
    if found is None:
        raise given.bad("the path of a program that exists and may be run")
    return str(Path(found).absolute())


def _items(given: Given) -> tuple[str, ...]:
    return tuple(item.strip() for item in given.text.split(",") if item.strip())


def start_models(given: Given) -> tuple[str, ...]:
    """`all` in any case, or items `archive` and `name=archive` (spec/server.md section 8), `#sha256=…` behind them."""
    items = _items(given)
    for item in items:
        _, marked, digest = item.partition("#sha256=")
        if marked and digest_in(digest) is None:
            raise given.bad(f"{DIGEST} behind #sha256=")
    if any(item.startswith("=") or item.endswith("=") for item in items):
        raise given.bad("all, or a list of archive or name=archive")
    return ("all",) if [item.lower() for item in items] == ["all"] else items


def networks(given: Given) -> tuple[str, ...]:
    """IP networks and single addresses, IPv4 and IPv6."""
    items = _items(given)
    for item in items:
        try:
            ipaddress.ip_network(item)
        except ValueError as error:
            raise given.bad(f"a comma list of networks such as 10.1.0.0/16; {error}") from error
    return items


def s3_endpoint(given: Given) -> str | None:
    text = given.text.strip()
    if text and re.fullmatch(r"https?://[^\s/@?#\\]+(?:/[^\s?#\\]*)?", text) is None:
        raise given.bad("http://host[:port] or https://host[:port], or nothing")
    return text or None


def patterns(given: Given) -> tuple[str, ...]:
    """An empty text is an empty list: no URL is allowed."""
    items = _items(given)
    for item in items:
        try:
            re.compile(item)
        except re.error as error:
            raise given.bad(f"a comma list of regular expressions; {item} is none: {error}") from error
    return items


def pattern(given: Given) -> str | None:
    """One regular expression, commas and all; an empty text is none."""
    text = given.text.strip()
    try:
        re.compile(text)
    except re.error as error:
        raise given.bad(f"a regular expression in Python's syntax; this is none: {error}") from error
    return text or None


def header_value(given: Given) -> str:
    if not given.text.isprintable() or not given.text.isascii():
        raise given.bad("printable ASCII, since it becomes a response header")
    return given.text.strip()


def header_name(given: Given) -> str:
    name = given.text.strip()
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise given.bad("the name of an HTTP header")
    return name


def optional(given: Given) -> str | None:
    return given.text.strip() or None


def optional_choice(*choices: str) -> Parser:
    """One of them, or an empty text for none."""

    def parse(given: Given) -> str | None:
        if given.text.strip() not in ("", *choices):
            raise given.bad(f"{' or '.join(choices)}, or nothing")
        return given.text.strip() or None

    return parse


_MODEL_FIELDS = {
    "minWorkers": "min_workers",
    "maxWorkers": "max_workers",
    "batchSize": "batch_size",
    "maxBatchDelay": "max_batch_delay",
    "responseTimeout": "response_timeout",
    "startupTimeout": "startup_timeout",
}
_SNAPSHOT_FIELDS = frozenset({"defaultVersion", "marName", "runtimeType", "parallelLevel"})  # no use outside snapshots


def model_table(given: Given) -> Mapping[tuple[str, str], ModelSettings]:
    """The `models` property: `{model: {version: {"minWorkers": 1, ...}}}` (spec/server.md section 4)."""
    try:
        table = json.loads(given.text)
    except ValueError as error:
        raise given.bad(f"a JSON object; {error}") from error
    found = {}
    for name, versions in _members(given, table, "models"):
        for version, entry in _members(given, versions, f"models.{name}"):
            where = f"models.{name}.{version}"
            values = dict(_members(given, entry, where))
            found[name, version] = ModelSettings(
                **{known: _positive(given, values.get(key), f"{where}.{key}") for key, known in _MODEL_FIELDS.items()},
                sha256=_digest(given, values.get("sha256"), f"{where}.sha256"),
            )
            if unknown := sorted(values.keys() - _MODEL_FIELDS.keys() - _SNAPSHOT_FIELDS - {"sha256"}):
                given.warnings.append(f"{where}: unknown, without effect: {', '.join(unknown)}")
    return MappingProxyType(found)


def _members(given: Given, value: object, where: str) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        raise BadConfiguration(f"{where}={json.dumps(value)} ({given.origin}): allowed is a JSON object")
    yield from value.items()


def _positive(given: Given, value: object, where: str) -> int | None:
    """A number or a text that holds one; zero and less say nothing, as upstream reads them."""
    text = "0" if value is None else str(value)
    if isinstance(value, bool | float) or not re.fullmatch(r"[+-]?[0-9]{1,10}", text) or int(text) > _INT32_MAX:
        raise BadConfiguration(
            f"{where}={json.dumps(value)} ({given.origin}): allowed is a whole number up to {_INT32_MAX}"
        )
    return int(text) if int(text) > 0 else None


def _digest(given: Given, value: object, where: str) -> str | None:
    found = digest_in(value) if isinstance(value, str) else None
    if value is not None and found is None:
        raise BadConfiguration(f"{where}={json.dumps(value)} ({given.origin}): allowed is {DIGEST}")
    return found


def digest_in(text: str) -> str | None:
    """The sha-256 that a text names: 64 hexadecimal digits, behind `sha256:` if you like; None for any other text."""
    found = re.fullmatch(r"(?:sha256:)?([0-9a-f]{64})", text.strip().lower())
    return found[1] if found else None


def must_be(wanted: bool, instead: str) -> Parser:
    def parse(given: Given) -> None:
        if boolean(given) is not wanted:
            raise given.not_built(instead)

    return parse
