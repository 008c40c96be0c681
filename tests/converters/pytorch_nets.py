"""PyTorch networks that the tests convert, also by name: ``tests.converters.pytorch_nets:small``."""

from __future__ import annotations

import torch
from torch import nn

__all__ = [
    "Attention",
    "Bare",
    "Block",
    "FixedBatch",
    "Net",
    "Pooled",
    "Recurrent",
    "Two",
    "embedding",
    "failing",
    "number",
    "ready",
    "small",
]


class Block(nn.Module):
    """Two convolutions with a shortcut; its activation is used twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU6(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(y)))


class Net(nn.Module):
    """A small residual network with Dropout as a module, in place, and as a function."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish(), nn.MaxPool2d(3, 2, 1))
        self.layer1 = nn.Sequential(Block(8), nn.Dropout(0.1, inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.flatten(self.avgpool(self.layer1(self.stem(x))), 1)
        x = nn.functional.dropout(x, 0.2, training=self.training)
        return self.fc(self.drop(x))


class Bare(nn.Module):
    """Parameters without a module of their own; the bias starts as zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.start = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight, self.start)


class Pooled(nn.Module):
    """Pools to a size, as VGG does, or to one number a channel."""

    def __init__(self, size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 32, stride=32)
        self.avgpool = nn.AdaptiveAvgPool2d(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.avgpool(self.conv(x)), 1)


class Two(nn.Module):
    """Two inputs, two outputs, and a number that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)
        self.register_buffer("scale", torch.full((3,), 2.0))

    def forward(self, image: torch.Tensor, info: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.a(image) + self.b(info) * self.scale
        return x, x.softmax(-1)


class Attention(nn.Module):
    """Rows of a table, attention, and a linear layer on sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.table(tokens)))


class FixedBatch(nn.Module):
    """Code that says how many examples a batch has."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).reshape(1, 2)


class Recurrent(nn.Module):
    """All that drops otherwise than Dropout: channels, between recurrent layers, by SELU's rule, in attention."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = nn.Dropout2d(0.5)
        self.rnn = nn.LSTM(6, 5, num_layers=2, dropout=0.5, batch_first=True)
        self.alpha = nn.AlphaDropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.alpha(self.rnn(self.channels(x).flatten(2).transpose(1, 2))[0]).unsqueeze(1)
        dropped = 0.5 if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(y, y, y, None, dropped)


def small(classes: int = 5, seed: int = 0, frozen: bool = False) -> nn.Module:
    """`Net` with statistics as after training."""
    torch.manual_seed(seed)
    net = Net(classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    net.stem.requires_grad_(not frozen)
    return net.eval()


def embedding() -> nn.Module:
    torch.manual_seed(0)
    return Attention()


def failing() -> nn.Module:
    raise ValueError("no such\nluck")


def number() -> int:
    return 3


ready = small(classes=2)
