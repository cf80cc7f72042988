"""The parsers that are given what others wrote: seeds for each, and what it may say of a bad one.

A target takes bytes and returns a short word for what became of them; inputs with new words are kept and changed
further.  Only the errors that the parser's own documentation names are caught: any other one is a crash.
"""

from __future__ import annotations

import ipaddress
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpack import Encoder

from tests.archive.hostile_archives import CORPUS, SMALL, good_zip, manifest, tar_of
from tests.fuzz.mutation import MOST_BYTES
from tserve.archive.fetch.policy import AddressPolicy
from tserve.archive.fetch.rules import TransferFailed
from tserve.archive.fetch.urls import checked_url
from tserve.archive.intake import answer
from tserve.archive.manifest import read_config, read_manifest
from tserve.archive.refusal import BadManifest, Refused
from tserve.archive.signatures import lines_of
from tserve.archive.sources import Remote, compile_allowed, resolve
from tserve.domain.wire import (
    Decoder,
    Frame,
    HandlerFailed,
    Input,
    JobReply,
    JobRequest,
    Kind,
    WireError,
    decode_reply,
    encode_batch,
    encode_reply,
)
from tserve.errors import BadConfiguration, TserveError
from tserve.grpc.headers import DONE, read_head
from tserve.grpc.http2 import PREFACE, STREAM_WINDOW, Connection, Stream
from tserve.grpc.inbox import Inbox
from tserve.grpc.methods import Refusal
from tserve.metrics.catalogue import read_catalogue
from tserve.settings import Options, load_settings

MOST_UNPACKED = SMALL.size << 20


@dataclass(frozen=True)
class Target:
    """`make` is given a folder of its own and gives what takes an input; `share` of a thousand inputs are its own."""

    name: str
    share: int
    seeds: Sequence[bytes]
    make: Callable[[Path], Callable[[bytes], str]]
    words: Sequence[bytes] = ()  # that mutations put in
    most: int = MOST_BYTES  # of an input


class Leak(AssertionError):
    """Something is where it must not be."""


# -- archives


def _manifest(folder: Path) -> Callable[[bytes], str]:
    file = folder / "MAR-INF" / "MANIFEST.json"
    file.parent.mkdir()

    def run(data: bytes) -> str:
        file.write_bytes(data)
        try:
            fields = read_manifest(folder)
        except BadManifest as error:
            return error.detail[:40]
        return ",".join(sorted(fields))

    return run


def _yaml(folder: Path) -> Callable[[bytes], str]:
    def run(data: bytes) -> str:
        (folder / "config.yaml").write_bytes(data)
        fields, warnings = read_config(folder, "config.yaml")
        return f"{sorted(fields) if fields is not None else None} {[warning[:60] for warning in warnings][:2]}"

    return run


def _archive(kind: str) -> Callable[[Path], Callable[[bytes], str]]:
    def make(folder: Path) -> Callable[[bytes], str]:
        (folder / "evil").touch()
        source, desk = folder / "archive", folder / "desk"

        def run(data: bytes) -> str:
            source.write_bytes(data)
            try:
                found = answer(source, kind, desk, SMALL)
                written = sum(path.lstat().st_size for path in desk.rglob("*") if not path.is_dir())
                if written > MOST_UNPACKED or any(path.is_symlink() for path in desk.rglob("*")):
                    raise Leak(f"{written} bytes, or a link")
            finally:
                shutil.rmtree(desk, ignore_errors=True)
            if {path.name for path in folder.iterdir()} != {"evil", "archive"}:
                raise Leak("a file outside of the archive's folder")
            return f"{found.get('refused')} {found.get('reason')} {str(found.get('detail'))[:60]}"

        return run

    return make


def _signature(folder: Path) -> Callable[[bytes], str]:
    def run(data: bytes) -> str:
        try:
            return str(len(lines_of(data.decode("latin-1"))))
        except Refused as error:
            return error.reason

    return run


# -- configuration


def _properties(folder: Path) -> Callable[[bytes], str]:
    (folder / "model_store").mkdir()
    file = folder / "config.properties"
    options = Options(ts_config=str(file))

    def run(data: bytes) -> str:
        file.write_bytes(data)
        try:
            settings = load_settings(options, {"HOME": "/root"}, folder)
        except BadConfiguration as error:
            return str(error)[:30]
        return str(len(settings.warnings))

    return run


def _catalogue(folder: Path) -> Callable[[bytes], str]:
    def run(data: bytes) -> str:
        (folder / "metrics.yaml").write_bytes(data)
        try:
            read_catalogue(folder / "metrics.yaml")
        except BadConfiguration as error:
            return str(error)[-60:]
        return "read"

    return run


def _url(folder: Path) -> Callable[[bytes], str]:
    (folder / "store").mkdir()
    (folder / "store" / "a.mar").touch()
    allowed = compile_allowed(["file://.*", "http(s)?://.*", "s3://.*"])
    policy = AddressPolicy()

    def run(data: bytes) -> str:
        text = data.decode("utf-8", "surrogateescape")
        try:
            found = resolve(text, folder / "store", allowed)
        except TserveError as error:
            return f"{type(error).__name__} {error.cause.get('reason')}"
        if not isinstance(found, Remote):
            if not Path(found.path).resolve().is_relative_to(folder / "store"):
                raise Leak(f"{text!r} leads to {found.path}")
            return found.kind
        try:
            host = checked_url(text).host
        except TransferFailed as error:
            return error.reason
        try:
            ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return "a name"
        return f"an address that is allowed: {policy.objection(host) is None}"

    return run


# -- what comes over sockets


def _reply(folder: Path) -> Callable[[bytes], str]:
    def run(data: bytes) -> str:
        decoder, said = Decoder(body_limit=1 << 20), []
        try:
            for at in range(0, len(data), 97):
                for frame in decoder.feed(data[at : at + 97]):
                    found = decode_reply(frame)
                    said.append("failed" if isinstance(found, HandlerFailed) else str(len(found)))
            decoder.end()
        except WireError as error:
            said.append(str(error)[:30])
        return " ".join(said[:4])

    return run


class _Sink:
    """Answers every request that comes to its end; its messages are taken apart as those of a call are."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.http2 = Connection(self, read_head)
        self._inboxes: dict[int, Inbox] = {}

    def request(self, stream: Stream, head: Any) -> None:
        self.said.append(f"request {head.problem}")
        self._inboxes[stream.id] = Inbox(10_000)
        str(head.metadata)
        self._answer(stream)

    def data(self, stream: Stream, data: bytes) -> None:
        try:
            self.said.append(f"{len(self._inboxes[stream.id].feed(data))} messages")
        except Refusal as error:
            self.said.append(error.code.name)
        self.http2.widen(stream, STREAM_WINDOW)
        self._answer(stream)

    def reset(self, stream: Stream) -> None:
        self.said.append("reset")

    def room(self, stream: Stream) -> None:
        self.said.append("room")

    def _answer(self, stream: Stream) -> None:
        if stream.ended:
            self.http2.headers(stream, b"\x88")
            self.http2.body(stream, b"\0\0\0\0\1x" * 9000)
            self.http2.headers(stream, DONE, end=True)


def _http2(folder: Path) -> Callable[[bytes], str]:
    def run(data: bytes) -> str:
        sink = _Sink()
        for at in range(0, len(data), 1009):
            sink.http2.receive(data[at : at + 1009])
            sink.http2.pump()
            sink.http2.take_out()
        return f"{sink.http2.over} {sink.said[:4]}"

    return run


# -- seeds


def _replies() -> list[bytes]:
    good = JobReply(200, "OK", {"a": "b"}, b"body")
    failed = HandlerFailed(500, "message", "detail")
    request = JobRequest("id", {"a": "b"}, (Input("body", "text/plain", b"x" * 9),))
    frames = [
        encode_reply(1, [good, failed, good], took_s=0.1),
        encode_reply(2, failed),
        encode_reply(3, [good], kind=Kind.PIECE),
        encode_batch(4, [request, request]),
        Frame(Kind.METRICS, 5, {"metrics": ["a"], "lost": 1}),
        Frame(Kind.LOADED, 6, {"ok": True}),
    ]
    return [frame.encode() for frame in frames] + [frames[0].encode() + frames[1].encode()]


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload


def _connections() -> list[bytes]:
    asked = [(":method", "POST"), (":path", "/s/m"), (":scheme", "http"), (":authority", "h"), ("te", "trailers")]
    asked += [
        ("content-type", "application/grpc"),
        ("grpc-timeout", "1S"),
        ("x-bin", "YWJj"),
        ("grpc-encoding", "gzip"),
    ]
    block = Encoder().encode(asked)
    begun = PREFACE + _frame(4, 0, 0, b"\0\3\0\0\0\x64\0\4\0\1\0\0")
    call = _frame(1, 4, 1, block) + _frame(0, 1, 1, b"\0\0\0\0\5hello")
    parts = _frame(1, 0, 3, block[:9]) + _frame(9, 0, 3, block[9:20]) + _frame(9, 4, 3, block[20:])
    others = _frame(6, 0, 0, b"12345678") + _frame(8, 0, 0, b"\0\0\1\0") + _frame(2, 0, 5, b"\0\0\0\0\1")
    return [
        begun + call,
        begun + parts + _frame(0, 9, 3, b"\3\0\0\0\0\1x\0\0\0"),
        begun + others + call + _frame(3, 0, 1, b"\0\0\0\x08") + _frame(7, 0, 0, bytes(8)),
        begun + call.replace(b"\0\0\0\1", b"\0\0\0\3") + call,
    ]


_PROPERTIES = b"""inference_address=http://127.0.0.1:8080
models={"digits": {"1.0": {"minWorkers": 1, "batchSize": 4, "sha256": "00"}}}
load_models=a.mar,b=http://h/c.mar#sha256=00\ndefault_workers_per_model=2\\
  3\nallowed_urls=file://.*,http(s)?://.*\nnumber_of_gpu=\\u0031\nallowed_networks=10.0.0.0/8\nkeystore_pass=$$HOME$$
cors_allowed_origin=*\nworker_kill_grace=0.5\nallowed_hosts=a,.b,*\ntoken_expiration_min=0.5
"""
_YAML = b"""minWorkers: 1\nmaxWorkers: 2\nbatchSize: 4\nmaxBatchDelay: 100\nresponseTimeout: 120\ndeviceType: "gpu"
deviceIds: [0, 1]\nparallelType: "pp"\ncontinuousBatching: true\nsequenceBatching: &a\n  <<: {x: 1}
handler: {profile: true, y: [1, 2.5, null, 2001-12-14t21:59:43.10-05:00, !!binary YWJj]}\nuseJobTicket: *a\n
"""
_METRICS = b"""dimensions:\n  - &a "A"\nts_metrics:\n  counter:\n    - name: C\n      unit: ms\n      dimensions: [*a]
model_metrics:\n  gauge:\n    - name: G\n      unit: ms\n      dimensions: ["B", "C"]\n  histogram: []
"""
_URLS = b"""http://example.com/a.mar a.mar file:///x/a.mar s3://bucket/key/a.mar https://[::ffff:10.0.0.1]:80/a?b#c
http://user:pass@host/a.mar http://0x7f.1/a.mar /abs/a.mar a/../b.mar HTTP://h/%2e%2e/a.mar http://%31/a //h/a"""
_LINE = b"ed25519:0123456789abcdef:" + b"A" * 86


def _of(kind: str) -> list[bytes]:
    """The smaller ones of the corpus: what is large says nothing that these do not."""
    made = (each.make() for each in CORPUS if each.kind == kind and "100001" not in each.name and not each.slow)
    return [data for data in made if len(data) < 4000]


_YAML_WORDS = [b"!!python/object:os", b"<<: *a", b"&a ", b"*a", b"? ", b"!!int ", b"!!timestamp 1", b"- ", b"[" * 50]
_JSON_WORDS = [b'"model"', b'"modelName":', b"\\ud800", b"1e999", b"[" * 200, b"NaN", b"\xef\xbb\xbf"]
_ZIP_WORDS = [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"../", b"\xff\xff\xff\xff", b"\1\0\x18\0"]
_TAR_WORDS = [b"ustar\x0000", b"ustar  \0", b"../", b"\x80" + bytes(11), b"00000000000\0", b"30 path=", b"\x1f\x8b\x08"]
_FILE_WORDS = [b"\\u0000", b"\\\n", b"$$", b"$$HOME$$", b"=", b"{", b'"', b"models={}", b"https://"]
_URL_WORDS = [b"%2e", b"..", b"@", b"[::1]", b"file://", b"s3://", b"\\", b"#", b"\xff"]
_FRAME_WORDS = [b'{"replies":', b'"failed":', b"\0\0\0\0\0\0\0\1", b"-1", b"null"]
_HTTP2_WORDS = [PREFACE, *(_frame(kind, 5, 1, b"\x3f\xff\xff") for kind in range(11))]
_CONFIGS = [each.files["config.yaml"] for each in CORPUS if "config.yaml" in each.files]
_MANIFESTS = [manifest(handler="h", modelVersion="1.10"), b'{"runtime":"LSP","model":{"x":[1e5,{}]}}']

TARGETS = [
    Target("manifest", 130, _MANIFESTS, _manifest, _JSON_WORDS),
    Target("yaml", 40, [_YAML, *_CONFIGS], _yaml, _YAML_WORDS, most=1000),
    Target("zip", 60, [good_zip(), *_of("zip")], _archive("zip"), _ZIP_WORDS),
    Target("tar", 60, [tar_of(), tar_of(packed=False), *_of("tar")], _archive("tar"), _TAR_WORDS),
    Target("signature", 60, [_LINE, _LINE + b"\n" + _LINE], _signature, [_LINE, b"\n"]),
    Target("properties", 90, [_PROPERTIES, *_PROPERTIES.splitlines()], _properties, _FILE_WORDS),
    Target(
        "metrics", 30, [_METRICS], _catalogue, [b"ts_metrics:", b"name: ", b"- ", b"*a", b"[]", b"!!set "], most=1000
    ),
    Target("urls", 130, _URLS.split(), _url, _URL_WORDS),
    Target("frames", 220, _replies(), _reply, _FRAME_WORDS),
    Target("http2", 180, _connections(), _http2, _HTTP2_WORDS),
]
