"""MNIST with dropout and max-norm: the same examples and the same training, with and without.

    python examples/known_results/mnist_dropout.py mnist.npz

From 5,000 examples, as regularization is for those who have few (Srivastava et al. 2014, figure 10). Two hidden layers
of 512 units with ReLU; with dropout they are twice as large, as half of the units are dropped (their appendix A.1).
"""

from __future__ import annotations

from pathlib import Path

from common import HERE, Epochs, Network, accuracy, arguments, mnist

import surgery
from surgery.recipe import load_recipe

parser = arguments(__doc__)
parser.add_argument("data", type=Path, help="MNIST as mnist.npz")
options = parser.parse_args()
recipe = load_recipe(HERE / "mnist_dropout.yaml")
how = {"seed": options.seed, "callbacks": [Epochs()]} | ({"epochs": options.epochs} if options.epochs else {})
arrays = mnist(options.data)
few = options.examples or 5000
found = {}
for passes in ([], recipe.passes):
    name = "with dropout and max-norm" if passes else "without"
    print(f"{name}:")
    units = 1024 if passes else 512
    network = Network(784, seed=options.seed, initializer="he").dense("hidden1", units).dense("hidden2", units)
    model = network.dense("head", 10, "Softmax").model()
    surgery.apply(model, passes)
    seen, watched = (arrays["x_train"][:few], arrays["y_train"][:few]), (arrays["x_test"], arrays["y_test"])
    trained = surgery.train(model, seen, recipe.train, validation=watched, **how)
    found[name] = accuracy(trained.model, *watched)
    surgery.save(trained.model, options.output / f"mnist_{'dropout' if passes else 'plain'}.onnx")
print("test accuracy: " + ", ".join(f"{name} {value:.2%}" for name, value in found.items()))
