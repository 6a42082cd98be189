"""`.ecdc` files: as the parity cases show what is written, these show what is refused."""

import json
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant.codec.ecdc import EcdcReader, EcdcWriter, segment_frames
from sonorant.codec.encodec import EncodecCore
from sonorant.codec.encoded import Encoded
from sonorant.codec.entropy_coding import EntropyModel
from sonorant.errors import CheckpointError, FormatError
from tests.codec.test_encodec import HOP, tiny, tiny_segmented
from tests.codec.test_entropy_exact import COMPACT, PUBLISHED
from tests.codec.test_entropy_exact import random_model as random_entropy


def causal() -> EncodecCore:
    codec = tiny()
    codec.name = "encodec_24khz"
    return codec


def segmented() -> EncodecCore:
    codec = tiny_segmented()
    codec.name = "encodec_48khz"
    return codec


def entropy() -> EntropyModel:
    model = random_entropy(PUBLISHED)
    assert isinstance(model, EntropyModel)
    return model


CODECS: dict[str, Callable[[], EncodecCore]] = {"causal": causal, "segments": segmented}


def encoded(codec: EncodecCore, samples: int, codebooks: int = 3) -> Encoded:
    """Tokens of chance in the shape that a codec gives them."""
    generator = torch.Generator().manual_seed(samples)
    frames = tuple(segment_frames(codec, samples))
    tokens = torch.randint(16, (1, codebooks, sum(frames)), generator=generator)
    scales = torch.rand(1, len(frames), generator=generator) + 0.1 if codec.scaled else None
    return Encoded(tokens, samples, scales, frames if codec.segmented else ())


def write(path: Path, codec: EncodecCore, part: Encoded, model: EntropyModel | None) -> Path:
    with EcdcWriter(path, codec, part.codebooks, model) as writer:
        writer.write(part)
        writer.finish()
    return path


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("coded", [False, True])
@settings(max_examples=8, deadline=None)
@given(samples=st.integers(1, 700), codebooks=st.integers(1, 4))
def test_tokens_and_volumes_come_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, coded: bool, samples: int, codebooks: int
) -> None:
    codec, model = CODECS[name](), entropy() if coded else None
    part = encoded(codec, samples, codebooks)
    path = write(tmp_path_factory.mktemp("e") / "a.ecdc", codec, part, model)
    reader = EcdcReader(path)
    assert (reader.header.samples, reader.header.codebooks) == (samples, codebooks)
    assert reader.coded == coded
    blocks = list(reader.blocks(codec, model))
    assert torch.equal(torch.cat([block.tokens for block in blocks], -1), part.tokens)
    if part.scales is not None:
        assert [block.scale for block in blocks] == part.scales[0].tolist()


@pytest.mark.parametrize("coded", [False, True])
def test_any_chunks_give_the_same_file(tmp_path: Path, coded: bool) -> None:
    codec, model = causal(), entropy() if coded else None
    whole = encoded(codec, 30 * HOP)
    expected = write(tmp_path / "a.ecdc", codec, whole, model).read_bytes()
    with EcdcWriter(tmp_path / "b.ecdc", codec, 3, model) as writer:
        for tokens in whole.tokens.split([1, 9, 13, 7], dim=-1):
            writer.write(Encoded(tokens, tokens.shape[-1] * HOP))
        writer.finish()
    assert (tmp_path / "b.ecdc").read_bytes() == expected


def test_a_disk_that_is_full_is_told_by_the_files_name_and_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    codec, path = causal(), tmp_path / "a.ecdc"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heeded = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(FormatError, match=r"cannot write .*a\.ecdc: File too large"):
            write(path, codec, encoded(codec, 400 * HOP), None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heeded)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("coded", [False, True])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, name: str, coded: bool) -> None:
    codec, model = CODECS[name](), entropy() if coded else None
    path = write(tmp_path / "a.ecdc", codec, encoded(codec, 250), model)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            list(EcdcReader(path).blocks(codec, model))
    path.write_bytes(whole + b"\0")
    with pytest.raises(FormatError, match="goes on for 1 bytes after its end"):
        list(EcdcReader(path).blocks(codec, model))


def test_every_flipped_bit_of_coded_tokens_is_told(tmp_path: Path) -> None:
    """The format has no checksum, but the coder knows where its bits must end."""
    codec, model = causal(), entropy()
    path = write(tmp_path / "a.ecdc", codec, encoded(codec, 12 * HOP), model)
    whole = path.read_bytes()
    start = len(EcdcReader(path).header.pack())
    for position in range(8 * start, 8 * len(whole)):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"OMP_NUM_THREADS|after its end"):
            list(EcdcReader(path).blocks(codec, model))


def test_bits_after_packed_tokens_are_told(tmp_path: Path) -> None:
    codec = causal()
    path = write(tmp_path / "a.ecdc", codec, encoded(codec, 3 * HOP), None)  # 36 bits
    whole = bytearray(path.read_bytes())
    whole[-1] |= 0x80
    path.write_bytes(whole)
    with pytest.raises(FormatError, match="bits after the end of a segment"):
        list(EcdcReader(path).blocks(codec))


def file_of(path: Path, header: object, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(b"ECDC" + struct.pack(">BI", 0, len(text)) + text + body)
    return path


GOOD = {"m": "encodec_24khz", "al": 8, "nc": 2, "lm": False}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (GOOD | {"m": "encodec_96khz"}, "made by a model 'encodec_96khz'"),
        (GOOD | {"m": "../../etc/passwd"}, "encodec_24khz or encodec_48khz"),
        (GOOD | {"al": -1}, "impossible header"),
        (GOOD | {"al": 0}, "impossible header"),
        (GOOD | {"al": 1e300}, "impossible header"),
        (GOOD | {"al": 2**60}, "impossible header"),
        (GOOD | {"nc": 0}, "impossible header"),
        (GOOD | {"lm": "yes"}, "impossible header"),
        ({"m": "encodec_24khz"}, "impossible header"),
        ([1, 2], "impossible header"),
        (b"{", "impossible header"),
        (b"\xff\xfe", "impossible header"),
        (b"", "impossible header"),
        (b'{"x":' + b"[" * 30_000, "impossible header"),
    ],
)
def test_impossible_headers_are_refused(tmp_path: Path, header: object, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        EcdcReader(file_of(tmp_path / "a.ecdc", header, b"\0"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short"),
        (b"RIFF" + bytes(40), "is not an .ecdc file"),
        (b"ECDC\1" + bytes(40), "of version 1"),
        (b"ECDC\0\xff\xff\xff\xff" + bytes(40), "a header of 4294967295 bytes"),
        (b"ECDC\0\0\0\xff\xff" + bytes(40), "65535 bytes should follow, 40 are left"),
    ],
)
def test_other_files_are_refused_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "a.ecdc").write_bytes(content)
    with pytest.raises(FormatError, match=reason):
        EcdcReader(tmp_path / "a.ecdc")
    with pytest.raises(FormatError, match="does not exist"):
        EcdcReader(tmp_path / "b.ecdc")


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("name", CODECS)
def test_a_lying_length_allocates_nothing(tmp_path: Path, name: str, coded: bool) -> None:
    """Nine quadrillion samples in eighty bytes: the end of the data comes first."""
    codec = CODECS[name]()
    header = GOOD | {"m": codec.name, "al": 2**53, "nc": 4, "lm": coded}
    volume = struct.pack(">f", 1.0) if codec.scaled else b""
    path = file_of(tmp_path / "a.ecdc", header, volume + bytes(range(80)))
    with pytest.raises(FormatError, match="cut short or damaged"):
        list(EcdcReader(path).blocks(codec, entropy() if coded else None))


def test_more_codebooks_than_the_model_has_are_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.ecdc", GOOD | {"nc": 5}, bytes(10))
    with pytest.raises(FormatError, match="5 codebooks; its model has 4"):
        list(EcdcReader(path).blocks(causal()))


@pytest.mark.parametrize("volume", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_volume_that_is_none_is_refused(tmp_path: Path, volume: float) -> None:
    header = GOOD | {"m": "encodec_48khz"}
    path = file_of(tmp_path / "a.ecdc", header, struct.pack(">f", volume) + b"\0")
    with pytest.raises(FormatError, match="volume"):
        list(EcdcReader(path).blocks(segmented()))


def test_models_that_the_format_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not by this codec"):
        EcdcWriter(tmp_path / "a.ecdc", tiny(), 2, None)
    with pytest.raises(CheckpointError, match="not 'compact_entropy'"):
        EcdcWriter(tmp_path / "a.ecdc", causal(), 2, random_entropy(COMPACT))
    path = write(tmp_path / "a.ecdc", causal(), encoded(causal(), 50), entropy())
    with pytest.raises(FormatError, match="made by encodec_24khz, not by encodec_48khz"):
        list(EcdcReader(path).blocks(segmented()))
    with pytest.raises(CheckpointError, match="coded with an entropy model"):
        list(EcdcReader(path).blocks(causal()))


def test_nothing_is_left_of_a_file_that_is_not_finished(tmp_path: Path) -> None:
    codec = causal()
    with EcdcWriter(tmp_path / "a.ecdc", codec, 3, None) as writer:
        writer.write(encoded(codec, 100))
    with pytest.raises(FormatError, match="frames are not"):
        write(tmp_path / "a.ecdc", codec, Encoded(torch.zeros(1, 3, 1).long(), 100), None)
    assert list(tmp_path.iterdir()) == []
    for path in (tmp_path, tmp_path / "nowhere" / "a.ecdc"):
        with pytest.raises(FormatError, match="cannot write"):
            EcdcWriter(path, codec, 3, None)


def test_lengths_that_release_0_1_1_misread() -> None:
    """53760 samples are 168 frames; release 0.1.1 of encodec asked for 169."""
    codec = causal()
    codec.frame_rate, codec.sample_rate = 75, 24000
    assert list(segment_frames(codec, 53_760)) == [168]
    assert 53_760 / 24_000 * 75 > 168
