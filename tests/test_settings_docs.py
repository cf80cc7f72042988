"""docs/configuration.md and the table of keys say the same."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from tserve.settings import Address, ModelSettings, Options, Settings, load_settings
from tserve.settings_keys import KEYS, Effect

DOCS = Path(__file__).parents[1] / "docs" / "configuration.md"
NONE = "\N{EN DASH}"


def documented_rows() -> dict[str, list[list[str]]]:
    """The cells of each key's row, by heading."""
    found: dict[str, list[list[str]]] = {}
    for section in DOCS.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        key_table = body.partition("\n### ")[0]
        found[heading] = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in key_table.splitlines()
            if line.startswith("| `")
        ]
    return found


def default_of(key_name: str, field: str | None) -> str:
    by_name = {each.name: each.default for each in fields(Settings)}
    value = by_name.get(field or "")
    if key_name in ("model_store", "state_dir"):
        return {"model_store": "`./model_store`", "state_dir": "`./.tserve`"}[key_name]
    if field is None:
        return "none" if "cors" in key_name else "`false`"
    if isinstance(value, Address):
        return f"`{value.url}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`" if value else "none"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if isinstance(value, int | str) else "none"


@pytest.mark.parametrize("effect", Effect)
def test_documentation_and_table_agree(effect: Effect) -> None:
    """Same keys in the same order under each heading, each with its default, variable and meaning."""
    keys = [key for key in KEYS if key.effect is effect]
    if effect is Effect.USED:
        expected = [
            [f"`{k.name}`", default_of(k.name, k.field), f"`{k.env}`" if k.env else NONE, k.description] for k in keys
        ]
    else:
        expected = [[f"`{key.name}`", key.description] for key in keys]
    assert documented_rows()[effect.value] == expected


def test_every_documented_key_is_in_the_table() -> None:
    documented = [row[0].strip("`") for rows in documented_rows().values() for row in rows]
    assert documented == [key.name for key in KEYS]


def test_every_member_of_settings_is_filled_by_one_key() -> None:
    filled = sorted(key.field for key in KEYS if key.field is not None)
    others = {"cors_headers", "warnings", "cuda_visible_devices", "metrics_logs", "omp_num_threads", "pip_options"}
    others |= {"hidden_variables"}
    assert filled == sorted({each.name for each in fields(Settings)} - others)


def test_names_and_variables_are_unique() -> None:
    for values in ([key.name for key in KEYS], [key.env for key in KEYS if key.env]):
        assert len(values) == len(set(values))


def test_the_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    example = re.search(r"```\n(models=.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    (tmp_path / "config.properties").write_text(example[1])
    settings = load_settings(Options(model_store="."), {}, tmp_path)
    assert settings.model_settings == {("digits", "1.0"): ModelSettings(1, 3, 4, 150, 66)}
