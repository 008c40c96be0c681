"""The three networks of MTCNN together find the faces in two photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.mtcnn_faces import find_faces

# Eyes, nose and corners of the mouth, read off the photographs by hand.
FACES = {
    "faces1.jpg": [
        [(112, 48), (139, 52), (127, 65), (110, 77), (135, 81)],
        [(312, 122), (338, 118), (323, 136), (318, 151), (341, 148)],
    ],
    "faces2.jpg": [[(217, 159), (274, 141), (247, 187), (241, 225), (291, 210)]],
}


@pytest.mark.parametrize("name", FACES)
def test_faces_are_found(shared_data: Path, name: str) -> None:
    folder = shared_data / "caffe" / "mtcnn"
    boxes, scores, points = find_faces(Image.open(folder / name), folder)
    expected = np.array(FACES[name], float)
    order = np.argsort(boxes[:, 0])
    assert len(boxes) == len(expected)
    assert scores.min() > 0.99
    width = (boxes[order, 2] - boxes[order, 0])[:, None]
    assert (np.linalg.norm(points[order] - expected, axis=2) < 0.05 * width).all()
    for box, face in zip(boxes[order], expected, strict=True):
        assert (face > box[:2]).all()
        assert (face < box[2:]).all()


def test_a_photograph_without_faces_has_none(shared_data: Path) -> None:
    boxes, scores, points = find_faces(Image.new("RGB", (200, 150), "grey"), shared_data / "caffe" / "mtcnn")
    assert (len(boxes), len(scores), len(points)) == (0, 0, 0)
