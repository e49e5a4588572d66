"""data/splits.py, data/split_names.py: nothing is trained on that is evaluated on."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from nemo_chameleon.config.loading import parse_path
from nemo_chameleon.data.readers import find_files
from nemo_chameleon.utils.errors import UserError

KEY = "data.domains.d.path"


def make(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        record = f'{{"text": "{name}"}}\n'
        (folder / name).write_text(record if ".json" in name else f"about {name}")


def names_of(root: Path, *paths: str, key: str = KEY) -> set[str]:
    """Return the names of the files that are read of paths."""
    found = find_files(paths, key)
    return {str(file.path.relative_to(root)) for one in found for file in one.files}


def typed(text: str) -> dict[str, list[str]]:
    """Return the paths of each key that a message says to type."""
    pairs = [word.split("=", 1) for word in shlex.split(text)]
    given = {key: parse_path(path, key) for key, path in pairs}
    return {key: [path] if isinstance(path, str) else path for key, path in given.items()}


SPLITS = {
    ("training.jsonl", "validation.jsonl", "test.jsonl"): (
        "data.domains.d.path={}/training.jsonl data.validation.d.path={}/validation.jsonl"
    ),
    ("train/a.jsonl", "train/b.jsonl", "test/a.jsonl"): "data.domains.d.path={}/train",
    ("wiki.train.jsonl", "wiki.val.jsonl"): "data.validation.d.path={}/wiki.val.jsonl",
    ("train-00000-of-00002.gz", "train-00001-of-00002.gz", "dev-00000-of-00001.gz"): (
        "'data.domains.d.path={}/train-*-of-00002.gz' "
        "data.validation.d.path={}/dev-00000-of-00001.gz"
    ),
    ("corpus.jsonl", "test.jsonl"): "data.domains.d.path={}/corpus.jsonl; a list",
    ("a.jsonl", "b.jsonl", "valid/c.jsonl"): (
        "'data.domains.d.path={}/*.jsonl' data.validation.d.path={}/valid/c.jsonl"
    ),
    ("split=train/a.jsonl", "split=test/a.jsonl"): "data.domains.d.path={}/split=train/a.jsonl",
    ("train1.jsonl", "train2.jsonl", "test1.jsonl"): "'data.domains.d.path={}/train*.jsonl'",
    ("trainset.jsonl", "my_testset.jsonl"): "data.domains.d.path={}/trainset.jsonl",
    ("TrainData.jsonl", "TestData.jsonl"): "data.domains.d.path={}/TrainData.jsonl",
    ("my train.jsonl", "my test.jsonl"): "data.domains.d.path={}/my train.jsonl",
    ("d_trn.jsonl", "d_tst.jsonl"): "data.domains.d.path={}/d_trn.jsonl",
    ("train.jsonl", "validate.jsonl"): "data.validation.d.path={}/validate.jsonl",
    ("a_train_x.jsonl", "a_validated.jsonl"): "data.validation.d.path={}/a_validated.jsonl",
    ("en_train.jsonl", "en_evalset.jsonl"): "data.validation.d.path={}/en_evalset.jsonl",
    ("en_train.jsonl", "en-heldout2.jsonl"): "data.validation.d.path={}/en-heldout2.jsonl",
    ("train.jsonl", "held-out.jsonl"): "data.validation.d.path={}/held-out.jsonl",
    ("train/x.jsonl", "tests/x.jsonl"): "data.domains.d.path={}/train/x.jsonl",
    ("train1.txt", "test1.txt"): "data.domains.d.path={}/train1.txt",
    ("split=train/a.txt", "split=test/a.txt"): "data.domains.d.path={}/split=train/a.txt",
}


@pytest.mark.parametrize("names", SPLITS, ids=" ".join)
def test_splits_are_not_read_as_one(names: tuple[str, ...], tmp_path: Path) -> None:
    """Files of several splits in one folder are refused, with keys that name one split each."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'{"text": "a"}\n')
    with pytest.raises(UserError, match="files of several splits") as caught:
        find_files([str(tmp_path)], "data.domains.d.path")
    assert SPLITS[names].replace("{}", str(tmp_path)) in str(caught.value)
    held_out = [name for name in names if re.search("(?i)test|tst|val|dev|held", name)]
    for name in held_out:
        (tmp_path / name).unlink()
    assert len(names_of(tmp_path, str(tmp_path))) == len(names) - len(held_out)


def test_a_split_in_the_middle_of_a_name(tmp_path: Path) -> None:
    """It counts where names differ in it alone, apart from numbers; the error's glob works."""
    for name in ("my_train_en-0.jsonl", "my_train_en-1.jsonl", "train_of_my_en.jsonl"):
        (tmp_path / name).write_bytes(b'{"text": "a"}\n')
    assert len(names_of(tmp_path, str(tmp_path))) == 3
    (tmp_path / "train_of_my_en.jsonl").unlink()
    (tmp_path / "my_test_en-0.jsonl").write_bytes(b'{"text": "b"}\n')
    with pytest.raises(UserError, match="files of several splits") as caught:
        find_files([f"{tmp_path}/my*"], "data.domains.d.path")
    glob_of_train = str(caught.value).split("'data.domains.d.path=")[1].split("'")[0]
    assert len(names_of(tmp_path, glob_of_train)) == 2


HELD_OUT: dict[tuple[str, ...], set[str]] = {
    ("V2-GPT4-train.txt", "V2-GPT4-valid.txt"): {"V2-GPT4-train.txt"},
    ("ptb_train.txt", "ptb_valid.txt", "ptb_test.txt"): {"ptb_train.txt"},
    ("en_train.text", "en_eval.text", "de_eval.text"): {"en_train.text"},
    ("cc100_train_en.txt", "cc100_test_en.txt"): {"cc100_train_en.txt"},
    ("e.train.en", "e.valid.en"): {"e.train.en"},
    ("e-train.pl", "e-train.en", "e-test.pl", "e-test.en"): {"e-train.pl", "e-train.en"},
    ("a_train.zh-CN.gz", "a_test.zh-CN.gz"): {"a_train.zh-CN.gz"},
    ("train.source", "train.target", "val.source"): {"train.source", "train.target"},
    ("flores/eng_Latn.dev", "flores/eng_Latn.train"): {"flores/eng_Latn.train"},
    ("x_train-0-of-2", "x_train-1-of-2", "x_dev"): {"x_train-0-of-2", "x_train-1-of-2"},
    ("books/train/a.txt", "books/test/b.txt"): {"books/train/a.txt"},
    ("data/train/a.raw", "data/val/b.raw"): {"data/train/a.raw"},
    ("training-mono/n-01", "training-mono/n-02", "heldout-mono/n-01"): {
        "training-mono/n-01",
        "training-mono/n-02",
    },
    ("test.txt", "a.txt"): {"a.txt"},
    ("val.txt", "novels/one.txt", "novels/two.txt"): {"novels/one.txt", "novels/two.txt"},
    ("train.txt", "my_test.txt"): {"train.txt"},
    ("de/train/a.txt", "de/test/a.txt", "en/train/a.txt", "en/test/a.txt"): {
        "de/train/a.txt",
        "en/train/a.txt",
    },
    ("data/train/a.txt", "data/test/a.txt", "main.py"): {"data/train/a.txt"},
    ("data/train/a.txt", "data/test/a.txt", "a.c", "b.c", "c.c"): {"data/train/a.txt"},
    ("test.txt", "novel.txt", "get.sh"): {"novel.txt"},
    ("train.txt", "valid.txt", "get.sh", "main.py", "a.c"): {"train.txt"},
}


@pytest.mark.parametrize("names", HELD_OUT, ids=" ".join)
@pytest.mark.parametrize("form", ["{}", "{}/**/*"])
def test_prose_that_is_held_out(names: tuple[str, ...], form: str, tmp_path: Path) -> None:
    """Prose of several splits is refused as records are, and what the error says to type works."""
    tmp_path = tmp_path / "all"
    make(tmp_path, names)
    (tmp_path / "README").touch()
    with pytest.raises(UserError, match="of several splits") as caught:
        find_files([form.format(tmp_path)], KEY)
    one, every = str(caught.value).split("one split: ")[1].split("; a list of paths reads all of")
    assert names_of(tmp_path, *typed(one)[KEY]) == HELD_OUT[names]
    assert names_of(tmp_path, *typed(every.removeprefix(" them: "))[KEY]) == {
        name for name in names if not name.endswith((".py", ".sh", ".c"))
    }


@pytest.mark.parametrize("before", ["", "*", "[1] ", "a, b: ", "'", '"', "{x} #", "é ü "])
@pytest.mark.parametrize("path", [".", "*"])
def test_any_name_can_be_typed(
    before: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the error says to type works for relative paths of any characters too."""
    monkeypatch.chdir(tmp_path)
    names = (f"{before}train.txt", f"{before}train-2.txt", f"{before}test.txt")
    make(tmp_path, names)
    with pytest.raises(UserError, match="of several splits") as caught:
        find_files([path], KEY)
    one, every = str(caught.value).split("one split: ")[1].split("; a list of paths reads all of")
    read = {str(f.path) for s in find_files(typed(one)[KEY]) for f in s.files}
    assert read == set(names[:2])
    assert len(find_files(typed(every.removeprefix(" them: "))[KEY])) == 3


def test_prose_among_many_that_is_held_out(tmp_path: Path) -> None:
    """Where no few paths name the rest, the error has commands that move what is held out."""
    root = tmp_path / "all"
    make(root, ("test.txt", *(f"{letter}.txt" for letter in "abcdez"), "sub/valid_1.txt"))
    with pytest.raises(UserError, match="of several splits") as caught:
        find_files([str(root)], KEY)
    commands, _, both = str(caught.value).split("held out: ")[1].partition("; or then name ")
    subprocess.run(commands, shell=True, check=True)
    assert names_of(root, str(root)) == {f"{letter}.txt" for letter in "abcdez"}
    paths = typed(both.removesuffix(" to read all"))[KEY]
    assert len(names_of(tmp_path, *paths)) == 8


READ: list[tuple[str, ...]] = [
    ("speed_test.txt", "novel.txt"),
    ("speed_test.txt", "model_train.txt"),
    ("a/train.py", "a/test.py", "b/main.py"),
    ("a/train.py", "a/eval.py"),
    ("validate.js", "train.js"),
    ("train.ts", "test.ts", "train.pl", "test.pl", "train.cs", "test.cs"),
    ("src/test/a.c", "src/train/b.c", "tests/train.c", "TestData.java"),
    ("main.py", "tests/data/in.txt", "dev/notes.txt", "requirements.txt", "Makefile"),
    ("train.rs.gz", "test.rs.gz"),
    ("test.txt", "requirements.txt", "main.py", "a.py", "b.py"),
]


@pytest.mark.parametrize("names", READ, ids=" ".join)
def test_documents_whose_names_have_a_splits_word(names: tuple[str, ...], tmp_path: Path) -> None:
    """Source code never says a split, and neither does one document about a test."""
    make(tmp_path, names)
    assert names_of(tmp_path, str(tmp_path)) == set(names)
    assert names_of(tmp_path, f"{tmp_path}/**/*") == set(names)
