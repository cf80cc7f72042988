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
from typing import Any

from tserve.archive.content import ZIP_MAGIC, first_bytes, opened
from tserve.archive.cpu_limit import TooSlow, cpu_limit
from tserve.archive.manifest import mend, read_config, read_manifest
from tserve.archive.parent import die_with
from tserve.archive.quota import Quota
from tserve.archive.refusal import BadManifest, NotVouchedFor, Refused
from tserve.archive.tree import Tree
from tserve.archive.vouching import Demand

MAX_MEMORY = 1 << 30  # headers and directories that lie about their size then end here, not in the host's memory
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def main() -> None:
    """Arguments: the package's root (used by the command line that imports this), the server's process id."""
    die_with(int(sys.argv[2]))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MAX_MEMORY if hard == resource.RLIM_INFINITY else min(MAX_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    request = json.load(sys.stdin.buffer)
    source, desk = Path(request["source"]), Path(request["desk"])
    sys.stdout.write(json.dumps(answer(source, request["kind"], desk, Quota(*request["quota"]), request["demand"])))


def answer(
    source: Path, kind: str, desk: Path, quota: Quota, demand: dict[str, Any] | None = None
) -> dict[str, object]:
    """Take in `source` as `desk`/model, `desk` being made here.

    `{"digest", "size", "signature", "warnings", "manifest", "config"}`, or `{"refused", "reason", "detail"}` where
    `refused` is `manifest`, `archive` or `integrity`, that with what was `expected` and what is `actual`.
    """
    try:
        return _take_in(source, kind, desk, quota, Demand(demand))
    except BadManifest as error:
        return {"refused": "manifest", "reason": error.reason, "detail": error.detail}
    except NotVouchedFor as error:
        return {"refused": "integrity", "reason": error.reason, "detail": error.detail, **error.facts}
    except Refused as error:
        return {"refused": "archive", "reason": error.reason, "detail": mend(error.detail)}
    except MemoryError:
        return {"refused": "archive", "reason": "too_large", "detail": f"needs more than {MAX_MEMORY} bytes of memory"}
    except TooSlow as error:
        why = f"{error}, by max_archive_entries={quota.entries} and max_archive_ratio={quota.ratio}"
        return {"refused": "archive", "reason": "too_slow", "detail": why}
    except OSError as error:
        reason = "no_space" if error.errno in _NO_SPACE else "io_error"
        return {"refused": "archive", "reason": reason, "detail": error.strerror or str(error)}


def _take_in(source: Path, kind: str, desk: Path, quota: Quota, demand: Demand) -> dict[str, object]:
    desk.mkdir()
    model = desk / "model"
    warnings: list[str] = []
    if kind == "folder":
        from tserve.archive.folder import copy_folder

        tree = Tree(model, quota, packed=None)
        digest, size = copy_folder(source, tree)
        signature = demand.check(digest)
    else:
        with opened(source) as given, demand.private(given, desk, quota) as file:
            packed = os.fstat(file.fileno()).st_size
            tree = Tree(model, quota, packed=packed)
            with cpu_limit(quota.most_seconds(packed)):
                digest, size, signature, warnings = _read_file(file, kind, tree, demand)
    manifest = read_manifest(model)
    config, config_warnings = read_config(model, manifest.get("config_file"))
    tree.sync()
    warnings += config_warnings
    found: dict[str, object] = {"digest": digest, "size": size, "signature": signature, "warnings": warnings}
    return found | {"manifest": manifest, "config": config}


def _read_file(file: BufferedReader, kind: str, tree: Tree, demand: Demand) -> tuple[str, int, str | None, list[str]]:
    """Hash, check and unpack an archive file: digest, size, what vouches for it, warnings."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    signature = demand.check(digest)
    if kind == "zip" and first_bytes(file) != ZIP_MAGIC:
        # Nothing of the file is kept, so its digest is that of no bytes: the same bytes may be a good tarball under
        # another name, and one digest must not stand for two contents.
        return hashlib.sha256().hexdigest(), 0, None, ["not a zip archive; it counts as an empty one"]
    size = file.tell()
    file.seek(0)
    if kind == "zip":
        from tserve.archive.unzip import unzip

        unzip(file, tree)
    else:
        from tserve.archive.untar import untar

        untar(file, tree)
    return digest, size, signature, []
