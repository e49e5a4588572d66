"""What a stranger wrote, or a careless user named, does no harm."""

import builtins
import json
import pickle
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from nemo_chameleon import Mixture
from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.validation import check_mixture
from nemo_chameleon.data.readers import MalformedError
from nemo_chameleon.data.sft import templates
from nemo_chameleon.data.sft.templates import ChatTemplate, read_template
from nemo_chameleon.mixture.embeddings_file import load_embeddings
from nemo_chameleon.models.pickles import read_metadata
from nemo_chameleon.provider.runs import run_name
from nemo_chameleon.utils import limits, manifest
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.huggingface import from_pretrained
from nemo_chameleon.utils.names import fault_of_name

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b", "é" * 101, "\udcff" * 99])
def test_names_that_lead_elsewhere(name: str) -> None:
    """A name with a part of a path is not one of a folder of its own."""
    assert fault_of_name(name) is not None


@pytest.mark.parametrize("name", ["a", "...", ".hidden", "web 2024", "é" * 100, "\udcff", "a\\b"])
def test_names_that_stay(name: str) -> None:
    """Other names are names of folders, as they were."""
    assert fault_of_name(name) is None


@pytest.mark.parametrize("file", ["...json", "..json"])
def test_a_mixture_file_cannot_name_the_folder_above(
    config: Config, tmp_path: Path, file: str
) -> None:
    """The run of `...json` would lie in `output/..`, and its checkpoints replace others there."""
    config.data.mixture = str(tmp_path / file)
    with pytest.raises(UserError, match=rf"{file}: the run's folder .* not a name .* rename"):
        run_name(config)
    config.data.mixture = str(tmp_path / "....json")
    assert run_name(config) == "..."


@pytest.mark.parametrize("place", ["", "a\0b"])
@pytest.mark.parametrize("key", ["output", "cache", "file"])
def test_places_that_are_none(config: Config, key: str, place: str) -> None:
    """An empty path and one with a NUL character are refused by their keys."""
    section = {"output": config, "cache": config.data, "file": config.chameleon}[key]
    setattr(section, key, place)
    with pytest.raises(UserError, match=rf"{key}='.*' (is empty|has a NUL.*): name a place"):
        check_mixture(config)


def test_domains_have_names_that_can_be_written(config: Config) -> None:
    """Half of a surrogate pair in a name would end the run when its mixture is written."""
    config.data.domains["\ud800"] = config.data.domains.pop("code")
    with pytest.raises(UserError, match="half of a character"):
        check_mixture(config)
    with pytest.raises(UserError, match="half of a character"):
        Mixture.from_json('{"format": 1, "weights": {"\\ud800": 0.5, "b": 0.5}}')


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "a\0b"])
def test_a_checkpoint_has_its_files_in_its_folder(tmp_path: Path, name: str) -> None:
    """Neither the description nor the manifest leads to a file outside of the checkpoint."""
    place = _StorageInfo(name, 0, 1)
    described = Metadata({}, storage_data={MetadataIndex("decoder.x"): place})
    (tmp_path / ".metadata").write_bytes(pickle.dumps(described))
    with pytest.raises(ValueError, match=r"\.metadata is damaged: the name .* of a file"):
        read_metadata(tmp_path)
    (tmp_path / manifest.NAME).write_text(json.dumps({"files": {name: [1, "0"]}}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        manifest.read(tmp_path)


@pytest.mark.parametrize(
    "bomb",
    [
        # The first one ends by itself, after many seconds.
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**11 }}",
        "{{ 'x' * 10**8 }}",
        "{% set n = messages | length * 10**6 %}{{ 'x' * n }}",
        "{{ 10**(10**9) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'x' | center(10**12) }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% generation %}{{ 'x' * 10**11 }}{% endgeneration %}",
        "{% set n = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(99) %}"
        "{% set n.s = n.s ~ n.s %}{% endfor %}",
    ],
)
def test_chat_templates_have_limits(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that would take forever, or all memory, ends in an error within seconds."""
    monkeypatch.setattr(templates, "_SECONDS", 1.0)
    limit, began = resource.getrlimit(resource.RLIMIT_AS), time.monotonic()
    with pytest.raises((UserError, MalformedError), match="the chat template"):
        ChatTemplate(bomb, {}).write(CHAT, None)
    assert time.monotonic() - began < 20
    assert resource.getrlimit(resource.RLIMIT_AS) == limit
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_limits_of_chat_templates() -> None:
    """A chat may take 10 seconds and 1 GiB, also if the text itself stays short."""
    assert templates._SECONDS == 10
    with pytest.raises(UserError, match="needs more than 1024 MiB to write one chat"):
        ChatTemplate("{% set n = 'x' * (messages | length * 2**30) %}", {}).write(CHAT, None)


def test_long_chats_have_room() -> None:
    """The bound grows with the chat, so that a chat of any length can be written."""
    chat = [{"role": "user", "content": "x" * (1 << 22)}]
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert ChatTemplate(template, {}).write(chat, None) == chat[0]["content"]


def test_limits_leave_no_trace() -> None:
    """The timer and the handler of whoever uses SIGALRM are there again after the block."""
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(limits.OutOfTimeError), limits.limited(0.1, 1 << 30):
            time.sleep(5)
        time.sleep(0.4)
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("template", [5, {"default": "x"}, [5], [{"name": "default"}], [{}]])
def test_templates_of_other_types(tmp_path: Path, template: object) -> None:
    """A tokenizer_config.json whose chat_template is no text is refused, or has no template."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    try:
        assert read_template(None, str(tmp_path)) is None
    except UserError as error:
        assert "is not a text" in str(error)


@pytest.mark.parametrize(
    ("kind", "file", "settings"),
    [
        ("AutoConfig", "config.json", {"auto_map": {"AutoConfig": "evil.Evil"}}),
        ("AutoModelForCausalLM", "config.json", {"auto_map": {"AutoConfig": "evil.Evil"}}),
        (
            "AutoTokenizer",
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"},
        ),
    ],
)
def test_code_beside_a_model_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, file: str, settings: object
) -> None:
    """Nobody is asked whether to run it, and the error says why the model is refused."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setattr("signal.signal", lambda *_: SimpleNamespace())
    (tmp_path / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Evil: pass\n"
    )
    (tmp_path / "config.json").write_text('{"model_type": "evilm"}')
    (tmp_path / file).write_text(json.dumps({"model_type": "evilm", **settings}))  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"cannot load .*its own code \(auto_map.*never run"):
        from_pretrained(kind, str(tmp_path))
    assert not (tmp_path / "ran").exists()


class Command:
    """An object whose pickle makes a folder."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        """Describe the call."""
        return Path.mkdir, (self.folder,)


def test_pickles_in_place_of_other_files_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixture file, an embeddings file and weights of Hugging Face that are pickles are refused.

    Torch's own file of weights is read, but with nothing in it than tensors.
    """
    trap, file = tmp_path / "ran", tmp_path / "m.safetensors"
    for save in (
        lambda: file.write_bytes(pickle.dumps(Command(trap))),
        lambda: torch.save({"x": Command(trap)}, file),
    ):
        save()
        with pytest.raises(UserError, match=r"cannot read the embeddings"):
            load_embeddings(file)
        with pytest.raises(UserError, match=r"m\.safetensors"):
            Mixture.load(file)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    model = tmp_path / "model"
    model.mkdir()
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9}
    (model / "config.json").write_text(
        json.dumps({"model_type": "llama", "intermediate_size": 8, **sizes})
    )
    file.rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot load .* names more than tensors, which is never"):
        from_pretrained("AutoModelForCausalLM", str(model))
    assert not trap.exists()
