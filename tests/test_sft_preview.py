"""`nemo-chameleon sft preview`: examples as the model will see them."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_chameleon import cli
from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.sft.display import Style, write_line
from nemo_chameleon.data.sft.domain import open_sft_domain
from nemo_chameleon.data.sft.preview import preview
from nemo_chameleon.data.sft.samples import packs_of
from nemo_chameleon.data.sft.tokenize import ExampleTokenizer
from nemo_chameleon.utils.errors import UserError
from sft_data import write_jsonl, write_sft_config

pytestmark = pytest.mark.usefixtures("alone")
SGR = re.compile(r"\033\[[0-9;]*m")
PIPED = Style(colour=False, before="⟦", after="⟧", newline="↵", encoding="utf-8")
COLOURED = Style(colour=True, before="", after="", newline="↵", encoding="utf-8")
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "is 4"},
    {"role": "user", "content": "sure"},
    {"role": "assistant", "content": "no", "weight": 0},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "yes"},
]


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Config:
    """Return the configuration of `sft.yaml`, whose domain `pairs` is `mine.jsonl`."""
    path = write_sft_config(corpus, tmp_path)
    settings = yaml.safe_load(path.read_text())
    settings["data"]["domains"]["pairs"]["path"] = str(tmp_path / "mine.jsonl")
    settings["data"]["validation"] = {"held": {"path": str(tmp_path / "text.jsonl")}}
    del settings["train"]["train_iters"]  # a host's configuration does not have it
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    path.rename(tmp_path / "sft.yaml")
    return load_config(tmp_path / "sft.yaml", ["train.train_iters=6"])


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Config, *more: str
) -> str:
    """Run the command and return what it prints."""
    file = str(Path(config.output).parent / "sft.yaml")
    monkeypatch.setattr(sys, "argv", ["nemo-chameleon", "sft", "preview", file, *more])
    cli.main()
    return capsys.readouterr().out


def written(config: Config, *lines: dict[str, Any]) -> Path:
    """Write the lines of `mine.jsonl`."""
    return write_jsonl(Path(config.output).parent / "mine.jsonl", list(lines))


def text_of(shown: str) -> str:
    """Return the text of an example from its display."""
    lines = shown.split("\n\n", 1)[1].splitlines()
    kept = [line for line in lines if line.startswith("  |")]
    return "\n".join(line[4:] for line in kept)


@pytest.mark.parametrize("command", [["index", "train.train_iters=1"], ["sft", "preview"]])
@pytest.mark.parametrize("length", [10**20, 0, -5])
def test_lengths_that_are_none(
    command: list[str],
    length: int,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A seq_length that no sample can have is refused before examples are read."""
    written(config, {"prompt": "one plus one is ", "completion": "two"})
    file = str(Path(config.output).parent / "sft.yaml")
    given = [*command, "--config", file, f"model.seq_length={length}"]
    monkeypatch.setattr(sys, "argv", ["nemo-chameleon", *given])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith(f"error: model.seq_length={length} ")


def test_a_chat(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text has brackets around what carries loss, and turns are counted one by one."""
    written(config, {"messages": CHAT}, {"prompt": "2+2=", "completion": "4"}, {"text": "once"})
    said = run(monkeypatch, capsys, config, "--domain", "pairs")
    assert said.startswith("Tokens between ⟦ and ⟧ carry loss.\n\ndata.domains.pairs.path=")
    first, second, third = said.split("\nmine.jsonl, line ")[1:]
    assert text_of(first) == (
        "<system>Be brief.\n<user>2+2\n<assistant>⟦is 4↵\n⟧<user>sure\n<assistant>no\n"
        "<user>and\n<assistant>⟦yes↵⟧"
    ).replace("↵\n⟧", "↵⟧\n")
    assert text_of(second) == "2+2=⟦4<|endoftext|>⟧"
    assert text_of(third) == "on⟦ce<|endoftext|>⟧"
    assert "Special tokens: <|endoftext|> 1" in second
    assert "Special tokens: none" in first
    counts = re.findall(r"^  (\d) (\w+) +(\d+) +(\d+)$", first, re.MULTILINE)
    assert [role for _, role, _, _ in counts] == [turn["role"] for turn in CHAT]
    reader = ExampleTokenizer(config.data)
    domain = open_sft_domain(
        "pairs", config.data.domains["pairs"].path, config.data, reader, seq_length=64
    )
    assert sum(int(tokens) for _, _, tokens, _ in counts) == domain.index.lengths[0]
    assert sum(int(loss) for *_, loss in counts) == domain.index.is_answer(0).sum()
    assert [loss == "0" for *_, loss in counts] == [True, True, False, True, True, True, False]
    own = [len(reader.tokenizer.encode("<user>2+2\n", add_special_tokens=False).ids)]
    assert [int(counts[1][2])] == own


def test_no_index_is_made(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All domains are shown, n examples of each, and nothing is written."""
    written(config, *[{"text": "once"}] * 9)
    said = run(monkeypatch, capsys, config, "-n", "2")
    assert len(re.findall(r"^\w+\.jsonl, line [12]: ", said, re.MULTILINE)) == 6
    assert "line 3" not in said
    assert not Path(config.output).exists()
    held = run(monkeypatch, capsys, config, "--domain", "held")
    assert "data.validation.held.path=" in held


def test_malformed_lines_are_shown(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A malformed line has its fault and the way out; what the setting does is said."""
    written(config, {"text": "a b", "mood": 3}, {"text": "c d"}, *[{"texts": "e"}] * 20)
    said = run(monkeypatch, capsys, config, "--domain", "pairs")
    assert "line 1\n  This line is malformed: the key 'mood' of a line is not understood." in said
    assert "set 'data.ignored_keys=[mood]'" in said
    assert "because of data.on_malformed=refuse" in said
    assert "line 2: " in said
    assert said.count("is malformed") == 10
    assert said.count("malformed in the same way as") == 8
    assert said.count("rename 'texts' to 'text'") == 1
    said = run(
        monkeypatch,
        capsys,
        config,
        "data.ignored_keys=[mood]",
        "data.on_malformed=skip",
        "--domain",
        "pairs",
    )
    assert "line 1: " in said
    assert "leaves the line out, because of data.on_malformed=skip" in said


def test_what_else_is_said(config: Config) -> None:
    """Metadata are named; a key that decides the loss is not to be ignored; no line is an error."""
    path = str(written(config, {"text": "once", "id": 1, "topic": "A"}, {"text": "a", "mask": 1}))
    reader = ExampleTokenizer(config.data)
    first, second = preview(path, config.data, reader, 64, 2, "mine")
    assert "Metadata that are not in the text: topic." in first.notes
    assert "'mask' may say what is not to be trained on" in second.notes[0]
    assert not any("ignored_keys" in note for note in second.notes)
    Path(path).write_text("\n")
    with pytest.raises(UserError, match=r"^mine=.*: there is no example in 0 line\(s\)"):
        next(preview(path, config.data, reader, 64, 1, "mine"))


def test_the_command_line(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file may be CONFIG or --config FILE, and overrides may stand anywhere."""
    path = written(config, {"prompt": "2+2=", "completion": "4"})
    file = path.with_name("sft.yaml")
    settings = yaml.safe_load(file.read_text())
    del settings["output"]  # nothing is written
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    one, two = "data.on_too_long=skip", "model.seq_length=3"
    for given in (
        [str(file), "--domain", "pairs", one, two],
        [str(file), one, "--domain", "pairs", two],
        [one, "--domain", "pairs", str(file), two],
        ["--domain", "pairs", one, two, str(file)],
        ["--config", str(file), "--domain", "pairs", one, two],
        [one, "--domain", "pairs", two, "--config", str(file)],
    ):
        monkeypatch.setattr(sys, "argv", ["nemo-chameleon", "sft", "preview", *given])
        cli.main()
        said = " ".join(capsys.readouterr().out.split())
        assert "longer than model.seq_length=3: the run leaves it out, because" in said
    for given, says in (
        ([str(file), one, "--domains", "pairs"], "unrecognized arguments: --domains"),
        ([str(file), "other.yaml"], "other.yaml: there is no such file"),
        (["--config", str(file), "other.yaml"], "'other.yaml'"),
    ):
        monkeypatch.setattr(sys, "argv", ["nemo-chameleon", "sft", "preview", *given])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert says in capsys.readouterr().err


LONG = {"prompt": "".join(chr(97 + i % 23) for i in range(40)), "completion": "mnop"}
TURNS = [
    {"role": role, "content": f"{role[0]}{turn} " * 3}
    for turn in range(4)
    for role in ("user", "assistant")
]


@pytest.mark.parametrize("line", [LONG, {"messages": TURNS}, {"text": "once upon a time " * 9}])
@pytest.mark.parametrize("on_too_long", ["refuse", "skip", "truncate"])
@pytest.mark.parametrize("length", [4, 16, 20, 30, 40, 10_000])
def test_what_happens_to_long_examples(
    config: Config, line: dict[str, Any], on_too_long: str, length: int
) -> None:
    """The preview says of an example what the samples then show."""
    path = str(written(config, line, {"prompt": "a", "completion": "b"}))
    config.data.on_too_long = on_too_long
    reader = ExampleTokenizer(config.data)
    shown = next(preview(path, config.data, reader, length, 1, "mine"))
    said = " ".join(shown.notes)
    domain = open_sft_domain("mine", path, config.data, reader, seq_length=length)
    packs, found = packs_of(domain.index, range(1), length, domain.packing)
    if len(packs.pieces) > 1:
        assert f"cut into {len(packs.pieces)} samples" in said
    elif 0 not in found["too long"]:
        assert "longer" not in said
    elif on_too_long == "refuse":
        assert "ends before it trains, because of data.on_too_long=refuse" in said
    elif 0 in found["left out"]:
        assert f"leaves it out, because of data.on_too_long={on_too_long}" in said
    else:
        assert f"leaves out its first {packs.pieces[0, 1]} tokens" in said


def test_a_token_that_is_a_part_of_a_character(config: Config) -> None:
    """Characters whose tokens are bytes are whole, on either side of a border."""
    pair = {"prompt": "Wisła 日本é", "completion": "ł é日本ü"}
    chat = [*CHAT[:2], {**CHAT[2], "content": "é日\n本"}]
    path = str(written(config, pair, {"messages": chat}, {"text": "日本"}))
    reader = ExampleTokenizer(config.data)
    shown = list(preview(path, config.data, reader, 64, 3, "mine"))
    assert len(reader.tokenizer.encode("日").ids) > 1, "the test's characters are several tokens"
    assert "".join(stretch.text for stretch in shown[0].stretches if stretch.loss) == (
        "ł é日本ü<|endoftext|>"
    )
    assert "Wisła 日本é⟦ł é日本ü<|endoftext|>⟧" in write_line(shown[0], PIPED)
    assert "⟦é日↵\n  | 本↵⟧" in write_line(shown[1], PIPED)
    # The first token, a part of the first character, carries no loss.
    assert "  | ⟦日本<|endoftext|>⟧" in write_line(shown[2], PIPED)
    ascii_style = Style(colour=False, before="[[", after="]]", newline="\\n", encoding="ascii")
    assert "Wis\\u0142a \\u65e5\\u672c\\xe9[[\\u0142" in write_line(shown[0], ascii_style)


def test_lines_fit_into_80_columns(config: Config) -> None:
    """Long lines are broken, wide characters are counted twice, and controls are shown."""
    texts = [{"text": "word " * 60}, {"text": "日本語" * 50}, {"text": "a\033[31mb\tc\r\u202e"}]
    reader = ExampleTokenizer(config.data)
    shown = list(preview(str(written(config, *texts)), config.data, reader, 64, 3, "mine"))
    for style in (PIPED, COLOURED):
        for line in write_line(shown[0], style).splitlines():
            assert len(SGR.sub("", line)) <= 80
        for line in SGR.sub("", write_line(shown[1], style)).splitlines():
            assert sum(2 if ord(c) > 0x3000 else 1 for c in line) <= 80
        assert "\\x1b" in write_line(shown[2], style)
    assert "\\x1b[31mb\\tc\\r\\u202e" in write_line(shown[2], PIPED)
    body = write_line(shown[0], PIPED).split("\n\n")[1]
    joined = "".join(line[4:] for line in body.splitlines())
    assert joined.replace("⟦", "") == "word " * 60 + "<|endoftext|>⟧"


def test_control_characters(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal gets no control character of a name or of a line, whatever is said of it."""
    folder = Path(config.output).parent / "esc"
    folder.mkdir()
    odd = {"role": "\033[2Ja\n", "content": "x"}
    lines = [{"messages": turns} for turns in ([odd], [*CHAT[1:3], odd | {"\033c": "x\r"}])]
    write_jsonl(folder / "mine\033[31m\n.jsonl", [{"text": "once"}, *lines, {"\033]0;": 1}])
    said = run(
        monkeypatch, capsys, config, f"data.domains.pairs.path={folder}", "--domain", "pairs"
    )
    assert "mine\\x1b[31m\\n.jsonl, line 1: " in said
    assert said.count("This line is malformed") == 3
    assert "the roles are '\\x1b[2Ja\\n'" in " ".join(said.split())
    assert all(character.isprintable() or character == "\n" for character in said)


def test_colour(config: Config) -> None:
    """On a terminal tokens with loss are green and special tokens underlined."""
    path = str(written(config, {"prompt": "2+2=", "completion": "4"}))
    shown = next(preview(path, config.data, ExampleTokenizer(config.data), 64, 1, "mine"))
    expected = "  | 2+2=\033[1;32m4\033[0m\033[1;32;4m<|endoftext|>\033[0m"
    assert expected in write_line(shown, COLOURED).splitlines()


class Terminal(io.StringIO):
    """A stream that is a terminal or not, and has an encoding."""

    def __init__(self, terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__()
        self.terminal, self.name_of_encoding = terminal, encoding

    def isatty(self) -> bool:
        return self.terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.name_of_encoding


def test_when_there_is_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal has colour, unless NO_COLOR is set; brackets fit the encoding."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Style.of(Terminal(True)).colour
    assert "Green" in Style.of(Terminal(True)).legend
    assert Style.of(Terminal(False)).before == "⟦"
    assert Style.of(Terminal(False, "ascii")).before == "[["
    monkeypatch.setenv("TERM", "dumb")
    assert not Style.of(Terminal(True)).colour
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style.of(Terminal(True)).before == "⟦"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--domain", "pair"], "no domain 'pair'; did you mean pairs?"),
        (["--domain", "xyz"], "no domain 'xyz': it has held, pairs, chats, text"),
        (["-n", "0"], "-n 0 must be at least 1"),
        (["data.dataset=gpt", "data.chat_template=null"], "data.dataset=gpt has no examples"),
        (["data.domains.pairs.path=nowhere.jsonl"], "there is no such file"),
    ],
)
def test_mistakes(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    says: str,
) -> None:
    """A mistake is named, and the exit code is 2."""
    written(config, {"text": "once"})
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, capsys, config, *more)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_template_that_writes_two_turns_as_one(config: Config) -> None:
    """Turns that the template merges are counted together."""
    template = Path(str(config.data.chat_template))
    template.write_text(
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>"
        "{% if loop.first and messages[0].role == 'system' %}{{ messages[0].content }}: {% endif %}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
        "{% if messages | length < 2 %}{{ raise_exception('no user') }}{% endif %}"
    )
    path = str(written(config, {"messages": CHAT[:3]}))
    shown = next(preview(path, config.data, ExampleTokenizer(config.data), 64, 1, "mine"))
    assert [turn.role for turn in shown.turns] == ["system + user", "assistant"]
    assert shown.turns[0].loss_tokens == 0
    assert json.dumps([stretch.text for stretch in shown.stretches]) == json.dumps(
        ["<user>Be brief.: 2+2\n<assistant>", "is 4"]
    )


def test_a_chat_needs_a_template(config: Config) -> None:
    """Without a template the error names the line and the key to set."""
    config.data.chat_template = None
    path = str(written(config, {"messages": CHAT}))
    with pytest.raises(UserError, match=r"^mine: mine\.jsonl, line 1: .* set data\.chat_template"):
        next(preview(path, config.data, ExampleTokenizer(config.data), 64, 1, "mine"))
