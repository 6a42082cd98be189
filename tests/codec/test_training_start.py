"""Training on from a model that exists."""

from pathlib import Path

import msgspec
import pytest
import torch

from sonorant.codec.encodec import Encodec, EncodecConfig
from sonorant.codec.training import CodecSettings, StartSettings, first_codec
from sonorant.errors import ConfigError
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig

TINY = EncodecConfig(
    sample_rate=8000,
    target_bandwidths_kbps=(0.8,),
    seanet=SEANetConfig(base_filters=2, dimension=8, ratios=(8, 5), lstm_layers=1),
    quantizer=QuantizerConfig(dimension=8, codebooks=2, codebook_size=16),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = Encodec(TINY)
    for codebook in model.quantizer.layers:
        codebook.embed.normal_()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_is_trained_on(saved: Path) -> None:
    settings = CodecSettings(manifest="m", codec=TINY, start=StartSettings(model=str(saved)))
    codec = first_codec(settings)
    assert codec.training
    source = Encodec.from_pretrained(saved)
    for name, tensor in source.state_dict().items():
        assert torch.equal(codec.state_dict()[name], tensor)
    reconstruction, _, penalty = codec(torch.randn(1, 1, 400) * 0.1)
    (reconstruction.pow(2).mean() + penalty).backward()
    assert all(p.grad is not None for p in codec.parameters())


def test_a_model_of_another_size_is_refused(saved: Path) -> None:
    other = msgspec.structs.replace(TINY, target_bandwidths_kbps=(0.4, 0.8))
    with pytest.raises(ConfigError, match="another config"):
        first_codec(CodecSettings(manifest="m", codec=other, start=StartSettings(model=str(saved))))
