"""surgery view: what is wrong with its options."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from surgery.cli.app import app


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999"])
def test_a_port_that_there_is_not(port: str) -> None:
    result = CliRunner().invoke(app, ["view", "model.onnx", "--port", port])
    assert result.exit_code == 2
    assert "--port" in result.output
    assert "than" in result.output  # or equal to; how it is put is typer's
