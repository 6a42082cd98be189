"""The table of known models: what ships is sound, and mistakes in it are named."""

import pytest

from sonorant.errors import CheckpointError, ConfigError
from sonorant.hub.table import known, parse_table, resolve
from sonorant.model import Model

SYSTEM = '[systems.toy]\nclass = "module:Class"\n'
MODEL = '[models."some/toy"]\nsystem = "toy"\ntitle = "A toy"\nlicence = "MIT"\n'


def test_every_address_in_the_shipped_table_exists() -> None:
    for name, entry in known().systems.items():
        system = resolve(entry.class_)
        assert issubclass(system, Model)
        assert system.system == name
        for exporter in entry.exports.values():
            assert callable(resolve(exporter))
    for model in known().models.values():
        assert model.translator is None or callable(resolve(model.translator))
        assert model.package_folder is None or model.package_folder.is_dir()


def test_models_know_their_names() -> None:
    table = parse_table(SYSTEM + MODEL + 'repository = "some/toy"')
    assert table.model("some/toy").name == "some/toy"
    assert table.model("some/toy").package_folder is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SYSTEM + MODEL, "needs one of package, repository and files"),
        (SYSTEM + MODEL + 'package = "a"\nrepository = "b/c"', "needs one of"),
        (SYSTEM + MODEL + 'package = "a"\ncolour = "red"', "unknown field `colour`"),
        (SYSTEM + MODEL + 'files = [{ url = "http://x/y", sha256 = "12" }]', "regex"),
        ("[systems", "models.toml"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_table(text)


def test_model_of_an_unknown_system_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no system is named 'toy'"):
        parse_table("[systems]\n" + MODEL + 'package = "a"')


def test_unknown_name_lists_near_ones_and_where_to_look() -> None:
    table = parse_table(SYSTEM + MODEL + 'package = "a"')
    with pytest.raises(CheckpointError, match="did you mean some/toy"):
        table.model("some/toi")
    with pytest.raises(CheckpointError, match="`sonorant models list`") as caught:
        table.model("xyz")
    assert "did you mean" not in str(caught.value)
