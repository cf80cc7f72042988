"""Manifest and model yaml: spec/management.md section 3.5."""

import json

import pytest

from tserve.archive import manifest
from tserve.archive.manifest import MAX_CONFIG, MAX_MANIFEST, read_config, read_manifest
from tserve.archive.refusal import BadManifest


def written(folder, text):
    (folder / "MAR-INF").mkdir()
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "MAR-INF" / "MANIFEST.json").write_bytes(content)
    return folder


def test_all_keys(tmp_path):
    raw = {
        "createdOn": "01/01/2024 00:00:00",
        "runtime": "LSP",
        "archiverVersion": "0.12.0",
        "model": {
            "modelName": "é name", "modelVersion": "1.5", "handler": "h.py:entry", "serializedFile": "w.pt",
            "configFile": "model-config.yaml", "requirementsFile": "requirements.txt",
            "envelope": "kserve", "unknown": [1.5, None],
        },
    }  # fmt: skip
    assert read_manifest(written(tmp_path, json.dumps(raw))) == {
        "model_name": "é name",
        "model_version": "1.5",
        "handler": "h.py:entry",
        "runtime": "LSP",
        "config_file": "model-config.yaml",
        "requirements_file": "requirements.txt",
        "envelope": "kserve",
        "raw": raw,
    }


def test_no_manifest(tmp_path):
    assert read_manifest(tmp_path) == {}


def test_mar_inf_that_is_a_file(tmp_path):
    (tmp_path / "MAR-INF").touch()
    assert read_manifest(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("{}", {}),
        ('{"model": {}}', {}),
        ('{"model": {"modelName": "", "modelVersion": "", "handler": null}}', {}),
        ('{"model": {"modelName": 12, "modelVersion": 2}}', {"model_name": "12", "model_version": "2"}),
        ('{"model": {"modelVersion": 1.10}}', {"model_version": "1.10"}),
        ('{"model": {"modelVersion": 1e3}}', {"model_version": "1e3"}),
        ('{"model": {"modelName": true}}', {"model_name": "true"}),
        ('{"model": {"modelVersion": "v 1/\\u00e9"}}', {"model_version": "v 1/é"}),
        ('{"model": {"modelName": "a\\ud800b\\udc00"}}', {"model_name": "a\ufffdb\ufffd"}),
        ('{"model": {"modelName": "\\ud83d\\udc0d"}}', {"model_name": "🐍"}),
        ('\ufeff{"model": {"modelName": "bom"}}', {"model_name": "bom"}),
        (b'{"model": {"modelName": "\xff"}}', {"model_name": "\ufffd"}),
    ],
)
def test_texts(tmp_path, text, fields):
    found = read_manifest(written(tmp_path, text))
    json.dumps(found, ensure_ascii=False).encode()  # nothing in it that an answer could not carry
    assert {key: value for key, value in found.items() if key != "raw"} == {"runtime": "python"} | fields


def test_lone_surrogates_in_the_rest_of_the_manifest(tmp_path):
    raw = read_manifest(written(tmp_path, '{"model": {"k\\ud800": ["\\udfff", 1.10]}}'))["raw"]
    assert raw == {"model": {"k\ufffd": ["\ufffd", 1.1]}}


@pytest.mark.parametrize("runtime", ["python", "python3", "LSP"])
def test_runtimes(tmp_path, runtime):
    assert read_manifest(written(tmp_path, json.dumps({"runtime": runtime})))["runtime"] == runtime


@pytest.mark.parametrize("runtime", ["ruby", "PYTHON", "python2", "", None, 3, ["python"], {}])
def test_unknown_runtimes(tmp_path, runtime):
    assert read_manifest(written(tmp_path, json.dumps({"runtime": runtime})))["runtime"] is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[1, 2]",
        '"text"',
        '{"model": {"modelName": "badjson", ',
        '{"model": null}',
        '{"model": []}',
        '{"model": "x"}',
        '{"model": {"modelName": ["x"]}}',
        '{"model": {"modelVersion": {}}}',
        '{"model": {"modelVersion": NaN}}',
        '{"x": 1e999}',
        '{"x": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"x": ' + "[" * 65 + "]" * 65 + "}",
        '{"x": "' + "y" * MAX_MANIFEST + '"}',
    ],
)
def test_broken_manifests(tmp_path, text):
    with pytest.raises(BadManifest):
        read_manifest(written(tmp_path, text))


def test_a_manifest_that_is_a_folder(tmp_path):
    (tmp_path / "MAR-INF" / "MANIFEST.json").mkdir(parents=True)
    with pytest.raises(BadManifest):
        read_manifest(tmp_path)


def config_of(tmp_path, text, name="model-config.yaml"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config(tmp_path, name)


def test_a_config(tmp_path):
    text = (
        "minWorkers: 1\nmaxWorkers: 2\nbatchSize: 0\ndeviceIds: [0, 1]\nresponseTimeout: 33\nhandler: {depth: [[1]]}\n"
    )
    fields, warnings = config_of(tmp_path, text)
    expected = {"min_workers": 1, "max_workers": 2, "batch_size": 1, "device_ids": (0, 1), "response_timeout_s": 33}
    assert (fields, warnings) == (expected, [])


def test_tensors(tmp_path):
    text = "inputs:\n  - {name: a, datatype: FP32, shape: [-1, 4]}\noutputs: [{name: b, datatype: BYTES, shape: [1]}]\n"
    fields, warnings = config_of(tmp_path, text)
    assert fields == {
        "inputs": ({"name": "a", "datatype": "FP32", "shape": [-1, 4]},),
        "outputs": ({"name": "b", "datatype": "BYTES", "shape": [1]},),
    }
    assert warnings == []


@pytest.mark.parametrize("value", ["{a: [[1]]}", "[[[1]]]", "[{name: a, datatype: b, shape: [[1]]}]", "[{name: [[]]}]"])
def test_tensors_that_are_none(tmp_path, value):
    fields, (warning,) = config_of(tmp_path, f"inputs: {value}\nminWorkers: 1\n")
    assert fields == {"min_workers": 1}
    assert "not a list of name, datatype and shape" in warning


@pytest.mark.parametrize("value", ["*a29", "[*a29]", "[{name: *a29}]", "{a: *a29}", "*a1"])
def test_a_bomb_in_the_tensors(tmp_path, value):
    fields, (warning,) = config_of(tmp_path, f"{BOMB}minWorkers: 1\noutputs: {value}\n")
    assert fields == {"min_workers": 1}
    assert len(warning) <= 201


def test_torchrun(tmp_path):
    fields, _ = config_of(tmp_path, "parallelType: tp\ntorchrun: {nproc-per-node: 4, deep: {x: [1]}}")
    assert fields == {"parallel_type": "tp", "parallel_level": 4}


def test_wrong_types_are_left_out_with_a_warning(tmp_path):
    fields, warnings = config_of(tmp_path, "minWorkers: a\nmaxWorkers: 3\nuseVenv: 1\n")
    assert fields == {"max_workers": 3}
    assert [warning.split(": ")[1] for warning in warnings] == ["minWorkers", "useVenv"]


def test_no_config_file_named(tmp_path):
    assert read_config(tmp_path, None) == (None, [])


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "[1, 2]",
        "just text",
        "12",
        "minWorkers: [this is : not valid\n  - yaml: {\n",
        "a: 1\n---\nb: 2\n",
        "a: !!python/object/apply:os.getcwd []",
        "a: !!int ''",
        "a: !!bool x",
        "a: !!timestamp 99999-99-99",
        b"\xff\xfe\xff",
        "[" * 900_000,
        "- " * 500_000,
        "a: " + "x" * MAX_CONFIG,
    ],
)
def test_an_unusable_config_counts_as_none(tmp_path, text):
    fields, (warning,) = config_of(tmp_path, text)
    assert fields is None
    assert warning.startswith("configFile 'model-config.yaml' ")
    assert "\n" not in warning


def test_a_config_that_takes_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_CONFIG_CPU_S", 0.2)
    merges = (f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
    fields, (warning,) = config_of(tmp_path, "a0: &a0 {x: 1}\n" + "".join(merges))
    assert fields is None
    assert "more than 0.2 s" in warning


@pytest.mark.parametrize("value", ["*a29", "0x" + "f" * 8000, "'" + "x" * 10_000 + "'", "{a: 1}", "2020-01-01"])
def test_hostile_values_are_left_out_with_a_short_warning(tmp_path, value):
    fields, (warning,) = config_of(tmp_path, f"{BOMB}minWorkers: {value}\nmaxWorkers: 2\n")
    assert fields == {"max_workers": 2}
    assert len(warning) < 250


@pytest.mark.parametrize(
    "name", ["../outside.yaml", "/etc/hostname", "sub/../../x", "no.yaml", "nul\0", "MAR-INF", "x" * 999]
)
def test_a_config_file_that_cannot_be_read(tmp_path, name):
    (tmp_path / "archive" / "MAR-INF").mkdir(parents=True)
    (tmp_path / "outside.yaml").write_text("minWorkers: 1")
    fields, (warning,) = read_config(tmp_path / "archive", name)
    assert fields is None
    assert "ignored" in warning
