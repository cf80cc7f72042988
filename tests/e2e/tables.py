"""Tables of requests: each answer is judged, and afterwards all must be as it was before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.e2e.raw_client import Pairs, RawClient, fault
from tests.e2e.server import Answer, Server, eventually, processes_of

MAX_REQUEST = 2_000_000  # bytes of a body, of the server that most tables ask
JSON = [("content-type", "application/json")]


class Table:
    """Asks, and collects what was answered wrongly."""

    def __init__(self, server: Server, role: str, faults: list[str]) -> None:
        self.client = RawClient(server, role)
        self.count = 0
        self._faults = faults

    def check(self, answer: Answer, allowed: Iterable[int], label: object) -> None:
        self.count += 1
        wrong = fault(answer, set(allowed))
        if wrong is not None:
            self._faults.append(f"{str(label)[:160]}: {wrong}")

    def ask(
        self,
        method: str,
        target: str | bytes,
        *allowed: int,
        body: bytes = b"",
        headers: Pairs = (),
        expect: bytes | None = None,
    ) -> Answer:
        """`expect`: the body of the answer."""
        answer = self.client.ask(method, target, body=body, headers=headers)
        label = f"{method} {target!r} {list(headers)} {body[:60]!r}"
        self.check(answer, allowed, label)
        if expect is not None and answer.body != expect and answer.status in allowed:
            self._faults.append(f"{label[:160]}: {answer.body[:300]!r}")
        return answer

    def ask_json(self, body: str | bytes, *allowed: int) -> Answer:
        raw = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
        return self.ask("POST", "/models", *allowed, body=raw, headers=JSON)


@contextmanager
def table(server: Server, role: str = "management") -> Iterator[Table]:
    """A table of requests: at its end there must be no fault, and nothing left behind."""
    before = standing(server)
    faults: list[str] = []
    made = Table(server, role, faults)
    with made.client:
        yield made
    print(f"{made.count} requests")
    assert not faults, "\n".join([f"{len(faults)} of {made.count} answers:", *faults[:40]])
    assert made.count > 0
    assert server.process is not None
    assert server.process.poll() is None
    eventually("everything is as before", lambda: standing(server) == before, within_s=10)
    server.check_whole()


def standing(server: Server) -> object:
    registry = {
        name: {version: (d["minWorkers"], d["maxWorkers"], len(d["workers"])) for version, d in versions.items()}
        for name, versions in server.registry().items()
    }
    return registry, server.kept(), server.incoming(), len(processes_of(server.mark))
