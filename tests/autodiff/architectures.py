"""Well-known architectures, small: PyTorch modules with the building blocks of the networks that they are named for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "CLASSES"]

CLASSES = 5


def _conv(ins: int, outs: int, kernel: int, act: type[nn.Module] | None, stride: int = 1, groups: int = 1) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(ins, outs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outs),
    ]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        s = F.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.expand(self.act(self.reduce(s))))


class _InvertedResidual(nn.Module):
    def __init__(
        self,
        ins: int,
        outs: int,
        kernel: int,
        stride: int,
        expand: int,
        act: type[nn.Module],
        gate: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        wide = ins * expand
        layers = [_conv(ins, wide, 1, act)] if expand > 1 else []
        layers.append(_conv(wide, wide, kernel, act, stride, wide))
        if gate is not None:
            layers.append(_SqueezeExcite(wide, max(wide // 4, 4), nn.ReLU if gate is nn.Hardsigmoid else act, gate))
        self.layers = nn.Sequential(*layers, _conv(wide, outs, 1, None))
        self.shortcut = stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.shortcut else y


class _Mobile(nn.Module):
    """A stem, inverted residuals (kernel, stride, expansion, width), a wide 1×1 convolution, pooling, a classifier."""

    def __init__(
        self, blocks: list[tuple[int, int, int, int]], act: type[nn.Module], gate: type[nn.Module] | None, hidden: bool
    ) -> None:
        super().__init__()
        width = 8
        layers = [_conv(3, width, 3, act, 2)]
        for kernel, stride, expand, outs in blocks:
            layers.append(_InvertedResidual(width, outs, kernel, stride, expand, act, gate))
            width = outs
        self.features = nn.Sequential(*layers, _conv(width, 48, 1, act))
        self.classifier = nn.Sequential(
            *([nn.Linear(48, 32), act()] if hidden else []), nn.Dropout(0.2), nn.Linear(32 if hidden else 48, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class MobileNetV2Like(_Mobile):
    def __init__(self) -> None:
        super().__init__([(3, 1, 1, 8), (3, 2, 6, 12), (3, 1, 6, 12), (3, 2, 6, 16)], nn.ReLU6, None, False)


class MobileNetV3Like(_Mobile):
    def __init__(self) -> None:
        super().__init__([(3, 2, 1, 8), (5, 1, 3, 8), (5, 2, 4, 16)], nn.Hardswish, nn.Hardsigmoid, True)


class EfficientNetLike(_Mobile):
    def __init__(self) -> None:
        super().__init__([(3, 1, 1, 8), (3, 2, 6, 12), (5, 1, 6, 12), (5, 2, 6, 16)], nn.SiLU, nn.Sigmoid, False)


class _ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.reduce = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.reduce(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class _ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 4, 4), _ChannelNorm(12))
        self.stages = nn.Sequential(
            _ConvNeXtBlock(12), _ChannelNorm(12), nn.Conv2d(12, 24, 2, 2), _ConvNeXtBlock(24), _ConvNeXtBlock(24)
        )
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(self.stem(x)).mean((2, 3))))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 17, 16) * 0.02)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.encoder(x)[:, 0])


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (
            f(x).view(n, t, self.heads, width // self.heads).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(n, t, width))


class _BertLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.norm1 = _Attention(width, 4), nn.LayerNorm(width)
        self.expand, self.reduce, self.norm2 = nn.Linear(width, 32), nn.Linear(32, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.reduce(F.gelu(self.expand(x))))


class BertLike(nn.Module):
    """Token numbers of shape [N, 10], 0 for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(30, 16), nn.Embedding(10, 16)
        self.norm = nn.LayerNorm(16)
        self.layers = nn.ModuleList(_BertLayer(16) for _ in range(2))
        self.pooler, self.classifier = nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(places))
        mask = (ids != 0)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class Crnn(nn.Module):
    """Reads text in pictures: convolutions, then a bidirectional LSTM along the width."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.lstm = nn.LSTM(12 * 8, 10, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.lstm(columns)[0].mean(1))


class GruText(nn.Module):
    """Token numbers of shape [N, 10]; the class is told from a GRU's last state."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.gru, self.head = nn.Embedding(30, 8), nn.GRU(8, 12, batch_first=True), nn.Linear(12, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.gru(self.words(ids))[1][-1])


ARCHITECTURES: dict[str, type[nn.Module]] = {
    "mobilenet_v2": MobileNetV2Like,
    "mobilenet_v3": MobileNetV3Like,
    "efficientnet": EfficientNetLike,
    "convnext": ConvNeXtLike,
    "vit": ViT,
    "bert": BertLike,
    "crnn": Crnn,
    "gru": GruText,
}
