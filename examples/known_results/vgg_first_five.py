"""The first five layers of a VGG-style network frozen: from MNIST to the digits of other writers.

    python examples/known_results/vgg_first_five.py mnist.npz

Five 3×3 convolutions, pooled in between, and two dense layers are trained on MNIST, then fine-tuned on 200 digits of
scikit-learn's: with the first five layers frozen, with all layers trained, and from random weights.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from common import HERE, Epochs, Network, accuracy, arguments, mnist

import surgery
from surgery.demo.digits import digits
from surgery.layers import layers
from surgery.recipe import load_recipe

parser = arguments(__doc__)
parser.add_argument("data", type=Path, help="MNIST as mnist.npz")
options = parser.parse_args()
recipe = load_recipe(HERE / "vgg_first_five.yaml")
arrays = mnist(options.data, options.examples or 20000)


def vgg() -> Network:
    """conv-conv-pool, conv-conv-pool, conv-pool, two dense layers."""
    network = Network(1, 28, 28, seed=options.seed, initializer="he")
    network.conv("conv1", 16, pad=1).conv("conv2", 16, pad=1).pool("pool1").conv("conv3", 32, pad=1)
    network.conv("conv4", 32, pad=1).pool("pool2").conv("conv5", 64, pad=1).pool("pool3")
    return network.dense("fc6", 128).dropout("drop6", 0.5).dense("fc7", 10, "Softmax")


print(f"pretraining on {len(arrays['x_train']):,} digits of MNIST:")
first = surgery.train(
    vgg().model(), (arrays["x_train"], arrays["y_train"]), epochs=2, batch_size=64, optimizer="adam",
    seed=options.seed, callbacks=[Epochs()],
).model  # fmt: skip
print(f"MNIST's test digits: {accuracy(first, arrays['x_test'], arrays['y_test']):.2%}")
few = digits(200, options.seed)
test = few["x_test"], few["y_test"]
how = {"seed": options.seed} | ({"epochs": options.epochs} if options.epochs else {})
without = [p for p in recipe.passes if type(p).__name__ != "Freeze"]
ways = {
    "first five layers frozen": (first, recipe.passes),
    "all layers trained": (first, without),
    "from random weights": (vgg().model(), without),
}
for name, (source, passes) in ways.items():
    model = source.clone()
    surgery.apply(model, passes)
    start = time.perf_counter()
    trained = surgery.train(model, (few["x_train"], few["y_train"]), recipe.train, **how)
    seconds = time.perf_counter() - start
    print(f"{name:24} {accuracy(trained.model, *test):.2%} of {len(test[0]):,} digits, {seconds:.1f} s")
    if "frozen" in name:
        surgery.save(trained.model, options.output / "vgg_first_five.onnx")
        before, after = source.graph.initializers, trained.model.graph.initializers
        for layer in layers(source):
            for parameter in layer.parameters.values() if (layer.index or 6) <= 5 else ():
                arrays = (weights[parameter.name].const_value.numpy() for weights in (before, after))
                np.testing.assert_array_equal(*arrays)
        print(f"{'':24} the first five layers are bit for bit what they were")
