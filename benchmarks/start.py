"""From process start to the first answer of /ping, against importing the server's libraries alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import server

ROUNDS = 9
LIBRARIES = "import trio, hypercorn.trio, quart_trio, sqlalchemy.orm"


def main() -> None:
    with server.folder() as path:
        with server.Server(Path(path)) as first:
            print(f"first start, schema made: {first.ready_s * 1000:.0f} ms; idle PSS {first.pss_mib():.0f} MiB")
        starts, imports = [], []
        for _ in range(ROUNDS):  # interleaved, so that both see the same noise
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", LIBRARIES], check=True)
            imports.append(time.perf_counter() - began)
            with server.Server(Path(path)) as again:
                starts.append(again.ready_s)
        start, bare = sorted(starts)[ROUNDS // 2], sorted(imports)[ROUNDS // 2]
        print(f"start to /ping: {start * 1000:.0f} ms (min {min(starts) * 1000:.0f}, max {max(starts) * 1000:.0f})")
        print(f"libraries alone: {bare * 1000:.0f} ms; ratio {start / bare:.2f}")


if __name__ == "__main__":
    main()
