"""demo/: what the demo trains on, and the unseen sets that it evaluates on."""

import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import pytest
import yaml

from demo import prepare, text, unseen
from project import ROOT


def lines(word: str, start: int = 0) -> str:
    """Return forty lines of twenty characters or more."""
    return "\n".join(f"{word} number {i} of its document" for i in range(start, start + 40))


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that `demo.prepare` writes two small domains and two unseen sets to."""

    def some(*words: str) -> Iterator[str]:
        for word in words:
            yield from (lines(word, 40 * i) for i in range(5))

    monkeypatch.setattr(text, "domains", lambda: {n: lambda n=n: some(n) for n in ("a", "b")})
    monkeypatch.setattr(text, "MINIMUM", 1000)
    monkeypatch.setattr(unseen, "MINIMUM", 1000)
    monkeypatch.setattr(
        unseen, "sets", lambda: {"c": lambda: some("c", "a"), "d": lambda: some("d")}
    )
    monkeypatch.setattr(prepare, "VOCAB_SIZE", 300)
    monkeypatch.setattr(sys, "argv", ["demo.prepare", str(tmp_path / "data")])
    return tmp_path / "data"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_unseen_sets_share_no_text_with_domains(demo: Path) -> None:
    """What mostly repeats lines of a domain is left out of an unseen set."""
    known = {line for part in text.documents("a") for line in text.lines_of(part)}
    kept = unseen.documents("c", known)
    assert len(kept) == 5
    assert not any(part.startswith("a ") for part in kept)
    assert len(unseen.documents("c", ())) == 10
    mixed = "\n".join([*lines("a").split("\n")[:20], lines("new")])
    assert list(text.distinct([mixed], known).values()) == [mixed], "most of it is new"


def test_unseen_sets_are_added_to_a_folder_of_an_earlier_version(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the missing sets are written, with the folder's tokenizer; runs to remove are named."""
    prepare.main()
    assert "wrote 2 domains and 2 sets that are never trained on" in capsys.readouterr().out
    whole = contents(demo)
    written = {f"{name}.{ending}" for name in "abcd" for ending in ("bin", "idx", "info.json")}
    assert set(whole) == written | {"tokenizer.json"}
    prepare.main()
    assert capsys.readouterr().out == f"{demo} is already complete\n"
    (demo / "c.idx").unlink()
    for path in (demo / "d.idx", demo / "d.bin"):
        path.unlink()
    (demo.parent / "compare").mkdir()
    prepare.main()
    said = capsys.readouterr().out
    assert "wrote 2 sets that are never trained on" in said
    assert f"`rm -r {demo.parent / 'compare'}`\nlets" in said
    assert contents(demo) == whole


def test_a_folder_without_tokenizer_is_written_anew(demo: Path) -> None:
    """A run that was killed before it wrote the tokenizer left nothing that counts as finished."""
    prepare.main()
    whole = contents(demo)
    (demo / "tokenizer.json").unlink()
    (demo / "d.bin").write_bytes(b"")
    prepare.main()
    assert contents(demo) == whole


def test_a_set_without_text_is_named(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unseen set that this machine has too little text for is an error that names it."""
    monkeypatch.setattr(unseen, "MINIMUM", 10**9)
    with pytest.raises(ValueError, match=r"unseen set 'd': found .* run `make install`"):
        unseen.documents("d", ())


def test_the_configuration_evaluates_on_every_unseen_set() -> None:
    """conf/demo.yaml names every domain and every unseen set, and no set is both."""
    data = yaml.safe_load((ROOT / "conf" / "demo.yaml").read_text())["data"]
    assert list(data["domains"]) == list(text.domains())
    assert list(data["validation"]) == list(unseen.sets())
    for section in ("domains", "validation"):
        for name, settings in data[section].items():
            assert settings["path"] == f"runs/demo/data/{name}"
    assert not set(text.domains()) & set(unseen.sets())


def test_no_file_is_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reader of an unseen set opens a file that a domain's reader opens."""
    opened: set[Path] = set()

    def read(path: Path) -> str:
        opened.add(path.resolve())
        return ""

    monkeypatch.setattr(text, "read", read)
    for name in ("python", "cpp", "javascript", "licenses", "shakespeare"):
        list(text.domains()[name]())
    of_domains = set(opened)
    assert len(of_domains) > 1000
    assert Path(topics.__file__).resolve() not in of_domains
    opened.clear()
    for name in ("c", "encyclopedia"):
        list(unseen.sets()[name]())
    assert len(opened) > 20
    assert not opened & of_domains
