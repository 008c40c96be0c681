"""Old definitions in the current format, as Caffe's own upgrade_proto makes them.

V0 (2013) has ``layers { layer { type: "conv" … } }``, V1 (2014) ``layers { type: CONVOLUTION … }``, the current format
``layer { type: "Convolution" … }``. Inputs of the net itself become Input layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converters.caffe.caffe_pb2 import LayerParameter, NetParameter, ParamSpec, V0LayerParameter, V1LayerParameter
from surgery.errors import SurgeryError

__all__ = ["upgrade"]

# V1's enum as type names; the rest are the enum's words with a capital each, as CONTRASTIVE_LOSS: ContrastiveLoss.
_V1_TYPES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}
_V0_TYPES = {
    "accuracy": "Accuracy",
    "bnll": "BNLL",
    "concat": "Concat",
    "conv": "Convolution",
    "data": "Data",
    "dropout": "Dropout",
    "euclidean_loss": "EuclideanLoss",
    "flatten": "Flatten",
    "hdf5_data": "HDF5Data",
    "hdf5_output": "HDF5Output",
    "im2col": "Im2col",
    "images": "ImageData",
    "infogain_loss": "InfogainLoss",
    "innerproduct": "InnerProduct",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MultinomialLogisticLoss",
    "pool": "Pooling",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
    "softmax": "Softmax",
    "softmax_loss": "SoftmaxWithLoss",
    "split": "Split",
    "tanh": "TanH",
    "window_data": "WindowData",
}
# Where the fields of V0's one flat message went: field, layer type, message, field there.
_V0_FIELDS: list[tuple[str, tuple[str, ...], str, str]] = [
    ("num_output", ("conv",), "convolution_param", "num_output"),
    ("num_output", ("innerproduct",), "inner_product_param", "num_output"),
    ("biasterm", ("conv",), "convolution_param", "bias_term"),
    ("biasterm", ("innerproduct",), "inner_product_param", "bias_term"),
    ("weight_filler", ("conv",), "convolution_param", "weight_filler"),
    ("weight_filler", ("innerproduct",), "inner_product_param", "weight_filler"),
    ("bias_filler", ("conv",), "convolution_param", "bias_filler"),
    ("bias_filler", ("innerproduct",), "inner_product_param", "bias_filler"),
    ("pad", ("conv",), "convolution_param", "pad"),
    ("pad", ("pool",), "pooling_param", "pad"),
    ("kernelsize", ("conv",), "convolution_param", "kernel_size"),
    ("kernelsize", ("pool",), "pooling_param", "kernel_size"),
    ("group", ("conv",), "convolution_param", "group"),
    ("stride", ("conv",), "convolution_param", "stride"),
    ("stride", ("pool",), "pooling_param", "stride"),
    ("pool", ("pool",), "pooling_param", "pool"),
    ("dropout_ratio", ("dropout",), "dropout_param", "dropout_ratio"),
    ("local_size", ("lrn",), "lrn_param", "local_size"),
    ("alpha", ("lrn",), "lrn_param", "alpha"),
    ("beta", ("lrn",), "lrn_param", "beta"),
    ("k", ("lrn",), "lrn_param", "k"),
    ("source", ("data",), "data_param", "source"),
    ("source", ("hdf5_data",), "hdf5_data_param", "source"),
    ("source", ("images",), "image_data_param", "source"),
    ("source", ("window_data",), "window_data_param", "source"),
    ("source", ("infogain_loss",), "infogain_loss_param", "source"),
    ("batchsize", ("data",), "data_param", "batch_size"),
    ("batchsize", ("hdf5_data",), "hdf5_data_param", "batch_size"),
    ("batchsize", ("images",), "image_data_param", "batch_size"),
    ("batchsize", ("window_data",), "window_data_param", "batch_size"),
    ("rand_skip", ("data",), "data_param", "rand_skip"),
    ("rand_skip", ("images",), "image_data_param", "rand_skip"),
    ("shuffle_images", ("images",), "image_data_param", "shuffle"),
    ("new_height", ("images",), "image_data_param", "new_height"),
    ("new_width", ("images",), "image_data_param", "new_width"),
    ("concat_dim", ("concat",), "concat_param", "concat_dim"),
    ("scale", ("data", "images", "window_data"), "transform_param", "scale"),
    ("meanfile", ("data", "images", "window_data"), "transform_param", "mean_file"),
    ("cropsize", ("data", "images", "window_data"), "transform_param", "crop_size"),
    ("mirror", ("data", "images", "window_data"), "transform_param", "mirror"),
    ("det_fg_threshold", ("window_data",), "window_data_param", "fg_threshold"),
    ("det_bg_threshold", ("window_data",), "window_data_param", "bg_threshold"),
    ("det_fg_fraction", ("window_data",), "window_data_param", "fg_fraction"),
    ("det_context_pad", ("window_data",), "window_data_param", "context_pad"),
    ("det_crop_mode", ("window_data",), "window_data_param", "crop_mode"),
    ("hdf5_output_param", ("hdf5_output",), "hdf5_output_param", ""),
]
_V0_STRUCTURE = {"name", "type", "blobs", "blobs_lr", "weight_decay"}  # kept apart from the table
# Parameters of data layers that moved to transform_param.
_MOVED = ("scale", "mean_file", "crop_size", "mirror")


def upgrade(net: NetParameter, path: Path) -> NetParameter:
    """Returns `net` in the current format.

    Raises:
        SurgeryError: It mixes formats, or has a layer that no version knew.
    """
    if net.layer and net.layers:
        raise SurgeryError(f"{path}: has both 'layer' and 'layers' fields, of two formats; bring it to one of them")
    new = NetParameter()
    new.CopyFrom(net)
    new.ClearField("layers")
    new.ClearField("layer")
    inputs = _inputs(net, path)
    if net.layers and any(layer.HasField("layer") for layer in net.layers):
        layers = _from_v0(list(net.layers), path)
    elif net.layers:
        layers = [_from_v1(layer) for layer in net.layers]
    else:
        layers = list(net.layer)
    new.layer.extend([*inputs, *layers])
    for field in ("input", "input_dim", "input_shape"):
        new.ClearField(field)
    for layer in new.layer:
        _move_transformation(layer)
    return new


def _inputs(net: NetParameter, path: Path) -> list[LayerParameter]:
    """Input layers for the net's own inputs."""
    if len(net.input_dim) not in (0, 4 * len(net.input)) or len(net.input_shape) not in (0, len(net.input)):
        raise SurgeryError(
            f"{path}: {len(net.input)} inputs need 4 input_dim or one input_shape each; "
            f"there are {len(net.input_dim)} and {len(net.input_shape)}"
        )
    layers = []
    for index, name in enumerate(net.input):
        layer = LayerParameter(name=name, type="Input", top=[name])
        if net.input_shape:
            layer.input_param.shape.add().CopyFrom(net.input_shape[index])
        elif net.input_dim:
            layer.input_param.shape.add(dim=net.input_dim[4 * index : 4 * index + 4])
        layers.append(layer)
    return layers


def _param_specs(names: list[str], modes: list[int], rates: list[float], decays: list[float]) -> list[ParamSpec]:
    specs = [ParamSpec() for _ in range(max(len(names), len(modes), len(rates), len(decays)))]
    for field, values in (("name", names), ("share_mode", modes), ("lr_mult", rates), ("decay_mult", decays)):
        for spec, value in zip(specs, values, strict=False):  # a list may be shorter: the rest have the default
            setattr(spec, field, value)
    return specs


def _from_v1(old: V1LayerParameter) -> LayerParameter:
    word = V1LayerParameter.LayerType.Name(old.type)
    new = LayerParameter(name=old.name, type=_V1_TYPES.get(word, word.title().replace("_", "")))
    _copy_structure(old, new)
    for field, value in old.ListFields():
        if field.name.endswith("_param") and field.name != "param":
            getattr(new, field.name).CopyFrom(value)
    return new


def _copy_structure(old: V1LayerParameter, new: LayerParameter) -> None:
    new.bottom.extend(old.bottom)
    new.top.extend(old.top)
    new.include.extend(old.include)
    new.exclude.extend(old.exclude)
    new.loss_weight.extend(old.loss_weight)
    rates = list(old.blobs_lr) or list(old.layer.blobs_lr)
    decays = list(old.weight_decay) or list(old.layer.weight_decay)
    new.param.extend(_param_specs(list(old.param), list(old.blob_share_mode), rates, decays))


def _from_v0(layers: list[V1LayerParameter], path: Path) -> list[LayerParameter]:
    """Upgrades V0 layers; a "padding" layer becomes the pad of the convolution or pooling that reads it."""
    padding: dict[str, tuple[str, int]] = {}  # a padding layer's top: its bottom and width
    result = []
    for old in layers:
        flat = old.layer
        if flat.type == "padding":
            padding[old.top[0]] = (old.bottom[0], flat.pad)
            continue
        new = _from_v0_layer(old, path)
        for index, bottom in enumerate(new.bottom):
            if bottom not in padding:
                continue
            new.bottom[index], pad = padding[bottom]
            if flat.type == "conv":
                new.convolution_param.pad[:] = [pad]
            elif flat.type == "pool":
                new.pooling_param.pad = pad
            else:
                raise SurgeryError(
                    f"{path}: layer {flat.name!r}: a padding layer in front of {flat.type!r} has no meaning"
                )
        result.append(new)
    return result


def _from_v0_layer(old: V1LayerParameter, path: Path) -> LayerParameter:
    flat: V0LayerParameter = old.layer
    if flat.type not in _V0_TYPES:
        raise SurgeryError(f"{path}: layer {flat.name!r}: the oldest format has no layer type {flat.type!r}")
    new = LayerParameter(name=flat.name, type=_V0_TYPES[flat.type])
    _copy_structure(old, new)
    for field, value in flat.ListFields():
        if field.name in _V0_STRUCTURE:
            continue
        place = next(
            ((m, f) for name, types, m, f in _V0_FIELDS if name == field.name and flat.type in types),
            None,
        )
        if place is None:
            raise SurgeryError(f"{path}: layer {flat.name!r} ({flat.type}): has no parameter {field.name!r}")
        _assign(getattr(new, place[0]), place[1], value)
    return new


def _assign(message: Any, name: str, value: Any) -> None:
    if not name:
        message.CopyFrom(value)
        return
    field = message.DESCRIPTOR.fields_by_name[name]
    if hasattr(value, "DESCRIPTOR"):
        getattr(message, name).CopyFrom(value)
    elif isinstance(getattr(message, name), bool | int | float | str):
        setattr(message, field.name, value)
    else:
        getattr(message, name).append(value)


def _move_transformation(layer: LayerParameter) -> None:
    """Data layers once had the transformation's parameters among their own."""
    for name in ("data_param", "image_data_param", "window_data_param"):
        if not layer.HasField(name):
            continue
        param = getattr(layer, name)
        for field in _MOVED:
            if param.HasField(field):
                setattr(layer.transform_param, field, getattr(param, field))
                param.ClearField(field)
