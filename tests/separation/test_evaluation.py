"""Songs measured from folders, models and oracles: every figure, and the totals."""

from pathlib import Path

import pytest
import torch

from sonorant.audio import Audio, write
from sonorant.errors import AudioError, ConfigError
from sonorant.separation.bss_eval import BssEvalConfig, bss_eval
from sonorant.separation.demucs import DemucsV2, DemucsV2Config
from sonorant.separation.evaluation import (
    Plan,
    Total,
    estimates_of,
    evaluate_separation,
    find_references,
    from_baseline,
    from_folder,
    from_model,
    sources_of,
)
from sonorant.separation.metrics import global_sdr
from tests.separation.song_folders import (
    RATE,
    SAMPLES,
    SONGS,
    SOURCES,
    stems_of,
    write_estimates,
    write_songs,
)

CHEAP = Plan(bss=False)


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    return write_songs(tmp_path / "songs")


def tiny_model() -> DemucsV2:
    torch.manual_seed(0)
    config = DemucsV2Config(
        sources=(*SOURCES[::-1], "more"),
        sample_rate=2 * RATE,
        segment_samples=4000,
        channels=4,
        depth=2,
        lstm_layers=1,
        resample=False,
    )
    return DemucsV2(config).eval()


def test_the_figures_of_a_song_are_those_of_its_signals(songs: Path, tmp_path: Path) -> None:
    folder = write_estimates(tmp_path / "estimates", leakage=0.1)
    evaluation = evaluate_separation("mine", find_references(songs), from_folder(folder))
    assert [song.name for song in evaluation.songs] == sorted(SONGS)
    assert evaluation.sources == SOURCES
    song = evaluation.songs[0]
    assert (song.frames, song.silent_frames, song.padded_samples, song.seconds) == (3, 0, 0, 3)
    true = torch.stack(list(stems_of(song.name).values()))
    guess = true + 0.1 * true.sum(0)
    scores = bss_eval(true, guess, BssEvalConfig(RATE, RATE))
    for index, source in enumerate(SOURCES):
        found = song.sources[source]
        assert found.global_sdr == pytest.approx(global_sdr(true, guess)[index].item(), abs=1e-4)
        assert found.frames["sir"] == pytest.approx(scores.sir[index].tolist(), abs=1e-3)
        assert found.medians["sir"] == pytest.approx(scores.sir[index].median().item(), abs=1e-3)


def test_totals_are_the_median_and_the_mean_over_songs(songs: Path, tmp_path: Path) -> None:
    folder = write_estimates(tmp_path / "estimates", leakage=0.1)
    evaluation = evaluate_separation("mine", find_references(songs), from_folder(folder))
    for metric in ("sdr", "global_sdr"):
        values = [song.sources["bass"].of(metric) for song in evaluation.songs]
        assert all(value is not None for value in values)
        mean = sum(value for value in values if value is not None) / 2
        assert evaluation.totals["bass"][metric] == Total(
            pytest.approx(mean), pytest.approx(mean), 2
        )
    of_sources = [evaluation.totals[source]["isr"].median for source in SOURCES]
    assert evaluation.totals["all"]["isr"].median == pytest.approx(sum(of_sources) / 4)


def test_silent_frames_and_other_lengths_are_counted(songs: Path, tmp_path: Path) -> None:
    folder = write_estimates(tmp_path / "estimates", leakage=0.1)
    stem = stems_of("First")["bass"]
    stem[:, :RATE] = 0
    write(folder / "First" / "bass.wav", Audio(stem[:, :-1000], RATE), float_samples=True)
    evaluation = evaluate_separation("mine", find_references(songs), from_folder(folder))
    first, second = evaluation.songs
    assert (first.silent_frames, first.padded_samples) == (1, 1000)
    assert first.sources["drums"].frames["sdr"][0] is None
    assert first.sources["drums"].medians["sdr"] is not None
    assert (second.silent_frames, second.padded_samples) == (0, 0)


def test_a_song_with_a_silent_source_counts_for_the_whole_sdr_only(tmp_path: Path) -> None:
    folder = write_songs(tmp_path / "songs")
    write(folder / "First" / "bass.wav", Audio(torch.zeros(1, SAMPLES), RATE))
    evaluation = evaluate_separation("mixture", find_references(folder), from_baseline("mixture"))
    assert evaluation.songs[0].sources["drums"].medians["sdr"] is None
    assert evaluation.totals["drums"]["sdr"].songs == 1
    assert evaluation.totals["drums"]["global_sdr"].songs == 2
    assert [song.silent_sources for song in evaluation.songs] == [("bass",), ()]


def test_the_accompaniment_is_scored_against_the_vocals(songs: Path, tmp_path: Path) -> None:
    folder = write_estimates(tmp_path / "estimates", leakage=0.1)
    references = find_references(songs)
    plain = evaluate_separation("mine", references, from_folder(folder))
    plan = Plan(accompaniment=True)
    both = evaluate_separation("mine", references, from_folder(folder), plan)
    assert both.songs[0].sources["bass"] == plain.songs[0].sources["bass"]
    true = torch.stack(list(stems_of("First").values()))
    guess = true + 0.1 * true.sum(0)
    pairs = [torch.stack([each[3], each[:3].sum(0)]) for each in (true, guess)]
    expected = bss_eval(pairs[0], pairs[1], BssEvalConfig(RATE, RATE)).sir
    for index, source in enumerate(("vocals", "accompaniment")):
        found = both.songs[0].sources[source].frames["sir"]
        assert found == pytest.approx(expected[index].tolist(), abs=1e-3)
    assert found != pytest.approx(plain.songs[0].sources["vocals"].frames["sir"], abs=0.1)


def test_a_model_is_measured_on_what_it_separates(songs: Path, tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    references = find_references(songs)
    live = evaluate_separation("tiny", references, from_model(model), CHEAP)
    assert live.sources == SOURCES
    mixture = Audio(torch.stack(list(stems_of("First").values())).sum(0), RATE)
    made = model.separate(mixture)["drums"].to(RATE, channels=1)
    true = stems_of("First")["drums"]
    expected = global_sdr(true, made.samples).item()
    assert live.songs[0].sources["drums"].global_sdr == pytest.approx(expected, abs=1e-3)
    loaded = estimates_of(str(tmp_path / "model"), overlap=0.5)
    assert evaluate_separation("tiny", references, loaded, CHEAP).songs[0].frames == 0


def test_other_files_beside_the_estimates_do_not_matter(songs: Path, tmp_path: Path) -> None:
    folder = write_estimates(tmp_path / "estimates", leakage=0.1)
    (folder / "scores.json").write_text("{}")
    (folder / ".DS_Store").write_bytes(b"")
    references = find_references(songs)
    found = evaluate_separation("mine", references, estimates_of(str(folder)), CHEAP)
    assert (
        found.totals == evaluate_separation("mine", references, from_folder(folder), CHEAP).totals
    )


def test_settings_of_a_model_are_refused_where_there_is_none(tmp_path: Path) -> None:
    for what in ("mixture", str(tmp_path)):
        with pytest.raises(ConfigError, match="no use for overlap"):
            estimates_of(what, overlap=0.5)
        with pytest.raises(ConfigError, match="no use for repo"):
            estimates_of(what, tmp_path)


def test_an_oracle_stands_above_the_mixture(songs: Path) -> None:
    references = find_references(songs)
    means = [
        evaluate_separation(name, references, estimates_of(name), CHEAP).totals["all"]["global_sdr"]
        for name in ("mixture", "irm1")
    ]
    assert means[1].mean > means[0].mean + 0.5


def test_the_test_songs_of_a_dataset_are_taken(tmp_path: Path) -> None:
    write_songs(tmp_path / "train")
    write_songs(tmp_path / "test")
    names = {file for song in find_references(tmp_path) for file in song.files.values()}
    assert all(Path(name).is_relative_to(tmp_path / "test") for name in names)


def test_what_cannot_be_measured_is_refused(songs: Path, tmp_path: Path) -> None:
    references = find_references(songs)
    folder = write_estimates(tmp_path / "estimates", leakage=0.1)
    (folder / "First" / "bass.wav").unlink()
    with pytest.raises(AudioError, match=r"no estimate .*First/bass.wav"):
        evaluate_separation("mine", references, from_folder(folder), CHEAP)
    with pytest.raises(ConfigError, match="no baseline 'irm3'"):
        from_baseline("irm3")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no songs"):
        find_references(tmp_path / "empty")
    (songs / "Third").mkdir()
    write(songs / "Third" / "flute.wav", Audio(torch.ones(2, 100), RATE))
    with pytest.raises(ConfigError, match="no source in common"):
        sources_of(find_references(songs))
