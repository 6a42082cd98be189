"""Layers of the hybrid U-Nets, over the bins of a spectrogram or over time.

Source: Hybrid Demucs (arXiv 2111.03600, section 3.1) and the published package (demucs 4.1.0),
whose names and order the attributes have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.separation import bin_products, branch_products, minimal_images
from sonorant.separation.blocks import DConv, DConvConfig, gelu_of


@dataclass(frozen=True)
class LayerPlan:
    """What the encoder and the decoder layer of one level have in common.

    over_bins: strides over the bins of [batch, channels, bins, frames]; otherwise over the time of
        [batch, channels, time].
    pads: by a quarter of the kernel on both sides, which the decoder cuts off.
    norm_groups: of the group normalisations; 0 for none.
    only_strided: nothing but the strided convolution; its channels meet those of the other branch.
    """

    kernel_size: int
    stride: int
    over_bins: bool
    pads: bool = True
    norm_groups: int = 0
    rewrite: bool = True
    only_strided: bool = False

    @property
    def padding(self) -> int:
        return self.kernel_size // 4 if self.pads else 0

    def norm(self, channels: int) -> nn.Module:
        return nn.GroupNorm(self.norm_groups, channels) if self.norm_groups else nn.Identity()


class EncoderLayer(nn.Module):
    """Strided convolution, residual branches over time, and a gated mix of the channels.

    Shape: x [batch, in, bins, frames] -> [batch, out, bins / stride, frames], or x [batch, in,
    time] -> [batch, out, ceil(time / stride)]; a layer over time takes bins for more channels.
    context: steps on either side that the mix of the channels sees.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        plan: LayerPlan,
        dconv: DConvConfig | None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.plan = plan
        if plan.over_bins:
            self.conv: nn.Module = nn.Conv2d(
                in_channels,
                out_channels,
                (plan.kernel_size, 1),
                (plan.stride, 1),
                (plan.padding, 0),
            )
        else:
            self.conv = nn.Conv1d(
                in_channels, out_channels, plan.kernel_size, plan.stride, plan.padding
            )
        if plan.only_strided:
            return
        self.norm1 = plan.norm(out_channels)
        self.rewrite: nn.Module | None = None
        if plan.rewrite:
            convolution = nn.Conv2d if plan.over_bins else nn.Conv1d
            self.rewrite = convolution(
                out_channels, 2 * out_channels, 1 + 2 * context, padding=context
            )
            self.norm2 = plan.norm(2 * out_channels)
        self.dconv = None if dconv is None else DConv(out_channels, dconv, overwrites=True)

    def forward(self, x: Tensor, inject: Tensor | None = None) -> Tensor:
        """inject: what the other branch adds behind the strided convolution, [batch, out, time]."""
        if not self.plan.over_bins:
            x = x.flatten(1, 2) if x.dim() == 4 else x
            x = F.pad(x, (0, -x.shape[-1] % self.plan.stride))
        y: Tensor = self.conv(x)
        if self.plan.only_strided:
            return y
        if inject is not None:
            y = y + (inject[:, :, None] if y.dim() == 4 else inject)
        y = gelu_of(self.norm1(y))
        if self.dconv is not None:
            y = self.dconv(y)
        if self.rewrite is not None:
            y = self._gated(y, self.rewrite)
        return y

    def _gated(self, y: Tensor, rewrite: nn.Module) -> Tensor:
        if isinstance(self.norm2, nn.Identity) and branch_products.gates_in_place(y, rewrite):
            assert isinstance(rewrite, nn.Conv1d | nn.Conv2d)
            return branch_products.gate_in_place(y, rewrite)
        return F.glu(self.norm2(rewrite(y)), dim=1)


class DecoderLayer(nn.Module):
    """The encoder layer of the same level mirrored, with the encoder's output added to its input.

    Shape: x and skip like the encoder layer's output, -> (its input's shape, the values before the
    transposed convolution); bins may come as channels.
    outermost: without an activation at the end.
    context: steps on either side that the gated mix of the channels sees, of bins only with
        `sees_bins`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        plan: LayerPlan,
        dconv: DConvConfig | None,
        context: int = 1,
        sees_bins: bool = True,
        outermost: bool = False,
    ) -> None:
        super().__init__()
        self.plan, self.in_channels, self.outermost = plan, in_channels, outermost
        if plan.over_bins:
            self.conv_tr: nn.Module = nn.ConvTranspose2d(
                in_channels, out_channels, (plan.kernel_size, 1), (plan.stride, 1)
            )
        else:
            self.conv_tr = nn.ConvTranspose1d(
                in_channels, out_channels, plan.kernel_size, plan.stride
            )
        self.norm2 = plan.norm(out_channels)
        if plan.only_strided:
            return
        self.rewrite: nn.Module | None = None
        if plan.rewrite:
            self.rewrite = _rewrite(in_channels, plan.over_bins, context, sees_bins)
            self.norm1 = plan.norm(2 * in_channels)
        self.dconv = (
            None
            if dconv is None
            else DConv(in_channels, dconv, overwrites=self.rewrite is not None)
        )

    def forward(self, x: Tensor, skip: Tensor | None, length: int | None) -> tuple[Tensor, Tensor]:
        """length: of what a layer over time gives, that of the encoder layer's input."""
        y = self.mix(x, skip)
        z = self.trimmed(self.widen(y), length)
        return z if self.outermost else gelu_of(z), y

    def mix(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """All that comes before the transposed convolution."""
        if self.plan.over_bins and x.dim() == 3:
            x = x.unflatten(1, (self.in_channels, -1))
        if self.plan.only_strided:
            return x
        y = x if skip is None else x + skip
        if self.rewrite is not None:
            y = self._gated(y, self.rewrite)
        return y if self.dconv is None else self.dconv(y)

    def _gated(self, y: Tensor, rewrite: nn.Module) -> Tensor:
        if isinstance(self.norm1, nn.Identity) and minimal_images.pays(y, rewrite):
            assert isinstance(rewrite, nn.Conv2d)
            assert rewrite.bias is not None
            return minimal_images.convolve(y, rewrite.weight, rewrite.bias, _halves_gated)
        return F.glu(self.norm1(rewrite(y)), dim=1)

    def widen(self, y: Tensor) -> Tensor:
        """The transposed convolution, with its edges, and the norm."""
        if bin_products.fits(y, self.conv_tr):
            assert isinstance(self.conv_tr, nn.ConvTranspose2d)
            z = bin_products.transposed_convolution(y, self.conv_tr)
        else:
            z = self.conv_tr(y)
        result: Tensor = self.norm2(z)
        return result

    def trimmed(self, z: Tensor, length: int | None) -> Tensor:
        """Without the edges that the encoder's padding answers to."""
        padding = self.plan.padding
        if not self.plan.over_bins:
            assert length is not None, "a layer over time needs the length of its output"
            return z[..., padding : padding + length]
        return z[..., padding : z.shape[-2] - padding, :]


def _halves_gated(wide: Tensor) -> Tensor:
    """A gated linear unit over the first axis, [2 channels, ...] -> [channels, ...]."""
    return F.glu(wide, dim=0)


def _rewrite(channels: int, over_bins: bool, context: int, sees_bins: bool) -> nn.Module:
    width = 1 + 2 * context
    if not over_bins:
        return nn.Conv1d(channels, 2 * channels, width, padding=context)
    bins = context if sees_bins else 0
    return nn.Conv2d(channels, 2 * channels, (1 + 2 * bins, width), padding=(bins, context))


class BandedEncoder(nn.Module):
    """One copy of an encoder layer for each band of frequencies.

    Bands meet where a step of the convolution begins, near the wanted edges. The copies have
    neither padding, which only the outer edges get here, nor norms.
    Shape: x [batch, in, bins, frames] -> [batch, out, bins / stride, frames].
    edges: where bands meet, as shares of all bins.
    """

    def __init__(self, layers: list[EncoderLayer], edges: tuple[float, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.edges = edges
        self.plan = layers[0].plan

    def forward(self, x: Tensor, inject: Tensor | None = None) -> Tensor:
        kernel, stride, padding = (
            self.plan.kernel_size,
            self.plan.stride,
            self.plan.kernel_size // 4,
        )
        bins, start, outputs = x.shape[2], 0, []
        for layer, edge in zip(self.layers, (*self.edges, 1.0), strict=True):
            outer = 0 if start else padding
            end = bins
            if edge != 1:
                steps = round((round(bins * edge) - start + outer - kernel) / stride + 1)
                end = start + (steps - 1) * stride + kernel - outer
            band = F.pad(x[:, :, start:end], (0, 0, outer, padding if end == bins else 0))
            outputs.append(layer(band))
            start = end - kernel + stride
        return torch.cat(outputs, dim=2)


class BandedDecoder(nn.Module):
    """One copy of a decoder layer for each band of frequencies, overlapping where bands meet.

    Shape and edges as in `BandedEncoder`.
    """

    def __init__(self, layers: list[DecoderLayer], edges: tuple[float, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.edges = edges
        self.outermost = layers[0].outermost
        self.plan = layers[0].plan

    def forward(self, x: Tensor, skip: Tensor, length: int | None) -> tuple[Tensor, Tensor | None]:
        bins, overlap = x.shape[2], self.plan.kernel_size - self.plan.stride
        limits = [0, *(round(bins * edge) for edge in self.edges), bins]
        whole = x
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            band = slice(limits[index], limits[index + 1])
            z = layer.widen(layer.mix(x[:, :, band], skip[:, :, band]))
            if index:
                # Both bands brought their bias to the rows where they overlap.
                bias = cast(Tensor, layer.conv_tr.bias)[:, None, None]
                both = whole[:, :, -overlap:] + z[:, :, :overlap] - bias
                z = torch.cat([whole[:, :, :-overlap], both, z[:, :, overlap:]], dim=2)
            whole = z
        edge = self.plan.kernel_size // 4
        whole = whole[:, :, edge:-edge]
        return whole if self.outermost else gelu_of(whole), None
