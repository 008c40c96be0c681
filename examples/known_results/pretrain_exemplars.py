"""Pretrains a small network on photographs without labels: it learns which photograph a part is from (arXiv:1406.6909).

    python examples/known_results/pretrain_exemplars.py hymenoptera_data -o out/known_results

Any folder of photographs will do; the known result takes those of ants and bees, whose labels it does not look at. Each
photograph is a class of its own, whose examples are parts of it, mirrored and coloured otherwise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import HERE, PHOTOGRAPHS, Network, arguments, photographs

import surgery
from surgery.recipe import load_recipe

SIZE = 48  # pixels; photographs are kept larger, so that parts of them are sharp

parser = arguments(__doc__)
parser.add_argument("data", type=Path, help="a folder with photographs, also in its folders")
options = parser.parse_args()
recipe = load_recipe(HERE / "exemplars.yaml")
folder = options.data / "train" if (options.data / "train").is_dir() else options.data
files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg", ".png"))[: options.examples]
if not files:
    raise SystemExit(f"{options.data}: no photographs; {PHOTOGRAPHS}")
images = photographs(files, 2 * SIZE)

network = Network(3, SIZE, SIZE, seed=options.seed, initializer="he")
for number, units in enumerate((16, 32, 64, 64), 1):
    network.conv(f"conv{number}", units, pad=1).pool(f"pool{number}")
model = network.average("mean").dense("head", len(images), "Softmax").model()
how = {"seed": options.seed} | ({"epochs": options.epochs} if options.epochs else {})
trained = surgery.train(model, (images, np.arange(len(images))), recipe.train, **how)
surgery.save(trained.model, options.output / "exemplars.onnx")
share = np.mean([record["accuracy"] for record in trained.history[-5:]])
print(f"{share:.1%} of the parts are found among {len(images)} photographs (chance: {1 / len(images):.1%})")
