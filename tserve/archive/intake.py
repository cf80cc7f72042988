"""The intake process: one archive from its source into a folder of its own, checked, hashed and on the disk.

It reads one JSON request on standard input, writes one JSON answer on standard output and ends.  It is started for
each archive, so it imports little: never trio, yaml only for an archive with a config file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import sys
from io import BufferedReader
from pathlib import Path

from tserve.archive.content import ZIP_MAGIC, first_bytes, opened
from tserve.archive.manifest import mend, read_config, read_manifest
from tserve.archive.parent import die_with
from tserve.archive.refusal import BadManifest, Refused
from tserve.archive.tree import Tree

MAX_MEMORY = 1 << 30  # headers and directories that lie about their size then end here, not in the host's memory
# Weights hardly shrink and text shrinks some 10 times; deflate reaches 1000, which only bombs do.
_MAX_RATIO = 200
_ALWAYS_ALLOWED = 1 << 30  # bytes: small archives may hold one large file of zeros
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def main() -> None:
    """Arguments: the package's root (used by the command line that imports this), the server's process id."""
    die_with(int(sys.argv[2]))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MAX_MEMORY if hard == resource.RLIM_INFINITY else min(MAX_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    request = json.load(sys.stdin.buffer)
    sys.stdout.write(json.dumps(answer(Path(request["source"]), request["kind"], Path(request["desk"]))))


def answer(source: Path, kind: str, desk: Path) -> dict[str, object]:
    """Take in `source` as `desk`/model, `desk` being made here.

    `{"digest", "size", "manifest", "config", "warnings"}`, or `{"refused", "reason", "detail"}` where `refused` is
    `manifest` or `archive`.
    """
    try:
        return _take_in(source, kind, desk)
    except BadManifest as error:
        return {"refused": "manifest", "reason": error.reason, "detail": error.detail}
    except Refused as error:
        return {"refused": "archive", "reason": error.reason, "detail": mend(error.detail)}
    except MemoryError:
        return {"refused": "archive", "reason": "too_large", "detail": f"needs more than {MAX_MEMORY} bytes of memory"}
    except OSError as error:
        reason = "no_space" if error.errno in _NO_SPACE else "io_error"
        return {"refused": "archive", "reason": reason, "detail": error.strerror or str(error)}


def _take_in(source: Path, kind: str, desk: Path) -> dict[str, object]:
    desk.mkdir()
    model = desk / "model"
    warnings: list[str] = []
    if kind == "folder":
        from tserve.archive.folder import copy_folder

        tree = Tree(model, most_bytes=None)
        digest, size = copy_folder(source, tree)
    else:
        with opened(source) as file:
            tree = Tree(model, most_bytes=max(_ALWAYS_ALLOWED, _MAX_RATIO * os.fstat(file.fileno()).st_size))
            digest, size, warnings = _read_file(file, kind, tree)
    manifest = read_manifest(model)
    config, config_warnings = read_config(model, manifest.get("config_file"))
    tree.sync()
    warnings += config_warnings
    return {"digest": digest, "size": size, "manifest": manifest, "config": config, "warnings": warnings}


def _read_file(file: BufferedReader, kind: str, tree: Tree) -> tuple[str, int, list[str]]:
    """Hash and unpack an archive file: digest, size, warnings."""
    if kind == "zip" and first_bytes(file) != ZIP_MAGIC:
        # Nothing of the file is kept, so its digest is that of no bytes: the same bytes may be a good tarball under
        # another name, and one digest must not stand for two contents.
        return hashlib.sha256().hexdigest(), 0, ["not a zip archive; it counts as an empty one"]
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = file.tell()
    file.seek(0)
    if kind == "zip":
        from tserve.archive.unzip import unzip

        unzip(file, tree)
    else:
        from tserve.archive.untar import untar

        untar(file, tree)
    return digest, size, []
