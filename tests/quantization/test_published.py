"""Files of the diffq package are read and written, byte for byte, and foreign ones refused."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sonorant.errors import CheckpointError, FormatError
from sonorant.hub.tensors import read_pickle
from sonorant.quantization import (
    LSQ,
    Choice,
    DiffQ,
    DiffQConfig,
    Quantizer,
    UniformQuantizer,
    published,
)
from sonorant.quantization.published import (
    STAND_INS,
    compressed_model_size,
    load_published,
    packed_model_size,
    quantizer_options,
    read_published,
    write_published,
)
from tests.parity.adapters.diffq import Network
from tests.parity.runner import Case

FIXTURES = Path(__file__).parent.parent / "fixtures"
SIGNALS = FIXTURES / "signals"
BASELINES = ("u8", "u4qat", "u3f16", "u12", "lsq4")
LEARNED = ("diffq_group8_gaussian", "diffq_group4_uniform_f16", "diffq_tied_group8")
RECORDED_WITH = "2.13.0"  # archives of other versions of torch have other notes inside
PACKAGES = FIXTURES / "separation" / "packages"
PACKAGES_V2 = FIXTURES / "separation" / "packages-v2"


def learned_case(name: str) -> tuple[Network, DiffQ]:
    case = Case.read(SIGNALS / name)
    options = dict(case.config["init_kwargs"])
    model = Network(case.weights, options.pop("tied", False))
    quantizer = DiffQ(model, *quantizer_options(options))
    for slot in quantizer.quantized:
        slot.learned.data.copy_(case.io[f"logit.{slot.path}_diffq"])
    return model, quantizer


def baseline_case(tag: str) -> tuple[Network, Quantizer]:
    case = Case.read(SIGNALS / "diffq_baselines")
    options = case.config[tag]
    model = Network(case.weights, False)
    choice = Choice(min_size_mb=options["min_size"], float16=options["float16"])
    if "qat" in options:
        return model, UniformQuantizer(model, options["bits"], options["qat"], choice)
    quantizer = LSQ(model, options["bits"], choice)
    for slot in quantizer.quantized:
        slot.learned.data.mul_(options["scale_multiplier"])
    return model, quantizer


def cases() -> list[tuple[Path, Network, Quantizer]]:
    learned = [(SIGNALS / name / "quantized_state.th", *learned_case(name)) for name in LEARNED]
    baselines = [(SIGNALS / "diffq_baselines" / f"{t}.th", *baseline_case(t)) for t in BASELINES]
    return [*learned, *baselines]


@pytest.mark.skipif(not torch.__version__.startswith(RECORDED_WITH), reason="another torch")
def test_files_are_those_of_the_package_byte_for_byte() -> None:
    for path, _, quantizer in cases():
        buffer = io.BytesIO()
        write_published(quantizer, buffer, read_published(path)["meta"]["init_kwargs"])
        assert buffer.getvalue() == path.read_bytes(), path


def test_what_is_written_is_read_as_the_same_state(tmp_path: Path) -> None:
    for path, _, quantizer in cases():
        recorded = read_published(path)
        write_published(quantizer, tmp_path / "a.th", recorded["meta"]["init_kwargs"])
        assert_same(read_published(tmp_path / "a.th"), recorded)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    elif isinstance(one, dict | list | tuple):
        assert len(one) == len(other)
        keys = one if isinstance(one, dict) else range(len(one))
        for key in keys:
            assert_same(one[key], other[key])
    else:
        assert one == other


def test_loading_gives_the_quantised_weights() -> None:
    for path, model, quantizer in cases():
        expected = {slot.path: quantizer.stored_weight(slot) for slot in quantizer.quantized}
        quantizer.detach()
        model.apply(forget)
        load_published(model, read_published(path))
        own = dict(model.named_parameters())
        for name, weight in expected.items():
            assert torch.equal(own[name], weight), (path, name)


def forget(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.zeros_(parameter)


def network_of(tensors: dict[str, Tensor]) -> nn.Module:
    """Modules with parameters of these names and shapes, in this order."""
    root = nn.Module()
    for name, tensor in tensors.items():
        module, (*path, last) = root, name.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.zeros(tensor.shape)))
    return root


def test_packages_of_demucs_unpack() -> None:
    kinds = {**STAND_INS, "demucs.hdemucs.HDemucs": type("HDemucs", (), {})}
    plain = read_pickle(PACKAGES / "aaaa0001-660a67fe.th", kinds)["state"]
    packed = read_pickle(PACKAGES / "aaaa0002-918b2f50.th", kinds)["state"]
    model = network_of(plain)
    load_published(model, packed)
    assert_same(dict(model.state_dict()), load_file(PACKAGES / "diffq.state.safetensors"))


def test_compressed_states_of_demucs_2_unpack() -> None:
    model = network_of(read_pickle(PACKAGES_V2 / "tiny_state.th"))
    load_published(model, read_published(PACKAGES_V2 / "tiny_diffq.th"))
    assert_same(dict(model.state_dict()), load_file(PACKAGES_V2 / "diffq.state.safetensors"))


def test_old_states_need_the_options_of_their_quantiser() -> None:
    model, quantizer = learned_case("diffq_group8_gaussian")
    state = read_published(SIGNALS / "diffq_group8_gaussian" / "quantized_state.th")
    arguments = state.pop("meta")["init_kwargs"]
    expected = quantizer.stored_weight(quantizer.quantized[0])
    quantizer.detach()
    with pytest.raises(FormatError, match="which options"):
        load_published(model, state)
    load_published(model, state, arguments)
    assert torch.equal(model.conv.weight, expected)


def test_sizes_are_those_that_the_package_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(64, 128)
    nn.init.constant_(model.weight, 0.5)
    nn.init.zeros_(model.bias)
    model.weight.data[0] = torch.linspace(-1, 1, 64)
    quantizer = UniformQuantizer(model, 6)
    state, pickled = published.packed_state(quantizer, {"bits": 6}), io.BytesIO()
    monkeypatch.setattr(published, "packed_state", lambda *_: state)
    published._Pickler(pickled).dump(state)
    # PyTorch calls a tensor's memory by its address, which has 14 or 15 digits.
    digits = sum(len(address) - 14 for address in re.findall(rb"\d{14,15}", pickled.getvalue()))
    # diffq 0.2.4 with torch 2.13.0 on two cores
    assert packed_model_size(quantizer, {"bits": 6}) * 2**20 - digits == 7518
    compressed = compressed_model_size(quantizer, {"bits": 6}, chunks=2) * 2**20
    assert compressed == pytest.approx(1042, rel=0.05)


def test_a_state_of_another_model_is_refused_and_changes_nothing() -> None:
    state = read_published(SIGNALS / "diffq_group8_gaussian" / "quantized_state.th")
    for model in (nn.Linear(40, 40), nn.Sequential(*(nn.Linear(20, 20) for _ in range(4)))):
        before = [parameter.clone() for parameter in model.parameters()]
        with pytest.raises(FormatError):
            load_published(model, state)
        assert_same(list(model.parameters()), before)


def test_files_of_another_kind_or_cut_short_are_refused(tmp_path: Path) -> None:
    whole = (PACKAGES_V2 / "tiny_diffq.th").read_bytes()
    (tmp_path / "short.th").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"short\.th"):
        read_published(tmp_path / "short.th")
    torch.save({"weight": torch.ones(2)}, tmp_path / "plain.th")
    with pytest.raises(FormatError, match=r"plain\.th does not hold a model quantised"):
        read_published(tmp_path / "plain.th")
    for name, data in (("cut", b"x\x9c"), ("noise", b"noise"), ("text", "text")):
        torch.save({"compressed": data}, tmp_path / f"{name}.th")
        with pytest.raises(FormatError, match=rf"{name}\.th"):
            read_published(tmp_path / f"{name}.th")


def test_a_damaged_entry_is_named() -> None:
    path = SIGNALS / "diffq_group8_gaussian" / "quantized_state.th"
    for damage in ((), (None, None, None), ([None] * 14, (0.0, 1.0), torch.zeros(1, 4, 32).long())):
        model, quantizer = learned_case("diffq_group8_gaussian")
        quantizer.detach()
        state = read_published(path)
        state["quantized"][1] = damage
        with pytest.raises(FormatError, match=r"entry for lin\.weight"):
            load_published(model, state)


def test_what_the_published_format_would_lose_is_not_written() -> None:
    model = nn.Linear(8, 9, bias=False)
    wide = DiffQ(model, DiffQConfig(group_size=8, init_bits=14.9), Choice(0))
    with pytest.raises(FormatError, match="groups of more than 14 bits"):
        write_published(wide, io.BytesIO(), {})
    wide.detach()
    ragged = DiffQ(model, DiffQConfig(group_size=7), Choice(0))
    with pytest.raises(FormatError, match="does not divide into groups"):
        write_published(ragged, io.BytesIO(), {})


@pytest.mark.parametrize(
    "arguments", [{"group_size": "many"}, {"speed": 3}, {"min_size": "x"}, {"detect_bound": False}]
)
def test_unknown_options_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        quantizer_options(arguments)


def peer_case(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    options = {"DiffQuantizer": {"group_size": 8, "max_bits": 14}, "LSQ": {"bits": 5}}
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.LSTM(128, 32)), options.get(kind, {"bits": 6})


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["DiffQuantizer", "UniformQuantizer", "LSQ"])
def test_the_package_reads_our_files_and_we_read_its(kind: str, tmp_path: Path) -> None:
    diffq = pytest.importorskip("diffq", reason="has no wheels; what it wrote is recorded above")
    model, options = peer_case(kind)
    theirs = getattr(diffq, kind)(model, **options)
    if kind != "UniformQuantizer":
        theirs.no_optimizer()
    torch.save(theirs.get_quantized_state(), tmp_path / "theirs.th")
    ours, _ = peer_case(kind)
    made = {"DiffQuantizer": DiffQ, "UniformQuantizer": UniformQuantizer, "LSQ": LSQ}[kind]
    quantizer = made(ours, DiffQConfig(**options)) if made is DiffQ else made(ours, **options)
    write_published(quantizer, tmp_path / "ours.th", options)
    assert_same(read_published(tmp_path / "ours.th"), read_published(tmp_path / "theirs.th"))
    quantizer.detach()
    load_published(ours, read_published(tmp_path / "theirs.th"))
    read, _ = peer_case(kind)
    diffq.restore_quantized_state(read, torch.load(tmp_path / "ours.th", weights_only=False))
    assert_same(list(ours.parameters()), list(read.parameters()))
    sizes = packed_model_size(quantizer, options), theirs.packed_model_size()
    assert sizes[0] == sizes[1]
