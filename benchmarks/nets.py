"""The networks that are timed: PyTorch modules.

The layers are those of the papers, as torchvision builds them; the weights are random.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["build"]


def _lenet() -> nn.Module:
    """Caffe's LeNet (LeCun et al. 1998, with rectifiers)."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def _normalized(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias and its batch normalization."""
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(after)]


class _Residual(nn.Module):
    """He et al. 2015, figures 2 and 5: two 3×3 convolutions, or a bottleneck of 1×1, 3×3 and 1×1."""

    def __init__(self, before: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        after = width * 4 if bottleneck else width
        if bottleneck:
            steps = [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)]
        else:
            steps = [(before, width, 3, stride), (width, width, 3, 1)]
        layers = [layer for step in steps for layer in (*_normalized(*step), nn.ReLU(inplace=True))]
        self.branch = nn.Sequential(*layers[:-1])
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normalized(before, after, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


def _resnet(depths: tuple[int, ...], bottleneck: bool) -> nn.Module:
    """He et al. 2015, table 1."""
    layers = [*_normalized(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for block in range(depth):
            layers.append(_Residual(before, width, 2 if stage and not block else 1, bottleneck))
            before = width * 4 if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))


class _Inverted(nn.Module):
    """Sandler et al. 2018, figure 4d: widen, convolve by channel, narrow."""

    def __init__(self, before: int, after: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = before * widening
        layers = [*_normalized(before, wide, 1), nn.ReLU6(inplace=True)] if widening > 1 else []
        layers += [*_normalized(wide, wide, 3, stride, wide), nn.ReLU6(inplace=True), *_normalized(wide, after, 1)]
        self.branch = nn.Sequential(*layers)
        self.same = stride == 1 and before == after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x) if self.same else self.branch(x)


def _mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018, table 2."""
    layers = [*_normalized(3, 32, 3, 2), nn.ReLU6(inplace=True)]
    before = 32
    for widening, after, depth, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(depth):
            layers.append(_Inverted(before, after, stride if not block else 1, widening))
            before = after
    layers += [*_normalized(before, 1280, 1), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, 1000))


def _vgg11() -> nn.Module:
    """Simonyan and Zisserman 2014, table 1, column A."""
    layers: list[nn.Module] = []
    before = 3
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in stage:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
            before = width
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for before, after in ((512 * 7 * 7, 4096), (4096, 4096)):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(4096, 1000))


class _Attention(nn.Module):
    """Vaswani et al. 2017, section 3.2.2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.split = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.split(x).chunk(3, dim=2))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.join(mixed.transpose(1, 2).flatten(2))


class _Encoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), _Attention(width, heads))
        wide = [nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)]
        self.perceptron = nn.Sequential(*wide)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        return x + self.perceptron(x)


class _Vit(nn.Module):
    """Dosovitskiy et al. 2020, section 3.1, in the size of Touvron et al. 2020, table 1 (DeiT-Ti)."""

    def __init__(self, width: int = 192, heads: int = 3, depth: int = 12, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (224 // patch) ** 2 + 1, width) * 0.02)
        self.encoder = nn.Sequential(*[_Encoder(width, heads) for _ in range(depth)], nn.LayerNorm(width))
        self.head = nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.encoder(x)[:, 0])


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "lenet": _lenet,
    "resnet18": lambda: _resnet((2, 2, 2, 2), False),
    "resnet50": lambda: _resnet((3, 4, 6, 3), True),
    "mobilenet_v2": _mobilenet_v2,
    "vgg11": _vgg11,
    "vit_tiny": _Vit,
}


def build(name: str, dropout: bool = True) -> nn.Module:
    """The network of a name, with the same random weights each time; without `dropout`, its ratios are 0."""
    torch.manual_seed(0)
    net = _BUILDERS[name]()
    for module in net.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    return net
