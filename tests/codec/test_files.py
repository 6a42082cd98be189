"""Files through the codec: exact lengths, the offline tokens, no partial output."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
import torch

import sonorant
from sonorant.audio import Audio, info, read, write
from sonorant.codec.container import ContainerReader
from sonorant.codec.encodec import EncodecConfig
from sonorant.codec.encodec_segments import SegmentedEncodec
from sonorant.codec.encoded import Encoded
from sonorant.codec.entropy_coder import EntropyCoder
from sonorant.codec.entropy_coding import EntropyCore
from sonorant.codec.entropy_compact import CompactEntropyConfig, CompactEntropyModel
from sonorant.codec.files import (
    STEP_FRAMES,
    Codec,
    _entropy_model_of,
    compress_file,
    decompress_file,
    fingerprint,
    load_codec,
    load_entropy_model,
)
from sonorant.errors import AudioError, CheckpointError, ConfigError, FormatError
from sonorant.nn.seanet import SEANetConfig
from tests.codec.test_encodec import BANDWIDTHS, HOP, QUANTIZER, RATE, random_model, tiny
from tests.codec.test_entropy_exact import TRANSFORMER as SMALL

CONTAINERS = Path(__file__).parent.parent / "fixtures" / "containers"
CLIPS = Path(sonorant.__file__).parent / "clips"
SECOND = STEP_FRAMES * HOP  # one step of the tiny models, in samples


def segmented(normalize: bool = True, overlap: float = 0.1) -> SegmentedEncodec:
    """A stereo model on segments, wide enough that its norm can take a single sample."""
    seanet = SEANetConfig(2, 8, 4, ratios=(4, 2), causal=False, norm="time_group_norm")
    config = EncodecConfig(RATE, BANDWIDTHS, seanet, QUANTIZER, 0.25, overlap, normalize)
    model = random_model(config)
    assert isinstance(model, SegmentedEncodec)
    return model


MODELS: dict[str, Callable[[], Codec]] = {
    "causal": tiny,
    "looks_ahead": lambda: tiny(causal=False),
    "segments": segmented,
    "plain_segments": lambda: segmented(normalize=False, overlap=0.0),
}


def sound_file(path: Path, samples: int, rate: int = RATE, channels: int = 1) -> Path:
    generator = torch.Generator().manual_seed(samples)
    sound = 0.1 * torch.randn(channels, samples, generator=generator)
    write(path, Audio(sound.clamp(-0.9, 0.9), rate))
    return path


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("samples", [1, HOP, SECOND - 1, SECOND, 2 * SECOND, 2 * SECOND + 77])
def test_tokens_and_sound_are_those_of_the_whole(tmp_path: Path, name: str, samples: int) -> None:
    model = MODELS[name]()
    source = sound_file(tmp_path / "in.wav", samples, RATE, model.channels)
    compress_file(source, tmp_path / "a.snr", model, 0.8)
    whole = model.encode(read(source), 0.8)
    blocks = list(ContainerReader(tmp_path / "a.snr").blocks())
    assert torch.equal(torch.cat([block.tokens for block in blocks], dim=-1), whole.tokens)
    decompress_file(tmp_path / "a.snr", tmp_path / "out.wav", model)
    back, expected = read(tmp_path / "out.wav"), model.decode(whole)
    assert back.samples.shape == read(source).samples.shape
    torch.testing.assert_close(
        back.samples, expected.samples.clamp(-0.99, 0.99), rtol=0, atol=1.1 / 32768
    )


@pytest.mark.parametrize("rate", [RATE, 441, 16000, 44100, 384000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("samples", [1, 1001])
def test_rate_length_and_channels_come_back_exactly(
    tmp_path: Path, rate: int, channels: int, samples: int
) -> None:
    for model in (tiny(), segmented()):
        source = sound_file(tmp_path / "in.wav", samples, rate, channels)
        compress_file(source, tmp_path / "a.snr", model)
        decompress_file(tmp_path / "a.snr", tmp_path / "out.wav", model)
        assert info(tmp_path / "out.wav") == info(source)


def test_header_says_what_was_compressed(tmp_path: Path) -> None:
    model = tiny()
    model.name = "tests/tiny"
    source = sound_file(tmp_path / "in.wav", 1001, 44100, channels=2)
    compress_file(source, tmp_path / "a.snr", model, bandwidth_kbps=0.8)
    reader = ContainerReader(tmp_path / "a.snr")
    header = reader.header
    assert (header.model, header.fingerprint) == ("tests/tiny", fingerprint(model))
    assert (header.source_sample_rate, header.source_channels) == (44100, 2)
    assert (header.sample_rate, header.channels, header.codebooks) == (RATE, 1, 2)
    assert reader.totals.source_samples == 1001
    assert reader.totals.samples == round(1001 * RATE / 44100)


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    model, told = tiny(), []
    source = sound_file(tmp_path / "in.wav", 3 * SECOND + 1, RATE)
    total = (3 * SECOND + 1) / RATE
    compress_file(source, tmp_path / "a.snr", model, progress=lambda *seconds: told.append(seconds))
    assert told == [(k * SECOND / RATE, total) for k in (1, 2, 3)] + [(total, total)]
    told.clear()
    decompress_file(
        tmp_path / "a.snr", tmp_path / "b.wav", model, lambda *seconds: told.append(seconds)
    )
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_a_name_in_the_table_finds_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "model")
    source = sound_file(tmp_path / "in.wav", 500)
    monkeypatch.chdir(tmp_path)
    unnamed, named = tmp_path / "unnamed.snr", tmp_path / "named.snr"
    compress_file(source, unnamed, model)
    model.name = "model"  # a folder here, but not in the table
    compress_file(source, named, model)
    for path, reason in ((unnamed, "an unnamed model"), (named, "not in the table")):
        with pytest.raises(CheckpointError, match=reason):
            decompress_file(path, tmp_path / "out.wav")
    decompress_file(named, tmp_path / "out.wav", load_codec(tmp_path / "model"))
    assert info(tmp_path / "out.wav") == info(source)


def test_fingerprint_is_of_the_weights_that_matter(tmp_path: Path) -> None:
    model = tiny()
    first = fingerprint(model)
    model.save_pretrained(tmp_path / "model")
    assert fingerprint(load_codec(tmp_path / "model")) == first
    model.quantizer.layers[0].usage.add_(1)
    assert fingerprint(model) == first
    model.quantizer.layers[0].embed[0, 0] += 1
    assert fingerprint(model) != first
    assert fingerprint(tiny(pad_mode="zero")) != first


def test_a_container_of_another_model_of_the_same_name_is_refused(tmp_path: Path) -> None:
    model, other = tiny(), tiny()
    other.decoder.load_state_dict(
        {name: tensor + 0.01 for name, tensor in other.decoder.state_dict().items()}
    )
    model.name = other.name = "tests/tiny"
    compress_file(sound_file(tmp_path / "in.wav", 500), tmp_path / "a.snr", model)
    with pytest.raises(FormatError, match="was made by the model tests/tiny"):
        decompress_file(tmp_path / "a.snr", tmp_path / "out.wav", other)
    assert sorted(os.listdir(tmp_path)) == ["a.snr", "in.wav"]


def test_a_container_that_lies_about_its_model_is_refused(tmp_path: Path) -> None:
    from sonorant.codec.container import ContainerWriter
    from sonorant.codec.files import _header_of

    model = tiny()
    header = _header_of(info(sound_file(tmp_path / "in.wav", 8)), model, codebooks=5)
    with ContainerWriter(tmp_path / "a.snr", header) as writer:
        writer.write(Encoded(torch.zeros(1, 5, 1, dtype=torch.long), 8))
        writer.finish(8)
    with pytest.raises(FormatError, match="does not describe its model"):
        decompress_file(tmp_path / "a.snr", tmp_path / "out.wav", model)


@pytest.mark.parametrize("name", MODELS)
def test_a_container_that_promises_more_sound_than_it_holds_is_refused(
    tmp_path: Path, name: str
) -> None:
    from sonorant.codec.container import ContainerWriter
    from sonorant.codec.files import _header_of

    model = MODELS[name]()
    source = sound_file(tmp_path / "in.wav", 100, RATE, model.channels)
    encoded = model.encode(read(source))
    header = _header_of(info(source), model, encoded.codebooks)
    with ContainerWriter(tmp_path / "a.snr", header) as writer:
        writer.write(Encoded(encoded.tokens, 10**9, encoded.scales, encoded.segment_frames))
        writer.finish(10**9)
    with pytest.raises(FormatError, match="104 samples of sound, but promises 1000000000"):
        decompress_file(tmp_path / "a.snr", tmp_path / "out.wav", model)
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize("order", [(1, 0), (0, 1, 1)])
def test_a_container_of_impossible_segments_is_refused(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    from sonorant.codec.container import ContainerWriter
    from sonorant.codec.files import _header_of

    model = MODELS["segments"]()
    assert isinstance(model, SegmentedEncodec)
    assert model.stride_samples is not None
    samples = model.stride_samples + 2 * HOP  # a whole segment and a short one
    source = sound_file(tmp_path / "in.wav", samples, RATE, model.channels)
    encoded = model.encode(read(source))
    assert encoded.scales is not None
    parts = encoded.tokens.split(list(encoded.segment_frames), dim=-1)
    forged = replace(
        encoded,
        tokens=torch.cat([parts[index] for index in order], dim=-1),
        scales=encoded.scales[:, list(order)],
        segment_frames=tuple(encoded.segment_frames[index] for index in order),
    )
    header = _header_of(info(source), model, encoded.codebooks)
    with ContainerWriter(tmp_path / "a.snr", header) as writer:
        writer.write(forged)
        writer.finish(samples)
    with pytest.raises(FormatError, match="its segments are not those of"):
        decompress_file(tmp_path / "a.snr", tmp_path / "out.wav", model)
    assert not (tmp_path / "out.wav").exists()


def test_eight_channels_are_refused_or_mixed_down(tmp_path: Path) -> None:
    source = sound_file(tmp_path / "in.wav", 1000, RATE, channels=8)
    for model in (tiny(), segmented()):
        with pytest.raises(AudioError, match="8 channels"):
            compress_file(source, tmp_path / "a.snr", model)
        assert os.listdir(tmp_path) == ["in.wav"]
        compress_file(source, tmp_path / "a.snr", model, mix_down=True)
        decompress_file(tmp_path / "a.snr", tmp_path / "out.wav", model)
        mixed = Audio(read(source).samples.mean(dim=0, keepdim=True), RATE)
        expected = model.decode(model.encode(mixed)).samples.mean(dim=0, keepdim=True)
        torch.testing.assert_close(
            read(tmp_path / "out.wav").samples, expected, rtol=0, atol=1.1 / 32768
        )
        for name in ("a.snr", "out.wav"):
            (tmp_path / name).unlink()


def test_an_unknown_bandwidth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no bandwidth of 5 kb/s"):
        compress_file(sound_file(tmp_path / "in.wav", 100), tmp_path / "a.snr", tiny(), 5)
    assert os.listdir(tmp_path) == ["in.wav"]


def test_sound_that_turns_bad_late_leaves_nothing(tmp_path: Path) -> None:
    samples = np.zeros(3 * SECOND + 20_000, np.float32)
    samples[-1] = np.nan
    soundfile.write(tmp_path / "in.wav", samples, RATE, "FLOAT")
    with pytest.raises(AudioError, match=f"nan at sample {len(samples) - 1}"):
        compress_file(tmp_path / "in.wav", tmp_path / "a.snr", tiny())
    assert os.listdir(tmp_path) == ["in.wav"]


def test_what_stood_there_survives_an_error(tmp_path: Path) -> None:
    model = tiny()
    compress_file(sound_file(tmp_path / "in.wav", 500), tmp_path / "a.snr", model)
    packed = (tmp_path / "a.snr").read_bytes()
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError):
        compress_file(tmp_path / "bad.wav", tmp_path / "a.snr", model)
    assert (tmp_path / "a.snr").read_bytes() == packed
    (tmp_path / "out.wav").write_text("mine")
    (tmp_path / "a.snr").write_bytes(packed[:-1])
    with pytest.raises(FormatError):
        decompress_file(tmp_path / "a.snr", tmp_path / "out.wav", model)
    assert (tmp_path / "out.wav").read_text() == "mine"


def entropy_model(codebooks: int = 4, seed: int = 0) -> EntropyCore:
    torch.manual_seed(seed)
    transformer = msgspec.structs.replace(SMALL, context=4)
    config = CompactEntropyConfig(codebooks, 16, rank=4, head_width=8, transformer=transformer)
    return CompactEntropyModel(config).eval()


@pytest.mark.parametrize("name", MODELS)
def test_entropy_coded_containers_give_the_same_sound(tmp_path: Path, name: str) -> None:
    model, entropy = MODELS[name](), entropy_model()
    source = sound_file(tmp_path / "in.wav", SECOND + 77, 2 * RATE, model.channels)
    for path, coding in (("packed.snr", None), ("coded.snr", entropy)):
        compress_file(source, tmp_path / path, model, 0.8, entropy=coding)
        decompress_file(tmp_path / path, tmp_path / f"{path}.wav", model, entropy=coding)
    assert ContainerReader(tmp_path / "coded.snr").coded
    sounds = [(tmp_path / f"{kind}.snr.wav").read_bytes() for kind in ("packed", "coded")]
    assert sounds[0] == sounds[1]


@pytest.mark.parametrize("name", ["causal", "segments"])
def test_an_ecdc_file_gives_back_the_codecs_rate(tmp_path: Path, name: str) -> None:
    model = MODELS[name]()
    model.name = "encodec_24khz" if name == "causal" else "encodec_48khz"
    source = sound_file(tmp_path / "in.wav", SECOND + 77, RATE, model.channels)
    compress_file(source, tmp_path / "a.ecdc", model, 0.8)
    decompress_file(tmp_path / "a.ecdc", tmp_path / "out.wav", model)
    whole = model.decode(model.encode(read(source), 0.8))
    torch.testing.assert_close(
        read(tmp_path / "out.wav").samples,
        whole.samples.clamp(-0.99, 0.99),
        rtol=0,
        atol=1.1 / 32768,
    )


def test_a_codec_in_a_folder_has_its_entropy_model_inside(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "model")
    codec = load_codec(tmp_path / "model")
    with pytest.raises(CheckpointError, match="has no entropy model; compress without"):
        load_entropy_model(codec, tmp_path / "model")
    entropy_model().save_pretrained(tmp_path / "model" / "entropy")
    for path in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        assert fingerprint(load_entropy_model(codec, path)) == fingerprint(entropy_model())
    tiny().save_pretrained(tmp_path / "model" / "entropy")
    with pytest.raises(CheckpointError, match="not an entropy model"):
        load_entropy_model(codec, tmp_path / "model")


def test_the_shipped_codec_has_an_entropy_model_that_saves_bits(tmp_path: Path) -> None:
    codec = load_codec("sonorant/codec-24khz-small")
    source, entropy = tmp_path / "in.wav", load_entropy_model(codec)
    clip = read(CLIPS / "speech.flac").to(codec.sample_rate, 1)
    write(source, clip)
    compress_file(source, tmp_path / "packed.snr", codec, 6)
    compress_file(source, tmp_path / "coded.snr", codec, 6, entropy=entropy)
    sizes = [(tmp_path / name).stat().st_size for name in ("packed.snr", "coded.snr")]
    assert sizes[1] < 0.9 * sizes[0]
    for name in ("packed", "coded"):
        decompress_file(tmp_path / f"{name}.snr", tmp_path / f"{name}.wav", codec)
    assert (tmp_path / "packed.wav").read_bytes() == (tmp_path / "coded.wav").read_bytes()


def test_a_file_of_the_shipped_codec_opens_as_it_was_written(tmp_path: Path) -> None:
    """It fails when shipped weights change: tests/fixtures/containers/README.md says what to do."""
    source = CONTAINERS / "codec-24khz-small-coded.snr"
    recorded = torch.tensor(json.loads(source.with_suffix(".json").read_text()))
    codec = load_codec("sonorant/codec-24khz-small")
    coder = EntropyCoder(load_entropy_model(codec))
    blocks = ContainerReader(source).blocks(coder)
    assert torch.equal(torch.cat([block.tokens for block in blocks], dim=-1)[0], recorded)
    decompress_file(source, tmp_path / "out.wav")
    found = info(tmp_path / "out.wav")
    assert (found.sample_rate, found.channels, found.frames) == (24_000, 1, 24_000)
    whole = codec.decode_batch(Encoded(recorded[None], 24_000))[0]
    torch.testing.assert_close(read(tmp_path / "out.wav").samples, whole, rtol=0, atol=1e-3)


def test_the_table_names_the_entropy_models_of_the_published_codecs() -> None:
    codec = tiny()
    for rate in ("24khz", "48khz"):
        codec.name = f"encodec_{rate}"
        assert _entropy_model_of(codec, None) == f"encodec_lm_{rate}"


def test_entropy_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, source = tiny(), sound_file(tmp_path / "in.wav", 100)
    with pytest.raises(CheckpointError, match="knows 3 codebooks of 16 tokens, not the 4 of 16"):
        compress_file(source, tmp_path / "a.snr", model, entropy=entropy_model(codebooks=3))
    compress_file(source, tmp_path / "a.snr", model, entropy=entropy_model())
    with pytest.raises(FormatError, match="was coded with the entropy model"):
        decompress_file(
            tmp_path / "a.snr", tmp_path / "out.wav", model, entropy=entropy_model(seed=1)
        )
    with pytest.raises(CheckpointError, match="has no entropy model"):
        decompress_file(tmp_path / "a.snr", tmp_path / "out.wav", model)
    assert sorted(os.listdir(tmp_path)) == ["a.snr", "in.wav"]
