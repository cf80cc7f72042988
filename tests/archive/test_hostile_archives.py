"""The corpus of hostile archives, each taken in by a process of its own that is watched."""

import stat

import pytest

from tests.archive.hostile_archives import CORPUS, MOST_BYTES
from tserve.archive import quota
from tserve.archive.intake import answer


def snapshot(folder):
    return {str(path): (path.lstat().st_mode, path.lstat().st_size) for path in sorted(folder.rglob("*"))}


def test_there_are_enough_of_each_kind():
    for kind in ("zip", "tar"):
        assert sum(each.kind == kind and each.refused is not None for each in CORPUS) >= 40


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda each: each.name)
def test_what_becomes_of_it(tmp_path, hostile, monkeypatch):
    if hostile.slow:
        monkeypatch.setattr(quota, "BASE_CPU_S", -0.7)  # the entries give it a second
    source = tmp_path / "a"
    source.write_bytes(hostile.make())
    (tmp_path / "etc").mkdir()
    (tmp_path / "top").mkdir()
    (tmp_path / "evil").write_bytes(b"as it was")
    monkeypatch.chdir(tmp_path / "top")
    before = snapshot(tmp_path)
    desk = tmp_path / "desk"
    result = answer(source, hostile.kind, desk, hostile.quota)
    inside = snapshot(desk)
    assert {path: each for path, each in snapshot(tmp_path).items() if not path.startswith(str(desk))} == before
    assert all(stat.S_ISDIR(mode) or stat.S_ISREG(mode) for mode, _ in inside.values())
    assert not any(mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IWOTH) for mode, _ in inside.values())
    assert sum(size for mode, size in inside.values() if stat.S_ISREG(mode)) <= MOST_BYTES
    if hostile.refused is None:
        model = desk / "model"
        found = {str(p.relative_to(model)): p.read_bytes() for p in model.rglob("*") if p.is_file()}
        assert ("refused" in result, found) == (False, dict(hostile.files)), result
    else:
        assert result.get("reason") == hostile.refused, result
        assert result["detail"]
        if hostile.refused == "too_many_entries":
            assert f"max_archive_entries={hostile.quota.entries}" in result["detail"]
        if hostile.refused == "too_slow":
            assert f"max_archive_entries={hostile.quota.entries}" in result["detail"]
        if hostile.refused == "too_large":
            assert f"max_archive_size={hostile.quota.size} MiB" in result["detail"]
