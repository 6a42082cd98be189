"""The independence-promoting loss within the training of a codec.

Source: arXiv 2406.02315 in its published form. The loss compares distributions, for which one batch
has too few vectors. So batches are kept, and once there are enough, all of them are encoded again
and one gradient of all is added to that of the step. It stands outside the balancer and reaches
what lies before the codebooks only: codewords count as constants.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sonorant.codec.codec import Codec
from sonorant.losses.independence import IndependenceConfig, independence_loss


class IndependenceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `independence` section of a codec recipe. The defaults are the published ones.

    weight: of the loss beside the balanced gradient, whose norm the balancer fixes.
    stored_batches: how many batches make one value of the loss.
    codebooks: how many of the first take part; all when None. The kernels see differences only
        where vectors of all levels together have some hundred numbers (512 in the publication).
    """

    weight: float = 1000.0
    stored_batches: Annotated[int, msgspec.Meta(ge=1)] = 32
    codebooks: Annotated[int, msgspec.Meta(ge=2)] | None = None
    loss: IndependenceConfig = IndependenceConfig()


class IndependencePromoter:
    """Keeps batches, and adds the loss's gradient to the codec's whenever there are enough."""

    def __init__(self, settings: IndependenceSettings) -> None:
        self.settings = settings
        self.batches: list[Tensor] = []

    def backward(self, codec: Codec, batch: Tensor) -> dict[str, Tensor]:
        """Take in the sounds `[batch, channels, time]` of a step.

        Returns the loss `independence` at the steps that have one.
        """
        self.batches.append(batch)
        if len(self.batches) < self.settings.stored_batches:
            return {}
        # Encoded part by part and, for the backward pass, once more: memory stays that of a batch.
        latents = [checkpoint(codec.to_latent, kept, use_reentrant=False) for kept in self.batches]
        self.batches = []
        latent = torch.cat(latents)
        tokens = codec.quantizer.encode(latent.detach(), self.settings.codebooks)
        streams = codec.quantizer.residuals(latent, tokens)
        loss = independence_loss(streams, self.settings.loss)
        (self.settings.weight * loss).backward()
        return {"independence": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {"batches": list(self.batches)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = list(state["batches"])
