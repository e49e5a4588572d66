"""data/sft/index.py, samples.py: tokens and samples in data.cache are whole, or made anew."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.sft import index as indices
from nemo_chameleon.data.sft.domain import SFTDomain, open_sft_domain
from nemo_chameleon.data.sft.tokenize import ExampleTokenizer
from nemo_chameleon.utils import manifest
from sft_data import write_jsonl, write_sft_config

EXAMPLES: list[dict[str, Any]] = [
    {"prompt": "2+2?", "completion": "It is 4."},
    {"text": "Some text without a prompt."},
    {"prompt": "3+3?", "completion": "It is 6, and no other number."},
]
Damage = Callable[[Path], Any]
FILES = (manifest.NAME, "index.json", "examples.bin", "examples.idx", "lines.npy")


@pytest.fixture
def sft(corpus: Path, tmp_path: Path) -> Config:
    """Return a configuration to finetune with."""
    return load_config(write_sft_config(corpus, tmp_path))


def cut(file: Path) -> None:
    """Cut a file to half."""
    os.truncate(file, file.stat().st_size // 2)


def zeroed(file: Path) -> None:
    """Overwrite a file with zeros."""
    file.write_bytes(bytes(file.stat().st_size))


def foreign(file: Path) -> None:
    """Write something else of the same size."""
    file.write_bytes(b"{" * file.stat().st_size)


def removed(file: Path) -> None:
    """Remove a file."""
    file.unlink()


def read(sft: Config) -> tuple[SFTDomain, list[Any]]:
    """Open a domain, and return all that its cache has."""
    path = Path(sft.output).parent / "mine.jsonl"
    if not path.exists():
        write_jsonl(path, EXAMPLES)
    domain = open_sft_domain(
        "mine", str(path), sft.data, ExampleTokenizer(sft.data), seq_length=sft.model.seq_length
    )
    index, packs = domain.index, domain.packs(sft.model.seq_length)
    tokens = [index.tokens(i).tolist() for i in range(len(EXAMPLES))]
    answers = [index.is_answer(i).tolist() for i in range(len(EXAMPLES))]
    lines = [index.line(i) for i in range(len(EXAMPLES))]
    return domain, [index.facts, tokens, answers, lines, packs.pieces.tolist()]


def warned(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what was said about damage since the last call."""
    return [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]


@pytest.mark.parametrize("damage", [cut, zeroed, foreign, removed])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_made_anew(
    sft: Config, name: str, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    """An index that is not what was written is named and kept, and the same is made again."""
    domain, before = read(sft)
    folder = domain.index.folder
    damage(folder / name)
    assert read(sft)[1] == before
    (warning,) = warned(capsys)
    (aside,) = folder.parent.glob("*.damaged")
    assert str(folder) in warning
    assert aside.name in warning
    assert read(sft)[1] == before
    assert not warned(capsys)


def test_all_that_decides_an_index(sft: Config, corpus: Path, tmp_path: Path) -> None:
    """Other lines of the same size and time, another tokenizer and other keys get other indices."""
    folders = {read(sft)[0].index.folder}
    file = Path(sft.output).parent / "mine.jsonl"
    before = file.stat()
    file.write_text(file.read_text().replace("It is 4.", "It is 5."))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    folders.add(read(sft)[0].index.folder)
    sft.data.ignored_keys = ["mood"]
    folders.add(read(sft)[0].index.folder)
    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer.json"))
    tokenizer.add_tokens(["a new token"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sft.data.tokenizer = str(tmp_path / "tokenizer.json")
    folders.add(read(sft)[0].index.folder)
    assert len(folders) == 4


def test_samples_without_a_hash(sft: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples that an earlier version stored are made again without a warning."""
    domain, before = read(sft)
    (packs,) = domain.index.folder.glob("packs-*")
    whole = packs.read_bytes()
    save_file(load_file(packs), packs)
    assert read(sft)[1] == before
    assert packs.read_bytes() == whole
    assert not warned(capsys)


def test_an_index_is_verified_once(sft: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process does not read the same files for their hashes again."""
    count, fault_of = [], manifest.fault_of

    def counted(folder: Path, entries: manifest.Entries) -> str | None:
        count.append(folder)
        return fault_of(folder, entries)

    monkeypatch.setattr(manifest, "fault_of", counted)
    read(sft)
    assert not count
    indices._verified.clear()  # as in the next process
    for _ in range(3):
        read(sft)
    assert len(count) == 1


def test_another_rank_does_not_verify(sft: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first rank reads the files for their hashes."""
    _, before = read(sft)
    indices._verified.clear()
    monkeypatch.setattr(manifest, "fault_of", None)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    assert read(sft)[1] == before


def changed(file: Path) -> None:
    """Replace the samples by others, with the hash of the former ones."""
    found = load_file(file)
    text = file.read_bytes()
    size = 8 + int.from_bytes(text[:8], "little")
    assert len(text) > size and found["pieces"].size
    file.write_bytes(text[:size] + bytes(len(text) - size))


@pytest.mark.parametrize("damage", [cut, zeroed, foreign, changed])
def test_damaged_samples(sft: Config, damage: Damage, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples that are not what was written are made again, and the file is named."""
    domain, before = read(sft)
    (packs,) = domain.index.folder.glob("packs-*")
    whole = packs.read_bytes()
    damage(packs)
    assert read(sft)[1] == before
    (warning,) = warned(capsys)
    assert re.search(rf"{packs} is damaged: .*\. It is made anew", warning)
    assert packs.read_bytes() == whole
