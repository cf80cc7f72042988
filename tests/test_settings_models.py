"""The `models` property: settings per model version, as JSON (spec/server.md section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tserve.errors import BadConfiguration
from tserve.settings import ModelSettings
from tserve.settings_values import Given, model_table


def read(text: str) -> tuple[Mapping[tuple[str, str], ModelSettings], list[str]]:
    warnings: list[str] = []
    return model_table(Given("models", text, "a file", Path.cwd(), warnings)), warnings


def test_entries_by_model_and_version() -> None:
    table, warnings = read(
        '{"my_noop":{"1.0":{"defaultVersion":true,"marName":"noop.mar","minWorkers":1,"maxWorkers":3,'
        '"batchSize":4,"maxBatchDelay":150,"responseTimeout":66,"startupTimeout":"9"}},'
        '"noop":{"2.0":{"batchSize":0,"maxBatchDelay":-70,"responseTimeout":null},"3.0":{}}}'
    )
    assert table == {
        ("my_noop", "1.0"): ModelSettings(1, 3, 4, 150, 66, 9),
        ("noop", "2.0"): ModelSettings(),
        ("noop", "3.0"): ModelSettings(),
    }
    assert warnings == []


def test_unknown_names_are_warned_about() -> None:
    table, warnings = read('{"a":{"1.0":{"minWorker":1,"batchsize":2,"batchSize":3}}}')
    assert table["a", "1.0"] == ModelSettings(batch_size=3)
    assert warnings == ["models.a.1.0: unknown, without effect: batchsize, minWorker"]


NUMBER = "a whole number up to 2147483647"
OBJECT = "a JSON object"


@pytest.mark.parametrize(
    ("text", "place", "allowed"),
    [
        ('{"a":{"1.0":{"minWorkers":"bad"}}}', 'models.a.1.0.minWorkers="bad"', NUMBER),
        ('{"a":{"1.0":{"maxWorkers":""}}}', 'models.a.1.0.maxWorkers=""', NUMBER),
        ('{"a":{"1.0":{"batchSize":1.5}}}', "models.a.1.0.batchSize=1.5", NUMBER),
        ('{"a":{"1.0":{"batchSize":true}}}', "models.a.1.0.batchSize=true", NUMBER),
        ('{"a":{"1.0":{"batchSize":[1]}}}', "models.a.1.0.batchSize=[1]", NUMBER),
        ('{"a":{"1.0":{"responseTimeout":2147483648}}}', "models.a.1.0.responseTimeout=2147483648", NUMBER),
        ('{"a":{"1.0":3}}', "models.a.1.0=3", OBJECT),
        ('{"a":[]}', "models.a=[]", OBJECT),
        ("[]", "models=[]", OBJECT),
        ('{"a":', 'models={"a":', OBJECT + "; Expecting value: line 1 column 6 (char 5)"),
        ("", "models=", OBJECT + "; Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_refusals_name_place_origin_and_what_is_allowed(text: str, place: str, allowed: str) -> None:
    with pytest.raises(BadConfiguration) as refusal:
        read(text)
    assert str(refusal.value) == f"{place} (a file): allowed is {allowed}"
