"""Keras' mnist_transfer_cnn: a network learns the digits 0 to 4, then, its convolutions frozen, 5 to 9.

    python examples/known_results/mnist_transfer.py mnist.npz

Architecture and hyper-parameters are those of examples/mnist_transfer_cnn.py as it shipped with Keras 1 and 2 (Adadelta
at a learning rate of 1, ρ = 0.95, batches of 128). That file's header gives its results after 5 epochs of each: 99.8 %
of the test digits 0 to 4, and 99.2 % of 5 to 9.
"""

from __future__ import annotations

from pathlib import Path

from common import HERE, Epochs, Network, accuracy, arguments, mnist

import surgery
from surgery.recipe import load_recipe

parser = arguments(__doc__)
parser.add_argument("data", type=Path, help="MNIST as mnist.npz")
options = parser.parse_args()
recipe = load_recipe(HERE / "mnist_transfer.yaml")
how = {"seed": options.seed, "callbacks": [Epochs()]} | ({"epochs": options.epochs} if options.epochs else {})
arrays = mnist(options.data, options.examples)


def digits(part: str, first: int) -> tuple:
    """The examples of five digits, numbered from 0."""
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    chosen = (y >= first) & (y < first + 5)
    return x[chosen], y[chosen] - first


network = Network(1, 28, 28, seed=options.seed).conv("conv1", 32).conv("conv2", 32).pool("pool").dropout("drop1", 0.25)
model = network.dense("dense", 128).dropout("drop2", 0.5).dense("head", 5, "Softmax").model()
results = {}
for first, last in ((0, 4), (5, 9)):
    if first:
        surgery.apply(model, recipe)
    print(f"digits {first} to {last}, {'convolutions frozen' if first else 'from random weights'}:")
    watched = digits("test", first)
    trained = surgery.train(model, digits("train", first), recipe.train, validation=watched, keep="last", **how)
    model, results[first] = trained.model, accuracy(trained.model, *watched)
surgery.save(model, options.output / "mnist_transfer.onnx")
print(f"test accuracy of 0 to 4 {results[0]:.2%} (published 99.8 %), of 5 to 9 {results[5]:.2%} (published 99.2 %)")
