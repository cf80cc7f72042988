"""1,000 registered versions without workers: start to ready, list, describe, against an unknown path."""

from __future__ import annotations

from pathlib import Path

import server
import trio

from tserve.domain.actor import Actor
from tserve.domain.versions import Archive, Key, Manifest, Version
from tserve.store.gateway import SqliteStore
from tserve.store.upgrade import open_state

VERSIONS = 1000


async def _fill(database: Path) -> None:
    store = SqliteStore(database)
    archive = Archive("0" * 64, 1000, Manifest(handler="handler.py", raw={"model": {"handler": "handler.py"}}))
    for number in range(VERSIONS):
        key = Key(f"model-{number:04d}", "1.0")
        version = Version(key, "a.mar", archive.digest, "handler.py")
        await store.add_version(version, archive, actor=Actor("benchmark"))
    await store.close()


def main() -> None:
    with server.folder() as path:
        folder = Path(path)
        with open_state(folder / "state") as database:
            trio.run(_fill, database)
        (folder / "state" / "archives" / ("0" * 64)).mkdir(parents=True)
        with server.Server(folder) as running:
            bare = running.median_ms("management", "/nosuch")
            running.call("management", "/models?limit=100")  # the page's cursor is written once
            listed = running.median_ms("management", "/models?limit=100")
            described = running.median_ms("management", "/models/model-0500")
            print(f"{VERSIONS} versions: start to /ping {running.ready_s * 1000:.0f} ms")
            print(f"unknown path {bare:.2f} ms")
            print(f"list of 100 {listed:.2f} ms, ratio {listed / bare:.2f}")
            print(f"describe {described:.2f} ms, ratio {described / bare:.2f}")


if __name__ == "__main__":
    main()
