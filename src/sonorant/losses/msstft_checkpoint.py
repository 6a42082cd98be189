"""The published layout of MS-STFT discriminator checkpoints, in and out.

Keys such as `discriminators.0.convs.1.conv.weight_g`, `discriminators.0.conv_post.conv.bias` and
the window of each resolution, `discriminators.0.spec_transform.window`, which we compute.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sonorant.dsp.stft import hann_window
from sonorant.errors import CheckpointError
from sonorant.hub.keys import KeyMap, misfits, summary
from sonorant.losses.msstft_discriminator import MSSTFTDiscriminator

# (theirs, ours). Weight norm of the older and the newer kind: g is original0, v is original1.
KEYS = KeyMap(
    [
        (f"discriminators.{{d}}.{theirs}.conv.{tensor}", f"scales.{{d}}.{ours}.{own}")
        for theirs, ours in (("convs.{i}", "convs.{i}"), ("conv_post", "logits"))
        for tensor, own in (
            ("weight_g", "parametrizations.weight.original0"),
            ("weight_v", "parametrizations.weight.original1"),
            ("weight", "weight"),
            ("bias", "bias"),
        )
    ]
)
_WINDOW = "discriminators.{}.spec_transform.window"


def discriminator_from_official(
    model: MSSTFTDiscriminator, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our state dict for `model` from one in the published layout.

    Raises: CheckpointError naming what is missing, left over, or of another shape or window.
    """
    expected = discriminator_to_official(model)
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unexpected:
        raise CheckpointError(
            "not a checkpoint of this MS-STFT discriminator: "
            f"missing [{summary(missing)}], unexpected [{summary(unexpected)}]"
        )
    if wrong := misfits(expected, tensors):
        raise CheckpointError(f"a discriminator of another size: {summary(wrong)}")
    windows = _windows(model)
    for name, window in windows.items():
        if not tensors[name].to(window).allclose(window, atol=1e-4):
            raise CheckpointError(f"{name} is not a Hann window, the only one this model knows")
    names = KEYS.to_ours(tensors.keys() - windows.keys())
    return {ours: tensors[theirs] for theirs, ours in names.items()}


def discriminator_to_official(model: MSSTFTDiscriminator) -> dict[str, Tensor]:
    """The state dict of `model` in the published layout, windows included."""
    own = model.state_dict()
    return {
        theirs: own[ours].contiguous() for ours, theirs in KEYS.to_theirs(own).items()
    } | _windows(model)


def _windows(model: MSSTFTDiscriminator) -> dict[str, Tensor]:
    weight = next(model.parameters())
    return {
        _WINDOW.format(index): hann_window(win_length, weight.dtype, weight.device).clone()
        for index, (_, _, win_length) in enumerate(model.config.resolutions)
    }
