"""Xception and the networks on it in PyTorch, with the names of the published layouts."""

import itertools
from typing import Any

import torch
from torch import nn


def scaled(channels: int, width: float) -> int:
    return channels if width == 1 else max(8, 8 * -int(-channels * width // 8))


def separable(inputs: int, outputs: int, depthwise: str) -> nn.Module:
    layers = nn.Sequential()
    layers.add_module(depthwise, nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False))
    layers.add_module("pointwise", nn.Conv2d(inputs, outputs, 1, bias=False))
    return layers


class Block(nn.Module):
    """widths: channels that go in, then those behind each separable convolution."""

    def __init__(self, widths: list[int], first: bool, pool: bool, depthwise: str, norm: str):
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.ReLU(), separable(a, b, depthwise), nn.BatchNorm2d(b)]
        layers = layers[1:] if first else layers
        self.rep = nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if pool else []))
        self.norm = norm
        if pool:
            self.skip = nn.Conv2d(widths[0], widths[-1], 1, 2, bias=False)
            self.add_module(norm, nn.BatchNorm2d(widths[-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rep(x) + (
            getattr(self, self.norm)(self.skip(x)) if hasattr(self, "skip") else x
        )


class Trunk(nn.Module):
    """Stem and the first `depth` blocks; the whole Xception but its last layer for depth 13."""

    def __init__(self, depth: int, width: float, depthwise: str = "conv1", norm: str = "skipbn"):
        super().__init__()
        c = [scaled(n, width) for n in (32, 64, 128, 256, 728, 1024, 1536, 2048)]
        self.conv1, self.bn1 = nn.Conv2d(3, c[0], 3, 2, bias=False), nn.BatchNorm2d(c[0])
        self.conv2, self.bn2 = nn.Conv2d(c[0], c[1], 3, bias=False), nn.BatchNorm2d(c[1])
        widths = [[c[i], c[i + 1], c[i + 1]] for i in (1, 2, 3)] + [[c[4]] * 4] * 8
        widths += [[c[4], c[4], c[5]]]
        self.count = min(depth, 12)
        for n, w in enumerate(widths[:depth], start=1):
            block = Block(w, n == 1, n in (1, 2, 3, 12), depthwise, norm)
            self.add_module(f"block{n}", block)
        self.features = widths[self.count - 1][-1]
        if depth == 13:
            self.conv3, self.bn3 = separable(c[5], c[6], depthwise), nn.BatchNorm2d(c[6])
            self.conv4, self.bn4 = separable(c[6], c[7], depthwise), nn.BatchNorm2d(c[7])
            self.features = c[7]

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()

    def blocks(self, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
        for n in range(first, last + 1):
            x = getattr(self, f"block{n}")(x)
        return x

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn4(self.conv4(self.bn3(self.conv3(x)).relu())).relu().mean((2, 3))


class Patches(Trunk):
    """Logits [B, 2, h, w]."""

    def __init__(self, depth: int = 2, width: float = 1.0):
        super().__init__(depth, width)
        self.convout = nn.Conv2d(self.features, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convout(self.blocks(self.stem(x), 1, self.count))


class Classifier(Trunk):
    """Logits [B, 2]."""

    def __init__(self, width: float = 1.0):
        super().__init__(13, width)
        self.fc = nn.Linear(self.features, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pooled(self.blocks(self.stem(x), 1, 12)))


class Attention(Trunk):
    """Logits [B, 2] and the mask [B, 1, h, w]."""

    def __init__(self, width: float = 1.0):
        super().__init__(13, width, "c", "skip_bn")
        self.map = nn.Sequential()
        self.map.add_module("c", separable(scaled(728, width), 1, "c"))
        self.last_linear = nn.Linear(self.features, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.blocks(self.stem(x), 1, 7)
        mask = self.map(x).sigmoid()
        return self.last_linear(self.pooled(self.blocks(x * mask, 8, 12))), mask


class FCN(nn.Module):
    """Logits [B, 2, h, w]; the backbone is whole, and used to block 11."""

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.xcp_backbone = Trunk(13, width)
        features = scaled(728, width)
        hidden = features // 4
        layers: list[Any] = [nn.Conv2d(features, hidden, 3, 1, 1, bias=False)]
        layers += [nn.BatchNorm2d(hidden), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(hidden, 2, 1)]
        self.head = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.xcp_backbone.blocks(self.xcp_backbone.stem(x), 1, 11))
