"""A regression head on a classifier's body: by how many degrees is a digit turned?

    python examples/known_results/regression_head.py

The body is a LeNet that was trained to classify MNIST's digits (models/lenet_mnist); the digits are scikit-learn's,
each turned by up to 45 degrees either way. Nothing has to be downloaded.
"""

from __future__ import annotations

import numpy as np
from common import HERE, arguments
from PIL import Image

import converters
import surgery
from surgery.demo.digits import digits
from surgery.recipe import load_recipe

parser = arguments(__doc__)
options = parser.parse_args()
recipe = load_recipe(HERE / "regression_head.yaml")
how = {"seed": options.seed} | ({"epochs": options.epochs} if options.epochs else {})
rng = np.random.default_rng(options.seed)


def turned(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images turned, and by how much: −1 is 45 degrees clockwise, 1 as much the other way."""
    share = rng.uniform(-1, 1, len(images))
    angles = 45 * share
    pictures = [Image.fromarray(i).rotate(a, Image.Resampling.BILINEAR) for i, a in zip(images, angles, strict=True)]
    return np.stack([np.asarray(p) for p in pictures]), share.astype(np.float32)[:, None]


arrays = digits(options.examples or 200, options.seed)
seen, test = turned(arrays["x_train"]), turned(arrays["x_test"])
body = converters.convert(HERE.parents[1] / "models" / "lenet_mnist")
unfrozen = [p for p in recipe.passes if type(p).__name__ != "Freeze"]
ways = {
    "first layer frozen": recipe.passes,
    "all layers trained": unfrozen,
    "from random weights": [*unfrozen, {"reinitialize": {"layers": "all", "initializer": "he", "seed": options.seed}}],
}
print(f"always the mean          {45 * np.abs(test[1] - seen[1].mean()).mean():.1f}° off on the mean")
for name, passes in ways.items():
    model = body.clone()
    surgery.apply(model, passes)
    trained = surgery.train(model, seen, recipe.train, **how)
    scores = surgery.evaluate(trained.model, test, loss="mean_squared_error")
    print(f"{name:24} {45 * scores.value:.1f}° off on the mean", flush=True)
    if name == "first layer frozen":
        surgery.save(trained.model, options.output / "regression_head.onnx")
