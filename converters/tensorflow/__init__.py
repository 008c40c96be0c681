"""TensorFlow networks: SavedModel, frozen GraphDef, and the checkpoints of TensorFlow 1."""

from converters.tensorflow.convert import convert_tensorflow
from converters.tensorflow.reference import run_tensorflow

__all__ = ["convert_tensorflow", "run_tensorflow"]
