"""Residual networks for small images: ResNet-18 in its form for CIFAR, and Wide-ResNet 28-10.

Source: ResNet (arXiv 1512.03385, section 3.3 for the 18 layers, 4.2 for the first layer on images
of 32 by 32), Wide-ResNet (arXiv 1605.07146, section 2) with activations before the convolutions
(arXiv 1603.05027), without its optional dropout.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.model import Model

Natural = Annotated[int, msgspec.Meta(ge=1)]
BlockName = Literal["post", "pre"]
MEAN, DEVIATION = 0.5, 0.25
"""Of photographs in [0, 1], roughly; the batch norms do the rest."""


class ResNetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One residual network; the sizes by default are those of ResNet-18.

    block: batch norms and activations after the convolutions (`post`, ResNet), or before them
        (`pre`, Wide-ResNet).
    first_width: channels of the first convolution.
    widths: channels of each stage; all but the first halve the resolution.
    blocks: residual blocks of each stage, two convolutions each.
    """

    classes: Natural = 10
    block: BlockName = "post"
    first_width: Natural = 64
    widths: tuple[Natural, ...] = (64, 128, 256, 512)
    blocks: Natural = 2


RESNET_18 = ResNetConfig()
"""11.2 million weights. Source: arXiv 1512.03385."""
WIDE_RESNET_28_10 = ResNetConfig(block="pre", first_width=16, widths=(160, 320, 640), blocks=4)
"""36.5 million weights: 28 layers, ten times as wide. Source: arXiv 1605.07146, table 1."""


def convolution(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    """Without bias, since batch norm follows; padded to keep the resolution."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class PostBlock(nn.Module):
    """Two convolutions, each with batch norm after it, around which the input goes.

    Shape: x [batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride].
    """

    activated = True
    """Whether what comes out is normalised and activated."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = convolution(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = convolution(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                convolution(inputs, outputs, stride, size=1), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class PreBlock(nn.Module):
    """The same with batch norms and activations before the convolutions."""

    activated = False

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), convolution(outputs, outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = convolution(inputs, outputs, stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        y = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


BLOCKS: dict[BlockName, type[PostBlock] | type[PreBlock]] = {"post": PostBlock, "pre": PreBlock}


class ResNet(Model):
    """A classifier of images.

    Shape: images [batch, 3, height, width] in [0, 1] -> logits [batch, classes].

    >>> import torch
    >>> ResNet(ResNetConfig(first_width=4, widths=(4, 8), blocks=1))(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    system: ClassVar[str] = "image_resnet"
    config_type: ClassVar[type[msgspec.Struct]] = ResNetConfig
    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        block, width = BLOCKS[config.block], config.first_width
        self.first = convolution(3, width)
        self.first_norm = nn.BatchNorm2d(width) if block.activated else None
        self.blocks = nn.ModuleList()
        for stage, outputs in enumerate(config.widths):
            for index in range(config.blocks):
                stride = 2 if stage and not index else 1
                self.blocks.append(block(width, outputs, stride))
                width = outputs
        self.last_norm = None if block.activated else nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, config.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # arXiv 1502.01852, as both papers start
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.first((images - MEAN) / DEVIATION)
        if self.first_norm is not None:
            x = F.relu(self.first_norm(x))
        for block in self.blocks:
            x = block(x)
        if self.last_norm is not None:
            x = F.relu(self.last_norm(x))
        return self.classifier(x.mean((2, 3)))
