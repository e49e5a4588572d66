"""data/prepare.py: the same dataset for any number of processes, and after any interruption."""

import errno
import fcntl
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from tokenizers import AddedToken, Tokenizer, models

from nemo_chameleon import cli
from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data import unfinished
from nemo_chameleon.data.index_file import IndexFile
from nemo_chameleon.data.indexed import IndexedDomain
from nemo_chameleon.data.prepare import prepare
from nemo_chameleon.data.readers import reading
from nemo_chameleon.data.readers.compression import open_bytes
from nemo_chameleon.data.tokenize import DocumentTokenizer, write_dataset
from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT, find_tokenizer, train_tokenizer
from nemo_chameleon.data.unfinished import UnfinishedDataset
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.utils.errors import UserError

TEXTS = [f"document {number} " * (number % 7) for number in range(100)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_chameleon.data.prepare._LINES", 10)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """Return a folder with t.json, and the texts in a.jsonl and b.jsonl."""
    tokenizer.save(str(tmp_path / "t.json"))
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(lines[:45]))
    (tmp_path / "b.jsonl").write_text("".join(lines[45:]))
    return tmp_path


def prepared(folder: Path, name: str, workers: int = 1, **settings: Any) -> tuple[bytes, bytes]:
    """Prepare the two files, and return the bytes of the .bin and of the .idx."""
    paths = [str(folder / "a.jsonl"), str(folder / "b.jsonl")]
    prepare(paths, str(folder / "t.json"), folder / name, workers=workers, **settings)
    return (folder / f"{name}.bin").read_bytes(), (folder / f"{name}.idx").read_bytes()


@pytest.mark.parametrize("size", [300, 70_000])
def test_the_files_are_megatrons(size: int, tmp_path: Path) -> None:
    """The bytes of both files are those that Megatron's own builder writes."""
    tokenizer = train_tokenizer(TEXTS, 300)
    if size > 300:  # ids that need four bytes
        facts = json.loads(tokenizer.to_str())
        facts["model"]["vocab"]["!"] = size
        tokenizer = Tokenizer.from_str(json.dumps(facts))
    write_dataset([*TEXTS, "!"], tokenizer, tmp_path / "d")
    dtype = np.uint16 if size == 300 else np.int32
    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=dtype)
    for text in [*TEXTS, "!"]:
        ids = [*tokenizer.encode(text).ids, tokenizer.token_to_id(END_OF_DOCUMENT)]
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(tmp_path / "m.idx"))
    for ending in ("bin", "idx"):
        assert (tmp_path / f"d.{ending}").read_bytes() == (tmp_path / f"m.{ending}").read_bytes()
    index = IndexFile.open(tmp_path / "d.idx", "here")
    assert (len(index.lengths), index.dtype) == (101, dtype)


def test_workers(folder: Path, tokenizer: Tokenizer) -> None:
    """Any number of processes writes the same bytes, and leaves nothing else."""
    write_dataset(TEXTS, tokenizer, folder / "d")
    expected = (folder / "d.bin").read_bytes(), (folder / "d.idx").read_bytes()
    assert prepared(folder, "one") == expected
    assert prepared(folder, "two", workers=2) == expected
    assert not list(folder.glob("*unfinished*"))
    assert (folder / "two.info.json").read_bytes() == (folder / "d.info.json").read_bytes()


def test_an_error_in_a_worker(folder: Path) -> None:
    """An error in another process names the file and the line, and nothing is left."""
    with (folder / "b.jsonl").open("a") as stream:
        stream.write('{"text": 3}')
    with pytest.raises(UserError, match=r"b\.jsonl, line 56: 'text' is not text"):
        prepared(folder, "two", workers=2)
    assert not list(folder.glob("two*"))


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Let tokenising end as if killed after some batches; return the sizes of batches."""
    sizes = list[int]()
    encode = DocumentTokenizer.encode

    def counted(self: DocumentTokenizer, texts: list[str]) -> tuple[bytes, bytes]:
        if len(sizes) == after:
            raise KeyboardInterrupt
        sizes.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(DocumentTokenizer, "encode", counted)
    return sizes


def test_continues(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command continues after what is certain, and drops what is not."""
    expected = prepared(folder, "whole")
    with monkeypatch.context() as patched:
        patched.setattr("nemo_chameleon.data.unfinished._SAVE_EVERY", -1.0)
        interrupt(patched, after=6)
        with pytest.raises(KeyboardInterrupt):
            prepared(folder, "d")
    assert not (folder / "d.idx").exists()
    for ending in ("bin", "len"):  # written, but not certain
        with (folder / f"d.unfinished.{ending}").open("ab") as stream:
            stream.write(b"\1\2\3\4")
    with monkeypatch.context() as patched:
        sizes = interrupt(patched, after=-1)
        assert prepared(folder, "d") == expected
    assert sum(sizes) == 40
    assert "continues after the 60 documents" in capsys.readouterr().out
    assert not list(folder.glob("*unfinished*"))


def test_begins_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another input begins again and says so, and another tokenizer too."""
    with monkeypatch.context() as patched:
        patched.setattr("nemo_chameleon.data.unfinished._SAVE_EVERY", -1.0)
        interrupt(patched, after=6)
        with pytest.raises(KeyboardInterrupt):
            prepared(folder, "d")
    with (folder / "b.jsonl").open("a") as stream:
        stream.write('{"text": "one more"}')
    assert prepared(folder, "d") == prepared(folder, "whole")
    assert "so this one begins again" in capsys.readouterr().out
    assert len(IndexedDataset(str(folder / "d"))) == 101


def test_another_version_of_the_readers_begins_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another version has read of the files is not continued."""
    expected = prepared(folder, "whole")
    with monkeypatch.context() as patched:
        patched.setattr("nemo_chameleon.data.unfinished._SAVE_EVERY", -1.0)
        interrupt(patched, after=6)
        with pytest.raises(KeyboardInterrupt):
            prepared(folder, "d")
    monkeypatch.setattr("nemo_chameleon.data.prepare.VERSION", -1)
    assert prepared(folder, "d") == expected
    assert "so this one begins again" in capsys.readouterr().out


def test_work_is_kept_unless_its_input_must_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be read for now leaves what is tokenised; a line that must be mended does
    not, because the input is another one then.
    """
    expected = prepared(folder, "whole")
    monkeypatch.setattr("nemo_chameleon.data.unfinished._SAVE_EVERY", -1.0)
    with monkeypatch.context() as patched:
        opened = open_bytes

        def fails(path: Path) -> Any:
            if path.name == "b.jsonl":
                raise OSError(errno.EIO, "Input/output error")
            return opened(path)

        patched.setattr(reading, "open_bytes", fails)
        with pytest.raises(UserError, match=r"cannot read .*b\.jsonl: .*Input/output"):
            prepared(folder, "d")
    assert "what is tokenised is kept" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        sizes = interrupt(patched, after=-1)
        assert prepared(folder, "d") == expected
    assert sum(sizes) < 100
    with (folder / "b.jsonl").open("a") as stream:
        stream.write('{"text": 3}')
    with pytest.raises(UserError, match="'text' is not text"):
        prepared(folder, "e")
    assert not list(folder.glob("e*"))


@pytest.mark.parametrize("step", ["stamp", "bin", "idx"])
def test_the_last_steps_lose_nothing(
    step: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset that is written anew is the old one until all of the new one is on the disk, and a
    kill between the steps that give it its name costs no tokens.
    """
    old = prepared(folder, "d")
    with (folder / "b.jsonl").open("a") as stream:
        stream.write('{"text": "one more"}')
    expected = prepared(folder, "whole")
    with monkeypatch.context() as patched:
        if step == "stamp":
            patched.setattr(unfinished, "write_atomically", full_disk)
        else:
            replace, done = Path.replace, list[str]()

            def killed(self: Path, target: Any) -> Path:
                if str(target) == f"{folder}/d.{step}":
                    raise KeyboardInterrupt
                done.append(str(target))
                return replace(self, target)

            patched.setattr(Path, "replace", killed)
            patched.setattr(UnfinishedDataset, "__exit__", lambda self, *_: self._bin.close())
        with pytest.raises((UserError, KeyboardInterrupt)):
            prepared(folder, "d")
    if step == "stamp":
        assert ((folder / "d.bin").read_bytes(), (folder / "d.idx").read_bytes()) == old
        assert not list(folder.glob("*unfinished*"))
    with monkeypatch.context() as patched:
        sizes = interrupt(patched, after=-1)
        assert prepared(folder, "d") == expected
    assert sum(sizes) == (101 if step == "stamp" else 0)
    assert not list(folder.glob("*unfinished*"))


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_folders_are_no_datasets(folder: Path) -> None:
    """A prefix that names a folder is refused, with a prefix in it."""
    for prefix in (".", "", f"{folder}", f"{folder}/new/", ".."):
        with pytest.raises(UserError, match=r"is (a folder|empty): name a file in it, .*NAME"):
            prepare([str(folder / "a.jsonl")], str(folder / "t.json"), prefix)


def test_names_of_files_are_no_prefixes(folder: Path) -> None:
    """A name with the ending of one of the two files, or with a ~ that no shell has replaced."""
    for prefix, says in (
        (f"{folder}/x.bin", r"name their prefix, which is \S*/x$"),
        (f"{folder}/x.idx", r"name their prefix, which is \S*/x$"),
        ("~/x", r"^--output ~/x: ~ is no folder here: write /"),
    ):
        with pytest.raises(UserError, match=says):
            prepare([str(folder / "a.jsonl")], str(folder / "t.json"), prefix)


def test_a_name_that_is_nowhere(folder: Path) -> None:
    """A name that is not in the local cache is an error at once, and nothing is downloaded."""
    with pytest.raises(UserError, match=r"no file or folder some/other, .* hf download"):
        prepare([str(folder / "a.jsonl")], "some/other", folder / "d")


@pytest.mark.parametrize("facts", ["[]", "null", "{", '{"tokens": "3"}', '{"position": 3}'])
def test_a_damaged_journal_begins_again(facts: str, folder: Path) -> None:
    """What an earlier start left is used only if it can be read."""
    (folder / "d.unfinished.json").write_text(facts)
    assert prepared(folder, "d") == prepared(folder, "whole")


class Full:
    """A file on a disk that is full, which says so once more when it is closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, *_: Any) -> None:
        full_disk()

    def close(self) -> None:
        self._stream.close()
        full_disk()


def test_a_disk_that_is_full_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that closing the files repeats does not hide the one that names the dataset."""
    opened = unfinished._locked
    monkeypatch.setattr(unfinished, "_locked", lambda *given: Full(opened(*given)))
    with pytest.raises(UserError, match=r"^cannot write .*d: .*No space left"):
        prepared(folder, "d")


def test_two_at_once(folder: Path) -> None:
    """A second process on the same output is refused, and the first one is not disturbed."""
    with UnfinishedDataset(folder / "d", np.uint16) as first:
        with pytest.raises(UserError, match="another process is writing"):
            prepared(folder, "d")
        first.append(b"\1\0", b"\1\0\0\0")
        first.finish("{}")
    assert len(IndexedDataset(str(folder / "d"))) == 1
    prepared(folder, "d")
    assert len(IndexedDataset(str(folder / "d"))) == 100


def test_two_of_which_one_is_just_ready(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that opened the file right before it got its name writes to another one."""
    first, lock = UnfinishedDataset(folder / "d", np.uint16), fcntl.flock
    first.append(b"\1\0", b"\1\0\0\0")

    def late(stream: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        first.finish("{}")
        first.__exit__(None, None, None)
        lock(stream, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with UnfinishedDataset(folder / "d", np.uint16) as second:
        assert (folder / "d.bin").read_bytes() == b"\1\0"
        second.append(b"\2\0\3\0", b"\2\0\0\0")
        second.finish("{}")
    assert (folder / "d.bin").read_bytes() == b"\2\0\3\0"


def test_the_tokenizers_own_files_count(folder: Path) -> None:
    """A folder is a tokenizer, with its end token, and without its truncation and padding."""
    own = Tokenizer.from_file(str(folder / "t.json"))
    own.add_special_tokens(["<end>"])
    own.enable_truncation(3)
    own.enable_padding(length=9)
    (folder / "own").mkdir()
    own.save(str(folder / "own" / "tokenizer.json"))
    (folder / "own" / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    documents, tokens = prepare([str(folder / "a.jsonl")], str(folder / "own"), folder / "d")
    dataset = IndexedDataset(str(folder / "d"))
    assert (documents, tokens) == (45, sum(map(len, dataset)))
    assert {int(document[-1]) for document in dataset} == {own.token_to_id("<end>")}
    assert own.decode(dataset[5][:-1].tolist()) == TEXTS[5]
    assert json.loads((folder / "d.info.json").read_text())["end_token"] == "<end>"


def test_a_name_in_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in the local cache of Hugging Face gives its tokenizer and its end token."""
    cached = folder / "hub" / "models--some--model"
    (cached / "snapshots" / "1").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    own = Tokenizer.from_file(str(folder / "t.json"))
    own.add_special_tokens(["<end>"])
    own.save(str(cached / "snapshots" / "1" / "tokenizer.json"))
    (cached / "snapshots" / "1" / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    prepare([str(folder / "a.jsonl")], "some/model", folder / "d")
    dataset = IndexedDataset(str(folder / "d"))
    assert dataset[0][-1] == own.token_to_id("<end>")
    assert Vocabulary.of(DataConfig(tokenizer="some/model")).vocab_size == 301


def test_the_stamp(folder: Path, tokenizer: Tokenizer) -> None:
    """Data of another tokenizer are refused though their ids fit; those of a smaller are not."""
    prepared(folder, "d")
    path, own = str(folder / "d"), str(folder / "t.json")
    IndexedDomain.open("d", path, tokenizer=own)
    facts = json.loads(tokenizer.to_str())
    vocabulary = facts["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "other.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"data\.domains\.d\.path.* another tokenizer than .*other"):
        IndexedDomain.open("d", path, tokenizer=str(folder / "other.json"))
    tokenizer.add_special_tokens([AddedToken("<chat>")])
    tokenizer.save(str(folder / "larger.json"))
    IndexedDomain.open("d", path, tokenizer=str(folder / "larger.json"))
    write_dataset(TEXTS[:3], tokenizer, folder / "e")
    (folder / "e.info.json").replace(folder / "d.info.json")
    with pytest.raises(UserError, match=r"describes 3 documents, but the \.idx has 100"):
        IndexedDomain.open("d", path, tokenizer=own)
    (folder / "d.info.json").write_text("{")
    with pytest.raises(UserError, match=r"d\.info\.json cannot be read"):
        IndexedDomain.open("d", path, tokenizer=own)
    (folder / "d.info.json").unlink()
    IndexedDomain.open("d", path, tokenizer=str(folder / "other.json"))


def test_command_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`nemo-chameleon prepare` takes folders and files, says which formats it reads, and refuses no
    processes at all.
    """
    (folder / "in").mkdir()
    (folder / "a.jsonl").rename(folder / "in" / "a.jsonl")
    (folder / "one.txt").write_text("a whole document")
    arguments = ["nemo-chameleon", "prepare", "--tokenizer", str(folder / "t.json"), "--output"]
    arguments += [str(folder / "d"), str(folder / "in"), str(folder / "one.txt"), "--workers"]
    monkeypatch.setattr("sys.argv", [*arguments, "1"])
    cli.main()
    said = capsys.readouterr().out
    assert "files are read in several formats: 1 of lines, 1 of text" in said
    assert "tokens in 46 documents" in said
    monkeypatch.setattr("sys.argv", [*arguments, "0"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--workers 0" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_a_text_that_the_tokenizer_refuses(workers: int, folder: Path) -> None:
    """A vocabulary of words without unk_token: the error names the tokenizer and the line."""
    words = Tokenizer(models.WordLevel({"a": 0, END_OF_DOCUMENT: 1}, unk_token="<unk>"))
    words.save(str(folder / "words.json"))
    (folder / "w.jsonl").write_text('{"text": "a"}\n' * 30 + '{"text": "unknown"}\n')
    says = r"w\.jsonl, line 31: the tokenizer .*words\.json cannot encode the text 'unknown': .*UNK"
    with pytest.raises(UserError, match=says):
        prepare(
            [str(folder / "w.jsonl")], str(folder / "words.json"), folder / "d", workers=workers
        )


def test_an_end_token_that_is_no_token(folder: Path, tokenizer: Tokenizer) -> None:
    """The error names the file that names the token, and a token that could be named."""
    settings = folder / "tokenizer_config.json"
    settings.write_text('{"eos_token": "<none>"}', encoding="utf-8-sig")
    with pytest.raises(UserError, match=rf"{settings} names it as eos_token: .* as <\|endoftext"):
        prepared(folder, "d")
    with pytest.raises(UserError, match=r"the tokenizer has no token <none> .* as eos_token in a"):
        DocumentTokenizer(tokenizer, "<none>")


def test_folders_without_a_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named: any tokenizer, or the package that makes one of other files."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model has no tokenizer: there is no tokenizer\.json"):
        find_tokenizer(str(folder / "model"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for contents, package in ((b"\n\x0e\n\x05<unk>", "sentencepiece"), (b"IQ== 0\n", "tiktoken")):
        (folder / "model" / "tokenizer.model").write_bytes(contents)
        with pytest.raises(UserError, match=f"tokenizer.model only with {package}: pip install"):
            find_tokenizer(str(folder / "model"))
    with pytest.raises(UserError, match=r"is no tokenizer\.json: name one, or the folder"):
        find_tokenizer(str(folder / "model" / "tokenizer.model"))
