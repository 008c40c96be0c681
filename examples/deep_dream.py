"""DeepDream: a picture is changed along the gradient until a network sees more of what it looks for.

    python examples/deep_dream.py                                # LeNet, what each of its digits looks like to it
    python examples/deep_dream.py network.onnx cat.jpg conv4     # any image network, any picture, one of its layers

Without a picture, it grows from black for each class, by the class's score (Simonyan et al. 2014, arXiv:1312.6034);
with one, by half the squared norm of the layer's activations (Mordvintsev et al. 2015, Inceptionism). So that shapes
come out and not noise, the gradient is averaged over noisy copies moved by a few pixels, and blurred, less and less.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

import converters
import surgery
from surgery import runtime
from surgery.data.preprocess import input_spec, preparer, resize
from surgery.layers import find_layer
from surgery.training.losses import strip_activation

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default=Path(__file__).parents[1] / "models" / "lenet_mnist")
parser.add_argument("picture", nargs="?")
parser.add_argument("layer", nargs="?", help="needed with a picture")
parser.add_argument("-o", "--output", type=Path, default=Path("out/deep_dream.png"))
parser.add_argument("--steps", type=int, default=100, help="along the gradient (default 100)")
options = parser.parse_args()

model = converters.convert(options.model)
spec, pixels, random = input_spec(model), str(model.graph.inputs[0].name), np.random.default_rng(0)
rows = (2, 3) if spec.how.layout == "NCHW" else (1, 2)


def dream(
    start: np.ndarray, of: str, weight: Callable[[np.ndarray], np.ndarray], rate: float, noise: float, ink: float
) -> np.ndarray:
    """Changes `start`, a uint8 picture, so that the sum of `of` by its weights grows; `ink` is what drawing costs."""
    session = runtime.session(surgery.gradient(model, of=of, wrt=[pixels]), runtime.providers("auto"))
    prepare = preparer(start[None], spec)
    x, low, high = (prepare(picture[None]) for picture in (start, np.zeros_like(start), np.full_like(start, 255)))
    for done in np.linspace(0, 1, options.steps, endpoint=False).tolist():
        total = np.zeros_like(x)
        for shift in random.integers(-2, 3, (4, 2)):
            noisy = x + noise * (high - low) * random.standard_normal(x.shape, np.float32)
            moved = np.roll(np.clip(noisy, low, high), shift, rows)
            slope = session.run([f"gradient/{pixels}"], {pixels: moved, f"{of}/weight": weight(moved)})[0]
            total += np.roll(slope, -shift, rows)
        total = gaussian_filter(total, [2 - 1.4 * done if axis in rows else 0 for axis in range(4)])
        step = total / (np.abs(total).mean() + 1e-12) - ink
        x = np.clip(x + rate * (1 - 0.8 * done) * (high - low) * step, low, high)
    shown = ((x - low) / (high - low))[0]
    shown = shown.transpose(1, 2, 0) if spec.how.layout == "NCHW" else shown
    return shown[..., ::-1] if spec.how.color == "bgr" else shown


if options.picture:
    layer = find_layer(model, options.layer).output
    if layer not in model.graph.outputs:
        model.graph.outputs.append(layer)
    sees = runtime.session(model, runtime.providers("auto"))
    picture = np.asarray(Image.open(options.picture).convert("RGB"))
    picture = resize(picture, spec.size) if spec.size else picture
    name = str(layer.name)
    dreams = {"": picture, name: dream(picture, name, lambda x: sees.run([name], {pixels: x})[0], 0.005, 0.05, 0)}
else:
    strip_activation(model.graph, model.graph.outputs[0])  # scores instead of probabilities
    scores = model.graph.outputs[0]
    black = np.zeros((*(spec.size or (224, 224)), spec.channels or 3), np.uint8)
    one_hot = np.eye(int(scores.shape[1]), dtype=np.float32)[:10].reshape(-1, 1, *scores.shape[1:])
    dreams = {str(i): dream(black, str(scores.name), lambda x, w=w: w, 0.06, 0.2, 0.65) for i, w in enumerate(one_hot)}
figure, axes = plt.subplots(1, len(dreams), figsize=(11, 11 / len(dreams) + 0.3), squeeze=False)
for axis, (title, picture) in zip(axes[0], dreams.items(), strict=True):
    axis.imshow(picture, cmap="gray")
    axis.set_title(title, fontsize=9)
    axis.axis("off")
options.output.parent.mkdir(parents=True, exist_ok=True)
figure.tight_layout(pad=0.3)
figure.savefig(options.output, dpi=80)
print(f"saved {options.output}")
