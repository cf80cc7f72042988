"""Random rows of management calls, with restarts and kills between them, against a small model of the contract.

Each call goes through REST or gRPC, whichever is drawn, and the model does not know which (tests/e2e/skins.py).
TSERVE_PROPERTY_EXAMPLES sets the number of rows.  One server process serves them all; each row begins with a registry
of its own, and ends or kills the server now and then.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.e2e.archives import write
from tests.e2e.expected import Change, Expected, Wish
from tests.e2e.server import Server, eventually, running
from tests.e2e.skins import ACCEPTED, Grpc, Rest, Said, Skin

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

EXAMPLES = int(os.environ.get("TSERVE_PROPERTY_EXAMPLES", "12"))
STEPS = 25
CALLS_BETWEEN_RESTARTS = 6
# The emoji, a surrogate pair, stands before the half-width mark in the order of UTF-16, behind it in that of UTF-8.
NAMES = st.sampled_from(["a", "B b", "a+b%", "x?y=1&z;#", "模型", "\U0001f600", "｡"])
VERSIONS = {"1.0": "one.mar", "2.0": "two.mar", "v 3+ü": "odd.mar"}
MAYBE = st.sampled_from([True, False, False])
FEW = st.sampled_from([0, 0, 0, 1])
SKINS = st.sampled_from(["rest", "grpc"])
# Fewest and most of a scaling; the last ones are refused where they can be said.
BOUNDS = st.sampled_from(
    [(0, None), (0, 0), (0, 0), (0, 1), (0, 1), (1, 1), (1, 2), (1, None), (0, -1), (1, 0), (3, 2)]
)
NO_WORKER = " has no worker to serve inference request"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("property")
    (folder / "store").mkdir()
    for version, file in VERSIONS.items():
        write(folder / "store", file, version=version)
    with running(Server(folder / "server", folder / "store", grpc=True)) as server:
        yield server


class Calls(RuleBasedStateMachine):
    """`expected` is the model; `slots` how many workers each version has."""

    server: Server
    skins: Mapping[str, Skin]
    pages = Bundle("pages")

    def __init__(self) -> None:
        super().__init__()
        self.expected = Expected()
        self.slots: dict[tuple[str, str], int] = {}
        self.calls = 0

    @initialize(names=st.lists(NAMES, max_size=4, unique=True))
    def start_with(self, names: list[str]) -> None:
        if self.server.process is None:
            self.server.start()  # the last row broke off while it was down
        for name, versions in self.server.registry().items():
            default = next(version for version, d in versions.items() if d["tserve"]["default"])
            for version in [*(v for v in versions if v != default), default]:
                assert self.server.unregister(name, version).status == 200
        for name in names:
            self.register("rest", name, "1.0", 0, None, False, None)

    # -- changes

    @rule(
        skin=SKINS,
        name=NAMES,
        version=st.sampled_from(sorted(VERSIONS)),
        workers=FEW,
        synchronous=st.sampled_from([True, False, None]),
        other=MAYBE,
        sizes=st.none() | st.tuples(st.integers(-3, 9), st.integers(-5, 300), st.integers(30, 90), st.integers(30, 90)),
    )
    def register(
        self,
        skin: str,
        name: str,
        version: str,
        workers: int,
        synchronous: bool | None,
        other: bool,
        sizes: tuple[int, int, int, int] | None,
    ) -> None:
        handler = "handler.py:other" if other else "handler.py"
        ask: dict[str, object] = {"model_name": name, "initial_workers": workers, "synchronous": synchronous}
        numbers = dict(
            zip(("batch_size", "max_batch_delay", "response_timeout", "startup_timeout"), sizes or (), strict=False)
        )
        stored = {field: number for field, number in numbers.items() if self.skins[skin].stores(field, number)}
        wish = Wish(VERSIONS[version], handler, **stored, min_workers=workers, max_workers=workers)
        said = self.skins[skin].register(wish.url, handler=handler if other else None, **ask, **numbers)
        if version in self.expected.versions.get(name, {}):
            text = f"Model version {version} is already registered for model {name}"
            assert said == Said(text, refusal="ConflictStatusException")
            return
        label = f'Model "{name}" Version: {version} registered with {workers} initial workers'
        if workers == 0:
            assert said == Said(label + ". Use scale workers API to add workers for the model.")
        else:
            assert said == Said(label if synchronous else ACCEPTED)
        self.expected.apply(Change("add_version", name, version, wish=wish))
        self.slots[name, version] = workers
        self._check_workers(name, version, all_up=synchronous is True)

    @rule(skin=SKINS, name=NAMES, what=st.sampled_from(["nothing", "nowhere", "outside", "runtime"]))
    def register_what_cannot_be(self, skin: str, name: str, what: str) -> None:
        ask, text, kind = {
            "nothing": ({"url": None}, "Parameter url is required.", "BadRequestException"),
            "nowhere": ({"url": "no.mar"}, "Model not found at: no.mar", "ModelNotFoundException"),
            "outside": ({"url": "../a"}, "Relative path is not allowed in url: ../a", "ModelNotFoundException"),
            "runtime": (
                {"url": "one.mar", "runtime": "ruby"},
                "Invalid RuntimeType value: ruby",
                "BadRequestException",
            ),
        }[what]
        assert self.skins[skin].register(model_name=name, **ask) == Said(text, refusal=kind)

    @rule(
        skin=SKINS, name=NAMES, version=st.none() | st.sampled_from(sorted(VERSIONS)), bounds=BOUNDS, synchronous=MAYBE
    )
    def scale(
        self, skin: str, name: str, version: str | None, bounds: tuple[int, int | None], synchronous: bool
    ) -> None:
        said = self.skins[skin].scale(name, version, *bounds, synchronous=synchronous)
        fewest, most = self.skins[skin].bounds(*bounds)
        if most < fewest:
            assert said == Said("max_worker cannot be less than min_worker.", refusal="BadRequestException")
            return
        found = self._find(said, name, version)
        if found is None:
            return
        text = f"Workers scaled to {fewest} for model: {name}" + (f", version: {version}" if version else "")
        assert said == Said(text if synchronous else ACCEPTED)
        self.expected.apply(Change("replace_version", name, found, workers=(fewest, most)))
        held = self.slots[name, found]
        self.slots[name, found] = 0 if fewest == 0 else min(max(held, fewest), most)
        self._check_workers(name, found, all_up=synchronous)

    @rule(skin=SKINS, name=NAMES, version=st.sampled_from(sorted(VERSIONS)))
    def set_default(self, skin: str, name: str, version: str) -> None:
        said = self.skins[skin].set_default(name, version)
        if name not in self.expected.versions:
            assert said == Said(f"Model not found: {name}", refusal="ModelNotFoundException")
        elif version not in self.expected.versions[name]:
            text = f"Model version {version} does not exist for model {name}"
            assert said == Said(text, refusal="ModelVersionNotFoundException")
        else:
            assert said == Said(f'Default version successfully updated for model "{name}" to "{version}"')
            self.expected.apply(Change("set_default", name, version))

    @rule(skin=SKINS, name=NAMES, version=st.none() | st.sampled_from(sorted(VERSIONS)))
    def unregister(self, skin: str, name: str, version: str | None) -> None:
        said = self.skins[skin].unregister(name, version)
        found = self._find(said, name, version)
        if found is None:
            return
        if not self.expected.may_remove(name, found):
            text = f"Cannot remove default version for model {name}"
            assert said == Said(text, refusal="InvalidModelVersionException")
            return
        assert said == Said(f'Model "{name}" unregistered')
        self.expected.apply(Change("remove_version", name, found))
        del self.slots[name, found]

    # -- looks

    @rule(skin=SKINS, name=NAMES, version=st.none() | st.sampled_from([*sorted(VERSIONS), "all"]))
    def describe(self, skin: str, name: str, version: str | None) -> None:
        said = self.skins[skin].describe(name, version)
        found = self._find(said, name, None if version == "all" else version)
        if found is not None:
            registered = self.expected.versions[name]
            shown = [*registered] if version == "all" else [found]
            assert [(d["modelName"], d["modelVersion"]) for d in said.value] == [(name, v) for v in shown]
            assert [Wish.described(d) for d in said.value] == [registered[v] for v in shown]

    @rule(name=NAMES, version=st.none() | st.sampled_from(sorted(VERSIONS)))
    def predict(self, name: str, version: str | None) -> None:
        answer = self.server.predict(name, version)
        said = Said(answer.text, refusal=answer.json["type"]) if answer.status == 404 else Said()
        found = self._find(said, name, version)
        if found is None:
            return
        if self.slots[name, found] == 0:
            assert answer.status == 503
            assert NO_WORKER in answer.text
        else:
            other = self.expected.versions[name][found].handler.endswith(":other")
            expected = b"other" if other else f"echo {found} of 1".encode()
            assert (answer.status, answer.body) == (200, expected)

    @rule(skins=st.lists(SKINS, min_size=1, max_size=2), limit=st.integers(1, 4))
    def list_in_pages(self, skins: list[str], limit: int) -> None:
        """A token of one skin leads on in the other."""
        listed: dict[str, str] = {}
        token = None
        for skin in itertools.cycle(skins):
            page = self.skins[skin].list(limit=limit, token=token).value
            assert len(page["models"]) <= limit
            shown = {model["modelName"]: model["modelUrl"] for model in page["models"]}
            assert not shown.keys() & listed.keys()
            listed |= shown
            token = page.get("nextPageToken")
            if token is None:
                break
            assert len(shown) == limit
            assert re.fullmatch("[0-9]{10}", token)
            assert 2**30 <= int(token) < 2**31
        assert list(listed.items()) == list(self.expected.urls().items())

    @rule(target=pages, skin=SKINS, limit=st.integers(1, 3))
    def hold_a_page(self, skin: str, limit: int) -> Any:
        """The position behind a page, to go on from later."""
        page = self.skins[skin].list(limit=limit).value
        names = self.expected.names()
        assert [model["modelName"] for model in page["models"]] == names[:limit]
        assert ("nextPageToken" in page) == (len(names) > limit)
        if "nextPageToken" not in page:
            return stateful.multiple()
        return page["nextPageToken"], names[limit - 1]

    @rule(skin=SKINS, page=pages)
    def go_on(self, skin: str, page: tuple[str, str]) -> None:
        token, last = page
        shown = [model["modelName"] for model in self.skins[skin].list(token=token).value["models"]]
        assert shown == [name for name in self.expected.names() if name.encode("utf-16-be") > last.encode("utf-16-be")]

    # -- ends

    @precondition(lambda self: self.calls >= CALLS_BETWEEN_RESTARTS)
    @rule(how=st.sampled_from(["term", "kill"]), skin=SKINS)
    def restart(self, how: str, skin: str) -> None:
        self.calls = 0
        held = self.hold_a_page(skin, 1)
        self.server.restart(how)
        self.server.check_whole()
        if isinstance(held, tuple):
            self.go_on(skin, held)
        assert self.server.models() == self.expected.urls()
        for name, versions in self.expected.versions.items():
            for version, wish in versions.items():
                self.slots[name, version] = wish.min_workers
                self._check_workers(name, version, all_up=False)

    @invariant()
    def all_is_as_expected(self) -> None:
        self.calls += 1
        if self.server.process is not None:
            assert Expected.described(self.server.registry()) == self.expected

    # -- parts of checks

    def _find(self, said: Said, name: str, version: str | None) -> str | None:
        """The version that a call is about; None when it had to be, and was, refused because there is none."""
        versions = self.expected.versions.get(name)
        if versions is None:
            assert said == Said(f"Model not found: {name}", refusal="ModelNotFoundException")
            return None
        if version is not None and version not in versions:
            text = f"Model version: {version} does not exist for model: {name}"
            assert said == Said(text, refusal="ModelVersionNotFoundException")
            return None
        return version or self.expected.defaults[name]

    def _check_workers(self, name: str, version: str, *, all_up: bool) -> None:
        """As many as there are to be; `all_up`: now, else soon."""
        wanted = self.slots[name, version]
        (described,) = self.server.describe(name, version)
        assert len(described["workers"]) == wanted
        if all_up:
            assert len(self.server.ready_workers(name, version)) == wanted
        eventually(f"{wanted} workers", lambda: len(self.server.ready_workers(name, version)) == wanted)


def test_the_server_does_as_the_contract(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grpc = Grpc(server)
    monkeypatch.setattr(Calls, "server", server, raising=False)
    monkeypatch.setattr(Calls, "skins", {"rest": Rest(server), "grpc": grpc}, raising=False)
    bounds = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate],  # to shrink a failure takes minutes here; a row can be read as it is
    )
    with closing(grpc):
        stateful.run_state_machine_as_test(Calls, settings=bounds)
    assert server.stop() == 0
