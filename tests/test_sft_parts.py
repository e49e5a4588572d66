"""data/sft/: a finetuning domain of several files, as a list or a glob names them."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.utils.errors import UserError
from sft_data import write_jsonl, write_sft_config

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def sft(corpus: Path, tmp_path: Path) -> Config:
    """Return a configuration whose domain `text` is a folder of three files."""
    config = load_config(write_sft_config(corpus, tmp_path))
    (tmp_path / "more").mkdir()
    for part in range(3):
        examples = [{"text": f"part {part}, example {i}"} for i in range(4)]
        write_jsonl(tmp_path / "more" / f"part-{part}.jsonl", examples)
    config.data.domains["text"].path = str(tmp_path / "more")
    return config


def opened(sft: Config, path: Any, validation: Any = None) -> Any:
    """Open all domains, with other paths for `text` and for its validation, and return `text`."""
    sft.data.domains["text"].path = path
    kind = kind_of(sft.data)
    domains = kind.open_domains(sft.data, sft.model.seq_length)
    if validation is not None:
        sft.data.validation["text"] = type(sft.data.domains["text"])(path=validation)
        kind.open_validation(sft.data, domains, sft.model.seq_length)
    return domains["text"]


def test_lists_and_globs_of_files(sft: Config, tmp_path: Path) -> None:
    """A list, a glob and the folder with the same files in the same order are the same data."""
    more = tmp_path / "more"
    folder = opened(sft, str(more))
    files = [str(more / f"part-{part}.jsonl") for part in range(3)]
    for same in (files, f"{more}/*.jsonl", [f"{more}/part-[01].jsonl", files[2]]):
        domain = opened(sft, same)
        assert domain.fingerprint == folder.fingerprint
        assert domain.path == files
        assert domain.datasets == folder.datasets, "there is one index"
    assert opened(sft, [files[0]]).path == files[0]
    turned = opened(sft, files[::-1])
    assert turned.fingerprint != folder.fingerprint
    assert turned.index.line(0) == "part-2.jsonl, line 1"
    assert (turned.facts()["path"], "part_tokens" in turned.facts()) == (files[::-1], False)


def test_files_that_are_there_twice(sft: Config, tmp_path: Path) -> None:
    """A file that is in one domain twice, in two domains, or in a validation set too is named."""
    more = tmp_path / "more"
    first = str(more / "part-0.jsonl")
    with pytest.raises(UserError, match=r"the part .*part-0\.jsonl is there twice"):
        opened(sft, [str(more), first])
    with pytest.raises(UserError, match=r"text\.path=.*: the glob matches no file$"):
        opened(sft, f"{more}/*.json")
    with pytest.raises(UserError, match=r"domain 'text' trains on .*part-0\.jsonl: remove it"):
        opened(sft, str(more), validation=[first])
    sft.data.domains["pairs"].path = first
    with pytest.raises(UserError, match=r"part-0\.jsonl is in 'pairs' and in 'text': remove it"):
        opened(sft, str(more))


def test_files_that_are_not_examples(sft: Config, tmp_path: Path) -> None:
    """A text is an example only if its name ends like plain text; others are refused by name."""
    text = "- prompt: a\n  completion: b\n"
    for name in ("x.yaml", "x.py", "train.log.gz", "names"):
        file = tmp_path / name
        file.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        with pytest.raises(
            UserError, match=rf"text\.path: .*{name} has no examples: it is neither"
        ):
            opened(sft, str(file))
    for name in ("a.txt", "b.MD", "c.txt.gz"):
        file = tmp_path / name
        file.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        assert opened(sft, str(file)).documents == 1
