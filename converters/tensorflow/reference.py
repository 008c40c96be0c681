"""What TensorFlow itself computes, to compare a conversion with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from converters.registry import reference
from surgery.errors import SurgeryError

__all__ = ["run_tensorflow"]


@reference("TensorFlow")
def run_tensorflow(
    source: Path,
    arrays: dict[str, np.ndarray],
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    signature: str | None = None,
) -> dict[str, np.ndarray]:
    """Returns the outputs by name, of the graph as it is in the file but for its variables, which become constants.

    Raises:
        SurgeryError: TensorFlow is not installed or cannot run the graph.
    """
    from converters.tensorflow.convert import names
    from converters.tensorflow.graph import find_ends, freeze, inline, prune
    from converters.tensorflow.patterns import restore_dropout, settle_switches
    from converters.tensorflow.source import read_source, tensorflow

    tf = tensorflow()
    read = read_source(source, names(inputs, "inputs"), names(outputs, "outputs"), signature)
    try:
        inline(tf, read)
        find_ends(read)
        prune(read.graph, [tensor.partition(":")[0] for tensor in (*read.inputs.values(), *read.outputs.values())])
        freeze(read)
        settle_switches(read)
        restore_dropout(read)  # what stands for it drops nothing, as at inference
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(read.graph, name="")
            with tf.compat.v1.Session(graph=graph) as session:
                found = session.run(dict(read.outputs), {read.inputs[name]: array for name, array in arrays.items()})
    except SurgeryError:
        raise
    except Exception as error:  # of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise SurgeryError(f"{source}: TensorFlow {tf.__version__} cannot run it ({reason})") from error
    return {name: np.asarray(array) for name, array in found.items()}
