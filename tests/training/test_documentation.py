"""What docs/training.md says can be written."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from pydantic import BaseModel

from surgery.recipe import Recipe
from surgery.training.optimizers.kinds import AnyOptimizer, OptimizerName
from surgery.training.schedules import Schedule, ScheduleName
from surgery.training.settings import TrainSettings
from surgery.yaml_file import parse_yaml
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, str]:
    """The table behind a heading: the rest of each row by its name."""
    section = TEXT[TEXT.index(f"## {heading}\n") :].split("\n## ")[0]
    return {match[1]: match[2] for match in re.finditer(r"^\| `(\w+)`(.*)$", section, re.MULTILINE)}


def test_recipes() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        Recipe(**parse_yaml(block, "docs/training.md").data)


@pytest.mark.parametrize("kind", get_args(AnyOptimizer))
def test_optimizers_with_their_defaults(kind: type[BaseModel]) -> None:
    name = kind.model_fields["name"].default
    row = rows("Optimizers")[name]
    assert f"| {kind.default_rate:g} |".replace("| 1 |", "| 1.0 |") in row  # type: ignore[attr-defined]
    assert name in get_args(OptimizerName)
    if name != "adamw":  # which is told by adam
        told = dict(re.findall(r"`(\w+): ([\w.-]+)`", row))
        fields = {key: field.default for key, field in kind.model_fields.items() if key != "name"}
        assert {key: parse_yaml(value, row).data for key, value in told.items()} == fields


def test_schedules() -> None:
    kinds = get_args(get_args(Schedule)[0])
    assert set(rows("Schedules")) == {kind.model_fields["name"].default for kind in kinds}
    for name in get_args(ScheduleName):
        assert TrainSettings(schedule=name).schedule.name == name
