"""Graphs in Netron, which shows the metadata of operators but not of parameters."""

from __future__ import annotations

import onnx_ir as ir

from surgery.layers import layers
from surgery.marks import Marks, marks

__all__ = ["annotated", "serve"]


def annotated(model: ir.Model) -> ir.Model:
    """Returns a copy of `model` whose operators' metadata say how their parameters are marked."""
    model = model.clone()
    for layer in layers(model):
        for role, parameter in layer.parameters.items():
            words = _words(marks(parameter))
            if words:
                layer.node.metadata_props[f"surgery {role}"] = words
    return model


def _words(mark: Marks) -> str:
    return ", ".join(
        word
        for word, there in (
            ("frozen", not mark.trainable),
            (f"learning rate × {mark.learning_rate:g}", mark.learning_rate != 1),
            (f"decay × {mark.decay:g}", mark.decay != 1),
            (f"l1 {mark.l1:g}", mark.l1 != 0),
            (f"l2 {mark.l2:g}", mark.l2 != 0),
            (str(mark.constraint), mark.constraint is not None),
        )
        if there
    )


def serve(model: ir.Model, name: str, host: str, port: int | None, browser: bool) -> str:
    """Starts Netron on `model` and returns its address, as ``localhost:8080``.

    Args:
        model: The model.
        name: The path it was read from; weights in other files are looked for next to it.
        host: The address to serve at.
        port: The port; a free one by default.
        browser: Open a browser window.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """
    import netron

    data = bytearray(ir.to_proto(annotated(model)).SerializeToString())
    where, chosen = netron.serve(name, data, address=(host, port or 0), browse=browser)
    return f"{where}:{chosen}"
