"""Artifacts for devices: what onnxruntime's on-device training API (`onnxruntime.training.api`) trains from.

Four files: a training model, an evaluation model, an optimizer model and a checkpoint with the weights. The gradients
are Surgery's own, so that every operator with a rule can be trained on a device. What the two optimizers of the device
do not know (multipliers, decay, constraints) and running statistics are written into the training model.
"""

from surgery.artifacts.api import Artifacts, artifacts
from surgery.artifacts.plans import OPTIMIZERS, AdamW, Sgd

__all__ = ["OPTIMIZERS", "AdamW", "Artifacts", "Sgd", "artifacts"]
