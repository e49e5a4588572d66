"""config/keys.py, config/values.py: what is typed keeps its text, or is refused by name."""

import json
import re
import shlex
from pathlib import Path

import pytest

from nemo_chameleon.config import load_config
from nemo_chameleon.config.keys import dotted, split_override
from nemo_chameleon.config.schema import Config
from nemo_chameleon.utils.errors import UserError

COMPLETE = (
    "output=out",
    "data.domains.a.path=/data/a",
    "data.vocab_size=100",
    "train.train_iters=1000",
    "train.global_batch_size=32",
)

# Twelve levels, each of which stands for the one above it four times.
LEVELS = range(1, 13)
REPEATED = "".join(
    ["a0: &a0 {x: 1}\n", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 4)}]\n" for i in LEVELS)]
).encode()
MERGED = "".join(
    [
        "a0: &a0 {x: 1}\n",
        *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 4)}], y{i}: 1}}\n" for i in LEVELS),
    ]
).encode()


def loaded(*overrides: str, text: str | bytes = "", folder: Path) -> Config:
    """Return the configuration of a file with this text and of overrides."""
    file = folder / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(file, [*COMPLETE, *overrides])


def test_text_of_a_file_stays(tmp_path: Path) -> None:
    """Names and values that YAML takes for something else keep their text where text is wanted."""
    text = """
output: 2024_05_01
data:
  mixture: 1:30
  domains: {no: {path: yes}, 2019_30: {path: 010}, 1e3: {path: 2024-05-01}, null: {path: 0x1F}}
  pin: {off: 0.5}
compare: {mixtures: [on, 2024_05], seeds: [1, 2]}
"""
    config = loaded(text=text, folder=tmp_path)
    assert config.data.mixture == "1:30"
    paths = {name: domain.path for name, domain in config.data.domains.items()}
    assert paths == {
        "no": "yes",
        "2019_30": "010",
        "1e3": "2024-05-01",
        "null": "0x1F",
        "a": "/data/a",
    }
    assert config.data.pin == {"off": 0.5}
    assert (config.compare.mixtures, config.compare.seeds) == (["on", "2024_05"], [1, 2])


@pytest.mark.parametrize(
    "text", ["2024_05_01", "010", "no", "run #3", "a: b", "@x", "*.bin", "1e3"]
)
def test_text_of_a_command_line_stays(text: str, tmp_path: Path) -> None:
    """What is typed after the equals sign is the text, unless it is in quotes or brackets."""
    for given in (text, f'"{text}"'):
        config = loaded(f"output={given}", f"data.mixture={given}", folder=tmp_path)
        assert (config.output, config.data.mixture) == (text, text)


def test_numbers_and_words_are_read_as_before(tmp_path: Path) -> None:
    """Where the schema wants no text, YAML decides; numbers may be in quotes or have exponents."""
    config = loaded(
        *("optimizer.min_lr='1.5e-5'", "data.max_epochs=1.5e1", "data.packing=0"),
        *("train.seed=0x10", "optimizer.lr=1e-3", "logging.progress=no", "chameleon.layer=all"),
        *(
            "chameleon.samples=1_000",
            "data.tokenizer=null",
            "data.pin.a=.5",
            "model.num_layers='4'",
        ),
        text="train: &t {eval_iters: 3}\nproxy: {train: {<<: *t, train_iters: 5}}",
        folder=tmp_path,
    )
    assert (config.train.seed, config.optimizer.lr, config.logging.progress) == (16, 1e-3, False)
    assert (config.optimizer.min_lr, config.data.max_epochs, config.data.packing) == (
        1.5e-5,
        15.0,
        False,
    )
    assert (config.chameleon.layer, config.chameleon.samples) == ("all", 1000)
    assert (config.data.tokenizer, config.data.pin, config.model.num_layers) == (
        None,
        {"a": 0.5},
        4,
    )
    assert (config.proxy.train.eval_iters, config.proxy.train.train_iters) == (3, 5)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.domains.c4.en.path=x", ("data", "domains", "c4.en", "path")),
        ("data.domains.c4.en={path: x}", ("data", "domains", "c4.en")),
        ("data.domains[c4.en].path=x", ("data", "domains", "c4.en", "path")),
        ('data.domains."a=b.path".path=x', ("data", "domains", "a=b.path", "path")),
        ("data.domains.a[1].path=x", ("data", "domains", "a[1]", "path")),
        ("data.pin.c4.en=0.5", ("data", "pin", "c4.en")),
        ('data.floor."a\\"b"=0.5', ("data", "floor", 'a"b')),
        ("train.seed=1", ("train", "seed")),
    ],
)
def test_names_with_dots(override: str, parts: tuple[str, ...]) -> None:
    """The last part is the setting and all before it the name; a name in quotes is always whole."""
    assert split_override(override)[0] == parts


@pytest.mark.parametrize("name", ["c4.en", "my name", "a=b", 'q"q', "$x", "a[1]", "{a}", "\n", "*"])
def test_a_remedy_can_be_typed(name: str) -> None:
    """What an error says to type works in a shell as it is printed, whatever the name."""
    assert split_override(f"{dotted(('data', 'domains', name, 'path'))}=x")[0][2] == name
    layer = f"data={{domains: {{{json.dumps(name)}: {{}}}}}}"
    with pytest.raises(UserError) as error:
        load_config(None, [*COMPLETE, layer])
    (typed,) = shlex.split(str(error.value).split("in the file or as ")[1])
    config = load_config(None, [*COMPLETE, layer, typed.replace("...", "/there")])
    assert config.data.domains[name].path == "/there"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("data.ignored_keys=title", "a list, not 'title': write 'data.ignored_keys=[\"title\"]'"),
        ("data.ignored_keys=", "must be a list, but has no value: write it as in"),
        ("compare.seeds=5", "compare.seeds must be a list, not '5': write 'compare.seeds=[5]'"),
        ("compare.seeds=[a]", "an item of compare.seeds must be a whole number, not 'a'"),
        ("data.domains=x", "data.domains must be a mapping of keys, not 'x'"),
        ("data.pin=0.5", "data.pin must be a mapping of keys, not '0.5': write data.pin.NAME=0.5"),
        ("data.domains.c=", "data.domains.c must be a mapping of keys, but has no value"),
        ("train=null", "train must be a mapping of keys, but null stands for nothing"),
        ("train.seed=[1]", "train.seed must be a whole number, not a list"),
        ("train.seed=1e3", "train.seed must be a whole number, not '1e3': write train.seed=1000"),
        ("train.seed=10k", "not '10k', which is 10000 or 10240: write train.seed=10000"),
        ("train.seed=4Ki", "not '4Ki': write train.seed=4096"),
        ("train.seed=1.5M", "not '1.5M': write train.seed=1500000"),
        ("train.seed=1,000", "not '1,000': write train.seed=1000"),
        ("data.pin.a=30%", "not '30%': write data.pin.a=0.3"),
        ("data.split=[98,2,0]", "must be text, not a list: write data.split=98,2,0"),
        ("train.seed=", "train.seed must be a whole number, but has no value"),
        ("train.seed=yes", "train.seed must be a whole number, not 'yes'"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, not 'fast'"),
        ("logging.progress=maybe", "logging.progress must be true or false, not 'maybe'"),
        ("chameleon.layer=[1]", "chameleon.layer must be a whole number or a word, not a list"),
        ("data.domains.a.path=", "must be text, or a list of texts, but has no value"),
        ("data.domains.a.path=[x,~]", "an item of data.domains.a.path must be text"),
    ],
)
def test_a_value_of_another_type(given: str, says: str, tmp_path: Path) -> None:
    """The error names the key and what it takes; what it says to type has the right type."""
    with pytest.raises(UserError) as error:
        loaded(given, folder=tmp_path)
    assert says in str(error.value)
    (typed,) = shlex.split(re.split(r": write (?:it as in )?", str(error.value))[1])
    if typed.startswith("train.train_iters"):
        typed = typed.replace("...", "10")
    loaded(typed, folder=tmp_path)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("train.seed=${output}", "train.seed: what its '${...}' stands for is of another type"),
        ("train=${output}", "train: what its '${...}' stands for is of another type"),
        ("output=${output}", "output: its '${...}' leads back to itself"),
        ("train.seed=010", "train.seed=010 is another number in YAML"),
        ("train.seed=1:30", "train.seed=1:30 is another number in YAML"),
        ("train.seed=" + "9" * 5000, "train.seed: a number of 5,000 characters is too long"),
        ("optimizer.lr=" + "9" * 400, "optimizer.lr: a number of 400 characters is too long"),
        ("train.seed=[1", "is not a value in YAML: put it into quotes, as in 'train.seed=\"...\"'"),
        ("output=null", "output must be text, but null stands for nothing: write it as in"),
        ("output=", "output must be text, but has no value"),
        ("output=[a]", "output must be text, not a list"),
        ("output=${oc.env:NOT_SET_HERE}", "output: Environment variable 'NOT_SET_HERE' not found"),
        ("output=${nothing:x}", "Unsupported interpolation type nothing; write ${KEY} or"),
        ("data.ignored_keys=[${output}]", "as in 'data.ignored_keys=[\"...\"]'"),
        ("output=x${", "output: a '${' has no end"),
        ("output=${data.mixtur}", "output: Interpolation key"),
        ("data.domains.c=/x y", "write 'data.domains.c.path=/x y'"),
        ("..=3", "a part of the key is empty"),
        (b"output: \xff", "byte 8 is not UTF-8"),
        (b'output: "x/${oops"', "output: a '${' has no end"),
        (b"data: &a {domains: *a}", "line 1: an anchor contains itself"),
        (b"data:\n- 1", "data must be a mapping of keys, not a list"),
        (b"output: a\n---\noutput: b", "several documents, of which the second begins at line 2"),
        (b"a:\n- [1", "it is not YAML at line 3, column 1"),
        (b"train:\n  seed: 1\n  seed: 2", "line 3: duplicate key 'seed'"),
        (b"? [a]\n: 1", "line 1: a key must be text, not a list"),
        (REPEATED, "line 2: aliases stand for more than 1,000,000 values"),
        (MERGED, "aliases stand for more than 1,000,000 values"),
        (b"a: 1\n<<: 3", "line 2: only mappings can be merged with '<<'"),
        (b"[" * 100_000, "it is not YAML|nested too deeply"),
    ],
)
def test_what_cannot_be_read(given: str | bytes, says: str, tmp_path: Path) -> None:
    """What YAML or people could misread is one line that names the key or the place."""
    overrides, text = ([given], "") if isinstance(given, str) else ([], given)
    with pytest.raises(UserError) as error:
        complete = [item for item in COMPLETE if not (text and item.startswith("output"))]
        (tmp_path / "c.yaml").write_bytes(text if isinstance(text, bytes) else b"")
        load_config(tmp_path / "c.yaml", [*complete, *overrides])
    alternatives = "|".join(re.escape(part) for part in says.split("|"))
    assert re.search(alternatives, str(error.value))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The reason is in words, without the number and the path that the system adds."""
    for path, reason in ((tmp_path / "no.yaml", "there is no such file"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=rf"the configuration {path}: .*{reason}") as error:
            load_config(path, COMPLETE)
        assert "Errno" not in str(error.value)
