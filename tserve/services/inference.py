"""The use case of every inference route: one request through a version's queue and worker."""

from __future__ import annotations

import trio

from tserve.domain.registry import Registry
from tserve.domain.wire import JobReply, JobRequest
from tserve.errors import ServiceUnavailable, TserveError
from tserve.runtime.jobs import Job, Outcome
from tserve.runtime.pool import NoCapacity
from tserve.runtime.reconcile import Reconciler


class Inference:
    def __init__(self, registry: Registry, reconciler: Reconciler) -> None:
        self._registry = registry
        self._reconciler = reconciler

    def exists(self, name: str, version: str | None) -> None:
        """Raises ModelNotFound, ModelVersionNotFound."""
        self._registry.find(name, version)

    async def predict(self, name: str, version: str | None, request: JobRequest) -> JobReply:
        """The handler's answer.

        Raises ModelNotFound, ModelVersionNotFound, ServiceUnavailable when no worker can take the request, and
        InternalServer for what became of it in the worker.  Cancelling gives the request's place in the queue
        free; a batch already in a worker's hand runs on.
        """
        key = self._registry.find(name, version).key
        pool = self._reconciler.pool(key)
        done = trio.Event()
        outcomes: list[Outcome] = []

        def finish(outcome: Outcome) -> None:
            outcomes.append(outcome)
            done.set()

        job = Job(request, finish, asked_version=version)
        try:
            if pool is None:
                raise NoCapacity("no_worker")
            pool.submit(job)
        except NoCapacity as e:
            raise ServiceUnavailable.no_worker(name, version, cause=e.cause()) from None
        try:
            await done.wait()
        finally:
            if not done.is_set():
                pool.discard(job)
        outcome = outcomes[0]
        if isinstance(outcome, TserveError):
            raise outcome
        return outcome
