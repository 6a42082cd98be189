"""Codec training: spectral losses, the balancer, the MS-STFT discriminator."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from sonorant.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    hinge_generator_loss,
    relative_feature_matching_loss,
)
from sonorant.losses.balancer import Balancer, BalancerConfig
from sonorant.losses.msstft_checkpoint import discriminator_from_official
from sonorant.losses.msstft_discriminator import MSSTFTDiscriminator, MSSTFTDiscriminatorConfig
from sonorant.losses.relative_volume import RelativeVolumeConfig, relative_volume
from sonorant.losses.spectral import (
    MelConfig,
    MultiScaleMelConfig,
    MultiScaleMelLoss,
    STFTConfig,
    loss_mel,
    mel_l1_loss,
    si_snr_loss,
    stft_loss,
)
from tests.parity.runner import Case

# -- spectral losses ------------------------------------------------------------------------------


def mel_config(published: dict[str, Any], normalized: bool) -> MelConfig:
    return MelConfig(
        mels=published["n_mels"],
        f_min_hz=published["f_min"],
        f_max_hz=published["f_max"],
        normalized=normalized,
        floor=published["floor_level"],
    )


def stft_config(published: dict[str, Any]) -> STFTConfig:
    """Of one resolution (`n_fft`) or several (`n_ffts`)."""

    def sizes(name: str) -> tuple[int, ...]:
        return tuple(published[f"{name}s"]) if f"{name}s" in published else (published[name],)

    return STFTConfig(
        n_ffts=sizes("n_fft"),
        hop_lengths=sizes("hop_length"),
        win_lengths=sizes("win_length"),
        convergence_weight=published["factor_sc"],
        magnitude_weight=published["factor_mag"],
        normalized=published["normalized"],
        epsilon=published["epsilon"],
    )


def multi_scale_mels(
    published: dict[str, Any], prediction: Tensor, target: Tensor, rate: int
) -> dict[str, Tensor]:
    """The loss in each recorded setting."""
    computed = {}
    for name, setting in published.items():
        if not isinstance(setting, dict):
            continue
        config = MultiScaleMelConfig(
            exponents=tuple(range(published["range_start"], published["range_end"])),
            rising_alphas=setting["alphas"],
            mel=mel_config(published, setting["normalized"]),
        )
        computed[f"msspec.{name}"] = MultiScaleMelLoss(rate, config)(prediction, target)
    return computed


def spectral(case: Case) -> dict[str, Tensor]:
    prediction, target = case.input("pred"), case.input("target")
    rate, config = case.config["sample_rate"], case.config
    computed = {}
    if "msspec" in config:
        computed |= multi_scale_mels(config["msspec"], prediction, target, rate)
    for match in case.names(r"msspec\.mel_(linear|log)\.(\d+)"):
        # Recorded of the first frames of the first channel, with the STFT normalised.
        mel = mel_config(config["msspec"], normalized=True)
        value = loss_mel(target, rate, int(match[2]), int(match[2]) // 4, mel).flatten(0, 1)
        value = value[..., : case.io[match[0]].shape[-1]]
        computed[match[0]] = (value + mel.floor).log10() if match[1] == "log" else value
    for match in case.names(r"mel_l1.*"):
        published = config[match[0]]
        computed[match[0]] = mel_l1_loss(
            prediction,
            target,
            rate,
            published["n_fft"],
            published["hop_length"],
            mel_config(published, published["normalized"]),
        )
    for match in case.names(r"sisnr_([\d.]+)s"):
        segment = int(float(match[1]) * rate)
        overlap = config["sisnr"]["overlap"]
        computed[match[0]] = si_snr_loss(prediction, target, segment, overlap)
    for match in case.names(r"(mr)?stft.*"):
        value = stft_loss(prediction, target, stft_config(config[match[0]]))
        computed[match[0]] = value.reshape(case.io[match[0]].shape)
    return computed | relative_volumes(case, prediction, target)


def relative_volumes(case: Case, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    if "rvm" not in case.config:
        return {}
    published = case.config["rvm"]
    config = RelativeVolumeConfig(
        mels=published["n_mels"],
        n_fft=published["n_fft"],
        hop_length=published["hop_length"],
        f_min_hz=published["f_min"],
        f_max_hz=published["f_max"],
        normalized=published["normalized"],
        max_gain_db=published["max_initial_gain"],
        floor_db=published["min_activity_volume"],
        min_db=published["min_relative_volume"],
        max_db=published["max_relative_volume"],
        groups=published["num_aggregated_bands"],
    )
    result = relative_volume(prediction, target, case.config["sample_rate"], config)
    groups = {f"rvm.rvm_{index}": value for index, value in enumerate(result.groups)}
    return groups | {"rvm.rvm": result.mean}


# -- balancer -------------------------------------------------------------------------------------

# The losses that config.json states as text: a factor, and one of these forms.
FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean|pred - target|": lambda pred, target: (pred - target).abs().mean(),
    "mean (pred - target)^2": lambda pred, target: (pred - target).square().mean(),
    "sum cos(pred)": lambda pred, target: pred.cos().sum(),
}


def stated_loss(text: str, pred: Tensor, target: Tensor, step: int) -> Tensor:
    """The value of a loss such as `3 (1 + step) mean (pred - target)^2`."""
    match = re.fullmatch(r"(?:([\d.e-]+) )?(\(1 \+ step\) )?(.+)", text)
    assert match is not None, text
    factor = float(match[1] or 1) * (1 + step if match[2] else 1)
    return factor * FORMS[match[3]](pred, target)


def balancer(case: Case) -> dict[str, Tensor]:
    config = case.config
    balance = Balancer(
        config["weights"],
        BalancerConfig(
            balance_grads=config["balance_grads"],
            total_norm=config["total_norm"],
            ema_decay=config["ema_decay"],
            per_batch_item=config["per_batch_item"],
            epsilon=config["epsilon"],
        ),
    ).balance
    pred, target = case.input("y0"), case.input("target")
    computed = {}
    for step in range(config["steps"]):
        name = f"step{step}"
        computed[f"{name}.input"] = pred
        pred = pred.clone().requires_grad_()
        losses = {
            loss: stated_loss(text, pred, target, step) for loss, text in config["losses"].items()
        }
        for loss, value in losses.items():
            computed[f"{name}.loss.{loss}"] = value
            (computed[f"{name}.grad.{loss}"],) = torch.autograd.grad(value, pred, retain_graph=True)
        balanced = balance(losses, pred)
        computed[f"{name}.total_grad"] = balanced.gradient
        computed[f"{name}.effective_loss"] = balanced.effective_loss
        for loss, ratio in balanced.ratios.items():
            computed[f"{name}.ratio_{loss}"] = ratio
        pred = (pred - config["step_size"] * balanced.gradient).detach()
    return computed


# -- MS-STFT discriminator ------------------------------------------------------------------------

GENERATOR_LOSSES = {"hinge": generator_loss, "hinge2": hinge_generator_loss}
FEATURE_LOSSES = {
    "l1": feature_matching_loss,
    "relative_l1": relative_feature_matching_loss,
}


def discriminator_config(published: dict[str, Any]) -> MSSTFTDiscriminatorConfig:
    return MSSTFTDiscriminatorConfig(
        filters=published["filters"],
        n_ffts=tuple(published["n_ffts"]),
        hop_lengths=tuple(published["hop_lengths"]),
        win_lengths=tuple(published["win_lengths"]),
        in_channels=published["in_channels"],
        kernel_size=tuple(published["kernel_size"]),
        time_stride=published["stride"][0],
        frequency_stride=published["stride"][1],
        out_channels=published.get("out_channels", 1),
        dilations=tuple(published["dilations"]),
        normalized=published["normalized"],
        leaky_slope=published["activation_params"]["negative_slope"],
    )


def msstftd(case: Case) -> dict[str, Tensor]:
    model = MSSTFTDiscriminator(discriminator_config(case.config))
    model.load_state_dict(discriminator_from_official(model, case.weights))
    real, fake = case.input("real"), case.input("fake").clone().requires_grad_()
    computed = {}
    (real_logits, real_features), (fake_logits, fake_features) = model(real), model(fake)
    for sound, logits, features in (
        ("real", real_logits, real_features),
        ("fake", fake_logits, fake_features),
    ):
        for scale, value in enumerate(logits):
            computed[f"{sound}.logits.{scale}"] = value
        for scale, maps in enumerate(features):
            computed |= {f"{sound}.fmap.{scale}.{i}": value for i, value in enumerate(maps)}
    adversarial = GENERATOR_LOSSES[case.config["adv_loss"]](fake_logits)
    feature = FEATURE_LOSSES[case.config["feat_loss"]](real_features, fake_features)
    computed |= {"gen.adv": adversarial, "gen.feat": feature}
    (computed["gen.grad_fake_of_adv_plus_feat"],) = torch.autograd.grad(adversarial + feature, fake)
    fake = fake.detach()

    settings = case.config["optim"]["adam"]
    optimizer = Adam(
        model.parameters(), settings["lr"], tuple(settings["betas"]), eps=settings["eps"]
    )
    computed["disc.loss"] = discriminator_loss(model(real)[0], model(fake)[0])
    computed["disc.loss"].backward()
    optimizer.step()
    with torch.no_grad():
        after = discriminator_loss(model(real)[0], model(fake)[0])
    return computed | {"disc.loss_after_1_adam_step": after}


ADAPTERS = {"losses": spectral, "balancer": balancer, "msstftd": msstftd}
