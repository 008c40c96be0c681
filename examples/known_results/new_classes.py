"""Fourteen classes instead of ten: a LeNet that knows MNIST's digits learns four more signs, its convolutions frozen.

    python examples/known_results/new_classes.py mnist.npz

The new signs are mirror images of 2, 3, 4 and 7. The network is the project's own, models/lenet_mnist.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import HERE, Epochs, accuracy, arguments, mnist

import converters
import surgery
from surgery.recipe import load_recipe

MIRRORED = (2, 3, 4, 7)

parser = arguments(__doc__)
parser.add_argument("data", type=Path, help="MNIST as mnist.npz")
parser.add_argument("--each", type=int, default=200, help="examples of each class to train on (default 200)")
options = parser.parse_args()
recipe = load_recipe(HERE / "new_classes.yaml")
how = {"seed": options.seed, "callbacks": [Epochs()]} | ({"epochs": options.epochs} if options.epochs else {})
arrays = mnist(options.data, options.examples)


def signs(part: str, each: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The digits, and the mirrored ones as classes 10 to 13; of each class the first `each`."""
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"].astype(np.int64)
    images = [x[y == digit][:each] for digit in range(10)] + [x[y == digit][:each, :, ::-1] for digit in MIRRORED]
    return np.concatenate(images), np.repeat(np.arange(14), [len(group) for group in images])


model = converters.convert(HERE.parents[1] / "models" / "lenet_mnist")
watched = signs("test")
old = watched[1] < 10
before = accuracy(model, watched[0][old], watched[1][old])
surgery.apply(model, recipe)
trained = surgery.train(model, signs("train", options.each), recipe.train, validation=watched, **how)
surgery.save(trained.model, options.output / "new_classes.onnx")
print(f"ten digits before: {before:.2%}")
for name, chosen in (("ten digits", old), ("four new signs", ~old), ("all fourteen", old | True)):
    print(f"{name} after: {accuracy(trained.model, watched[0][chosen], watched[1][chosen]):.2%}")
