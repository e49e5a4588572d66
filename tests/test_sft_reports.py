"""data/sft/reports.py: what a run says about lines that are not examples."""

import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft import index as indices
from nemo_chameleon.data.sft.domain import SFTDomain, open_sft_domain
from nemo_chameleon.data.sft.preview import preview
from nemo_chameleon.data.sft.reports import (
    Reports,
    describe_after,
    describe_malformed,
    describe_unread,
)
from nemo_chameleon.data.sft.tokenize import ExampleTokenizer
from nemo_chameleon.data.sft.unknown import UnknownKeysError
from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT
from nemo_chameleon.utils import manifest
from nemo_chameleon.utils.errors import UserError
from sft_data import opened, write_sft_config

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def sft(corpus: Path, tmp_path: Path) -> Config:
    """Return a configuration with the domains `pairs`, `chats` and `text`."""
    return load_config(write_sft_config(corpus, tmp_path))


def test_malformed_lines_are_refused(sft: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Malformed lines are counted and refused before anything runs, with file, line and fault.

    With on_malformed=skip they are reported at each start.
    """
    path = Path(sft.data.domains["pairs"].path)
    lines = path.read_bytes().splitlines()
    lines[2:2] = [b"{", b"", b'{"messages": [{"content": "a"}]}', b'{"text": "\xff"}']
    path.write_bytes(b"\n".join(lines))
    for _ in range(2):  # the second time the index comes from the cache
        with pytest.raises(UserError) as error:
            kind_of(sft.data).open_domains(sft.data, 64)
        text = str(error.value)
        assert "data.domains.pairs.path=" in text
        assert f"3 of {len(lines) - 1} lines are not examples" in text
        assert "pairs.jsonl, line 3: not JSON" in text
        assert "pairs.jsonl, line 5: a message has no role" in text
        assert "pairs.jsonl, line 6: not valid UTF-8" in text
        assert "data.on_malformed=skip" in text
        assert "\n" not in text
    sft.data.on_malformed = "skip"
    kind_of(sft.data).open_domains(sft.data, 64)
    assert "3 of" in capsys.readouterr().out


def test_malformed_lines_are_left_out(sft: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """With on_malformed=skip malformed lines are left out, reported and listed in a file."""
    whole = opened(sft, {"text": "ab"}, {"text": "cd"}, name="whole")
    path = Path(sft.output).parent / "mine.jsonl"
    path.write_text('{"text": "ab"}\n' + "{\n" * 12 + '{"text": "cd"}\n')
    sft.data.on_malformed = "skip"
    domain = open_sft_domain(
        "mine", str(path), sft.data, ExampleTokenizer(sft.data), seq_length=sft.model.seq_length
    )
    assert domain.documents == whole.documents == 2
    assert domain.index.line(1) == "mine.jsonl, line 14"
    said = capsys.readouterr().out
    assert "12 of 14 lines are not examples: mine.jsonl, line 2: not JSON (12 lines); " in said
    listed = (domain.index.folder / indices.SKIPPED).read_text().splitlines()
    assert listed[-1] == "mine.jsonl, line 13: not JSON"
    assert str(domain.index.folder / indices.SKIPPED) in said


def test_a_malformed_line_in_a_file_whose_name_is_not_utf8(
    sft: Config, request: pytest.FixtureRequest
) -> None:
    """The list of malformed lines has one line for each, whatever the bytes of the file's name."""
    # Workers of pytest-xdist cannot hand on a captured log with such a name.
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))
    logging.disable()
    path = Path(os.fsdecode(os.fsencode(sft.output) + b"-caf\xe9\n.jsonl"))
    path.write_text('{"text": "ab"}\n{\n')
    sft.data.on_malformed = "skip"
    domain = open_sft_domain(
        "mine", str(path), sft.data, ExampleTokenizer(sft.data), seq_length=sft.model.seq_length
    )
    listed = (domain.index.folder / indices.SKIPPED).read_text().splitlines()
    assert [line.partition("-")[2] for line in listed] == [r"caf\udce9\n.jsonl, line 2: not JSON"]


def test_a_text_that_the_tokenizer_refuses(sft: Config) -> None:
    """A vocabulary of words without unk_token is named with the text."""
    place = Path(sft.output).parent / "words.json"
    Tokenizer(WordLevel({"ab": 0, END_OF_DOCUMENT: 1}, unk_token="<unk>")).save(str(place))
    sft.data.tokenizer = str(place)
    with pytest.raises(UserError, match=r"words\.json cannot encode the text 'cd': .*UNK"):
        opened(sft, {"text": "ab"}, {"text": "cd"})


def test_unknown_keys_and_the_way_out(sft: Config) -> None:
    """The error about unknown keys has the setting that leaves them out, and the setting works."""
    lines: list[dict[str, Any]] = [
        {"text": "ab", "title": "A"},
        {"text": "cd"},
        {"text": "ef", "mood": 3, "title": "B"},
    ]
    sft.data.ignored_keys = ["rest"]
    with pytest.raises(UserError) as error:
        opened(sft, *lines)
    text = str(error.value)
    assert "2 of 3 lines are not examples: mine.jsonl, line 1: the key 'title' of a line" in text
    assert "set 'data.ignored_keys=[rest, title, mood]' to read the lines without" in text
    with pytest.raises(UserError, match=r"no example in 1 line.*ignored_keys=\[rest, title\]' to"):
        opened(sft, lines[0], name="alone")
    sft.data.ignored_keys = ["rest", "title", "mood"]
    assert opened(sft, *lines).documents == 3
    rules = ExampleTokenizer(sft.data).rules
    sft.data.ignored_keys = sft.data.ignored_keys[::-1]
    assert ExampleTokenizer(sft.data).rules == rules


def test_keys_that_are_not_to_be_ignored(sft: Config) -> None:
    """The error advises to ignore no key that decides the loss, and names the other way out."""
    lines: list[dict[str, Any]] = [
        {"text": "ab", "weight": 0, "mood": 3},
        {"text": "cd", "title": "A"},
        {"text": "ef"},
    ]
    with pytest.raises(UserError, match=r"'data.ignored_keys=\[title\]' to read") as error:
        opened(sft, *lines)
    assert "'weight' may say what is not to be trained on: write it as 'weight'" in str(error.value)
    with pytest.raises(UserError) as error:
        opened(sft, lines[0], lines[2], name="other")
    assert "ignored_keys" not in str(error.value)


def test_keys_that_one_line_needs() -> None:
    """What is a title in one line and a part of the question in another one is not ignored."""
    short, long = {"mood": "x", "title": "A"}, {"mood": "a b " * 40}
    for said in (long, {"mood": ["a"]}, {"mood": True}):
        errors = [UnknownKeysError(each, "line") for each in (short, said)]
        text = describe_malformed(faults(*errors), None)
        assert "set 'data.ignored_keys=[title]' to read the lines without this key, if it" in text
    many = [UnknownKeysError({f"key {i}": ["a"]}, "line") for i in range(1001)]
    facts = faults(UnknownKeysError(short, "line"), *many)
    assert "data.ignored_keys" not in describe_malformed(facts, None)


def test_metadata_that_are_not_read(sft: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """One line names the metadata, also from the cache; an index without the count loads."""
    beside: list[dict[str, Any]] = [{"id": 1, "topic": "A"}, {"topic": "B", "notes": "C"}, {}]
    lines = [{"text": f"a b {i}", **more} for i, more in enumerate(beside)]
    said = "2 of 3 examples also have topic, notes (1), which count as metadata and are not in"
    domain = opened(sft, *lines)

    def again() -> SFTDomain:
        reader = ExampleTokenizer(sft.data)
        path, length = str(domain.path), sft.model.seq_length
        return open_sft_domain("mine", path, sft.data, reader, seq_length=length)

    assert again().index.folder == domain.index.folder
    assert capsys.readouterr().out.count(said) == 2
    facts = domain.index.folder / indices.FACTS
    older = json.loads(facts.read_text())
    del older["unread"], older["with_unread"]
    facts.write_text(json.dumps(older))
    folder = domain.index.folder
    names = [path.name for path in folder.iterdir() if path.name != manifest.NAME]
    manifest.write(folder, manifest.entries_of(folder, names))
    assert again().fingerprint == domain.fingerprint
    assert "metadata" not in capsys.readouterr().out
    sft.data.ignored_keys = ["topic", "notes"]
    assert again().tokens == domain.tokens
    assert "metadata" not in capsys.readouterr().out


def test_examples_of_several_splits(sft: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning counts them, also from the cache; examples of one split need none."""
    said = "of several splits: 'train' (2), 'test' (1); all of them are in this domain"
    rows: list[dict[str, Any]] = [{"split": "train"}, {"metadata": {"split": "test"}}, {}]
    lines = [{"text": f"a {i}", **row} for i, row in enumerate([*rows, {"data_split": "train"}])]
    opened(sft, *lines)
    opened(sft, *lines)
    assert capsys.readouterr().out.count(said) == 2
    opened(sft, *[{"text": "a", "split": "test"}] * 2, name="other")
    assert "several splits" not in capsys.readouterr().out
    sft.data.ignored_keys = ["split", "metadata"]
    opened(sft, *lines)
    assert "several splits" not in capsys.readouterr().out


def test_turns_after_the_last_answer(sft: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """One line counts them, also from the cache; the preview has a note; tokens stay."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    more = [{"role": "user", "content": "c"}, {"role": "tool", "content": "d"}]
    lines: list[dict[str, Any]] = [{"messages": chat}, {"messages": chat + more}]
    lines.append({"messages": chat + more[:1]})
    domain = opened(sft, *lines)
    again = open_sft_domain(
        "mine",
        str(domain.path),
        sft.data,
        ExampleTokenizer(sft.data),
        seq_length=sft.model.seq_length,
    )
    said = (
        "3 turns of 2 of 3 examples come after the last answer that carries loss, and are left out "
        "(first: mine.jsonl, line 2, user and tool)"
    )
    assert capsys.readouterr().out.count(said) == 2
    assert domain.tokens == again.tokens
    shown = preview(str(domain.path), sft.data, ExampleTokenizer(sft.data), 64, 3, "mine")
    notes = [[note for note in line.notes if "left out" in note] for line in shown]
    assert notes == [
        [],
        ["The last 2 turns are left out (user and tool), because no answer with loss follows."],
        ["The last turn is left out (user), because no answer with loss follows."],
    ]
    older = {**domain.index.facts}
    del older["after"], older["turns_after"], older["first_after"]
    assert describe_after(older) == ""


def test_many_metadata_are_counted_in_little_memory() -> None:
    """A message lists the first keys, and facts stay small."""
    reports = Reports(io.StringIO(), [])
    for i in range(999):
        reports.unread(["topic", f"metadata.{i}" + "k" * 10**4])
    facts = {**reports.facts(), "examples": 1000}
    assert len(json.dumps(facts)) < 50_000
    text = describe_unread(facts)
    assert text.startswith("999 of 1,000 examples also have topic, metadata.0k")
    assert " and 80 more, which count" in text
    assert len(text) < 8_000


def test_reasoning_that_the_template_leaves_out(
    sft: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """The warning has a count and the first line; an index from the cache says it again."""
    asked = {"role": "user", "content": "2+2"}
    thinks = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    lines: list[dict[str, Any]] = [{"text": "a b"}, *[{"messages": [asked, thinks]}] * 2]
    for _ in range(2):
        opened(sft, *lines)
        assert (
            "leaves reasoning out of the answers of 2 of 3 examples (first: mine.jsonl, line 2, "
            "reasoning_content)"
        ) in capsys.readouterr().out
    opened(sft, {"text": "a b"}, name="other")
    assert "reasoning" not in capsys.readouterr().out


def faults(*errors: MalformedError) -> dict[str, Any]:
    """Return the facts of lines with these faults."""
    reports = Reports(io.StringIO(), [])
    for number, error in enumerate(errors, 1):
        reports.malformed(f"mine.jsonl, line {number}", error)
    return reports.facts()


def test_faults_are_counted_by_kind(sft: Config) -> None:
    """Faults that differ in a value of the line are of one kind; its first line is the example."""
    turns = [{"from": f"it's {i}", "value": "a"} for i in range(300)]
    with pytest.raises(UserError) as error:
        opened(sft, *[{"conversations": [turn]} for turn in turns], {"text": 3})
    text = str(error.value)
    assert """mine.jsonl, line 1: the role "it's 0" of a message is not one of""" in text
    assert "(300 lines); mine.jsonl, line 301: text is not text" in text
    assert "it's 1" not in text


def test_reports_stay_small() -> None:
    """However many faults there are, and however long, an index keeps a few of each."""
    facts = faults(
        *(
            MalformedError(f"the chat template refuses the chat: {chr(0x4E00 + i)}")
            for i in range(999)
        ),
        MalformedError("x" * 10**6),
        *(UnknownKeysError({f"key {i}": 3, "k" * 10**6: 3}, "line") for i in range(999)),
    )
    assert sum(facts["malformed"].values()) == 1999
    assert facts["malformed"]["other faults"] == 1899
    assert len(json.dumps(facts)) < 20_000
    said = describe_malformed(facts, Path("listed"))
    assert len(said) < 4_000
    assert "'key 0'" in describe_malformed(faults(UnknownKeysError({"key 0": 3}, "line")), None)
