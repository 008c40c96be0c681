"""Pretrains a small network on photographs without labels: it learns how far each was turned (arXiv:1803.07728).

    python examples/known_results/pretrain_rotations.py hymenoptera_data -o out/known_results

Any folder of photographs will do; the known result takes those of ants and bees, whose labels it does not look at.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import HERE, PHOTOGRAPHS, Epochs, Network, arguments
from PIL import Image

import surgery
from surgery.data.preprocess import resize
from surgery.recipe import load_recipe

SIZE = 48

parser = arguments(__doc__)
parser.add_argument("data", type=Path, help="a folder with photographs, also in its folders")
options = parser.parse_args()
recipe = load_recipe(HERE / "rotations.yaml")
folder = options.data / "train" if (options.data / "train").is_dir() else options.data
files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg", ".png"))[: options.examples]
if not files:
    raise SystemExit(f"{options.data}: no photographs; {PHOTOGRAPHS}")
photographs = np.stack([resize(np.asarray(Image.open(f).convert("RGB")), (SIZE, SIZE)) for f in files])


def turned(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image in the four ways, and by how many quarters it is turned."""
    return np.concatenate([np.rot90(images, k, (1, 2)) for k in range(4)]), np.repeat(np.arange(4), len(images))


network = Network(3, SIZE, SIZE, seed=options.seed, initializer="he")
for number, units in enumerate((16, 32, 64, 64), 1):
    network.conv(f"conv{number}", units, pad=1).pool(f"pool{number}")
model = network.average("mean").dense("head", 4, "Softmax").model()
held = len(photographs) // 8
order = np.random.default_rng(options.seed).permutation(len(photographs))
watched, seen = turned(photographs[order[:held]]), turned(photographs[order[held:]])
how = {"seed": options.seed, "callbacks": [Epochs()]} | ({"epochs": options.epochs} if options.epochs else {})
trained = surgery.train(model, seen, recipe.train, validation=watched, **how)
surgery.save(trained.model, options.output / "rotations.onnx")
right = trained.history[trained.kept_epoch - 1]["val_accuracy"]
print(f"{right:.1%} of {held} photographs that it has not seen, in four ways each, are put upright (chance: 25 %)")
