"""What the README shows works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from surgery.passes import registry
from surgery.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_recipe_is_one() -> None:
    (text,) = blocks("yaml")
    recipe = Recipe(**yaml.safe_load(text))
    assert len(recipe.passes) == 6
    assert recipe.train.epochs == 30


def test_the_recipes_that_the_demo_shows_are_those_it_runs() -> None:
    assert (ROOT / "surgery/demo/finetuned.yaml").read_text() in README


def test_every_pass_is_in_the_table() -> None:
    table = README[README.index("| pass |") : README.index("Which layers:")]
    assert {name for name in registry if f"`{name}`" not in table} == set()


def test_every_linked_file_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.training
def test_the_python_example(tmp_path: Path) -> None:
    (code,) = blocks("python")
    (tmp_path / "models").symlink_to(ROOT / "models")
    subprocess.run([sys.executable, "-m", "surgery.demo.digits", "out/demo/digits.npz"], cwd=tmp_path, check=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    found = re.search(r"'accuracy': ([\d.]+)", done.stdout)
    assert found
    assert float(found[1]) > 0.96  # the network from random weights comes to 0.93
    assert (tmp_path / "out" / "digits.onnx").is_file()
