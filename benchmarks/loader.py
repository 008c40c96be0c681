"""Images per second of the loader alone, beside PyTorch's DataLoader and the step that it feeds.

    .venv/bin/python -m benchmarks.loader [--data FOLDER]

A folder of JPEG photographs (500 × 375, made here where none is given) becomes batches of 224² for a network: decoded,
a resized crop, a flip and colour jitter, normalized. PyTorch's data set does the same with the same Pillow operations,
in one process and in as many as there are cores. All take turns; numbers are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader

from benchmarks.ways import WAYS
from benchmarks.work import NETS, Task
from surgery import load
from surgery.data import Augment, Dataset, from_folder
from surgery.passes import SetPreprocessing

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
SIZE, JITTER = 224, 0.4
AUGMENT = {"resized_crop": True, "horizontal_flip": True, "color_jitter": JITTER}


def write_photographs(folder: Path, count: int) -> Path:
    """Writes JPEG files with the detail of photographs: noise whose power falls with its frequency."""
    rng = np.random.default_rng(0)
    height, width = 375, 500
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    for index in range(count):
        (folder / f"class{index % 2}").mkdir(exist_ok=True)
        noise = np.fft.fft2(rng.normal(size=(3, height, width))) / np.maximum(frequency, 1 / width)
        pixels = np.fft.ifft2(noise).real.transpose(1, 2, 0)
        pixels = 127 + 50 * pixels / pixels.std()
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(folder / f"class{index % 2}" / f"{index}.jpg", quality=90)
    return folder


class Photographs(torch.utils.data.Dataset):
    """The same work as a PyTorch data set does it."""

    def __init__(self, files: list[Path], augment: bool) -> None:
        self.files, self.augment = files, augment

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        rng = np.random.default_rng()
        with Image.open(self.files[index]) as file:
            image: Image.Image = file.convert("RGB")
        if self.augment:
            area = image.width * image.height * rng.uniform(0.08, 1)
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = min(round(np.sqrt(area * ratio)), image.width), min(round(np.sqrt(area / ratio)), image.height)
            left, top = rng.integers(image.width - w + 1), rng.integers(image.height - h + 1)
            image = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(rng.uniform(1 - JITTER, 1 + JITTER))
        else:
            short = 256 / min(image.size)
            image = image.resize((round(image.width * short), round(image.height * short)), Image.Resampling.BILINEAR)
            left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
            image = image.crop((left, top, left + SIZE, top + SIZE))
        pixels = (np.asarray(image, np.float32) / 255 - MEAN) / STD
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), index % 2


def ours(data: Dataset, batch: int) -> Iterator[int]:
    """Counts the images of an epoch, batch by batch."""
    for examples, _ in data.batches(batch, seed=0, epoch=1):
        yield len(examples)


def pytorch(loader: DataLoader) -> Iterator[int]:
    """The same of a DataLoader."""
    for examples, _ in loader:
        yield len(examples)


def rate(epoch: Callable[[], Iterator[int]]) -> float:
    """Images per second of an epoch; our threads are started for it, PyTorch's processes are there already."""
    start = time.perf_counter()
    return sum(epoch()) / (time.perf_counter() - start)


def step_rate(folder: Path) -> float:
    """Images per second of the head-only step of ResNet-18."""
    task = Task("resnet18", "head", str(folder / "resnet18.onnx"))
    step = WAYS["training"].load()(task).step
    for _ in range(3):
        step()
    start = time.perf_counter()
    for _ in range(20):
        step()
    return 20 * NETS["resnet18"].batch / (time.perf_counter() - start)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Times the loader alone, beside PyTorch's and the step.")
    parser.add_argument("--data", type=Path, help="a folder with a folder of JPEG images for each class")
    parser.add_argument("--images", type=int, default=256, help="how many photographs are made without --data")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "benchmarks.export", "resnet18", name], check=True)
        model = load(folder / "resnet18.onnx")
        SetPreprocessing(preset="torchvision")(model)
        images = options.data
        if images is None:
            (folder / "images").mkdir()
            images = write_photographs(folder / "images", options.images)
        files = sorted(images.rglob("*.jpg"))
        rows: dict[tuple[str, str], Callable[[], Iterator[int]]] = {}
        for augment in (True, False):
            work = "augmented" if augment else "as evaluated"
            for title, memory in (("ours, from files", 0), ("ours, decoded images kept", 2 * 10**9)):
                data = from_folder(images, model, memory=memory)
                data = data.augmented(Augment(**AUGMENT)) if augment else data  # type: ignore[arg-type]
                rows[work, title] = lambda data=data: ours(data, options.batch)  # type: ignore[misc]
            for workers in (0, cores):
                loader: Any = DataLoader(
                    Photographs(files, augment),
                    options.batch,
                    shuffle=True,
                    num_workers=workers,
                    persistent_workers=workers > 0,
                )
                title = f"PyTorch's DataLoader, {workers} processes"
                rows[work, title] = lambda loader=loader: pytorch(loader)  # type: ignore[misc]
        found: dict[tuple[str, str], list[float]] = {key: [] for key in rows}
        for _ in range(options.repetitions + 1):  # the first fills the caches and does not count
            for key, epoch in rows.items():
                found[key].append(rate(epoch))
        step = step_rate(folder)
    print(f"{len(files)} images, batches of {options.batch}, {cores} cores, {options.repetitions} turns\n")
    print("| images | loader | images/s | of the head-only step's |\n| --- | --- | ---: | ---: |")
    for (work, title), rates in found.items():
        median = statistics.median(rates[1:])
        print(f"| {work} | {title} | {median:.0f} | {median / step:.1f}× |")
    print(f"\nThe head-only step of ResNet-18 (batch {NETS['resnet18'].batch}) takes {step:.0f} images/s.")


if __name__ == "__main__":
    main()
