"""The files of `log` mode (spec/server.md 10.5 and 11)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tserve.metrics import files as files_module
from tserve.metrics.families import Family
from tserve.metrics.files import KEPT, LogFile, MetricsFiles

FAMILY = Family("PredictionTime", "gauge", "", ("ModelName", "Level", "Hostname"), unit="ms")
LABELS = ("cls", "Model", "vm")


def values(path: Path) -> list[str]:
    return re.findall(r"ms:([^|]*)\|", path.read_text())


def test_the_format(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "m.log")
    file.add(FAMILY, LABELS, 0.02, ["a", "b"])
    file.add(FAMILY, LABELS, 1.0)
    file.flush()
    first, second = (tmp_path / "m.log").read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3} - "
    dimensions = r"\|#ModelName:cls,Level:Model\|#hostname:vm,"
    assert re.fullmatch(stamp + r"PredictionTime\.ms:0\.02" + dimensions + r"requestID:a,b,timestamp:\d{10}", first)
    assert re.fullmatch(stamp + r"PredictionTime\.ms:1\.0" + dimensions + r"timestamp:\d{10}", second)


def test_a_value_stays_on_its_line(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "m.log")
    file.add(FAMILY, ("a\nb\ud800", "Model", "vm"), 1.0, ["x\ny"])
    file.flush()
    (line,) = (tmp_path / "m.log").read_text().splitlines()
    assert r"ModelName:a\nb\ud800,Level" in line
    assert r"requestID:x\ny," in line


def test_both_are_there_from_the_start_and_come_back(tmp_path: Path) -> None:
    both = MetricsFiles(tmp_path / "logs")
    both.flush()
    names = sorted(os.listdir(tmp_path / "logs"))
    assert names == ["model_metrics.log", "ts_metrics.log"]
    (tmp_path / "logs" / "ts_metrics.log").unlink()
    both.flush()
    assert sorted(os.listdir(tmp_path / "logs")) == names


def test_a_large_one_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    file = LogFile(path, largest=10)
    for value in range(KEPT + 3):
        file.add(FAMILY, LABELS, value)
        file.flush()
    assert values(path) == ["7"]
    assert [values(tmp_path / f"m.log.{number}") for number in range(1, KEPT + 1)] == [
        [str(n)] for n in range(6, 1, -1)
    ]
    assert len(os.listdir(tmp_path)) == KEPT + 1


def test_one_of_an_earlier_day_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    file = LogFile(path)
    file.add(FAMILY, LABELS, 1)
    file.flush()
    file.add(FAMILY, LABELS, 2)
    file.flush()
    assert values(path) == ["1", "2"]
    a_day_ago = path.stat().st_mtime - 86_400
    os.utime(path, (a_day_ago, a_day_ago))
    file.add(FAMILY, LABELS, 3)
    file.flush()
    assert (values(path), values(tmp_path / "m.log.1")) == (["3"], ["1", "2"])


def test_a_full_disk_costs_lines_and_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.log"
    path.symlink_to("/dev/full")
    file = LogFile(path)
    for value in range(3):
        file.add(FAMILY, LABELS, value)
        file.flush()
    assert [record.getMessage() for record in caplog.records] == [
        f"metrics cannot be written to {path}: [Errno 28] No space left on device"
    ]
    path.unlink()
    file.add(FAMILY, LABELS, 3)
    file.flush()
    assert values(path) == ["3"]
    path.unlink()
    path.symlink_to("/dev/full")
    file.add(FAMILY, LABELS, 4)
    file.flush()
    assert len(caplog.records) == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("in the way")
    both = MetricsFiles(tmp_path / "logs")
    both.flush()
    both.flush()
    assert len(caplog.records) == 2  # one of each file


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MOST_WAITING", 3)
    monkeypatch.setattr(files_module, "MOST_ENDS", 2)
    file = LogFile(tmp_path / "m.log")
    for value in range(10):
        file.add(FAMILY, (str(value % 4), "Model", "vm"), value)
    file.flush()
    assert values(tmp_path / "m.log") == ["7", "8", "9"]
