"""MNIST with dropout and max-norm: the same network, the same training, with and without.

    python examples/known_results/mnist_dropout.py mnist.npz

Two hidden layers of 512 units with ReLU, as in Keras' examples/mnist_mlp.py, whose header gives 98.40 % after 20 epochs
with 20 % dropout; Srivastava et al. 2014, table 2, give 98.75 % to 98.95 % for larger networks that are trained for
longer. (Their 1.06 % error is of three layers of 1,024 units with ReLU, dropout and max-norm.)
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
arrays = mnist(options.data, options.examples)
found = {}
for passes in ([], recipe.passes):
    name = "with dropout and max-norm" if passes else "without"
    print(f"{name}:")
    network = Network(784, seed=options.seed, initializer="he").dense("hidden1", 512).dense("hidden2", 512)
    model = network.dense("head", 10, "Softmax").model()
    surgery.apply(model, passes)
    watched = arrays["x_test"], arrays["y_test"]
    trained = surgery.train(model, (arrays["x_train"], arrays["y_train"]), recipe.train, validation=watched, **how)
    found[name] = accuracy(trained.model, *watched)
    surgery.save(trained.model, options.output / f"mnist_{'dropout' if passes else 'plain'}.onnx")
print("test accuracy: " + ", ".join(f"{name} {value:.2%}" for name, value in found.items()))
