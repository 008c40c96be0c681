"""Fingerprints: short digests by which models and data are told from others."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from surgery.data import Dataset
from surgery.data.rows import digest
from surgery.proto import light_proto

__all__ = ["data_digest", "model_digests"]


def model_digests(model: ir.Model) -> dict[str, str]:
    """Returns the digests of a model's graph, marks included, and of its weights."""
    proto, _ = light_proto(model, -1)
    weights = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.graph.initializers.items()):
        if value.const_value is not None:
            weights.update(f"{name} {value.const_value.dtype} {value.const_value.shape};".encode())
            weights.update(value.const_value.tobytes())
    graph = hashlib.blake2b(proto.SerializeToString(deterministic=True), digest_size=16)
    return {"graph": graph.hexdigest(), "weights": weights.hexdigest()}


def data_digest(data: Dataset) -> str:
    """Returns a digest of examples and targets, as well as those can be told."""
    targets = data.targets if isinstance(data.targets, dict) else {"": data.targets}
    parts = [str(data.fingerprint()), *(f"{name}: {digest(array)}" for name, array in targets.items())]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
