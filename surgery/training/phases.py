"""Phases of a training: which layers are trained for how long, and at which rate.

    phases:
      - {epochs: 3, train: head}                              # the new head alone
      - {epochs: 5, train: {last: 3}, learning_rate: ×0.3}    # then the last three layers,
      - {epochs: 5, learning_rate: ×0.1}                      # then everything, at a tenth of the rate

That is gradual unfreezing (Howard and Ruder 2018, section 3.3); with two phases, a head first and then all of it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import onnx_ir as ir
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt

from surgery.errors import SurgeryError
from surgery.layers import layers
from surgery.marks import set_marks
from surgery.selectors import Selector, select

__all__ = ["Phase", "restrict"]


_FACTOR = r"^[×xX*] ?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def _rate(value: Any) -> Any:
    if isinstance(value, str) and (not re.match(_FACTOR, value) or float(value[1:]) == 0):
        raise ValueError(f"{value!r} is not a learning rate; write a number, or ×0.1 for a tenth of the training's")
    return value


_Text = Annotated[str, Field(pattern=_FACTOR)]


class Phase(BaseModel):
    """A part of a training.

    Attributes:
        epochs: How long it lasts.
        train: The layers that it trains; all others are frozen meanwhile, and so are those that the model's own marks
            freeze. By default all that these do not freeze.
        learning_rate: At its start: a number, or a factor on the training's such as ``×0.1``. The schedule begins anew
            in each phase and lasts as long as it.
    """

    model_config = ConfigDict(extra="forbid")

    epochs: PositiveInt
    train: Selector | None = None
    learning_rate: Annotated[
        PositiveFloat | str | None, BeforeValidator(_rate, json_schema_input_type=PositiveFloat | _Text | None)
    ] = None

    def rate(self, of_training: float) -> float:
        """The learning rate at its start, where the training's is `of_training`."""
        if isinstance(self.learning_rate, str):
            return of_training * float(self.learning_rate[1:])
        return of_training if self.learning_rate is None else self.learning_rate


def restrict(model: ir.Model, selector: Any) -> ir.Model:
    """Returns a copy of `model` in which all layers but those that `selector` matches are frozen.

    Raises:
        SurgeryError: It matches nothing, or nothing that could be trained.
    """
    model = model.clone()
    chosen = {layer.node for layer in select(model, selector)}
    kept = {p for layer in layers(model) if layer.node in chosen for p in layer.parameters.values()}
    for layer in layers(model):
        for parameter in layer.parameters.values():
            if parameter not in kept:
                set_marks(parameter, trainable=False)
    if not any(layer.trainable for layer in layers(model)):
        raise SurgeryError(
            f"`train: {selector!r}` selects nothing to train: the model's marks freeze all of it; unfreeze a layer"
        )
    return model
