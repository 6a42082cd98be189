"""Texts as words, the language model over them, and its training with all weights and few bits."""

import math
from pathlib import Path

import msgspec
import pytest
import torch

import sonorant
from sonorant.cli.train import SHORT_NAMES
from sonorant.errors import ConfigError, FormatError
from sonorant.model import SkipInitialization
from sonorant.nn.transformer import TransformerConfig
from sonorant.studies.language_model import LanguageSettings, LanguageTask
from sonorant.studies.word_transformer import WordTransformer, WordTransformerConfig
from sonorant.studies.words import (
    END_OF_LINE,
    NOTHING,
    UNKNOWN,
    TrainingPieces,
    ValidationPieces,
    Vocabulary,
)
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, TrainingConfig
from tests.training.runs import assert_equal_states, final_state, log_lines

TEXT = "the cat saw the dog\n\nthe dog saw nothing\n"
TRANSFORMER = TransformerConfig(
    width=16, layers=1, heads=2, hidden=32, feed_forward="relu", position="sinusoidal"
)
TINY = WordTransformerConfig(
    vocabulary=12, cutoffs=(4, 8), narrowing=2.0, dropout=0.0, transformer=TRANSFORMER
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_words_are_numbered_by_frequency_and_lines_end(text: Path) -> None:
    vocabulary = Vocabulary.of_text(text)
    assert vocabulary.words == [END_OF_LINE, "the", "dog", "saw", "cat", "nothing", UNKNOWN]
    numbers = vocabulary.numbers(text)
    assert numbers.tolist() == [0, 1, 4, 3, 1, 2, 0, 0, 1, 2, 3, 5, 0]
    text.write_text("the bird\n", encoding="utf-8")
    assert vocabulary.numbers(text).tolist() == [0, 1, 6, 0]


def test_rare_words_become_one(text: Path, tmp_path: Path) -> None:
    vocabulary = Vocabulary.of_text(text, least_count=2)
    assert vocabulary.words == [END_OF_LINE, "the", "dog", "saw", UNKNOWN]
    vocabulary.save(tmp_path / "vocabulary.txt")
    assert (tmp_path / "vocabulary.txt").read_text().split("\n")[:-1] == vocabulary.words


def test_texts_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the text"):
        Vocabulary.of_text(tmp_path / "missing")
    (tmp_path / "latin").write_bytes("déjà vu".encode("latin-1"))
    with pytest.raises(FormatError, match="not a text in UTF-8"):
        Vocabulary.of_text(tmp_path / "latin")


def test_training_pieces_are_the_text_one_word_apart() -> None:
    data = TrainingPieces(torch.arange(14, dtype=torch.int32), length=4, seed=1)
    for epoch in range(3):
        pieces = [data[3 * epoch + index] for index in range(3)]
        assert sorted(int(words[0]) for words, _ in pieces) == [0, 4, 8]
        assert all(torch.equal(following, words + 1) for words, following in pieces)
    with pytest.raises(ConfigError, match=r"has 3 words.*settings\.piece_words"):
        TrainingPieces(torch.arange(4), 4, 1)


@pytest.mark.parametrize(
    ("words", "length", "context"), [(30, 8, 0), (30, 8, 5), (6, 8, 5), (9, 8, 7)]
)
def test_validation_predicts_each_word_once_and_from_enough(
    words: int, length: int, context: int
) -> None:
    data = ValidationPieces(torch.arange(words), length, context)
    predicted: list[int] = []
    for index in range(len(data)):
        read, following = data[index]
        assert read.shape == following.shape == (length,)
        there = following != NOTHING
        assert torch.equal(following[there], read[there] + 1)
        assert not index or int(there.nonzero()[0]) == context
        predicted += following[there].tolist()
    assert predicted == list(range(1, words))
    with pytest.raises(ConfigError, match="empty"):
        ValidationPieces(torch.zeros(1), length, context)


def test_probabilities_sum_to_one_and_see_no_word_ahead() -> None:
    model = WordTransformer(TINY).eval()
    words = torch.arange(12).view(2, 6)
    with torch.no_grad():
        found = model(words)
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 6))
        changed = words.clone()
        changed[:, 4:] = 3
        torch.testing.assert_close(model(changed)[:, :4], found[:, :4])
        assert not torch.allclose(model(changed)[:, 4:], found[:, 4:])


def test_losses_are_the_log_probabilities_of_what_follows() -> None:
    model = WordTransformer(TINY).eval()
    words = torch.arange(12).view(2, 6)
    following = torch.tensor([[3, 5, NOTHING, 11, 0, 8], [NOTHING, 7, 4, 1, NOTHING, 10]])
    there = following != NOTHING
    with torch.no_grad():
        expected = -model(words)[there].gather(1, following[there][:, None])[:, 0]
        torch.testing.assert_close(model.nats(model.hidden(words), following), expected)


def test_the_vectors_of_words_are_those_of_the_softmax() -> None:
    model = WordTransformer(TINY)
    head, (narrow, rare) = model.softmax.head.weight, model.softmax.tail[1]
    with torch.no_grad():
        embedded = model._embedded(torch.tensor([[2, 9]]))[0]
        torch.testing.assert_close(embedded[0], 4 * head[2])
        torch.testing.assert_close(embedded[1], 4 * rare.weight[9 - 8] @ narrow.weight)
        spread = WordTransformer(msgspec.structs.replace(TINY, vocabulary=5000))._embedded(
            torch.arange(5000)[None]
        )[0]
    assert spread[8:].std() == pytest.approx(1.0, abs=0.3)


def test_the_default_model_has_the_published_size() -> None:
    """arXiv 1809.10853 has 247 million; its first band has one more product of 1024 by 1024."""
    with SkipInitialization():
        model = WordTransformer(WordTransformerConfig())
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert (weights + 1024**2) / 1e6 == pytest.approx(247, abs=0.5)
    assert round(weights * 4 / 2**20) == 938


def test_dropout_is_of_training_only() -> None:
    model = WordTransformer(msgspec.structs.replace(TINY, dropout=0.5))
    words = torch.arange(12).view(1, 12)
    with torch.no_grad():
        assert not torch.equal(model(words), model(words))
        model.eval()
        assert torch.equal(model(words), model(words))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cutoffs": ()}, "cutoffs must rise"),
        ({"cutoffs": (4, 4)}, "cutoffs must rise"),
        ({"cutoffs": (4, 12)}, "vocabulary of 12"),
        ({"cutoffs": (0, 4)}, "cutoffs must rise"),
        ({"narrowing": 5.0}, "times narrower 2 times"),
        ({"transformer": {"causal": False}}, "causal transformer"),
    ],
)
def test_impossible_models_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        msgspec.convert(msgspec.to_builtins(TINY) | change, WordTransformerConfig)


@pytest.fixture
def settings(tmp_path: Path) -> LanguageSettings:
    """Ten words that always follow one another in the same order."""
    line = "one two three four five six seven eight nine ten\n"
    (tmp_path / "train").write_text(40 * line)
    (tmp_path / "valid").write_text(6 * line)
    return LanguageSettings(
        train=str(tmp_path / "train"),
        valid=str(tmp_path / "valid"),
        model=TINY,
        piece_words=16,
        valid_context=4,
        learning_rate=0.1,
        momentum=0.9,
    )


def recipe(settings: LanguageSettings, **training: object) -> Recipe:
    config = {"steps": 40, "batch_size": 4, "device": "cpu", "evaluate_every": 0, **training}
    return Recipe(
        task="language_model",
        training=TrainingConfig(**config),  # type: ignore[arg-type]
        settings=msgspec.to_builtins(settings),
    )


def test_training_learns_what_follows_and_the_model_loads(
    settings: LanguageSettings, tmp_path: Path
) -> None:
    made = recipe(settings, evaluate_every=40, max_gradient_norm=1.0)
    assert train(made, tmp_path / "run", short_names=SHORT_NAMES)
    figures = [line for line in log_lines(tmp_path / "run") if line["kind"] == "valid"][-1]
    assert figures["perplexity"] < 3  # of 11 words that occur, equally often
    assert figures["loss"] == pytest.approx(math.log(figures["perplexity"]))
    model = sonorant.load(tmp_path / "run" / "model")
    words = (tmp_path / "run" / "model" / "vocabulary.txt").read_text().split()
    numbers = torch.tensor([words.index(word) for word in ("<eos>", "one", "two", "three")])
    with torch.no_grad():
        assert words[int(model(numbers[None])[0, -1].argmax())] == "four"


def test_perplexity_is_over_all_words_of_the_text(settings: LanguageSettings) -> None:
    """Of batches that differ in size, each word counts the same."""
    task = LanguageTask(msgspec.structs.replace(settings, piece_words=10, valid_context=0))
    task.model.eval()
    pieces = list(task.validation_data())  # type: ignore[call-overload]
    with torch.no_grad():
        parts = [
            task.evaluate([torch.stack(column) for column in zip(*batch, strict=True)])
            for batch in (pieces[:4], pieces[4:6], pieces[6:])
        ]
        means = {name: float(sum(part[name] for part in parts)) / 3 for name in parts[0]}
        text = task.vocabulary.numbers(settings.valid).long()
        losses = [
            task.model.nats(task.model.hidden(words[None, :-1]), words[None, 1:])
            for words in (text[start : start + 11] for start in range(0, len(text) - 1, 10))
        ]
    assert means["words"] * 3 == 66
    expected = float(torch.cat(losses).mean())
    figures = {"perplexity": math.exp(expected), "loss": expected}
    assert task.summary(means) == pytest.approx(figures, rel=1e-5)


def test_resumed_training_equals_uninterrupted(settings: LanguageSettings, tmp_path: Path) -> None:
    model = msgspec.structs.replace(TINY, dropout=0.3)
    made = msgspec.structs.replace(settings, model=model)
    train(recipe(made, steps=4), tmp_path / "whole", short_names=SHORT_NAMES)
    train(recipe(made, steps=2), tmp_path / "parts", short_names=SHORT_NAMES)
    train(recipe(made, steps=4), tmp_path / "parts", True, SHORT_NAMES)
    assert_equal_states(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_in_bfloat16_losses_are_nearly_the_same_and_gradients_flow() -> None:
    model = WordTransformer(TINY)
    words = torch.arange(12).view(2, 6)
    exact = model.nats(model.hidden(words), words)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(words)
    losses = model.nats(hidden, words)
    assert not torch.equal(losses, exact)
    torch.testing.assert_close(losses, exact, rtol=2e-2, atol=5e-2)
    losses.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("method", ["diffq", "lsq", "uniform"])
def test_few_bits_are_learned(settings: LanguageSettings, tmp_path: Path, method: str) -> None:
    WordTransformer(TINY).save_pretrained(tmp_path / "start")
    made = msgspec.structs.replace(settings, start=str(tmp_path / "start"))
    quantization = {"method": method, "choice": {"min_size_mb": 0.0001}}
    few = msgspec.convert(
        msgspec.to_builtins(recipe(made, steps=2)) | {"quantization": quantization}, Recipe
    )
    train(few, tmp_path / "few", short_names=SHORT_NAMES)
    sizes = [
        (tmp_path / folder / "model.safetensors").stat().st_size
        for folder in ("few/model", "start")
    ]
    assert sizes[0] < sizes[1]
    assert isinstance(sonorant.load(tmp_path / "few" / "model"), WordTransformer)


def test_data_and_settings_that_do_not_fit_are_refused(settings: LanguageSettings) -> None:
    larger = msgspec.structs.replace(TINY, vocabulary=20)
    with pytest.raises(ConfigError, match=r"set settings\.model\.vocabulary=12"):
        LanguageTask(msgspec.structs.replace(settings, model=larger)).training_data(0)
    with pytest.raises(ConfigError, match="nothing to predict"):
        msgspec.structs.replace(settings, valid_context=16)
