"""How keras.applications prepares images, for networks that are certainly of it by their name.

The modes are those of ``keras.applications.imagenet_utils``: "tf" x / 127.5 − 1; "torch" ImageNet's mean and deviation
of [0, 1]; "caffe" ImageNet's mean in BGR. Networks that prepare their images themselves take pixels as they are.
"""

from __future__ import annotations

import onnx_ir as ir

from converters.keras.network import Network
from surgery.marks import Preprocessing, set_preprocessing

__all__ = ["describe"]

_TF = Preprocessing(scale=1 / 127.5, mean=(1.0,))
_CAFFE = Preprocessing(color="bgr", mean=(103.939, 116.779, 123.68))
_TORCH = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# What their names begin with, and a layer that the network of that name has.
_NETWORKS = (
    ("vgg16", "block5_conv3", _CAFFE),
    ("vgg19", "block5_conv4", _CAFFE),
    ("resnet50v2", "conv5_block3_out", _TF),
    ("resnet101v2", "conv5_block3_out", _TF),
    ("resnet152v2", "conv5_block3_out", _TF),
    ("resnet50", "conv5_block3_out", _CAFFE),
    ("resnet101", "conv5_block3_out", _CAFFE),
    ("resnet152", "conv5_block3_out", _CAFFE),
    ("inception_v3", "mixed10", _TF),
    ("inception_resnet_v2", "conv_7b", _TF),
    ("xception", "block14_sepconv2", _TF),
    ("mobilenetv2_", "Conv_1", _TF),
    ("mobilenet_", "conv_pw_13", _TF),
    ("densenet", "conv5_block16_concat", _TORCH),
    ("nasnet", "stem_conv1", _TF),
)


def describe(model: ir.Model, network: Network, layout: str) -> None:
    """Writes how images become the input of a network of keras.applications."""
    names = {layer.name for layer in network.layers}
    name = network.name.lower()
    found = next((how for stem, layer, how in _NETWORKS if name.startswith(stem) and layer in names), None)
    inputs = list(model.graph.inputs)
    if found is None or len(inputs) != 1 or inputs[0].shape is None or len(inputs[0].shape) != 4:
        return
    dims = list(inputs[0].shape)
    first = layout == "nchw" or dims[1] == 3
    sizes = dims[2:] if first else dims[1:3]
    if dims[1 if first else 3] != 3:
        return
    height, width = sizes
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    how = Preprocessing(found.color, "NCHW" if first else "NHWC", size, found.scale, found.mean, found.std)
    set_preprocessing(model, str(inputs[0].name), how)
