"""provider/: which weights a run uses, and that they are computed only once."""

import doctest
import json
import re
import sys
from pathlib import Path

import pytest

from nemo_chameleon import Mixture, cli, provider
from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.validation import preset_of
from nemo_chameleon.data.tokenize import write_dataset
from nemo_chameleon.data.tokenizer import load_tokenizer
from nemo_chameleon.mixture.embeddings_file import load_embeddings
from nemo_chameleon.provider import proxy, runs
from nemo_chameleon.utils.errors import UserError


def resolve(config: Config, mixture: str) -> Mixture:
    """Return the mixture for a value of data.mixture."""
    config.data.mixture = mixture
    return provider.resolve_mixture(config)


def test_mixtures_that_need_no_proxy(config: Config, tmp_path: Path) -> None:
    """Uniform, proportional, static and a file's weights need no process group."""
    domains = provider.prepare(config).domains
    assert set(resolve(config, "uniform").weights.values()) == {1 / 3}
    tokens = {name: domain.tokens for name, domain in domains.items()}
    assert resolve(config, "proportional").weights == pytest.approx(
        {name: count / sum(tokens.values()) for name, count in tokens.items()}
    )
    for weight, domain in zip((1, 1, 2), config.data.domains.values(), strict=True):
        domain.weight = weight
    typed = resolve(config, "static")
    assert typed.weights == {"code": 0.25, "prose": 0.25, "legal": 0.5}
    typed.save(tmp_path / "typed.json")
    assert resolve(config, str(tmp_path / "typed.json")).weights == typed.weights
    assert provider.base_run(config, domains, typed).directory == tmp_path / "out" / "typed"


def test_bounds_hold_for_the_run_and_not_in_the_file(config: Config) -> None:
    """data.max_epochs, pin and floor bound what the run draws, and are checked before training."""
    config.data.pin = {"code": 0.5}
    assert resolve(config, "uniform").weights == {"code": 0.5, "prose": 0.25, "legal": 0.25}
    config.data.max_epochs = 1e-3
    with pytest.raises(UserError, match=r"data\.max_epochs=0\.001 allows .* are missing"):
        resolve(config, "chameleon")


def test_errors_about_bounds_name_keys(config: Config) -> None:
    """An error about bounds names its keys in full; an error about something else names none."""
    domains = provider.prepare(config).domains
    with pytest.raises(UserError, match=r"^the domains differ from the mixture's"):
        runs.within_bounds(config, domains, Mixture.uniform(["code", "prose"]))
    config.data.pin = {"code": 0.5, "prose": 0.5}
    with pytest.raises(UserError, match=r"^data\.pin and data\.floor leave no weight"):
        runs.within_bounds(config, domains, Mixture.uniform(domains))
    config.data.pin, config.data.floor = {"code": 0.2}, {"code": 0.3}
    with pytest.raises(UserError, match=r"^data\.pin\.code=0\.2 is below data\.floor\.code=0\.3"):
        runs.within_bounds(config, domains, Mixture.uniform(domains))


def test_what_was_prepared_does_not_hide_another_mixture(config: Config) -> None:
    """A configuration that asks for another mixture since then gets it."""
    config.data.mixture = "uniform"
    prepared = provider.prepare(config)
    config.data.mixture = "static"
    for weight, domain in zip((1, 1, 2), config.data.domains.values(), strict=True):
        domain.weight = weight
    weights = provider.resolve_mixture(config, prepared).weights
    assert weights == {"code": 0.25, "prose": 0.25, "legal": 0.5}


@pytest.mark.usefixtures("alone")
def test_a_mixture_that_was_computed_since_is_used(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was prepared before the mixture file existed does not compute it a second time."""
    prepared = provider.prepare(config)
    mixture = provider.resolve_mixture(config, prepared)
    resolve_module = sys.modules["nemo_chameleon.provider.resolve"]
    monkeypatch.setattr(resolve_module, "compute_mixture", lambda _: pytest.fail("computed again"))
    assert provider.resolve_mixture(config, prepared) == mixture


def test_example_of_resolve_mixture(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines in the docstring run as they are, beside a configuration."""
    assert config_file == tmp_path / "config.yaml"
    monkeypatch.chdir(tmp_path)
    text = provider.resolve_mixture.__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, {}, "resolve_mixture", None, None)
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(failed=0, attempted=4)


@pytest.mark.usefixtures("alone")
def test_chameleon_is_computed_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run writes mixture and embeddings; the next one reads them and trains no proxy."""
    mixture = resolve(config, "chameleon")
    file = json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert file["weights"] == mixture.weights
    assert file["method"]["layer"] == 2
    assert file["proxy"]["tokens"] == 6 * 8 * 32
    assert all(0 < domain["score"] < 1 for domain in file["domains"].values())
    (embeddings,) = load_embeddings(tmp_path / "out" / "mixture.safetensors")
    assert {name: shards.means.shape for name, shards in embeddings.items()} == dict.fromkeys(
        ("code", "prose", "legal"), (24, 32)
    )
    for name, (low, high) in file["uncertainty"].items():
        assert low < mixture.weights[name] < high

    def no_proxy(*_: object) -> None:
        raise AssertionError("the proxy was started again")

    monkeypatch.setattr(provider.resolve, "compute_mixture", no_proxy)
    assert resolve(config, "chameleon") == mixture


@pytest.mark.usefixtures("alone")
def test_samples_are_drawn_until_the_weights_are_known(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With samples=auto windows are drawn until the widest interval is narrow enough.

    No domain is drawn beyond its tokens.
    """

    def drawn(tolerance: float, name: str) -> tuple[list[float], Mixture]:
        config.chameleon.samples, config.chameleon.tolerance = "auto", tolerance
        config.chameleon.file = str(tmp_path / name)
        mixture = resolve(config, "chameleon")
        said = capsys.readouterr().out.splitlines()
        known = [line for line in said if "known to within 0" in line]
        return [float(line.rsplit(" ", 1)[1]) for line in known], mixture

    (wide,), mixture = drawn(0.9, "first.json")
    assert {facts["samples"] for facts in mixture.domains.values()} == {512}
    tolerance = 0.75 * wide
    known, mixture = drawn(tolerance, "second.json")
    assert known[0] == wide
    assert known[-1] <= tolerance < known[-2]
    widths = [(high - low) / 2 for low, high in mixture.uncertainty.values()]
    assert max(widths) == pytest.approx(known[-1], abs=1e-4)
    assert mixture.domains["code"]["samples"] > 512
    assert mixture.domains["legal"]["samples"] == 512, "its tokens were all drawn at first"
    assert mixture.method["samples"] == "auto"


@pytest.mark.usefixtures("alone")
def test_every_layer_is_compared(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """With layer=all the weights are the middle layer's, and each layer's weights are recorded."""
    config.chameleon.layer = "all"
    mixture = resolve(config, "chameleon")
    assert mixture.method["layer"] == 2
    layers = mixture.method["layers"]
    assert list(layers) == ["1", "2", "3", "4"]
    assert layers["2"] == pytest.approx(mixture.weights, abs=1e-12)
    assert layers["4"] != pytest.approx(mixture.weights, abs=1e-4)
    said = capsys.readouterr().out.splitlines()
    (moved,) = [line.split() for line in said if line.startswith("moved from layer 2")]
    assert moved[5] == "0.0000"
    # A run with this layer alone accepts the file.
    config.chameleon.layer = None
    assert resolve(config, "chameleon") == mixture


@pytest.mark.usefixtures("alone")
def test_killed_while_embedding_keeps_the_proxy(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies after the proxy's training uses the trained proxy at its next start."""
    with monkeypatch.context() as patch:
        patch.setattr(proxy, "_embed", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            resolve(config, "chameleon")
    trained = Path(config.output) / "proxy" / "iter_0000006"
    before = trained.stat().st_mtime_ns
    resolve(config, "chameleon")
    assert trained.stat().st_mtime_ns == before


def written(config: Config, **method: object) -> None:
    """Write a mixture file as a run with this configuration does, except for `method`."""
    objective = str(method.pop("objective", "pretrain"))
    prepared = provider.prepare(config)
    domains, plan = prepared.domains, prepared.plan
    assert plan is not None
    facts = {name: {"fingerprint": domain.fingerprint} for name, domain in domains.items()}
    Mixture(
        Mixture.uniform(domains).weights,
        objective=objective,
        domains=facts,
        method={
            "name": "chameleon",
            **preset_of(config.chameleon).settings(),
            **plan.method,
            **method,
        },
        proxy={"settings": plan.settings[0]},
    ).save(config.chameleon.file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preset", "paper"),
        ("ridge", 0.5),
        ("layer", 3),
        ("samples", 99),
        ("seed", 7),
    ],
)
def test_mixture_of_other_settings_is_refused(config: Config, key: str, value: object) -> None:
    """A mixture file that was computed with other settings than the run's is refused."""
    written(config, **{key: value})
    with pytest.raises(UserError, match=f"made with {key}={value}.*remove the file") as caught:
        resolve(config, "chameleon")
    assert ("mixture rescore" in str(caught.value)) == (key in ("preset", "ridge"))


def older(config: Config) -> None:
    """Rewrite the mixture file as the version before `normalize_states` wrote it."""
    path = Path(config.chameleon.file)
    written = json.loads(path.read_text())
    del written["method"]["normalize_states"]
    path.write_text(json.dumps(written))


def test_mixture_of_an_earlier_version(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    """A file from before token states were normalised is used as it is, and the run says so.

    It is refused where the configuration asks for normalised states.
    """
    written(config, cross_documents=False)
    older(config)
    said = "the mixture was computed with chameleon.normalize_states=False and is used as it is"
    assert resolve(config, "chameleon").weights
    assert said in caplog.text
    caplog.clear()
    config.chameleon.normalize_states = config.chameleon.cross_documents = False
    assert resolve(config, "chameleon").weights
    assert "is used as it is" not in caplog.text
    for key in ("normalize_states", "cross_documents"):
        setattr(config.chameleon, key, True)
        with pytest.raises(UserError, match=f"made with {key}=False, but the run asks for True"):
            resolve(config, "chameleon")
        setattr(config.chameleon, key, False)


def test_an_objective_that_is_left_open_is_the_files(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """A mixture of objective=finetune, once the default of finetuning, is used as it is.

    The run says so, and how to change it. A key that is set is compared. Bounds apply as always.
    """
    written(config, objective="finetune")
    config.data.pin = {"code": 0.5}
    assert resolve(config, "chameleon").weights["code"] == 0.5
    assert resolve(config, "chameleon").objective == "finetune"
    assert "computed with chameleon.objective=finetune and is used as it is" in caplog.text
    command = f"`nemo-chameleon mixture rescore {config.chameleon.file} --objective pretrain`"
    assert f"or run {command} to change it" in caplog.text
    caplog.clear()
    config.chameleon.objective = "finetune"
    assert resolve(config, "chameleon").objective == "finetune"
    assert "is used as it is" not in caplog.text
    config.chameleon.objective = "pretrain"
    says = f"made with objective=finetune, but the run asks for pretrain; {command} changes that"
    with pytest.raises(UserError, match=re.escape(says)):
        resolve(config, "chameleon")


@pytest.mark.parametrize("objective", [None, "pretrain", "finetune"])
def test_a_new_mixture_is_one_for_pretraining(config: Config, objective: str | None) -> None:
    """Where nothing is computed yet, an objective that is left open is pretrain."""
    config.chameleon.objective = objective
    plan = provider.prepare(config).plan
    assert plan is not None
    assert plan.objective == (objective or "pretrain")


@pytest.mark.parametrize(
    ("preset", "wanted", "expected"),
    [
        ("calibrated", None, True),
        ("calibrated", False, False),
        ("paper", None, False),
        ("paper", True, True),
    ],
)
@pytest.mark.parametrize("key", ["normalize_states", "cross_documents"])
def test_the_preset_decides_what_is_left_open(
    config: Config, key: str, preset: str, wanted: bool | None, expected: bool
) -> None:
    """By default calibrated weights come from normalised states and windows across documents, and
    the paper's from raw states and windows within documents.
    """
    config.chameleon.preset = preset
    setattr(config.chameleon, key, wanted)
    plan = provider.prepare(config).plan
    assert plan is not None
    assert plan.method[key] == getattr(plan.windows, key) == expected


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("train", "train_iters", 7), ("model", "num_attention_heads", 2), ("optimizer", "lr", 0.1)],
)
def test_mixture_through_another_proxy_is_refused(
    config: Config, section: str, key: str, value: object
) -> None:
    """A mixture file that was computed through a proxy of other settings is refused."""
    written(config)
    setattr(getattr(config.proxy, section), key, value)
    with pytest.raises(UserError, match="made through another proxy"):
        resolve(config, "chameleon")


@pytest.mark.parametrize("name", ["proxy", "cache", "uniform"])
def test_mixture_file_whose_folder_has_another_use(
    config: Config, tmp_path: Path, name: str
) -> None:
    """A mixture file called proxy.json is refused: its run would lie in the proxy's folder."""
    path = tmp_path / f"{name}.json"
    Mixture.uniform(config.data.domains).save(path)
    config.data.mixture = str(path)
    with pytest.raises(UserError, match="has another use"):
        provider.prepare(config)


def test_other_runs_in_the_folder_are_found_before_the_proxy_is_trained(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of another base run or proxy are refused before anything is computed."""
    monkeypatch.setattr("nemo_chameleon.models.whole.fault_of", lambda path: None)
    folder = Path(config.output) / "chameleon"
    checkpointed = folder / "iter_0000004"
    checkpointed.mkdir(parents=True)
    (checkpointed / "state.json").write_text('{"identity": {}}')
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    with pytest.raises(
        UserError, match=r"has checkpoints, but their mixture file .*mixture\.json is gone"
    ):
        provider.prepare(config)
    folder.rename(folder.with_name("proxy"))
    with pytest.raises(UserError, match=r"proxy/iter_0000004 was made with model\.num_layers"):
        provider.prepare(config)
    config.checkpoint.resume = "never"
    with pytest.raises(UserError, match="proxy holds checkpoints"):
        provider.prepare(config)


def test_a_runs_bounded_weights_are_not_taken_for_computed_ones(config: Config) -> None:
    """The mixture in a run's folder has the run's bounds, and is refused as chameleon.file."""
    written(config, bound=["code"])
    with pytest.raises(
        UserError,
        match=r"its weights were changed by the data\.max_epochs, data\.pin or data\.floor",
    ):
        resolve(config, "chameleon")


def test_mixture_of_other_data_is_refused(config: Config, tmp_path: Path) -> None:
    """A domain whose data has changed since it was embedded is named."""
    written(config)
    assert resolve(config, "chameleon").weights
    tokenizer = load_tokenizer(config.data.tokenizer)
    write_dataset(["other text " * 200] * 20, tokenizer, tmp_path / "code")
    config.data.domains["code"].path = str(tmp_path / "code")
    with pytest.raises(UserError, match="the data of domain 'code' has changed"):
        resolve(config, "chameleon")


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        (["--processes=3"], "train.global_batch_size=8"),
        (["--processes=4", "--proxy-processes=3"], "proxy.train.global_batch_size=8"),
        (["data.pin.code=2"], "data.pin"),
        (["proxy.load=nowhere"], "proxy.load=nowhere"),
        (["checkpoint.pretrained_checkpoint=nowhere"], "checkpoint.pretrained_checkpoint=nowhere"),
        (["proxy.model.seq_length=4096"], "a sample takes 4097"),
    ],
)
def test_checked_before_jobs_are_submitted(
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    culprit: str,
) -> None:
    """`nemo-chameleon check` checks base model and proxy for their numbers of processes.

    It writes nothing.
    """
    command = ["nemo-chameleon", "check", "--config", str(config_file)]
    monkeypatch.setattr(sys, "argv", [*command, "--processes=4", "--proxy-processes=2"])
    cli.main()
    assert "3 domains" in (said := capsys.readouterr().out)
    assert "valid for 4 processes" in said
    monkeypatch.setattr(sys, "argv", [*command, *settings])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert culprit in capsys.readouterr().err
    assert not (config_file.parent / "out").exists()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("m.json/", "m.json is a folder"),
        ("m.safetensors/", "m.safetensors is a folder"),
        ("m.partial", "m.partial is a file, but must be a folder"),
        ("a file in place of the folder/file", "is a file, but must be a folder"),
    ],
)
def test_a_mixture_file_that_cannot_be_written(
    config: Config, tmp_path: Path, made: str, says: str
) -> None:
    """It is refused before the proxy is trained, with whatever is in its way."""
    folder = tmp_path / "of the mixture"
    folder.mkdir()
    config.data.mixture, config.chameleon.file = "chameleon", str(folder / "m.json")
    if made.endswith("/file"):
        (folder / "file").write_text("")
        config.chameleon.file = str(folder / "file" / "m.json")
    elif made.endswith("/"):
        (folder / made).mkdir()
    else:
        (folder / made).write_text("")
    with pytest.raises(UserError, match=rf"^chameleon\.file=.*{says}.*set chameleon\.file=FILE"):
        provider.prepare(config)
