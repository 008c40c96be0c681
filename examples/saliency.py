"""Saliency maps: which pixels speak for the class that a network sees (Simonyan et al. 2014, arXiv:1312.6034).

    python examples/saliency.py                          # LeNet, on the digits of scikit-learn
    python examples/saliency.py network.onnx cat.jpg     # any image classifier, any pictures

A map is the gradient of the class's score by the pixels, averaged over copies of the picture with some noise (as in
SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825), moved by a pixel: what hangs on single pixels only averages out.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import converters
import surgery
from surgery import runtime
from surgery.data.preprocess import input_spec, preparer, resize
from surgery.demo.digits import digits
from surgery.marks import labels
from surgery.training.losses import strip_activation

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default=Path(__file__).parents[1] / "models" / "lenet_mnist")
parser.add_argument("pictures", nargs="*")
parser.add_argument("-o", "--output", type=Path, default=Path("out/saliency.png"))
parser.add_argument("--copies", type=int, default=60, help="of each picture (default 60)")
options = parser.parse_args()

model = converters.convert(options.model)
spec, names, random = input_spec(model), labels(model, str(model.graph.outputs[0].name)), np.random.default_rng(0)
strip_activation(model.graph, model.graph.outputs[0])  # scores instead of probabilities
pixels, scores = str(model.graph.inputs[0].name), model.graph.outputs[0]
session = runtime.session(surgery.gradient(model, of=str(scores.name), wrt=[pixels]), runtime.providers("auto"))
rows = (2, 3) if spec.how.layout == "NCHW" else (1, 2)


def run(x: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
    """The scores, and the gradient by x of their sum, each times its weight."""
    return session.run(None, {pixels: x, f"{scores.name}/weight": weight})


pictures = [np.asarray(Image.open(p).convert("RGB")) for p in options.pictures] or list(digits(train=10)["x_train"])
figure, axes = plt.subplots(2, len(pictures), figsize=(1.1 * len(pictures), 2.5), squeeze=False)
for (above, below), picture in zip(axes.T, pictures, strict=True):
    picture = resize(picture, spec.size) if spec.size else picture
    x = preparer(picture[None], spec)(picture[None])
    weight = np.zeros((1, *scores.shape[1:]), np.float32)
    best = run(x, weight)[0].argmax()
    weight.flat[best] = 1
    total = np.zeros_like(x[0])
    for shift in random.integers(-1, 2, (options.copies, 2)):
        noise = 0.2 * np.ptp(x) * random.standard_normal(x.shape, np.float32)
        total += np.roll(run(np.roll(x, shift, rows) + noise, weight)[-1], -shift, rows)[0]
    slope = np.abs(total).max(0 if spec.how.layout == "NCHW" else 2)
    slope = np.clip(slope / np.quantile(slope, 0.995), 0, 1)
    above.imshow(picture, cmap="gray")
    above.set_title(names[best] if names else str(best), fontsize=9)
    below.imshow(picture / picture.max() * 0.6, cmap="gray", vmax=1)
    below.imshow(slope, cmap="hot", alpha=slope)
    above.axis("off"), below.axis("off")
options.output.parent.mkdir(parents=True, exist_ok=True)
figure.tight_layout(pad=0.3)
figure.savefig(options.output, dpi=80)
print(f"saved {options.output}")
