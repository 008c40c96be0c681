"""Recipes: what they say, what goes wrong in them, and how they are applied."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import SurgeryError
from surgery.layers import find_layer
from surgery.passes import AddHidden, Freeze, InsertDropout, MaxNorm, ReplaceHead, Unfreeze, registry
from surgery.recipe import Recipe, apply, apply_recipe, json_schema, load_recipe
from surgery.selectors import First
from surgery.yaml_file import parse_yaml
from tests.conftest import ROOT
from tests.graphs import cnn

TEXT = """\
passes:
  - replace_head: {units: 3, labels: [a, b, c]}
  - freeze:
      layers:
        first: 2
  - insert_dropout: {hidden: 0.5}
  - freeze: head
train:
  epochs: 7
  learning_rate: 1e-3
  optimizer:
    name: adam
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, TEXT)


def write(folder: Path, text: str) -> Path:
    path = folder / "pass.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class TestReading:
    def test_passes_in_order_and_how_to_train(self, file: Path) -> None:
        recipe = load_recipe(file)
        assert recipe.passes == [
            ReplaceHead(units=3, labels=["a", "b", "c"]),
            Freeze(layers=First(first=2)),
            InsertDropout(hidden=0.5),
            Freeze(layers="head"),
        ]
        assert (recipe.train.epochs, recipe.train.learning_rate, recipe.train.optimizer.name) == (7, 0.001, "adam")

    @pytest.mark.parametrize("text", ["passes: []", "train: {}", "passes:\ntrain:\n"])
    def test_either_part_may_be_missing(self, tmp_path: Path, text: str) -> None:
        recipe = load_recipe(write(tmp_path, text))
        assert recipe.passes == []
        assert recipe.train == Recipe().train

    @pytest.mark.parametrize(
        ("item", "step"),
        [
            ("replace_head: 5", ReplaceHead(units=5)),
            ("add_hidden: 5", AddHidden(units=5)),
            ("freeze: {first: 1}", Freeze(layers=First(first=1))),
            ("freeze: [a, {first: 1}]", Freeze(layers=["a", First(first=1)])),
            ("unfreeze: all", Unfreeze(layers="all")),
            ("insert_dropout: 0.5", InsertDropout(hidden=0.5)),
            ("max_norm: 3", MaxNorm(value=3)),
            ("max_norm: {value: 3.0, layers: [conv1, {last: 1}]}", MaxNorm(value=3, layers=["conv1", {"last": 1}])),
        ],
    )
    def test_short_forms(self, tmp_path: Path, item: str, step: Any) -> None:
        assert load_recipe(write(tmp_path, f"passes:\n  - {item}\n")).passes == [step]

    def test_the_demos_recipes(self) -> None:
        for path in (ROOT / "surgery" / "demo").glob("*.yaml"):
            assert load_recipe(path).passes

    def test_aliases(self, tmp_path: Path) -> None:
        text = "passes:\n  - freeze: &which {first: 2}\n  - max_norm: {value: 3, layers: *which}\n"
        assert load_recipe(write(tmp_path, text)).passes[1] == MaxNorm(value=3, layers=First(first=2))


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "pass.yaml: is empty; a recipe has `passes:`"),
            ("- freeze: head\n", "pass.yaml, line 1: is a list; a recipe has `passes:`"),
            ("freeze\n", "line 1: is a single value"),
            ("passes: []\npases: []\n", "line 2: pases: unknown key; did you mean 'passes'"),
            ("passes: {freeze: head}\n", "line 1: passes: must be a list"),
            ("train: 5\n", "line 1: train: must be a mapping"),
            ("passes:\n  - frieze: head\n", "line 2: frieze: unknown pass; did you mean 'freeze'"),
            ("passes:\n  - frieze\n", "unknown pass; did you mean 'freeze'"),
            ("passes:\n  - freeze: head\n    unfreeze: c1\n", "line 2: .*an item is one pass"),
            ("passes:\n  - [freeze]\n", "line 2: .*an item is one pass"),
            ("passes:\n  - 5\n", "line 2: .*an item is one pass"),
            ("passes:\n  - freeze\n", "line 2: freeze: key 'layers' is missing"),
            ("passes:\n  - freeze:\n      layer: head\n", "line 3: freeze.layer: unknown key; did you mean 'layers'"),
            ("passes:\n  - replace_head: {units: 3,\n     activaton: relu}\n", "line 3.*did you mean 'activation'"),
            ("passes:\n  - replace_head: {units: 3,\n     activation: rely}\n", "line 3.*'rely' is not one of.*'relu'"),
            ("passes:\n  - replace_head:\n      units: ten\n", "line 3: replace_head.units: .*valid integer.*'ten'"),
            ("passes:\n  - replace_head:\n      units: 2.5\n", "line 3: replace_head.units: .*valid integer"),
            ("passes:\n  - replace_head:\n      units: -1\n", "line 3: .*greater than 0, not -1"),
            ("passes:\n  - replace_head: {seed: 1}\n", "line 2: replace_head: needs `units` or `labels`"),
            ("passes:\n  - replace_head: {units: 2, keep: [0, -1]}\n", "line 2: replace_head.keep.1: "),
            ("passes:\n  - learning_rate: 0.1\n", "line 2: learning_rate: must be a mapping with some of layers, mult"),
            ("passes:\n  - learning_rate: {layers: head}\n", "key 'multiplier' is missing"),
            (
                "passes:\n  - freeze:\n      layers: {frist: 2}\n",
                "line 3: freeze.layers: .*is not a selector; did.*'first'",
            ),
            ("passes:\n  - freeze:\n      layers: 7\n", "line 3: freeze.layers: 7 is not a selector"),
            ("passes:\n  - freeze: {frist: 2}\n", "line 2: freeze.layers: .*is not a selector; did you mean 'first'"),
            ("passes:\n  - freeze: {layer: c1}\n", "line 2: freeze.layer: unknown key; did you mean 'layers'"),
            ("passes:\n  - max_norm: .inf\n", "line 2: max_norm.value: Input should be a finite number, not inf"),
            ("passes:\n  - insert_dropout: .nan\n", "line 2: insert_dropout.hidden: .*finite number, not nan"),
            (
                "passes:\n  - learning_rate:\n      layers: head\n      multiplier: .inf\n",
                "line 4: learning_rate.multiplier: Input should be a finite number, not inf",
            ),
            (
                "passes:\n  - replace_head: {units: 100000000000}\n",
                "line 2: replace_head.units: .*less than or equal to 536870912, not 100000000000",
            ),
            ("passes:\n  - set_input_size: 99999999999\n", "line 2: set_input_size.size: .*less than or equal"),
            ("passes:\n  - set_batch: 99999999999999999999\n", "line 2: set_batch.size: .*less than 2147483648"),
            ("passes:\n  - replace_head: {labels: [a, b, a]}\n", "line 2: replace_head: `labels` has 'a' twice"),
            ("passes:\n  - replace_head: {units: 3, keep: [0, 0]}\n", "line 2: replace_head: `keep` has 0 twice"),
            (
                "passes:\n  - replace_head:\n      labels: [no, yes]\n",
                "line 3: replace_head.labels.0: .*valid string, not False; write it in quotes: without them YAML reads",
            ),
            ("passes:\n  - replace_head: {labels: [7, 8]}\n", "valid string, not 7; write it in quotes$"),
            (
                "passes:\n  - replace_head: {units: 3, keep: [no]}\n",
                "replace_head.keep.0: .*not False; write it in quotes",
            ),
            ("train:\n  epoch: 5\n", "line 2: train.epoch: unknown key; did you mean 'epochs'"),
            ("train:\n  epochs: many\n", "line 2: train.epochs: .*valid integer.*'many'"),
            ("train:\n  optimizer: adm\n", "line 2: train.optimizer: 'adm' is not one of.*did you mean 'adam'"),
            (
                "train:\n  optimizer:\n    name: sgd\n    momentm: 0.9\n",
                "line 4: train.optimizer.momentm: unknown key; did you mean 'momentum'",
            ),
            ("passes:\n  - freeze: head\npasses: []\n", "line 3: key 'passes' is there twice"),
            ("passes:\n  - freeze: {layers: a, layers: b}\n", "line 2: key 'layers' is there twice"),
            ("passes:\n  - freeze: [\n", "line 3: is not valid YAML"),
            ("passes:\n\t- freeze: head\n", "line 2: is not valid YAML"),
            ("a: 1\n---\nb: 1\n", "is not valid YAML"),
            ("passes: !!python/object/apply:os.system [ls]\n", "line 1: is not valid YAML"),
            ("passes:\n  - freeze: !!python/name:os.system\n", "line 2: is not valid YAML"),
            ("? [a]\n: 1\n", "line 1: a key must be a plain word"),
            ("a: &a {b: 1}\nc: {<<: *a}\n", "line 2: a key must be a plain word"),
            ("passes: &a [*a]\n", "deeply nested"),
            ("passes: *nowhere\n", "line 1: is not valid YAML"),
            ("[" * 5000, "nested too deeply|too deeply nested"),
            ("x: 1\x00\n", "not valid YAML"),
        ],
    )
    def test_say_file_line_key_and_the_nearest_name(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(SurgeryError, match=message) as caught:
            load_recipe(write(tmp_path, text))
        assert "pass.yaml" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(SurgeryError, match=r"none\.yaml: cannot be read"):
            load_recipe(tmp_path / "none.yaml")
        with pytest.raises(SurgeryError, match="cannot be read"):
            load_recipe(tmp_path)

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "pass.yaml").write_bytes(b"passes: \xff\xfe\n")
        with pytest.raises(SurgeryError, match="not a text file in UTF-8"):
            load_recipe(tmp_path / "pass.yaml")

    def test_hostile_files_end_soon(self, tmp_path: Path) -> None:
        bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
        )
        for text, message in (
            (bomb, "too much"),
            ("x" * 200_000, "too large"),
            ("passes:\n" + "  - freeze: head\n" * 8000, "too much|too large"),
            ("{" * 100_000, "nested too deeply|too deeply nested|not valid"),
        ):
            start = time.monotonic()
            with pytest.raises(SurgeryError, match=message):
                load_recipe(write(tmp_path, text))
            assert time.monotonic() - start < 5


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("replace_head.labels=[x, y, z]", ["x", "y", "z"]),
            ("passes.0.labels=[x, y, z]", ["x", "y", "z"]),
            ("passes.0.replace_head.labels=[x, y, z]", ["x", "y", "z"]),
        ],
    )
    def test_of_a_pass(self, file: Path, override: str, value: Any) -> None:
        recipe = load_recipe(file, [override])
        assert recipe.passes[0].arguments()["labels"] == value

    def test_of_a_key_that_the_file_does_not_have(self, file: Path) -> None:
        recipe = load_recipe(file, ["replace_head.seed=4", "insert_dropout.input=0.1"])
        assert recipe.passes[0].arguments()["seed"] == 4
        assert recipe.passes[2] == InsertDropout(hidden=0.5, input=0.1)

    def test_within_a_selector(self, file: Path) -> None:
        assert load_recipe(file, ["passes.1.layers.first=1"]).passes[1] == Freeze(layers=First(first=1))

    def test_of_training(self, file: Path) -> None:
        recipe = load_recipe(file, ["train.epochs=5", "train.optimizer.beta1=0.8", "train.learning_rate=1e-4"])
        assert (recipe.train.epochs, recipe.train.learning_rate) == (5, 1e-4)
        assert recipe.train.optimizer.model_dump()["beta1"] == 0.8

    def test_within_a_default(self, tmp_path: Path) -> None:
        for text in ("train: {}", "train: {optimizer: sgd}"):
            recipe = load_recipe(write(tmp_path, text), ["train.optimizer.momentum=0.5"])
            assert recipe.train.optimizer.model_dump()["momentum"] == 0.5

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("replace_head.unit=4", r"--set replace_head.unit=4: replace_head has no key 'unit'; did you mean 'units'"),
            ("replace_heads.units=4", r"the recipe has no 'replace_heads'; did you mean 'replace_head'"),
            ("max_norm.value=4", r"the recipe has no 'max_norm'"),
            ("freeze.layers=all", r"freeze is there more than once; say passes.1 or passes.3"),
            ("passes.9.units=4", r"the recipe has 4 passes"),
            ("passes.0=4", r"say which key"),
            ("train=4", r"say which key"),
            ("train.epoch=4", r"train has no key 'epoch'; did you mean 'epochs'"),
            ("train.epochs", r"write KEY=VALUE"),
            ("=4", r"write KEY=VALUE"),
            ("train.epochs=", r"--set train.epochs=: train.epochs: .*valid integer"),
            ("train.epochs=many", r"--set train.epochs=many: train.epochs: .*valid integer"),
            ("train.epochs=[", r"--set train.epochs=\[.*not valid YAML"),
            ("train.epochs.x=1", r"epochs has no keys in it"),
            ("train.optimizer.momentm=1", r"--set train.optimizer.momentm=1: .*unknown key"),
            ("replace_head.units=4", r"3 labels do not fit 4 units"),
            ("replace_head.activation=rely", r"--set replace_head.activation=rely: .*did you mean 'relu'"),
        ],
    )
    def test_errors_name_the_option(self, file: Path, override: str, message: str) -> None:
        with pytest.raises(SurgeryError, match=message):
            load_recipe(file, [override])


class TestApplying:
    def test_reports_each_pass(self, file: Path) -> None:
        report = apply_recipe(load_recipe(file), cnn())
        assert [(name, [c.where for c in changes]) for name, changes in report] == [
            ("replace_head", ["h", "y", "y"]),
            ("freeze", ["c1", "c2"]),
            ("insert_dropout", ["c1/dropout", "c2/dropout"]),
            ("freeze", ["h"]),
        ]

    def test_again_changes_nothing(self, file: Path) -> None:
        model, recipe = cnn(), load_recipe(file)
        apply_recipe(recipe, model)
        assert [changes for _, changes in apply_recipe(recipe, model)] == [[], [], [], []]

    def test_an_error_says_the_line_of_the_pass(self, tmp_path: Path) -> None:
        path = write(tmp_path, "passes:\n  - freeze: c1\n  - freeze: c3\n")
        with pytest.raises(SurgeryError, match=r"pass\.yaml, line 3: freeze: selector 'c3' matches no layer; did you"):
            apply_recipe(load_recipe(path), cnn())

    @pytest.mark.parametrize(
        "recipe",
        [
            Freeze(layers="c1"),
            [Freeze(layers="c1")],
            [{"freeze": "c1"}],
            {"passes": [{"freeze": {"layers": "c1"}}]},
            Recipe(passes=[Freeze(layers="c1")]),
        ],
    )
    def test_from_python(self, recipe: Any) -> None:
        model = cnn()
        assert [str(c) for c in apply(model, recipe)] == ["c1: frozen (weight, bias)"]
        assert not find_layer(model, "c1").trainable

    def test_from_a_file(self, file: Path) -> None:
        assert len(apply(cnn(), file)) == len(apply(cnn(), str(file))) == 8

    @pytest.mark.parametrize(
        ("recipe", "message"),
        [
            ([{"freze": "c1"}], "freze: unknown pass; did you mean 'freeze'"),
            ({"passes": [{"freeze": {"layer": "c1"}}]}, "freeze.layer: unknown key"),
            ({"passes": [], "train": 5}, "train: must be a mapping"),
            ({"train": {"epoch": 5}}, "train.epoch: unknown key; did you mean 'epochs'"),
            ([Freeze(layers="c7")], "pass 0: freeze: selector 'c7'"),
        ],
    )
    def test_errors_from_python(self, recipe: Any, message: str) -> None:
        with pytest.raises(SurgeryError, match=message):
            apply(cnn(), recipe)

    def test_a_recipes_parts_from_plain_data(self) -> None:
        assert Recipe(train={"epochs": 3}).train.epochs == 3  # type: ignore[arg-type]
        with pytest.raises(SurgeryError, match="train: must be a mapping"):
            Recipe(train=3)  # type: ignore[arg-type]

    def test_the_public_names(self) -> None:
        import surgery

        model = cnn()
        assert surgery.apply(model, ReplaceHead(units=10))


class TestSchema:
    def test_is_the_same_every_time_and_plain_json(self) -> None:
        assert json.dumps(json_schema()) == json.dumps(json_schema())

    def test_has_every_pass_and_every_field_has_a_description(self) -> None:
        schema = json_schema()
        items = json.dumps(schema["properties"]["passes"]["items"])
        for name, kind in registry.items():
            assert f'"{name}"' in items
            fields = schema["$defs"][kind.__name__]["properties"]
            assert [field for field, value in fields.items() if "description" not in value] == []

    @pytest.mark.parametrize(
        ("text", "valid"),
        [
            (TEXT, True),
            ("passes:\n  - freeze: head\n  - max_norm: 3\n  - freeze: {first: 2}\n", True),
            ("passes:\n  - frieze: head\n", False),
            ("passes:\n  - replace_head: {unit: 3}\n", False),
            ("passes:\n  - freeze\n", False),
            ("train:\n  epoch: 3\n", False),
            ("train:\n  optimizer: {name: adam, beta1: 0.8}\n", True),
            ("passes:\n  - replace_head: {activation: softmax}\n", False),
            ("passes:\n  - replace_head: {units: null, seed: 1}\n", False),
            ("passes:\n  - replace_head\n", False),
            ("passes:\n  - replace_head:\n", False),
            ("passes:\n  - replace_head: {labels: [a, b], units: null}\n", True),
            ("passes:\n  - replace_head: {labels: [a, a]}\n", False),
            ("passes:\n  - replace_head: {units: 3, keep: [1, 1]}\n", False),
            ("passes:\n  - replace_head: 5\n", True),
            ("passes:\n  - insert_dropout: {rate: 0.5}\n", False),
            ("passes:\n  - insert_dropout: {layers: all, hidden: 0.5}\n", False),
            ("passes:\n  - insert_dropout: {}\n", False),
            ("passes:\n  - insert_dropout\n", False),
            ("passes:\n  - insert_dropout: {rate: null, input: 0.5}\n", True),
            ("passes:\n  - insert_dropout: {rate: 0.5, layers: c1}\n", True),
            ("passes:\n  - insert_dropout: {input: 0.2}\n  - insert_dropout: 0.5\n", True),
            ("passes:\n  - fold_batchnorm\n", True),
            ("passes:\n  - freeze: {layers: {}}\n", False),
        ],
    )
    def test_agrees_with_reading(self, tmp_path: Path, text: str, valid: bool) -> None:
        jsonschema = pytest.importorskip("jsonschema", reason="jsonschema, an independent validator, is not installed")
        validator = jsonschema.Draft202012Validator(json_schema())
        assert validator.is_valid(parse_yaml(text, "").data) == valid
        if valid:
            load_recipe(write(tmp_path, text))
        else:
            with pytest.raises(SurgeryError):
                load_recipe(write(tmp_path, text))
