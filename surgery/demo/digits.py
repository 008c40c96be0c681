"""Writes the handwritten digits that ship inside scikit-learn as a .npz file for training.

    python -m surgery.demo.digits digits.npz --train 200

They are 1,797 scans of 8×8 pixels by 43 writers (Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI
Machine Learning Repository, 1998), here made as large as MNIST's: 20×20 in the middle of 28×28. The training examples
are drawn with a seed, as many of each class; all others are for testing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from surgery.cli import guarded
from surgery.data.preprocess import require_pillow
from surgery.errors import SurgeryError
from surgery.io import replacing

__all__ = ["digits"]


def _as_large_as_mnists(image: np.ndarray) -> np.ndarray:
    """8×8 of 0–16 → uint8 28×28."""
    from PIL import Image

    pixels = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    return np.pad(np.asarray(pixels.resize((20, 20), Image.Resampling.LANCZOS)), 4)


def digits(train: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns ``x_train``, ``y_train``, ``x_test``, ``y_test`` and ``labels``.

    Args:
        train: How many training examples, a tenth of them of each class.
        seed: Draws them.

    Raises:
        SurgeryError: Pillow or scikit-learn is missing.
    """
    require_pillow()
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SurgeryError(
            f"the digits come with scikit-learn ({error}); install it with: pip install 'onnx-surgery[train]'"
        ) from error
    source = load_digits()
    images = np.stack([_as_large_as_mnists(image) for image in source.images])
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = np.concatenate([order[source.target[order] == digit][: train // 10] for digit in range(10)])
    rest = np.setdiff1d(order, chosen)
    return {
        "x_train": images[chosen],
        "y_train": source.target[chosen],
        "x_test": images[rest],
        "y_test": source.target[rest],
        "labels": np.array([str(digit) for digit in range(10)]),
    }


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the .npz file")
    parser.add_argument("--train", type=int, default=200, help="training examples (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="draws them (default 0)")
    options = parser.parse_args()
    arrays = digits(options.train, options.seed)
    with replacing(options.output) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    print(f"{options.output}: {len(arrays['x_train'])} digits to train on, {len(arrays['x_test'])} to test on")


if __name__ == "__main__":
    guarded(main)
