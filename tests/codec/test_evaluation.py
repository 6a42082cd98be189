"""Evaluation of a codec: what is found, what is measured, and what is said where nothing can be."""

import math
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from sonorant.audio import Audio, read, write
from sonorant.codec.evaluation import Plan, Sound, evaluate_codec, find_sounds
from sonorant.codec.evaluation_picture import write_picture
from sonorant.codec.metrics import mel_distance, si_snr, stft_distance
from sonorant.data.manifest import Item, write_manifest
from sonorant.errors import AudioError, ConfigError, DependencyError
from sonorant.model import load
from tests.codec.test_encodec import RATE, tiny, tiny_segmented

PLAIN = ("si_snr", "mel", "stft")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and three sounds: noise, silence, and one too short for some metrics."""
    tiny().save_pretrained(tmp_path / "model")
    sounds = tmp_path / "sounds"
    (sounds / "deep").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(1, 2 * RATE, generator=generator)
    write(sounds / "noise.wav", Audio(noise, RATE))
    write(sounds / "silence.flac", Audio(torch.zeros(1, 2 * RATE), RATE))
    write(sounds / "deep" / "short.wav", Audio(noise[:, :100], RATE))
    (sounds / "notes.txt").write_text("no sound")
    return tmp_path


def plan(folder: Path, *bandwidths: float, metrics: tuple[str, ...] = PLAIN) -> Plan:
    return Plan(str(folder / "model"), bandwidths or (None,), metrics)


def item(path: Path, split: str, domain: str) -> Item:
    return msgspec.convert(
        {
            "path": str(path),
            "duration_seconds": 1.0,
            "sample_rate": RATE,
            "channels": 1,
            "domain": domain,
            "split": split,
            "source": "test",
            "licence": "CC0-1.0",
            "group": path.stem,
        },
        Item,
    )


def test_files_folders_and_manifests_give_each_sound_once(folder: Path) -> None:
    sounds = folder / "sounds"
    noise, silence = sounds / "noise.wav", sounds / "silence.flac"
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, [item(noise, "test", "speech"), item(silence, "train", "music")])
    names = [Path(sound.path).name for sound in find_sounds([noise, sounds])]
    assert sorted(names) == ["noise.wav", "short.wav", "silence.flac"]
    found = find_sounds([manifest], split="test")
    assert [(Path(sound.path).name, sound.domain) for sound in found] == [("noise.wav", "speech")]
    assert find_sounds([noise], domain="music")[0].domain == "music"
    with pytest.raises(AudioError, match="no file or folder"):
        find_sounds([folder / "none"])
    with pytest.raises(ConfigError, match="no sound files in"):
        find_sounds([folder / "model"])


def test_scores_are_those_of_the_sound_after_the_codec(folder: Path) -> None:
    path = folder / "sounds" / "noise.wav"
    result = evaluate_codec([Sound(str(path))], plan(folder, 0.8))
    codec, audio = load(folder / "model"), read(path)
    encoded = codec.encode(audio, 0.8)
    decoded = codec.decode(encoded)
    (scores,) = result.files
    assert scores.scores == {
        "si_snr": si_snr(audio, decoded),
        "mel": mel_distance(audio, decoded),
        "stft": stft_distance(audio, decoded),
    }
    bits = encoded.tokens.numel() * math.log2(codec.config.quantizer.codebook_size)
    assert scores.kbps == pytest.approx(bits / 2 / 1000)
    assert result.totals[0].metrics["mel"].mean == scores.scores["mel"]
    assert len(result.totals[0].codebooks) == encoded.codebooks == 2


def test_totals_are_means_over_the_files_that_have_the_metric(folder: Path) -> None:
    result = evaluate_codec(find_sounds([folder / "sounds"]), plan(folder, 0.8, 1.6))
    by_name = {Path(file.path).name: file for file in result.files if file.bandwidth_kbps == 1.6}
    assert "silent reference" in by_name["silence.flac"].not_computed["si_snr"]
    assert "samples or more" in by_name["short.wav"].not_computed["stft"]
    assert set(by_name["noise.wav"].scores) == set(PLAIN)
    total = result.totals[1]
    assert (total.bandwidth_kbps, total.files, total.metrics["stft"].files) == (1.6, 3, 1)
    mels = [file.scores["mel"] for file in by_name.values()]
    assert total.metrics["mel"].mean == pytest.approx(sum(mels) / 3)
    assert total.seconds == pytest.approx(4 + 100 / RATE)
    assert total.entropy_kbps < total.kbps


def test_what_is_asked_for_twice_counts_once(folder: Path) -> None:
    sounds = find_sounds([folder / "sounds"])
    once = evaluate_codec(sounds, plan(folder, 0.8))
    twice = evaluate_codec(sounds, plan(folder, 0.8, 0.8, metrics=(*PLAIN, *PLAIN)))
    assert twice == once


def test_a_model_that_was_saved_again_is_measured_again(folder: Path) -> None:
    sounds = [Sound(str(folder / "sounds" / "noise.wav"))]
    first = evaluate_codec(sounds, plan(folder))
    model = tiny()
    model.decoder.layers[-1].conv.bias.data += 0.1
    model.save_pretrained(folder / "model")
    second = evaluate_codec(sounds, plan(folder))
    assert second.files[0].scores != first.files[0].scores


def test_codebook_use_counts_over_all_files(folder: Path) -> None:
    both = evaluate_codec(find_sounds([folder / "sounds"]), plan(folder, 1.6))
    codec = load(folder / "model")
    tokens = [codec.encode(read(file.path), 1.6).tokens for file in both.files]
    distinct = [len(row.unique()) for row in torch.cat(tokens, dim=-1)[0]]
    size = codec.config.quantizer.codebook_size
    assert [round(book.used * size) for book in both.totals[0].codebooks] == distinct


def test_volumes_count_in_the_rate(folder: Path) -> None:
    model = tiny_segmented()
    model.save_pretrained(folder / "model")
    result = evaluate_codec([Sound(str(folder / "sounds" / "noise.wav"))], plan(folder))
    encoded = model.encode(read(folder / "sounds" / "noise.wav"))
    assert encoded.scales is not None
    size = model.config.quantizer.codebook_size
    bits = encoded.tokens.numel() * math.log2(size) + 32 * encoded.scales.numel()
    assert result.files[0].kbps == pytest.approx(bits / 2 / 1000)


def test_damaged_files_are_listed_and_the_others_measured(folder: Path) -> None:
    (folder / "sounds" / "broken.wav").write_bytes(b"RIFF and no more")
    result = evaluate_codec(find_sounds([folder / "sounds"]), plan(folder))
    assert [Path(path).name for path in result.failed] == ["broken.wav"]
    assert result.totals[0].files == 3
    with pytest.raises(AudioError, match=r"none of 1 files can be used; .*broken\.wav"):
        evaluate_codec([Sound(str(folder / "sounds" / "broken.wav"))], plan(folder))


def test_more_than_two_channels_are_not_mixed_down_in_silence(folder: Path) -> None:
    path = folder / "sounds" / "five.wav"
    write(path, Audio(0.1 * torch.randn(5, RATE), RATE))
    with pytest.raises(AudioError, match="5 channels; mix it down"):
        evaluate_codec([Sound(str(path))], plan(folder))


def test_a_split_without_a_manifest_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the split 'test' is of a manifest"):
        find_sounds([folder / "sounds"], "test")


def test_wrong_plans_are_refused_before_anything_is_measured(folder: Path) -> None:
    sounds = find_sounds([folder / "sounds"])
    with pytest.raises(ConfigError, match=r"no metric 'snr'; choose of si_snr, mel"):
        evaluate_codec(sounds, plan(folder, metrics=("snr",)))
    with pytest.raises(ConfigError, match="no bandwidth of 7 kb/s"):
        evaluate_codec(sounds, plan(folder, 7.0))


def test_a_missing_package_names_the_extra_and_the_way_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pesq", None)
    speech = [Sound(str(folder / "sounds" / "noise.wav"), "speech")]
    with pytest.raises(DependencyError, match=r"sonorant\[eval\].*\(--metrics si_snr,mel\)"):
        evaluate_codec(speech, plan(folder, metrics=("si_snr", "pesq", "mel")))
    music = [Sound(speech[0].path, "music")]
    assert evaluate_codec(music, plan(folder, metrics=("si_snr", "pesq"))).files[0].scores


@pytest.mark.slow
def test_worker_processes_give_the_same_figures(folder: Path) -> None:
    sounds = find_sounds([folder / "sounds"])
    done: list[None] = []
    here = evaluate_codec(sounds, plan(folder, 0.8))
    there = evaluate_codec(sounds, plan(folder, 0.8), 2, progress=lambda: done.append(None))
    assert there == here
    assert len(done) == len(sounds)


def test_the_picture_is_written_in_the_format_of_its_name(folder: Path) -> None:
    result = evaluate_codec(find_sounds([folder / "sounds"]), plan(folder, 0.8, 1.6))
    write_picture(result, folder / "out.png")
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    write_picture(result, folder / "out.svg")
    assert "<svg" in (folder / "out.svg").read_text()
    with pytest.raises(ConfigError, match="name ends in"):
        write_picture(result, folder / "out.gif")
    assert {path.name for path in folder.iterdir()} >= {"out.png", "out.svg"}
    assert not list(folder.glob("*.part"))
