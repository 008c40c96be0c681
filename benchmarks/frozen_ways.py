"""The ways to fine-tune a network with a frozen part: ``python -m benchmarks.frozen_ways WAY CASE EPOCHS FOLDER``."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["WAYS", "write_network"]

BATCH, RATE, MOMENTUM, SEED = 8, 0.001, 0.9, 0  # as in PyTorch's tutorial, but that it has batches of 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAST_BLOCK, HEAD = 11, 14  # where they are in the network
Data = dict[str, np.ndarray]
Result = tuple[str, list[float]]  # what it ran on, and the validation loss after each epoch


def network() -> Any:
    """ResNet-18 for two classes, with the same random weights each time."""
    import torch

    from benchmarks import nets

    net = nets.build("resnet18")
    net[HEAD] = torch.nn.Linear(512, 2)
    return net


def write_network(path: Path) -> None:
    """Writes the network as ONNX; it says how photographs become its input."""
    from benchmarks.export import write_onnx
    from surgery import load, save
    from surgery.marks import Preprocessing, set_preprocessing

    write_onnx(network(), (3, 224, 224), path)
    model = load(path)
    set_preprocessing(model, "data", Preprocessing(scale=1 / 255, mean=MEAN, std=STD, size=(224, 224)))
    save(model, path)


def orders(count: int, epochs: int) -> Iterator[Iterator[np.ndarray]]:
    """The examples of each batch of each epoch, as ours are drawn."""
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng([SEED, epoch]).permutation(count)
        yield (order[i : i + BATCH] for i in range(0, count, BATCH))


def ours(case: str, epochs: int, data: Data, folder: Path, cache: bool = True) -> Callable[[], Result]:
    """`surgery.train`, from the ONNX file."""
    import surgery
    from surgery import runtime
    from surgery.passes import Freeze, Unfreeze
    from surgery.training.trainer import train

    runtime.providers("cpu")
    runtime.has_training_kernels()

    def run() -> Result:
        model = surgery.load(folder / "net.onnx")
        Freeze(layers="all")(model)
        Unfreeze(layers=["head"] if case == "head" else [f"{LAST_BLOCK}.*", "head"])(model)
        how: dict[str, Any] = {"epochs": epochs, "batch_size": BATCH, "learning_rate": RATE, "seed": SEED}
        result = train(
            model,
            (data["x"], data["t"]),
            validation=(data["held_x"], data["held_t"]),
            optimizer={"name": "sgd", "momentum": MOMENTUM},
            loss="cross_entropy",
            cache=cache,
            **how,
        )
        return runtime.describe(), [record["val_loss"] for record in result.history]

    return run


def pytorch(case: str, epochs: int, data: Data, folder: Path, by_hand: bool = False) -> Callable[[], Result]:
    """The usual loop, the frozen part in evaluation mode and without gradients; or on features kept by hand."""
    import torch
    from torch.nn.functional import cross_entropy

    def run() -> Result:
        net = network().eval().requires_grad_(False)
        first = HEAD if case == "head" else LAST_BLOCK
        frozen, trained = net[:first], net[first:]
        trained.requires_grad_(True)
        optimizer = torch.optim.SGD(trained.parameters(), RATE, momentum=MOMENTUM)
        shift, scale = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, STD))

        def prepared(pixels: np.ndarray) -> torch.Tensor:
            return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - shift) / scale

        @torch.no_grad()
        def features(pixels: np.ndarray) -> torch.Tensor:
            return torch.cat([frozen(prepared(pixels[i : i + 32])) for i in range(0, len(pixels), 32)])

        kept = {name: features(data[name]) for name in ("x", "held_x")} if by_hand else {}

        def outputs(name: str, index: Any) -> torch.Tensor:
            return trained(kept[name][index]) if by_hand else trained(frozen(prepared(data[name][index])))

        losses = []
        for batches in orders(len(data["x"]), epochs):
            trained.train()
            for index in batches:
                optimizer.zero_grad()
                cross_entropy(outputs("x", index), torch.from_numpy(data["t"][index])).backward()
                optimizer.step()
            trained.eval()
            total, count = 0.0, len(data["held_x"])
            with torch.no_grad():
                for i in range(0, count, BATCH):
                    part = slice(i, i + BATCH)
                    target = torch.from_numpy(data["held_t"][part])
                    total += cross_entropy(outputs("held_x", part), target, reduction="sum").item()
            losses.append(total / count)
        return f"PyTorch {torch.__version__}", losses

    return run


def keras(case: str, epochs: int, data: Data, folder: Path) -> Callable[[], Result]:
    """`Model.fit` on the PyTorch backend, frozen layers not trainable."""
    import keras as k
    import torch

    k.backend.set_image_data_format("channels_first")

    def built() -> tuple[Any, list[Any], Any]:
        """The network, its last block's and head's layers, and the head."""
        weights = iter(network().modules())
        last: list[Any] = []

        def normalized(x: Any, channels: int, size: int, stride: int, last_block: bool) -> Any:
            conv = next(m for m in weights if isinstance(m, torch.nn.Conv2d))
            norm = next(m for m in weights if isinstance(m, torch.nn.BatchNorm2d))
            x = k.layers.ZeroPadding2D(size // 2)(x)
            layer = k.layers.Conv2D(channels, size, stride, use_bias=False)
            x = layer(x)
            layer.set_weights([conv.weight.detach().permute(2, 3, 1, 0).numpy()])
            normal = k.layers.BatchNormalization(axis=1, momentum=0.9, epsilon=1e-5)
            x = normal(x)
            normal.set_weights(
                [v.detach().numpy() for v in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
            )
            last.extend([layer, normal] if last_block else [])
            return x

        inputs = x = k.Input((3, 224, 224))
        x = k.layers.ReLU()(normalized(x, 64, 7, 2, False))
        x = k.layers.MaxPooling2D(3, 2)(k.layers.ZeroPadding2D(1)(x))  # behind a ReLU, zeros change no maximum
        for stage, width in enumerate((64, 128, 256, 512)):
            for block in range(2):
                stride, end = 2 if stage and not block else 1, stage == 3 and block == 1
                y = k.layers.ReLU()(normalized(x, width, 3, stride, end))
                y = normalized(y, width, 3, 1, end)
                x = normalized(x, width, 1, stride, end) if stage and not block else x
                x = k.layers.ReLU()(k.layers.add([x, y]))
        head = k.layers.Dense(2)
        outputs = head(k.layers.GlobalAveragePooling2D()(x))
        linear = next(m for m in weights if isinstance(m, torch.nn.Linear))
        head.set_weights([linear.weight.detach().numpy().T, linear.bias.detach().numpy()])
        return k.Model(inputs, outputs), last, head

    def run() -> Result:
        net, last, head = built()
        for layer in net.layers:
            layer.trainable = layer is head or (case == "block" and layer in last)
        loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
        net.compile(k.optimizers.SGD(RATE, momentum=MOMENTUM), loss)
        x, held = (
            ((data[name].transpose(0, 3, 1, 2) / np.float32(255)) - np.array(MEAN, np.float32)[:, None, None])
            / np.array(STD, np.float32)[:, None, None]
            for name in ("x", "held_x")
        )
        history = net.fit(
            x, data["t"], BATCH, epochs, verbose=0, validation_data=(held, data["held_t"]), validation_batch_size=BATCH
        )
        return f"Keras {k.__version__} on PyTorch", history.history["val_loss"]

    return run


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of training.

    Attributes:
        title: Its name in tables.
        make: Imports what it needs and returns what trains.
        stock: Whether it runs on the stock runtime.
    """

    title: str
    make: Callable[[str, int, Data, Path], Callable[[], Result]]
    stock: bool = False


WAYS = {
    "pytorch": Way("PyTorch, usual loop", pytorch),
    "by_hand": Way("PyTorch, features kept by hand", lambda *what: pytorch(*what, by_hand=True)),
    "keras": Way("Keras", keras),
    "training": Way("ours, training build", ours),
    "stock": Way("ours, stock", ours, stock=True),
    "uncached": Way("ours, training build, cache: false", lambda *what: ours(*what, cache=False)),
}


def main() -> None:
    """Trains one way; prints seconds and losses as JSON."""
    way, case, epochs, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    with np.load(folder / "data.npz") as file:
        data = dict(file)
    run = WAYS[way].make(case, epochs, data, folder)
    start = time.perf_counter()
    runtime, losses = run()
    print(json.dumps({"seconds": time.perf_counter() - start, "runtime": runtime, "losses": losses}))


if __name__ == "__main__":
    main()
