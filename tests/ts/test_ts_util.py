"""The functions handlers import from `ts.utils.util`."""

from __future__ import annotations

import collections
import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ts.utils.util import (
    CLEANUP_REGEX,
    PredictionException,
    PT2Backend,
    check_valid_pt2_backend,
    deprecated,
    get_yaml_config,
    list_classes_from_module,
    load_label_mapping,
    map_class_to_label,
)


def test_prediction_exception_carries_message_and_code() -> None:
    default, chosen = PredictionException("no"), PredictionException("gone", 404)
    assert (default.message, default.error_code, str(default)) == ("no", 500, "no : 500")
    assert (chosen.message, chosen.error_code, str(chosen)) == ("gone", 404, "gone : 404")


def test_list_classes_counts_own_classes_only_in_name_order() -> None:
    module = ModuleType("zoo")
    exec("class Zebra: pass\nclass Ape: pass\nclass Imp(Ape): pass", module.__dict__)
    module.OrderedDict = collections.OrderedDict  # type: ignore[attr-defined]
    assert [cls.__name__ for cls in list_classes_from_module(module)] == ["Ape", "Imp", "Zebra"]
    assert [cls.__name__ for cls in list_classes_from_module(module, module.Ape)] == ["Ape", "Imp"]


def write_labels(folder: Path, content: object) -> str:
    file = folder / "index_to_name.json"
    file.write_text(json.dumps(content))
    return str(file)


@pytest.mark.parametrize(
    ("content", "mapping"),
    [
        ({"0": "cat", "1": "dög"}, {"0": "cat", "1": "dög"}),
        ({"0": ["n01", "cat"], "1": "dog"}, {"0": "cat", "1": "dog"}),
        ({"object_type_names": ["none", "person"]}, {"0": "none", "1": "person"}),
    ],
)
def test_label_file_forms(tmp_path: Path, content: object, mapping: dict[str, str]) -> None:
    assert load_label_mapping(write_labels(tmp_path, content)) == mapping


@pytest.mark.parametrize("content", [["cat"], {"0": 1}, {"0": []}, {"0": ["cat", 2]}, {"0": {"name": "cat"}}])
def test_other_label_files_raise_and_name_the_file(tmp_path: Path, content: object) -> None:
    with pytest.raises(ValueError, match=r"index_to_name\.json"):
        load_label_mapping(write_labels(tmp_path, content))


def test_broken_label_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "index_to_name.json"
    file.write_text('{"0": ')
    with pytest.raises(ValueError, match=r"index_to_name\.json is not valid JSON"):
        load_label_mapping(str(file))


def test_missing_label_file_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ts"):
        assert load_label_mapping(str(tmp_path / "index_to_name.json")) is None
    assert "index_to_name.json is missing" in caplog.text


def test_map_class_to_label() -> None:
    probs = [[0.9, 0.1], [0.6, 0.4]]
    assert map_class_to_label(probs) == [{"0": 0.9, "1": 0.1}, {"0": 0.6, "1": 0.4}]
    mapping = {"0": "cat", "1": "dog", "7": "owl"}
    assert map_class_to_label(probs, mapping)[0] == {"cat": 0.9, "dog": 0.1}
    assert map_class_to_label(probs, mapping, [[7, 0], [1, 7]]) == [{"owl": 0.9, "cat": 0.1}, {"dog": 0.6, "owl": 0.4}]
    assert map_class_to_label([]) == []


@pytest.mark.parametrize(("probs", "mapping"), [(((0.9,),), None), ([[0.9]], ["cat"])])
def test_map_class_to_label_refuses_other_types(probs: Any, mapping: Any) -> None:
    with pytest.raises(ValueError, match="must be a"):
        map_class_to_label(probs, mapping)


def test_map_class_to_label_misses_a_class() -> None:
    with pytest.raises(KeyError, match="1"):
        map_class_to_label([[0.9, 0.1]], {"0": "cat"})


def test_backends(caplog: pytest.LogCaptureFixture) -> None:
    assert all(check_valid_pt2_backend(member.value) for member in PT2Backend)
    assert check_valid_pt2_backend(PT2Backend.INDUCTOR)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "ts"):
        assert not check_valid_pt2_backend("steam")
    assert "steam" in caplog.text


def test_yaml_config(tmp_path: Path) -> None:
    file = tmp_path / "model-config.yaml"
    file.write_text("minWorkers: 1\nhandler:\n  colour: blau\n")
    assert get_yaml_config(str(file)) == {"minWorkers": 1, "handler": {"colour": "blau"}}
    file.write_text("")
    assert get_yaml_config(str(file)) is None


def test_deprecated_warns_and_calls() -> None:
    @deprecated(version="0.13", replacement="new_name")
    def old_name(number: int) -> int:
        return number + 1

    with pytest.warns(
        PendingDeprecationWarning, match=r"old_name is deprecated in 0\.13; use new_name instead"
    ) as seen:
        assert old_name(1) == 2
    assert seen[0].filename == __file__

    @deprecated("0.13", klass=FutureWarning)
    def older() -> None: ...

    with pytest.warns(FutureWarning, match=r"older is deprecated in 0\.13$"):
        older()


def test_cleanup_regex_finds_tags_and_entities() -> None:
    assert CLEANUP_REGEX.sub("", "<b>fish</b> &amp; chips&#39;s &#x2f; a < b") == "fish  chipss  a < b"
