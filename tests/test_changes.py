"""changes.py and `nemo-chameleon mixture`: computed mixtures changed without training."""

import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from conftest import write_config
from nemo_chameleon import Mixture, cli, parallel, provider
from nemo_chameleon.changes import Computed, averaged
from nemo_chameleon.config import load_config
from nemo_chameleon.errors import UserError
from nemo_chameleon.schema import Config
from nemo_chameleon.shards import load_embeddings, save_embeddings
from nemo_chameleon.weights import chameleon_weights

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`nemo-chameleon mixture ...` in this process, a job of one already; what it prints."""
    monkeypatch.setattr(parallel, "processes", nullcontext)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["nemo-chameleon", "mixture", *map(str, arguments)])
        cli.main.__wrapped__()  # type: ignore[attr-defined]
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def computed_once(corpus: Path, tmp_path_factory: pytest.TempPathFactory, alone: None) -> Path:
    """The mixture file of a run, embeddings and proxy beside it."""
    config = load_config(write_config(corpus, tmp_path_factory.mktemp("computed")))
    provider.resolve_mixture(config)
    return Path(config.chameleon.file)


@pytest.fixture
def computed(computed_once: Path, config: Config) -> Path:
    """A copy where a run with `config` looks for it."""
    shutil.copytree(computed_once.parent, config.output, ignore=lambda *_: ["proxy", "cache"])
    return Path(config.chameleon.file)


def weights_of(file: Path) -> dict[str, float]:
    """By the definition, from the embeddings that lie beside a mixture file."""
    (embeddings,) = load_embeddings(file.with_suffix(".safetensors"))
    names = list(Mixture.load(file).weights)
    x = np.stack([embeddings[name].embedding for name in names])
    return dict(zip(names, chameleon_weights(x), strict=True))


def test_the_file_is_enough(computed: Path, command: Command) -> None:
    """Scored again with nothing changed, the weights are the same bits."""
    before = Mixture.load(computed)
    printed = command("rescore", computed)
    assert Mixture.load(computed) == before
    assert "0.0000 of the samples go to another domain" in printed
    assert before.weights == pytest.approx(weights_of(computed), abs=1e-12)


def test_rescore(computed: Path, command: Command, config: Config, tmp_path: Path) -> None:
    """Other settings give what a run with them computes from the same embeddings."""
    output = tmp_path / "paper.json"
    printed = command(
        "rescore", computed, "--preset", "paper", "--objective", "finetune", "--output", output
    )
    assert "method preset: calibrated -> paper" in printed
    after = Mixture.load(output)
    assert after.method["ridge"] == 10.0, "another preset comes with its own ridge"
    assert after.objective == "finetune"
    assert Mixture.load(computed).method["preset"] == "calibrated"
    # A run with these settings takes the file for its own.
    config.chameleon.preset, config.chameleon.objective = "paper", "finetune"
    config.chameleon.file = str(output)
    assert provider.resolve_mixture(config).weights == after.weights


def test_add_and_remove(
    computed: Path, command: Command, config: Config, corpus: Path, tmp_path: Path
) -> None:
    """A domain taken out and added again is embedded as it was; all weights are as before."""
    before, without = Mixture.load(computed), tmp_path / "without.json"
    printed = command("remove", computed, "prose", "--output", without)
    assert "prose" in printed
    assert list(Mixture.load(without).weights) == ["code", "legal"]
    again = tmp_path / "again.json"
    printed = command("add", without, f"prose={corpus / 'prose'}", "--output", again)
    after = Mixture.load(again)
    assert after.weights == pytest.approx(before.weights, rel=1e-6)
    for key, value in before.domains["prose"].items():
        assert after.domains["prose"][key] == (
            pytest.approx(value, rel=1e-6) if key == "score" else value
        )
    # Any run over these domains may draw by it.
    config.data.mixture = str(again)
    assert provider.resolve_mixture(config).weights == after.weights


def test_add_through_a_proxy_that_was_moved(
    computed: Path, command: Command, corpus: Path, tmp_path: Path
) -> None:
    """The checkpoint may lie elsewhere; one of another proxy is refused."""
    proxy = Mixture.load(computed).proxy["checkpoint"]
    shutil.copytree(proxy, tmp_path / "moved")
    computed.write_text(computed.read_text().replace(proxy, str(tmp_path / "gone")))
    command("remove", computed, "prose")
    domain = f"prose={corpus / 'prose'}"
    with pytest.raises(UserError, match=r"is not there; name it with --proxy"):
        command("add", computed, domain)
    command("add", computed, domain, "--proxy", tmp_path / "moved")
    state = tmp_path / "moved" / "state.json"
    state.write_text(state.read_text().replace('"train.seed": 1234', '"train.seed": 1235'))
    command("remove", computed, "prose")
    with pytest.raises(UserError, match="is not the proxy"):
        command("add", computed, domain, "--proxy", tmp_path / "moved")


def test_average(computed: Path, command: Command, tmp_path: Path) -> None:
    """Of one proxy twice it is that proxy's mixture; it can be changed like any other."""
    output = tmp_path / "both.json"
    command("average", computed, computed, "--output", output)
    after = Mixture.load(output)
    assert after.weights == pytest.approx(Mixture.load(computed).weights, rel=1e-6)
    assert len(after.proxy["averaged"]) == 2
    command("remove", output, "legal")
    assert set(Mixture.load(output).weights) == {"code", "prose"}
    assert "averaged" not in command("show", output)


def test_add_to_an_average(computed: Path, command: Command, corpus: Path, tmp_path: Path) -> None:
    """A new domain is embedded through each of the proxies."""
    output = tmp_path / "both.json"
    command("average", computed, computed, "--output", output)
    before = Mixture.load(output)
    command("remove", output, "prose")
    command("add", output, f"prose={corpus / 'prose'}")
    assert Mixture.load(output).weights == pytest.approx(before.weights, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("remove", "FILE", "books"), "no domain 'books'"),
        (("remove", "FILE", "code", "prose", "legal"), "leaves no domain"),
        (("add", "FILE", "prose=CORPUS/code"), "a domain 'prose' already"),
        (("add", "FILE", "more=CORPUS/code"), "'more' is the same data as the mixture's 'code'"),
        (("add", "FILE", "more=CORPUS/none"), "there is no"),
        (("add", "FILE", "more"), "'more' is not NAME=PREFIX"),
        (("add", "FILE", "a=x", "a=y"), "named twice"),
        (("rescore", "FILE", "--ridge", "-1"), "ridge=-1.0"),
        (("rescore", "FILE", "--output", "mine.txt"), r"ends in \.json"),
        (("remove", "STATIC", "code"), "were not computed"),
        (("average", "FILE", "STATIC", "--output", "x.json"), "were not computed"),
    ],
)
def test_wrong_changes(
    computed: Path, command: Command, corpus: Path, tmp_path: Path, arguments: tuple, says: str
) -> None:
    """What cannot be done is said in one line, and leaves the file as it was."""
    before = computed.read_bytes()
    static = tmp_path / "static.json"
    Mixture.static({"code": 1, "prose": 2}).save(static)
    places = {"FILE": computed, "STATIC": static}
    given = [str(places.get(part, part)).replace("CORPUS", str(corpus)) for part in arguments]
    with pytest.raises(UserError, match=says):
        command(*given)
    assert computed.read_bytes() == before


def test_embeddings_that_do_not_fit(computed: Path) -> None:
    """Embeddings without one of the domains, or none at all, are named with the mixture."""
    path = computed.with_suffix(".safetensors")
    (embeddings,) = load_embeddings(path)
    del embeddings["legal"]
    save_embeddings(path, [embeddings])
    with pytest.raises(UserError, match="do not fit: domain 'legal' has no embedding"):
        Computed.load(computed)
    path.unlink()
    with pytest.raises(UserError, match="cannot read the embeddings"):
        Computed.load(computed)


def test_mixtures_that_cannot_be_averaged(computed: Path) -> None:
    """Other data or other windows are refused."""
    one, other = Computed.load(computed), Computed.load(computed)
    other.mixture.domains["code"]["fingerprint"] = "another"
    with pytest.raises(UserError, match="other data for domain 'code'"):
        averaged([one, other])
    other = Computed.load(computed)
    other.mixture.method["seed"] = 5
    with pytest.raises(UserError, match="another seed"):
        averaged([one, other])
