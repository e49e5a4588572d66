"""mixture/edit.py and `nemo-chameleon mixture`: mixtures are changed without training."""

import dataclasses
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset
from test_indexed import write

from nemo_chameleon import Mixture, cli, provider
from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config
from nemo_chameleon.distributed import processes
from nemo_chameleon.method.weights import chameleon_weights
from nemo_chameleon.mixture.edit import ComputedMixture, averaged
from nemo_chameleon.mixture.embeddings_file import load_embeddings, save_embeddings
from nemo_chameleon.utils.errors import UserError
from project import write_config

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `nemo-chameleon mixture ...` in this process and returns its
    output.
    """
    monkeypatch.setattr(processes, "process_group", nullcontext)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["nemo-chameleon", "mixture", *map(str, arguments)])
        cli.main.__wrapped__()  # type: ignore[attr-defined]
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def computed_once(corpus: Path, tmp_path_factory: pytest.TempPathFactory, alone: None) -> Path:
    """Compute two mixtures through proxies of different seeds; return the first one's file.

    The settings are unlike the defaults, so that no default can stand in for what was recorded.
    """
    folder = tmp_path_factory.mktemp("computed")
    for name, seed in (("out", 1), ("other", 2)):
        config = load_config(write_config(corpus, folder), [*SETTINGS, f"proxy.train.seed={seed}"])
        config.output, config.data.cache = str(folder / name), str(folder / "cache")
        config.chameleon.file = str(folder / name / "mixture.json")
        provider.resolve_mixture(config)
    return folder / "out" / "mixture.json"


SETTINGS = ["chameleon.layer=3", "chameleon.seed=77", "chameleon.sample_length=24"]


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Config:
    """Return the configuration of `computed`."""
    return load_config(write_config(corpus, tmp_path), [*SETTINGS, "proxy.train.seed=1"])


@pytest.fixture
def computed(computed_once: Path, config: Config) -> Path:
    """Return a copy of the mixture file where a run with `config` looks for it."""
    shutil.copytree(computed_once.parent, config.output, ignore=lambda *_: ["proxy"])
    return Path(config.chameleon.file)


@pytest.fixture
def other(computed_once: Path) -> Path:
    """Return the file of the mixture through the proxy of another seed."""
    return computed_once.parents[1] / "other" / "mixture.json"


def weights_of(file: Path) -> dict[str, float]:
    """Return the weights that the definition gives for the embeddings beside a mixture file."""
    (embeddings,) = load_embeddings(file.with_suffix(".safetensors"))
    names = list(Mixture.load(file).weights)
    x = np.stack([embeddings[name].embedding for name in names])
    return dict(zip(names, chameleon_weights(x), strict=True))


def test_the_file_is_enough(computed: Path, command: Command) -> None:
    """Rescoring with the same settings gives the same mixture to the last bit, but for its time."""
    before = Mixture.load(computed)
    printed = command("rescore", computed)
    assert dataclasses.replace(Mixture.load(computed), created=before.created) == before
    assert "0.0000 of the samples go to another domain" in printed
    assert before.weights == pytest.approx(weights_of(computed), abs=1e-12)


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [("--ridge", 3.0, "ridge"), ("--exponent", 2.0, "exponent"), ("--min-effective", 0.9999, None)],
)
def test_settings_move_the_weights(
    computed: Path, command: Command, option: str, value: float, key: str | None
) -> None:
    """Each setting is recorded and changes the weights; the other settings stay."""
    before = Mixture.load(computed)
    command("rescore", computed, option, value)
    after = Mixture.load(computed)
    recorded = key or "min_effective"
    assert after.method[recorded] == value
    assert after.weights != pytest.approx(before.weights, abs=1e-4)
    unchanged = set(before.method) - {recorded, "tempering", "caveats"}
    assert all(after.method[name] == before.method[name] for name in unchanged)


def test_rescore(computed: Path, command: Command, config: Config, tmp_path: Path) -> None:
    """Rescoring gives the weights that a run with the new settings computes from the embeddings."""
    output = tmp_path / "paper.json"
    printed = command(
        "rescore", computed, "--preset", "paper", "--objective", "finetune", "--output", output
    )
    assert "method preset: calibrated -> paper" in printed
    after = Mixture.load(output)
    assert after.method["ridge"] == 10.0, "another preset comes with its own ridge"
    assert after.objective == "finetune"
    assert Mixture.load(computed).method["preset"] == "calibrated"
    # A run with these settings accepts the file.
    config.chameleon.preset, config.chameleon.objective = "paper", "finetune"
    config.chameleon.file = str(output)
    assert provider.resolve_mixture(config).weights == after.weights


def test_a_run_names_the_command_that_changes_the_objective(
    computed: Path, command: Command, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that uses a file of another objective names a command, after which it is content."""
    command("rescore", computed, "--objective", "finetune")
    config.chameleon.file = str(computed)
    before = provider.resolve_mixture(config)
    (named,) = re.findall("`nemo-chameleon mixture (.*?)`", caplog.text)
    command(*named.split())
    caplog.clear()
    after = provider.resolve_mixture(config)
    assert (before.objective, after.objective) == ("finetune", "pretrain")
    assert "is used as it is" not in caplog.text


def test_add_and_remove(
    computed: Path, command: Command, config: Config, corpus: Path, tmp_path: Path
) -> None:
    """A domain that is removed and added again is embedded as before, and all weights are as
    before.
    """
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
            pytest.approx(value, rel=1e-6) if key in ("score", "heaviest_share") else value
        )
    # A run over these domains accepts it, whatever the proxy was trained on.
    config.chameleon.file = str(again)
    assert provider.resolve_mixture(config).weights == after.weights


def test_add_a_domain_of_several_datasets(
    computed: Path, command: Command, corpus: Path, tmp_path: Path
) -> None:
    """A list or a glob is one domain, whose datasets are recorded; none may be there already."""
    prose = IndexedDataset(str(corpus / "prose"))
    more = [
        write(tmp_path / f"more-{i}", [text.tolist() for text in list(prose)[i::2]])
        for i in range(2)
    ]
    with pytest.raises(UserError, match=r"legal is data of the mixture's domain 'legal' already"):
        command("add", computed, f"more=[{corpus / 'legal'},{more[0]}]")
    command("add", computed, f"more={tmp_path}/more-*")
    facts = Mixture.load(computed).domains["more"]
    assert facts["path"] == more
    assert sum(facts["part_tokens"]) == facts["tokens"]


def test_add_through_a_proxy_that_was_moved(
    computed: Path, command: Command, corpus: Path, tmp_path: Path
) -> None:
    """The proxy's checkpoint may lie in another folder.

    The checkpoint of another proxy is refused.
    """
    proxy = Mixture.load(computed).proxy["checkpoint"]
    shutil.copytree(proxy, tmp_path / "moved")
    computed.write_text(computed.read_text().replace(proxy, str(tmp_path / "gone")))
    command("remove", computed, "prose")
    domain = f"prose={corpus / 'prose'}"
    with pytest.raises(UserError, match=r"does not exist: name its folder with --proxy"):
        command("add", computed, domain)
    command("add", computed, domain, "--proxy", tmp_path / "moved")
    (tmp_path / "moved" / "manifest.json").unlink()
    weights = max((tmp_path / "moved").glob("*.distcp"), key=lambda file: file.stat().st_size)
    weights.write_bytes(weights.read_bytes()[::-1])
    command("remove", computed, "prose")
    with pytest.raises(UserError, match="is not the proxy"):
        command("add", computed, domain, "--proxy", tmp_path / "moved")


def test_average(
    computed: Path, other: Path, command: Command, corpus: Path, config: Config, tmp_path: Path
) -> None:
    """The weights of an averaged mixture lie between those of the two.

    New domains are embedded through both proxies.
    """
    both = tmp_path / "both.json"
    command("average", computed, other, "--output", both)
    one, two, after = (Mixture.load(file).weights for file in (computed, other, both))
    assert all(min(one[n], two[n]) * 0.9 < after[n] < max(one[n], two[n]) * 1.1 for n in after)
    assert one != pytest.approx(two, abs=1e-3)
    assert Mixture.load(both).proxy["averaged"] == [
        Mixture.load(file).proxy for file in (computed, other)
    ]
    assert "averaged" not in command("show", both)
    command("remove", both, "prose")
    assert set(Mixture.load(both).weights) == {"code", "legal"}
    command("add", both, f"prose={corpus / 'prose'}")
    assert Mixture.load(both).weights == pytest.approx(after, rel=1e-6)
    with pytest.raises(UserError, match="through 2 proxies: name each"):
        command("add", both, f"more={corpus / 'prose'}", "--proxy", "one")
    config.chameleon.file = str(both)
    with pytest.raises(UserError, match=r"several proxies: use it as data\.mixture="):
        provider.resolve_mixture(config)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("remove", "FILE", "books"), "no domain 'books'"),
        (("remove", "FILE", "code", "prose", "legal"), "removing these leaves no domain"),
        (("add", "FILE", "prose=CORPUS/code"), "already has a domain 'prose'"),
        (
            ("add", "FILE", "more=CORPUS/code"),
            "'more' has the same data as the mixture's domain 'code'",
        ),
        (("add", "FILE", "more=CORPUS/none"), "there is no"),
        (("add", "FILE", "more"), "'more' is not of the form NAME=PATH"),
        (("add", "FILE", "a=x", "a=y"), "domain 'a' is given twice"),
        (("rescore", "FILE", "--ridge", "-1"), "ridge=-1.0"),
        (("rescore", "FILE", "--output", "mine.txt"), r"must end in \.json"),
        (("remove", "STATIC", "code"), "were not computed"),
        (("average", "FILE", "STATIC", "--output", "x.json"), "were not computed"),
        (("average", "FILE", "--output", "x.json"), "averaging needs at least two mixtures"),
        (
            ("average", "FILE", "FILE", "--output", "x.json"),
            "two of the mixtures have the same proxy",
        ),
        (("add", "FILE", "more=CORPUS/none", "--micro-batch-size", "0"), "at least 1"),
        (("rescore", "FILE", "--output", "CORPUS/code.bin/m.json"), "cannot write"),
    ],
)
def test_wrong_changes(
    computed: Path,
    command: Command,
    corpus: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    """A change that is not possible is refused in one line, and the file stays as it was."""
    before = computed.read_bytes()
    static = tmp_path / "static.json"
    Mixture.static({"code": 1, "prose": 2}).save(static)
    places = {"FILE": computed, "STATIC": static}
    given = [str(places.get(part, part)).replace("CORPUS", str(corpus)) for part in arguments]
    with pytest.raises(UserError, match=says):
        command(*given)
    assert computed.read_bytes() == before


def test_a_change_that_fails_leaves_the_old_mixture_whole(
    computed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a change stops between its two files, the old mixture still has its embeddings."""
    before = ComputedMixture.load(computed)
    smaller = before.without(["code"])
    monkeypatch.setattr(Mixture, "save", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        smaller.save(computed)
    assert ComputedMixture.load(computed).mixture == before.mixture


def test_mixtures_that_cannot_be_changed(computed: Path, other: Path) -> None:
    """A mixture is refused if its embeddings are missing or are another mixture's, or if a setting
    is.
    """
    path, text = computed.with_suffix(".safetensors"), computed.read_text()
    (embeddings,) = load_embeddings(path)
    for entry, by, says in (
        ('"layer": 3', '"layer": null', "its method has no integer 'layer'"),
        ('"tolerance": 0.005', '"tolerance": "x"', "its method has no number 'tolerance'"),
        ('"preset": "calibrated"', '"preset": "x"', "preset='x'"),
        ('"ridge": 0.3', '"ridge": "x"', "."),
        ('"samples": 24,\n      "heav', '"heav', "no number of 'samples' for domain"),
        ('"name": "chameleon"', '"name": "chameleon", "bound": ["code"]', "within bounds"),
    ):
        assert entry in text
        computed.write_text(text.replace(entry, by, 1))
        with pytest.raises(UserError, match=says):
            ComputedMixture.load(computed)
    computed.write_text(text)
    save_embeddings(path, [{name: embeddings[name] for name in ("code", "prose")}])
    with pytest.raises(UserError, match="cannot be changed: domain 'legal' has no embedding"):
        ComputedMixture.load(computed)
    shutil.copy(other.with_suffix(".safetensors"), path)
    with pytest.raises(UserError, match="are not those of its domain 'code'"):
        ComputedMixture.load(computed)
    path.unlink()
    with pytest.raises(UserError, match="cannot read the embeddings"):
        ComputedMixture.load(computed)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 5), ("layer", 1), ("sample_length", 9), ("samples", 7), ("ridge", 1.0)],
)
def test_mixtures_made_otherwise_are_not_averaged(
    computed: Path, other: Path, key: str, value: object
) -> None:
    """Mixtures of other windows, layers or settings of the scores are not averaged."""
    one, two = ComputedMixture.load(computed), ComputedMixture.load(other)
    two.mixture.method[key] = value
    with pytest.raises(UserError, match=f"made with {key}="):
        averaged([one, two])


def test_mixtures_of_other_data_are_not_averaged(computed: Path, other: Path) -> None:
    """Mixtures of other data, of another split of the same files, or of another objective are not
    averaged.
    """
    for key, value in (("fingerprint", "another"), ("tokens", 5)):
        one, two = ComputedMixture.load(computed), ComputedMixture.load(other)
        two.mixture.domains["code"][key] = value
        with pytest.raises(UserError, match="different data for domain 'code'"):
            averaged([one, two])
    two = ComputedMixture.load(other).rescored("finetune")
    with pytest.raises(UserError, match="different objectives"):
        averaged([ComputedMixture.load(computed), two])
