"""Finds faces with the three networks of MTCNN (Zhang et al. 2016, arXiv:1604.02878), converted from Caffe.

    python examples/mtcnn_faces.py MODELS PHOTO... [-o FOLDER]

MODELS is a folder with det1, det2 and det3, each a prototxt and a caffemodel, as the authors publish them. Prints the
boxes and, with -o, writes the photographs with the faces marked.

The first network runs over the photograph in several sizes, so it is converted for any size; the others look at what it
proposes, cut out and resized. They take pictures turned on their side, as Matlab has them: [N, 3, width, height].
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import converters
from surgery.runtime import session

LEAST, SHRINK = 40, 0.709  # the smallest face, in pixels; each size of the photograph is so much smaller than the last
CELL, STRIDE = 12, 2  # the first network's window, and how far apart its windows are
THRESHOLDS = (0.6, 0.7, 0.7)


Network = Callable[[np.ndarray], dict[str, np.ndarray]]


def load(folder: Path, name: str, shape: str | None = None) -> Network:
    """A network as a function from pictures [N, 3, W, H] to its outputs by name."""
    runner = session(converters.convert(folder / f"{name}.prototxt", shape=shape), ["CPUExecutionProvider"])
    names = [output.name for output in runner.get_outputs()]
    return lambda x: dict(zip(names, runner.run(None, {"data": x}), strict=True))


def prepare(image: Image.Image, size: tuple[int, int], box: np.ndarray | None = None) -> np.ndarray:
    """The picture, or what `box` cuts out of it, as the networks take it: about −1 to 1, on its side."""
    if box is not None:
        left, top, right, bottom = (round(side) for side in box.tolist())
        image = image.crop((left, top, right, bottom))  # black where the box is outside
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
    return ((pixels - 127.5) / 128).transpose(2, 1, 0)


def suppress(boxes: np.ndarray, scores: np.ndarray, most: float, of_smaller: bool = False) -> np.ndarray:
    """Which boxes stay when those that overlap a better one by more than `most` go."""
    order, kept = list(np.argsort(-scores)), []
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    while order:
        best = order.pop(0)
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        whole = np.minimum(area[best], area[order]) if of_smaller else area[best] + area[order] - common
        order = [index for index, share in zip(order, common / whole, strict=True) if share <= most]
    return np.array(kept, int)


def moved(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Boxes with their sides moved by shares of their width and height."""
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return boxes + offsets * size


def squared(boxes: np.ndarray) -> np.ndarray:
    """The squares around the middles of boxes, as wide as the longer side."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.concatenate([middle - half, middle + half], 1)


def propose(image: Image.Image, network: Network) -> np.ndarray:
    """Boxes of any size in which the first network sees a face."""
    boxes, scores = [np.zeros((0, 4))], [np.zeros(0)]
    scale = CELL / LEAST
    while min(image.size) * scale >= CELL:
        width, height = (round(side * scale) for side in image.size)
        out = network(prepare(image, (width, height))[None])
        faces = out["prob1"][0, 1]
        x, y = np.nonzero(faces > THRESHOLDS[0])
        corner = STRIDE * np.stack([x, y], 1)
        found = np.concatenate([corner, corner + CELL], 1) / scale
        offsets = out["conv4-2"][0][:, x, y].T
        kept = suppress(found, faces[x, y], 0.5)
        boxes.append(moved(found, offsets)[kept])
        scores.append(faces[x, y][kept])
        scale *= SHRINK
    all_boxes, all_scores = np.concatenate(boxes), np.concatenate(scores)
    return squared(all_boxes[suppress(all_boxes, all_scores, 0.7)])


def find_faces(image: Image.Image, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the boxes of faces ([N, 4]: left, top, right, bottom), their scores [N] and points [N, 5, 2].

    The points of a face are the eyes, the nose and the corners of the mouth.
    """
    image = image.convert("RGB")
    boxes = propose(image, load(folder, "det1", "3x?x?"))
    for name, size, least, probability, offsets in (
        ("det2", 24, THRESHOLDS[1], "prob1", "conv5-2"),
        ("det3", 48, THRESHOLDS[2], "prob1", "conv6-2"),
    ):
        if not len(boxes):
            return np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2))
        out = load(folder, name)(np.stack([prepare(image, (size, size), box) for box in boxes]))
        good = out[probability][:, 1] > least
        cells, scores = boxes[good], out[probability][good, 1]
        boxes = moved(cells, out[offsets][good])
        if name == "det2":
            boxes = squared(boxes[suppress(boxes, scores, 0.7)])
    points = out["conv6-3"][good].reshape(-1, 2, 5).transpose(0, 2, 1)
    points = cells[:, None, :2] + points * (cells[:, None, 2:] - cells[:, None, :2])
    kept = suppress(boxes, scores, 0.7, of_smaller=True)
    return boxes[kept], scores[kept], points[kept]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, help="folder for the photographs with the faces marked")
    options = parser.parse_args()
    for path in options.photos:
        image = Image.open(path).convert("RGB")
        boxes, scores, points = find_faces(image, options.models)
        print(f"{path}: {len(boxes)} faces")
        for box, score in zip(boxes, scores, strict=True):
            print(f"  {score:.3f}  " + " ".join(f"{side:.0f}" for side in box))
        if options.output:
            draw = ImageDraw.Draw(image)
            for box, five in zip(boxes, points, strict=True):
                draw.rectangle(tuple(box), outline="lime", width=2)
                for x, y in five:
                    draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill="red")
            options.output.mkdir(parents=True, exist_ok=True)
            image.save(options.output / f"{path.stem}.png")


if __name__ == "__main__":
    main()
