"""Ants and bees: PyTorch's transfer-learning tutorial, by Surgery and by the tutorial's loop, from the same weights.

    python examples/known_results/pretrain_exemplars.py hymenoptera_data -o out/known_results
    python examples/known_results/ants_bees.py hymenoptera_data out/known_results/exemplars.onnx

The tutorial starts from a ResNet-18 that was trained on ImageNet; this from a small network that
`pretrain_exemplars.py` trained on the photographs themselves, without their labels, so that it can be repeated with
what is at hand. What is compared is not how good that network is, but whether both loops make the same of it:
hyper-parameters are the tutorial's, and both see the same batches. As in the tutorial, the best epoch on the
validation photographs counts.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from common import HERE, PHOTOGRAPHS, arguments, photographs
from torch import nn

import surgery
from surgery.data import Dataset, from_arrays
from surgery.recipe import load_recipe
from surgery.training.settings import TrainSettings

parser = arguments(__doc__)
parser.add_argument("data", type=Path, help="the photographs, in folders train and val")
parser.add_argument("model", type=Path, help="what pretrain_exemplars.py made of them")
parser.add_argument("--seeds", type=int, default=5)
options = parser.parse_args()
if not (options.data / "train").is_dir():
    raise SystemExit(f"{options.data}: no folder train in it; {PHOTOGRAPHS}")


def twin(model: ir.Model) -> nn.Sequential:
    """The network in PyTorch, with the same weights; it ends with logits."""
    arrays = {name: torch.from_numpy(v.const_value.numpy().copy()) for name, v in model.graph.initializers.items()}
    stack: list[tuple[str, nn.Module]] = []
    for node in model.graph:
        weight = arrays.get(f"{node.name}.weight")
        if node.op_type == "Conv":
            stack.append((node.name, nn.Conv2d(*weight.shape[1::-1], 3, padding=1)))
        elif node.op_type == "Gemm":
            stack.append((node.name, nn.Linear(*weight.shape[::-1])))
        else:
            layers = {"Relu": nn.ReLU, "MaxPool": lambda: nn.MaxPool2d(2), "Flatten": nn.Flatten}
            layers |= {"GlobalAveragePool": lambda: nn.AdaptiveAvgPool2d(1), "Softmax": nn.Identity}
            stack.append((node.name.replace(".", "_"), layers[node.op_type]()))
    net = nn.Sequential()
    for name, module in stack:
        net.add_module(name.replace("/", "_"), module)
    net.load_state_dict({key: arrays[key] for key in net.state_dict()})
    return net


def tutorials_loop(net: nn.Sequential, data: Dataset, held: Dataset, settings: TrainSettings, seed: int) -> float:
    """The tutorial's loop; returns the best validation accuracy."""
    torch.manual_seed(seed)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    criterion, best = nn.CrossEntropyLoss(), 0.0
    for epoch in range(1, settings.epochs + 1):
        net.train()
        for inputs, labels in data.batches(settings.batch_size, seed=seed, epoch=epoch):
            optimizer.zero_grad()
            criterion(net(torch.from_numpy(inputs)), torch.from_numpy(labels)).backward()
            optimizer.step()
        scheduler.step()
        net.eval()
        with torch.no_grad():
            right = sum(
                int((net(torch.from_numpy(inputs)).argmax(1).numpy() == labels).sum())
                for inputs, labels in held.batches(64)
            )
        best = max(best, right / len(held))
    return best


recipe = load_recipe(HERE / "ants_bees.yaml")
settings = recipe.train.model_copy(update={"epochs": options.epochs or recipe.train.epochs})
pretrained = surgery.load(options.model)
classes = ["ants", "bees"]


def part(name: str) -> Dataset:
    """The photographs of a part, at twice the size of the network's input, in memory."""
    files = [sorted((options.data / name / label).glob("*.jpg"))[: options.examples] for label in classes]
    size = 2 * int(pretrained.graph.inputs[0].shape[2])
    targets = np.repeat([0, 1], [len(group) for group in files])
    return from_arrays(photographs([file for group in files for file in group], size), targets, pretrained, classes)


data, held = part("train"), part("val")
found: dict[str, list[float]] = {}
for seed in range(options.seeds):
    for frozen in (False, True):
        model = pretrained.clone()
        surgery.apply(model, [{"replace_head": {"labels": classes, "seed": seed}}, *recipe.passes[1:]])
        net = twin(model)
        if frozen:
            surgery.apply(model, {"passes": [{"freeze": "all"}, {"unfreeze": "head"}]})
            for name, parameter in net.named_parameters():
                parameter.requires_grad = name.startswith("head")
        which = "the head only" if frozen else "all layers"
        trained = surgery.train(model, data, settings, validation=held, seed=seed)
        ours = max(record["val_accuracy"] for record in trained.history)
        theirs = tutorials_loop(copy.deepcopy(net), data.augmented(settings.augment), held, settings, seed)
        found.setdefault(f"{which}, Surgery", []).append(ours)
        found.setdefault(f"{which}, PyTorch", []).append(theirs)
        print(f"seed {seed}, {which}: Surgery {ours:.1%}, PyTorch {theirs:.1%}", flush=True)
for name, values in found.items():
    print(f"{name:24} {np.mean(values):.1%} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.1%}")
