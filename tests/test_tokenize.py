"""data/tokenize.py: text becomes Megatron datasets that Megatron reads back."""

import json
from pathlib import Path

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset
from tokenizers import Tokenizer

from nemo_chameleon import cli
from nemo_chameleon.data.tokenize import write_dataset
from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT, train_tokenizer
from nemo_chameleon.utils.errors import UserError
from project import read_documents

TEXTS = ["the cat sat on the mat", "ein Hund", "猫"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def test_documents_read_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Each document is a sequence of its own, ends with the end token, and decodes to its text."""
    count = write_dataset(TEXTS, tokenizer, tmp_path / "d")
    dataset = IndexedDataset(str(tmp_path / "d"))
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    assert len(dataset) == 3
    assert count == sum(len(document) for document in dataset)
    for document, text in zip(dataset, TEXTS, strict=True):
        assert document[-1] == end
        assert tokenizer.decode(document[:-1].tolist()) == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.bin", "d.idx", "d.info.json"]


def test_no_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Nothing to write is an error, and leaves nothing."""
    with pytest.raises(UserError, match="no documents"):
        write_dataset([], tokenizer, tmp_path / "d")
    assert not list(tmp_path.iterdir())


def test_jsonl_faults_name_file_and_line(tmp_path: Path) -> None:
    """A line that is no JSON, lacks the key or holds no text is named."""
    path = tmp_path / "x.jsonl"
    for bad in ("{", '{"txt": "a"}', '{"text": 3}', "[]", '{"text": "\\ud800"}'):
        path.write_text('{"text": "fine"}\n\n' + bad)
        with pytest.raises(UserError, match=r"x\.jsonl, line 3"):
            list(read_documents([path]))


def test_a_file_that_cannot_be_read_is_named() -> None:
    """The error names the file, also when the operating system's error does not."""
    with pytest.raises(UserError, match="cannot read /proc/self/mem: "):
        list(read_documents(["/proc/self/mem"]))


def test_command_line(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`nemo-chameleon prepare` tokenises JSONL files into one dataset."""
    tokenizer.save(str(tmp_path / "t.json"))
    lines = [json.dumps({"body": text}) for text in TEXTS]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    arguments = ["prepare", "--key", "body", "--tokenizer", str(tmp_path / "t.json")]
    arguments += ["--output", str(tmp_path / "d"), str(tmp_path / "x.jsonl")]
    monkeypatch.setattr("sys.argv", ["nemo-chameleon", *arguments])
    cli.main()
    assert "tokens" in capsys.readouterr().out
    assert len(IndexedDataset(str(tmp_path / "d"))) == 3
