"""data/indexed.py: what the files of a domain must be, and which windows are drawn from them."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from nemo_chameleon.config.data import DatasetConfig, DomainConfig
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.domain import Domain, split_shares
from nemo_chameleon.data.indexed import IndexedDomain, open_indexed, open_indexed_validation
from nemo_chameleon.utils.errors import UserError


def write(prefix: Path, documents: list[list[int]], dtype: type = np.uint16) -> str:
    """Write a Megatron dataset of these token ids and return its prefix."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


@pytest.fixture
def ten(tmp_path: Path) -> str:
    """Return a dataset of ten documents of 20 tokens; document i holds 100·i … 100·i + 19."""
    return write(tmp_path / "ten", [list(range(100 * i, 100 * i + 20)) for i in range(10)])


def test_training_split_as_megatron_splits(ten: str) -> None:
    """The split 80,10,10 of ten documents leaves eight for training and one for validation."""
    domain = IndexedDomain.open("d", ten, split="80,10,10")
    assert (domain.documents, domain.tokens, domain.validation_tokens) == (8, 160, 20)


def test_windows_lie_in_one_document_of_the_training_split(ten: str) -> None:
    """A window is consecutive tokens of one document, and never of a validation document."""
    domain = IndexedDomain.open("d", ten, split="50,50,0")
    starts = set()
    for index in range(200):
        window = domain.window(index, 8, seed=1).tokens
        np.testing.assert_array_equal(window, np.arange(window[0], window[0] + 8))
        assert window[-1] < 500
        starts.add(int(window[0]))
    assert len(starts) > 40  # there are 5 documents × 13 starts


def test_short_documents_are_taken_whole(tmp_path: Path) -> None:
    """A document shorter than the window is taken whole; empty documents are never drawn."""
    path = write(tmp_path / "short", [[7, 8, 9], [], [1, 2, 3], []])
    domain = IndexedDomain.open("d", path)
    drawn = {tuple(domain.window(index, 8, seed=0).tokens) for index in range(20)}
    assert drawn == {(7, 8, 9), (1, 2, 3)}


def test_windows_that_cross_documents(tmp_path: Path) -> None:
    """Windows start at any token and continue into the next documents, from the last into the
    first, but have no token twice.
    """
    path = write(tmp_path / "short", [[0, 1, 2], [], [3], [4, 5, 6, 7], [], [8, 9], [10, 11]])
    domain = IndexedDomain.open("d", path, split="6,1,0")
    drawn = {tuple(domain.window(i, 5, seed=0, cross_documents=True).tokens) for i in range(100)}
    assert drawn == {tuple((start + i) % 10 for i in range(5)) for start in range(10)}
    whole = {tuple(domain.window(i, 99, seed=0, cross_documents=True).tokens) for i in range(100)}
    assert whole == {tuple((start + i) % 10 for i in range(10)) for start in range(10)}


def test_windows_depend_on_seed_name_and_index_alone(ten: str, tmp_path: Path) -> None:
    """The same seed, name and index give the same window, also from a copy of the files.

    Another seed or name gives other windows.
    """
    for ending in (".bin", ".idx"):
        shutil.copy(ten + ending, tmp_path / f"copy{ending}")
    here, there = IndexedDomain.open("d", ten), IndexedDomain.open("d", str(tmp_path / "copy"))
    assert here.fingerprint == there.fingerprint

    def windows(domain: Domain, seed: int) -> list[list[int]]:
        return [domain.window(index, 4, seed).tokens.tolist() for index in range(8)]

    assert windows(here, 3) == windows(there, 3)
    assert windows(here, 3) != windows(here, 4)
    assert windows(here, 3) != windows(IndexedDomain.open("e", ten), 3)


def test_fingerprint_sees_the_contents(tmp_path: Path) -> None:
    """Two files of equal size and different tokens have different fingerprints."""
    one = IndexedDomain.open("d", write(tmp_path / "one", [[1, 2, 3]]))
    two = IndexedDomain.open("d", write(tmp_path / "two", [[1, 2, 4]]))
    assert one.fingerprint != two.fingerprint


def truncate(path: str, size: int) -> None:
    """Keep the first `size` bytes of a file."""
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:size])


def blank(path: str) -> None:
    """Keep the index's header and set the rest to zero, as a full disk may leave it."""
    data = Path(path + ".idx").read_bytes()
    Path(path + ".idx").write_bytes(data[:34] + bytes(len(data) - 34))


def change(path: str, form: str, offset: int, value: float) -> None:
    """Write another number into an .idx."""
    data = bytearray(Path(path + ".idx").read_bytes())
    struct.pack_into(form, data, offset, value)
    Path(path + ".idx").write_bytes(data)


LENGTHS, POINTERS, DOCUMENTS = 34, 34 + 4 * 10, 34 + 12 * 10


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: change(p, "<i", LENGTHS + 4 * 5, -20), "ten.idx is damaged: sequence 5 has -20"),
        (
            lambda p: change(p, "<i", LENGTHS + 4 * 5, 0),
            "sequence 6 begins at byte 240 .* byte 200",
        ),
        (lambda p: change(p, "<i", LENGTHS + 4 * 5, 2**30), "sequence 6 begins at byte 240"),
        (lambda p: change(p, "<i", LENGTHS + 4 * 9, 21), "the .bin has 400 bytes, but .* 402"),
        (lambda p: change(p, "<q", POINTERS, 40), "sequence 0 begins at byte 40 .* byte 0"),
        (lambda p: change(p, "<q", POINTERS + 8 * 5, -(2**63)), "sequence 5 begins at byte -9,"),
        (lambda p: change(p, "<q", POINTERS + 8 * 5, 2**63 - 1), "sequence 5 begins at byte 9,"),
        (lambda p: change(p, "<q", DOCUMENTS, -1), "document 0 begins at sequence -1"),
        (
            lambda p: change(p, "<q", DOCUMENTS + 8 * 5, 7),
            "document 6 begins at sequence 6, before",
        ),
        (
            lambda p: change(p, "<q", DOCUMENTS + 8 * 10, 9),
            "documents end at sequence 9, .* has 10",
        ),
        (lambda p: change(p, "<Q", 26, 0), "ten.idx is damaged, because it has no documents"),
        (lambda p: change(p, "<B", 17, 7), "tokens are of type float32, but token ids are"),
        (lambda p: change(p, "<B", 17, 9), "unknown token type, code 9: copy it again"),
        (
            lambda p: Path(p + ".bin").write_bytes(Path(p + ".bin").read_bytes() + bytes(8)),
            "408 bytes, but the .idx describes only 400, .* truncate --size=400 .*/ten.bin",
        ),
        (lambda p: Path(p + ".bin").unlink(), "there is no file .*ten.bin"),
        (lambda p: Path(p + ".idx").unlink(), "there is no file .*ten.idx"),
        (lambda p: truncate(p + ".idx", 60), "ten.idx is truncated, 60 bytes of"),
        (lambda p: truncate(p + ".idx", 10), "ten.idx is truncated"),
        (lambda p: truncate(p + ".bin", 100), "the .bin has 100 bytes"),
        (lambda p: Path(p + ".idx").write_bytes(b"x" * 200), "not the index of a Megatron dataset"),
        (lambda p: change(p, "<B", 0, 0), "not the index of a Megatron dataset"),
        (lambda p: change(p, "<Q", 9, 2), "not the index of a Megatron dataset"),
        (blank, "damaged"),
    ],
)
def test_damaged_files_are_named(ten: str, damage: object, says: str) -> None:
    """Each way in which a dataset can be damaged is an error that names the domain and the file."""
    damage(ten)  # type: ignore[operator]
    with pytest.raises(UserError, match=says) as error:
        IndexedDomain.open("wiki", ten)
    assert "data.domains.wiki.path" in str(error.value)


@pytest.mark.parametrize("number", [0, 16_383, 16_384, 32_768, 39_999])
def test_damage_is_found_wherever_it_is(tmp_path: Path, number: int) -> None:
    """One wrong entry of each kind is found at any of many documents, and its number is said."""
    count = 40_000
    path = write(tmp_path / "many", [[7]] * count)
    whole = Path(path + ".idx").read_bytes()
    for form, offset, value, says in (
        ("<i", 34 + 4 * number, -1, f"sequence {number:,} has -1 tokens"),
        ("<q", 34 + 4 * count + 8 * number, 3, f"sequence {number:,} begins at byte 3 "),
        ("<q", 34 + 12 * count + 8 * number, -5, f"document {number:,} begins at sequence -5, "),
    ):
        change(path, form, offset, value)
        with pytest.raises(UserError, match=f"many.idx is damaged: {says}"):
            IndexedDomain.open("wiki", path)
        Path(path + ".idx").write_bytes(whole)
    assert IndexedDomain.open("wiki", path).tokens == count


@pytest.mark.parametrize("number", [1, 16_384, 32_768])
def test_a_gap_is_found_wherever_it_is(tmp_path: Path, number: int) -> None:
    """Bytes that belong to no sequence are found, also where all that follows fits together."""
    count = 40_000
    path = write(tmp_path / "gap", [[7]] * count)
    data = bytearray(Path(path + ".idx").read_bytes())
    pointers = np.frombuffer(data, np.int64, count, 34 + 4 * count)
    pointers[number:] += 2
    Path(path + ".idx").write_bytes(data)
    Path(path + ".bin").write_bytes(Path(path + ".bin").read_bytes() + bytes(2))
    with pytest.raises(UserError, match=f"sequence {number:,} begins at byte {2 * number + 2:,} "):
        IndexedDomain.open("wiki", path)


def test_legal_indices(tmp_path: Path) -> None:
    """Sequences of length 0, documents of several sequences or of none, and modes are legal.

    Megatron-LM's preprocess_data.py writes an empty text as a document without a sequence.
    """
    builder = IndexedDatasetBuilder(f"{tmp_path}/d.bin", dtype=np.int32, multimodal=True)
    for lengths in ([], [2, 0, 1], [], [0], [3], []):
        builder.add_document(torch.arange(sum(lengths)), lengths, [1] * len(lengths))
    builder.finalize(f"{tmp_path}/d.idx")
    domain = IndexedDomain.open("d", f"{tmp_path}/d")
    assert (domain.documents, domain.tokens) == (5, 6)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_negative_tokens(tmp_path: Path, dtype: type) -> None:
    """A token below 0 is refused, whether or not the vocabulary is known."""
    path = write(tmp_path / "neg", [[1, 2], [3, -3, 4]], dtype)
    for vocab_size in (None, 100):
        with pytest.raises(UserError, match=r"wiki.*neg: the .bin has token id -3, but token ids"):
            IndexedDomain.open("wiki", path, vocab_size=vocab_size)


def test_an_index_of_fairseq(ten: str) -> None:
    """An .idx of fairseq, which begins as Megatron's does, is named and not called truncated."""
    sizes, pointers = np.full(10, 20, np.int32), 40 * np.arange(10, dtype=np.int64)
    header = b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, 8, 10)
    Path(ten + ".idx").write_bytes(header + sizes.tobytes() + pointers.tobytes())
    with pytest.raises(UserError, match=r"^data\.domains\.wiki\.path=.*an index of fairseq, which"):
        IndexedDomain.open("wiki", ten)


def test_empty_domain(tmp_path: Path) -> None:
    """A domain with no documents, or with empty documents alone, is refused by name."""
    empty: list[list[list[int]]] = [[[]], [[], []]]
    for number, documents in enumerate(empty):
        with pytest.raises(UserError, match=r"wiki.*empty"):
            IndexedDomain.open("wiki", write(tmp_path / f"empty{number}", documents))


def test_prefix_with_its_ending(ten: str) -> None:
    """A path with the ending of a file is refused with the advice to leave the ending out."""
    with pytest.raises(UserError, match="write the path without"):
        IndexedDomain.open("d", ten + ".bin")


def test_tokens_outside_the_vocabulary(ten: str) -> None:
    """Data of another tokenizer is found before a model is built."""
    with pytest.raises(UserError, match="token id 919, but the vocabulary has 900"):
        IndexedDomain.open("d", ten, vocab_size=900)


def test_two_names_for_the_same_data(ten: str) -> None:
    """The same data under two names is refused, because it would be drawn twice as often."""
    domains = {"a": DomainConfig(ten), "b": DomainConfig(ten)}
    with pytest.raises(UserError, match="'a' and 'b' are the same data"):
        open_indexed(domains, "1,0,0")


def test_validation_data_that_is_trained_on_is_refused(corpus: Path, config: Config) -> None:
    """A validation set that is a domain's own data is refused, and both are named."""
    domains = open_indexed(config.data.domains, config.data.split)
    config.data.validation["held"] = DatasetConfig(str(corpus / "legal"))
    with pytest.raises(
        UserError, match=r"validation\.held is the same data that domain 'legal' trains"
    ):
        open_indexed_validation(config.data, domains)
    config.data.validation["held"].path += ".bin"
    with pytest.raises(UserError, match=r"^data\.validation\.held\.path=.*write the path without"):
        open_indexed_validation(config.data, domains)


def test_split_strings() -> None:
    """Megatron's split strings are read, and other strings are refused."""
    assert split_shares("95,5,0") == [0.95, 0.05, 0.0]
    assert split_shares("1") == [1.0, 0.0, 0.0]
    for wrong in ("", "a,b", "0,1,0", "-1,2,0", "1,1,1,1", "9e1,5,0", "1_0,2,3", "1,nan,0"):
        with pytest.raises(UserError, match=r"data\.split"):
            split_shares(wrong)
