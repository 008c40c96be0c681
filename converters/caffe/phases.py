"""Which layers of a definition run: Caffe's include and exclude rules, for the TEST phase."""

from __future__ import annotations

from converters.caffe.caffe_pb2 import TEST, LayerParameter, NetParameter, NetState, NetStateRule

__all__ = ["DATA_LAYERS", "included"]

# Layers that bring data in: their tops become inputs.
DATA_LAYERS = {
    "AnnotatedData",
    "Data",
    "DummyData",
    "HDF5Data",
    "ImageData",
    "MemoryData",
    "WindowData",
}


def included(net: NetParameter) -> list[int]:
    """Returns the numbers of the layers that run in the TEST phase, at the level and stages of the net's own ``state``.

    A data layer that only training has is kept where nothing else makes its tops: so definitions inside caffemodels,
    which are those of the training net, can be converted as well.
    """
    state = NetState(phase=TEST, level=net.state.level, stage=net.state.stage)
    runs = [_meets(layer, state) for layer in net.layer]
    made = {top for layer, kept in zip(net.layer, runs, strict=True) if kept for top in layer.top}
    for index, layer in enumerate(net.layer):
        if not runs[index] and layer.type in DATA_LAYERS and not made.intersection(layer.top):
            runs[index] = True
            made.update(layer.top)
    return [index for index, kept in enumerate(runs) if kept]


def _meets(layer: LayerParameter, state: NetState) -> bool:
    if layer.include:
        return any(_rule_holds(rule, state) for rule in layer.include)
    return not any(_rule_holds(rule, state) for rule in layer.exclude)


def _rule_holds(rule: NetStateRule, state: NetState) -> bool:
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and set(rule.stage) <= set(state.stage)
        and not set(rule.not_stage) & set(state.stage)
    )
