"""Environments of models that bring requirements: real virtual environments, real pip, no network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.process.launcher_contract import ask
from tests.wheels import stuck_package, wheel, wheel_name
from tserve.domain.environments import MARK
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import Frame, Kind
from tserve.runtime.environments import Environments
from tserve.runtime.family import Family, adopt, children_of
from tserve.runtime.fresh import FreshLauncher
from tserve.runtime.launcher import LaunchFailed
from tserve.runtime.prepared import PreparedLauncher
from tserve.runtime.requirements import BadRequirements, Requirements, environment_name
from tserve.runtime.zygote import ZygoteLauncher

pytestmark = pytest.mark.process
PATIENCE_S = 60.0
NO_INDEX = "--no-index\n"


class Place:
    """Model folders as the keep has them, and environments for them."""

    def __init__(self, folder: Path, family: Family) -> None:
        self.folder = folder / "environments"
        self._models = folder / "archives"
        self.family = family
        self.environments = self.of()

    def of(self, *, timeout_s: float = PATIENCE_S, **how: Any) -> Environments:
        return Environments(self.folder, self.family, timeout_s=timeout_s, **how)

    def model(self, name: str, requirements: str, files: dict[str, str | bytes] | None = None) -> Requirements:
        folder = self._models / name
        for path, content in {"requirements.txt": requirements, **(files or {})}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)
        return Requirements(str(folder), "requirements.txt")

    def with_wheel(self, name: str, version: str, *, at: str = "./wheels") -> Requirements:
        file = f"wheels/{wheel_name('tiny', version)}"
        return self.model(name, f"{NO_INDEX}{at}/{wheel_name('tiny', version)}\n", {file: wheel("tiny", version)})

    def stuck(self, name: str, mark: Path) -> Requirements:
        """Its installation never ends."""
        files = {f"stuck/{path}": text for path, text in stuck_package(str(mark)).items()}
        return self.model(name, f"{NO_INDEX}./stuck\n", dict(files))

    def made(self) -> list[str]:
        return sorted(entry.name for entry in self.folder.iterdir()) if self.folder.exists() else []


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    adopt()
    family = Family()
    async with family.looked_after():
        yield Place(tmp_path, family)


def run(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout.strip()


async def until(holds: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - files tell nobody
            await trio.sleep(0.01)


async def refusal(environments: Environments, wanted: Requirements) -> LaunchFailed:
    with pytest.raises(LaunchFailed) as caught:
        async with environments.held(wanted):
            raise AssertionError
    return caught.value


# -- what is made


async def test_it_has_what_is_required_and_all_that_the_server_has(place: Place) -> None:
    async with place.environments.held(place.with_wheel("a", "1.0")) as python:
        assert run(python, "import tiny, sys; print(tiny.VERSION, sys.prefix)") == f"1.0 {Path(python).parents[1]}"
        torch = "import torch; print(torch.__file__)"
        assert run(python, torch) == run(sys.executable, torch)
        script = Path(python).with_name("tiny-says")
        said = await trio.run_process([script], capture_stdout=True)
        assert said.stdout == b"1.0\n", "scripts run where they are"
        assert not Path(python).parents[1].joinpath("tmp").exists()
    with pytest.raises(subprocess.CalledProcessError):
        run(sys.executable, "import tiny")


async def test_versions_of_a_package_stand_side_by_side(place: Place) -> None:
    old, new = place.with_wheel("a", "1.0"), place.with_wheel("b", "2.0")
    async with place.environments.held(old) as one, place.environments.held(new) as two:
        assert [run(each, "import tiny; print(tiny.VERSION)") for each in (one, two)] == ["1.0", "2.0"]


async def test_a_package_of_its_own_beats_the_servers(place: Place) -> None:
    """And leaves that where it is."""
    files = {"wheels/" + wheel_name("iniconfig", "99.0"): wheel("iniconfig", "99.0")}
    wanted = place.model("a", f"{NO_INDEX}--find-links wheels\niniconfig==99.0\n", dict(files))
    async with place.environments.held(wanted) as python:
        assert run(python, "import iniconfig; print(iniconfig.VERSION)") == "99.0"
    assert run(sys.executable, "import iniconfig; print(hasattr(iniconfig, 'VERSION'))") == "False"


async def test_what_the_server_has_is_not_installed_again(place: Place) -> None:
    """Without an index it could not be."""
    async with place.environments.held(place.model("a", f"{NO_INDEX}trio>=0.20\n")) as python:
        assert Path(run(python, "import trio; print(trio.__file__)")).is_relative_to(Path(sys.prefix))


async def test_other_files_of_requirements_are_found(place: Place) -> None:
    """Paths in them start at the model's folder, too: pip takes them from where it stands."""
    file = f"wheels/{wheel_name('tiny', '3.0')}"
    files: dict[str, str | bytes] = {"more/base.txt": f"{file}\n", file: wheel("tiny", "3.0")}
    async with place.environments.held(place.model("a", f"{NO_INDEX}-r more/base.txt\n", files)) as python:
        assert run(python, "import tiny; print(tiny.VERSION)") == "3.0"


async def test_modules_of_the_archive_are_nothing_to_pip(place: Place) -> None:
    place.model("a", "", dict.fromkeys(("pip.py", "json.py", "venv.py"), "raise SystemExit(9)\n"))
    wanted = place.with_wheel("a", "1.0")
    async with place.environments.held(wanted) as python:
        assert run(python, "import tiny; print(tiny.VERSION)") == "1.0"


# -- who shares one


async def test_equal_requirements_are_installed_once(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / wheel_name("tiny", "1.0")).write_bytes(wheel("tiny", "1.0"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    one, two = (place.model(name, f"{NO_INDEX}tiny==1.0\n") for name in "ab")
    found: list[str] = []

    async def hold(wanted: Requirements) -> None:
        async with place.environments.held(wanted) as python:
            found.append(f"{python} {(await trio.Path(python).lstat()).st_ino}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, one)
        nursery.start_soon(hold, two)
    await hold(one)
    assert len(found) == 3
    assert len(set(found)) == 1


async def test_those_that_wait_for_a_failing_one_fail_with_it(place: Place) -> None:
    wanted = place.model("a", f"{NO_INDEX}no-such-package\n")
    failures: list[LaunchFailed] = []

    async def hold() -> None:
        failures.append(await refusal(place.environments, wanted))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold)
    assert len({id(each.failure) for each in failures}) == 1
    assert place.made() == []


async def test_one_that_is_given_up_is_made_by_who_waits(place: Place, nursery: trio.Nursery) -> None:
    wanted, scope = place.with_wheel("a", "1.0"), trio.CancelScope()

    async def give_up() -> None:
        with scope:
            async with place.environments.held(wanted):
                raise AssertionError

    nursery.start_soon(give_up)
    await until(place.made)
    scope.cancel()
    async with place.environments.held(wanted) as python:
        assert run(python, "import tiny; print(tiny.VERSION)") == "1.0"


# -- what it is named after


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("", True),
        ("# ./a comment -r x\n\n  numpy\n", True),
        ("numpy==1.26\nScikit.Learn [extra] >=1 ; python_version > '3'\n", True),
        ("--index-url https://example.org/simple\n--no-index\n--pre\nnumpy\n", True),
        ("numpy==1 \\\n  --hash=sha256:00 \\\n  --hash=sha256:01\n", True),
        ("-r other.txt\n", False),
        ("-cother.txt\n", False),
        ("--constraint=other.txt\n", False),
        ("--find-links wheels\n", False),
        ("-e .\n", False),
        ("./wheels/a-1.0.whl\n", False),
        ("wheels/a-1.0.whl\n", False),
        ("a-1.0-py3-none-any.whl\n", False),
        ("a-1.0.tar.gz ; python_version > '3'\n", False),
        ("a @ file:wheels/a.whl\n", False),
        ("/somewhere/else\n", False),
        ("numpy\n--index-url file:index\n", False),
    ],
)
def test_requirements_that_may_name_files_are_not_shared(tmp_path: Path, text: str, shared: bool) -> None:
    names = set()
    for model in ("a", "b"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "r.txt").write_text(text)
        names.add(environment_name(Requirements(str(tmp_path / model), "r.txt"), sys.executable, ()))
    assert len(names) == (1 if shared else 2)


def test_the_name_follows_all_that_matters(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("numpy\n")
    (tmp_path / "two.txt").write_text("numpy<2\n")
    python, newer = tmp_path / "python", tmp_path / "newer"
    python.write_text("3.11")
    newer.write_text("3.12.1")
    options: Sequence[tuple[str, str]] = (("PIP_PRE", "1"), ("PIP_NO_INDEX", "1"))

    def name(file: str = "one.txt", python: Path = python, options: Sequence[tuple[str, str]] = options) -> str:
        return environment_name(Requirements(str(tmp_path), file), str(python), options)

    first = name()
    assert name(options=options[::-1]) == first
    others = {name("two.txt"), name(python=newer), name(options=())}
    newer.replace(python)
    assert len({first, *others, name()}) == 5, "another Python in the same place is another one"


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("missing.txt", "missing.txt cannot be read: No such file or directory"),
        (".", ". cannot be read: Is a directory"),
        ("../outside.txt", "../outside.txt is not in the archive"),
        ("/etc/hostname", "/etc/hostname is not in the archive"),
        ("nul\0", "cannot be read: "),
        ("x" * 5000, "cannot be read: File name too long"),
        ("long.txt", "long.txt has more than 1048576 bytes"),
    ],
)
async def test_a_file_that_cannot_be_read(place: Place, file: str, why: str) -> None:
    model = Path(place.model("a", "").model_dir)
    (model.parent / "outside.txt").write_text("")
    (model / "long.txt").write_bytes(b"#" * ((1 << 20) + 1))
    wanted = Requirements(str(model), file)
    with pytest.raises(BadRequirements, match=why.replace(".", r"\.")):
        environment_name(wanted, sys.executable, ())
    failure = (await refusal(place.environments, wanted)).failure
    assert (failure.reason, failure.file, failure.hopeless) == ("dependencies_failed", file, True)
    assert place.made() == []


# -- what fails


async def test_pip_says_why(place: Place) -> None:
    failure = (await refusal(place.environments, place.model("a", f"{NO_INDEX}no-such-package==7\n"))).failure
    assert (failure.reason, failure.file, failure.hopeless) == ("dependencies_failed", "requirements.txt", False)
    assert "No matching distribution found for no-such-package==7" in failure.detail
    assert place.made() == []


async def test_a_python_that_cannot_make_one(place: Place, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no venv here\nexit 3\n")
    python.chmod(0o755)
    failure = (await refusal(place.of(python=str(python)), place.model("a", ""))).failure
    assert (failure.reason, failure.detail, failure.exit) == ("environment_failed", "no venv here\n", "exit code 3")


async def test_a_python_that_is_no_program(place: Place, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("")
    failure = (await refusal(place.of(python=str(tmp_path / "python")), place.model("a", ""))).failure
    assert failure.reason == "environment_failed"
    assert failure.detail.startswith("no process could be started: ")


async def test_pip_that_takes_too_long_is_ended_with_all_that_it_started(place: Place, tmp_path: Path) -> None:
    mark, others = tmp_path / "builds", children_of(os.getpid())
    environments = place.of(timeout_s=8.0)
    failure = (await refusal(environments, place.stuck("a", mark))).failure
    assert mark.exists(), "the package's own build had begun"
    assert failure.reason == "dependencies_failed"
    assert failure.summary == "not installed within environment_timeout, 8 s"
    assert place.made() == []
    assert children_of(os.getpid()) == others


async def test_giving_up_leaves_nothing(place: Place, tmp_path: Path, nursery: trio.Nursery) -> None:
    mark, scope, others = tmp_path / "builds", trio.CancelScope(), children_of(os.getpid())
    wanted, over = place.stuck("a", mark), trio.Event()

    async def hold() -> None:
        with scope:
            async with place.environments.held(wanted):
                raise AssertionError
        over.set()

    nursery.start_soon(hold)
    await until(mark.exists)
    scope.cancel()
    with trio.fail_after(5):
        await over.wait()
    assert place.made() == []
    assert children_of(os.getpid()) == others


async def test_half_an_environment_counts_as_none(place: Place) -> None:
    wanted = place.with_wheel("a", "1.0")
    async with place.environments.held(wanted) as python:
        folder = Path(python).parents[1]
    (folder / MARK).unlink()
    (folder / "lib").rename(folder / "lost")
    async with place.of().held(wanted) as again:
        assert again == python
        assert run(python, "import tiny; print(tiny.VERSION)") == "1.0"
    assert not (folder / "lost").exists()


async def test_it_does_not_see_what_is_hidden_but_pip_keeps_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    backend = f"""
import os, pathlib

def build_wheel(*args, **kwargs):
    pathlib.Path({str(seen)!r}).write_text(" ".join(sorted(os.environ)))
    raise SystemExit(1)
"""
    files: dict[str, str | bytes] = {"p/backend.py": backend, "p/pyproject.toml": stuck_package("")["pyproject.toml"]}
    for name in ("MY_SECRET", "MY_NAME", "PIP_SECRET"):
        monkeypatch.setenv(name, "x")
    await refusal(place.of(hidden=("MY_SECRET", "PIP_SECRET")), place.model("a", f"{NO_INDEX}./p\n", files))
    assert {"MY_NAME", "PIP_SECRET", "MY_SECRET"} & set(seen.read_text().split()) == {"MY_NAME", "PIP_SECRET"}


# -- which ones go


async def test_what_nobody_needs_is_removed(place: Place) -> None:
    one, two, three = (place.model(f"m{number}", f"{NO_INDEX}trio>=0.{number}\n") for number in range(3))
    held, release = place.environments.held, place.environments.release
    async with held(one):
        async with held(two):
            pass
        (place.folder / "leftover").mkdir()
        await release(list)
        assert len(place.made()) == 1, "the one that is held"
    async with held(three):
        pass
    missing = Requirements(three.model_dir, "missing.txt")
    await release(lambda: [missing, one])
    async with place.environments.held(one) as python:
        assert place.made() == [Path(python).parents[1].name]
    await release(list)
    assert place.made() == []


async def test_nothing_to_remove(place: Place) -> None:
    await place.environments.release(list)
    assert place.made() == []


# -- workers in them


SHOWS = """
import json, os, sys, tiny, ts.context, yaml

def handle(data, context):
    return data and [f"{tiny.VERSION} {sys.prefix}" for _ in data]
"""


@pytest.mark.parametrize("forks", [True, False])
async def test_a_workers_interpreter_is_its_environments(place: Place, forks: bool) -> None:
    place.model("a", "", {"shows.py": SHOWS})
    wanted = place.with_wheel("a", "1.0")
    zygote = ZygoteLauncher(place.family, FreshLauncher(place.family), forks=forks)
    launcher = PreparedLauncher(zygote, place.environments)
    spec = WorkerSpec("m", wanted.model_dir, "shows.py", 1, requirements=wanted.file)
    async with trio.open_nursery() as nursery:
        await nursery.start(zygote.run)
        async with launcher.launch(spec, label="W-1") as worker:
            await worker.send(Frame(Kind.LOAD, 5, asdict(spec)))
            assert (await worker.receive()).meta == {"ok": True}
            assert await ask(worker, b"") == [f"1.0 {place.folder / place.made()[0]}".encode()]
            await place.environments.release(list)
            assert len(place.made()) == 1, "a worker stands in it"
        nursery.cancel_scope.cancel()


async def test_another_ts_among_the_requirements_does_not_hide_this_one(place: Place) -> None:
    """Such as that of upstream's package, which files of requirements like to name."""
    packages = {f"wheels/{wheel_name(name, '9.0')}": wheel(name, "9.0") for name in ("ts", "tserve", "tiny")}
    lines = "".join(f"{name}\n" for name in packages)
    wanted = place.model("a", NO_INDEX + lines, {**packages, "shows.py": SHOWS})
    launcher = PreparedLauncher(FreshLauncher(place.family), place.environments)
    spec = WorkerSpec("m", wanted.model_dir, "shows.py", 1, requirements=wanted.file)
    async with launcher.launch(spec, label="W-1") as worker:
        await worker.send(Frame(Kind.LOAD, 5, asdict(spec)))
        assert (await worker.receive()).meta == {"ok": True}


async def test_a_worker_whose_packages_cannot_be_had_is_not_started(place: Place) -> None:
    wanted = place.model("a", f"{NO_INDEX}no-such-package\n")
    launcher = PreparedLauncher(FreshLauncher(place.family), place.environments)
    spec = WorkerSpec("m", wanted.model_dir, "shows.py", 1, requirements=wanted.file)
    with pytest.raises(LaunchFailed, match="No matching distribution found"):
        async with launcher.launch(spec, label="W-1"):
            raise AssertionError


# -- variables that workers do not get

NAMES = """
import os, pathlib

def handle(data, context):
    first = pathlib.Path("/proc/self/environ").read_bytes().decode().split(chr(0))
    return data and [" ".join(sorted({*os.environ, *(each.partition("=")[0] for each in first)})) for _ in data]
"""


HIDDEN = ("HIDE_ME", "MY_SECRET")


@pytest.mark.parametrize("own", [(), HIDDEN], ids=["forked-from-one-that-has-them", "forked"])
async def test_hidden_variables(place: Place, monkeypatch: pytest.MonkeyPatch, own: tuple[str, ...]) -> None:
    """/proc does not show them either, and the server keeps them."""
    for name in ("HIDE_ME", "MY_SECRET", "MY_SECRET_NOT"):
        monkeypatch.setenv(name, "x")
    model_dir = place.model("a", "", {"names.py": NAMES}).model_dir
    spec = WorkerSpec("m", model_dir, "names.py", 1, hidden_env=HIDDEN)
    launcher = ZygoteLauncher(place.family, FreshLauncher(place.family), hidden_env=own)
    seen = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(launcher.run)
        for label, each in (("hides", spec), ("shows", replace(spec, hidden_env=()))):
            async with launcher.launch(each, label="W-1") as worker:
                await worker.send(Frame(Kind.LOAD, 5, asdict(each)))
                assert (await worker.receive()).meta == {"ok": True}
                (names,) = await ask(worker, b"")
                seen[label] = {"HIDE_ME", "MY_SECRET", "MY_SECRET_NOT"} & set(names.decode().split())
        nursery.cancel_scope.cancel()
    assert seen == {"hides": {"MY_SECRET_NOT"}, "shows": {"HIDE_ME", "MY_SECRET", "MY_SECRET_NOT"}}
    assert os.environ["MY_SECRET"] == "x"


# -- handlers of the server's PYTHONPATH

FROM_OUTSIDE = """
def fn(data, context):
    return data and [__file__ for _ in data]
"""


@pytest.mark.parametrize("forks", [True, False])
async def test_handlers_outside_the_archive(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forks: bool
) -> None:
    """Through the server's PYTHONPATH or by their folder; never from the server's own working folder."""
    for name in ("listed", "named", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"outside_{name}.py").write_text(FROM_OUTSIDE)
    monkeypatch.setenv("PYTHONPATH", "listed")  # a relative one starts at the server's working folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside_here.py").write_text(FROM_OUTSIDE)
    model_dir = place.model("a", "").model_dir
    launcher = ZygoteLauncher(place.family, FreshLauncher(place.family), forks=forks)
    seen = []
    async with trio.open_nursery() as nursery:
        await nursery.start(launcher.run)
        for handler in ("outside_listed:fn", f"{tmp_path}/named/outside_named.py:fn", "outside_here:fn"):
            spec = WorkerSpec("m", model_dir, handler, 1)
            async with launcher.launch(spec, label="W-1") as worker:
                await worker.send(Frame(Kind.LOAD, 5, asdict(spec)))
                report = (await worker.receive()).meta
                seen.append((await ask(worker, b""))[0].decode() if report["ok"] else report["reason"])
        nursery.cancel_scope.cancel()
    assert seen == [f"{tmp_path}/listed/outside_listed.py", f"{tmp_path}/named/outside_named.py", "handler_not_found"]
