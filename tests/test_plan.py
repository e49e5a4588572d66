"""Runs that follow a plan: data.stages, data.order and data.on_mixture_change=continue."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_chameleon import Mixture, provider
from nemo_chameleon.comparison.runs import candidates
from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.stages import stage_samples
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.distributed.processes import process_group, world_size
from nemo_chameleon.provider.runs import run_name
from nemo_chameleon.provider.stages import plan_of
from nemo_chameleon.train import trainer
from nemo_chameleon.utils.errors import UserError
from ranks import on_ranks
from sft_data import write_sft_config

STAGES = "data.stages=[{until: 0.5, mixture: uniform}, {until: 28, mixture: %s}, {mixture: %s}]"
GLOBAL = 8
Drawn = list[tuple[int, tuple[int, ...]]]


def drawn_by(file: str, settings: list[str], stop: int | None = None) -> Drawn:
    """Train, and return domain and tokens of every sample that the loader of this rank gives.

    A run that stops is killed after iteration `stop`, which has saved a checkpoint.
    """
    config, seen = load_config(file, settings), Drawn()
    pauses: dict[int, Callable[[Any], None]] = {}
    train = trainer.Trainer._batches

    def watched(self: trainer.Trainer) -> Any:
        for batch in train(self) or ():
            names = batch["dataset_id"].tolist()
            seen.extend(zip(names, map(tuple, batch["tokens"].tolist()), strict=True))
            yield batch

    class KilledError(Exception):
        pass

    def kill(_: Any) -> None:
        raise KilledError

    if stop is not None:
        pauses[stop + 1] = kill
    with pytest.MonkeyPatch.context() as patch, process_group():
        patch.setattr(trainer.Trainer, "_batches", watched)
        run = provider.resolve_run(config)
        try:
            trainer.train(run, pauses)
        except KilledError:
            # What was read for the iteration that died is read again.
            del seen[-GLOBAL // world_size() :]
    return seen


def drawn_on(ranks: int, file: Path, settings: list[str], stop: int | None = None) -> Drawn:
    """Return the samples that all ranks draw, in the order of the run."""
    found = on_ranks(ranks, drawn_by, str(file), settings, stop)
    merged, size = Drawn(), 2  # samples of a micro-batch
    for start in range(0, len(found[0]), size):
        for of_rank in found:
            merged += of_rank[start : start + size]
    return merged


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Return mixture files: one of two of the three domains, and one of all."""
    Mixture.static({"code": 1, "prose": 3}).save(tmp_path / "two.json")
    Mixture.static({"code": 5, "prose": 2, "legal": 1}).save(tmp_path / "three.json")
    return str(tmp_path / "two.json"), str(tmp_path / "three.json")


def settings_of(tmp_path: Path, name: str, *more: str) -> list[str]:
    """Return the settings of a run in a folder of its own that saves every iteration."""
    saving = ["checkpoint.save_interval=1", "train.eval_iters=0", "logging.tensorboard=false"]
    return [f"output={tmp_path / name}", f"data.cache={tmp_path / 'cache'}", *saving, *more]


def test_stages_are_exact_and_repeat_nothing(
    config_file: Path, tmp_path: Path, files: tuple[str, str]
) -> None:
    """Each stage has its shares to the sample; a domain's samples go on from stage to stage."""
    settings = settings_of(tmp_path, "one", STAGES % files)
    seen = drawn_on(1, config_file, settings)
    result = json.loads((tmp_path / "one" / "plan" / "result.json").read_text())
    names = list(result["domains"])
    assert [stage["samples"] for stage in result["stages"]] == [24, 8, 16], "28 is rounded to 32"
    start = 0
    for stage in result["stages"]:
        part = [names[at] for at, _ in seen[start : start + stage["samples"]]]
        assert {name: part.count(name) for name in stage["domains"]} == stage["domains"]
        start += stage["samples"]
    assert [stage["domains"] for stage in result["stages"]][:2] == [
        {"code": 8, "legal": 8, "prose": 8},
        {"code": 2, "prose": 6},
    ]
    assert len(set(seen)) == len(seen), "no sample of a domain comes twice in an epoch"
    for name, entry in result["domains"].items():
        assert entry["samples"] == sum(s["domains"].get(name, 0) for s in result["stages"])


def test_one_stage_is_the_run_without_stages(config_file: Path, tmp_path: Path) -> None:
    """data.stages with one entry draws what data.mixture draws, sample for sample."""
    plain = drawn_on(1, config_file, settings_of(tmp_path, "plain", "data.mixture=uniform"))
    stage = "data.stages=[{mixture: uniform}]"
    assert drawn_on(1, config_file, settings_of(tmp_path, "stage", stage)) == plain
    streams = settings_of(tmp_path, "streams", stage, "data.order=streams")
    assert drawn_on(1, config_file, streams) != plain


@pytest.mark.parametrize("stop", [3, 2, 4])
def test_a_killed_run_goes_on_with_the_same_samples(
    config_file: Path, tmp_path: Path, files: tuple[str, str], stop: int
) -> None:
    """Killed at a boundary or beside it, and resumed on two ranks, a run draws what it would have.

    The first stage ends with iteration 3, the second one with iteration 4.
    """
    whole = drawn_on(1, config_file, settings_of(tmp_path, "whole", STAGES % files))
    killed = settings_of(tmp_path, "killed", STAGES % files)
    begun = drawn_on(1, config_file, killed, stop)
    assert len(begun) == stop * GLOBAL
    assert begun + drawn_on(2, config_file, killed) == whole


@pytest.mark.parametrize("order", ["megatron", "streams"])
def test_a_change_keeps_what_was_drawn_and_repeats_nothing(
    config_file: Path, tmp_path: Path, files: tuple[str, str], order: str
) -> None:
    """After a change nobody planned, each domain goes on where it was, whatever the order was."""
    before = ["data.mixture=uniform", f"data.order={order}", "data.mixture=uniform"]
    whole = drawn_on(1, config_file, settings_of(tmp_path, "whole", *before))
    (tmp_path / "run").mkdir()
    begun = drawn_on(1, config_file, settings_of(tmp_path, "run", *before), 2)
    assert begun == whole[: 2 * GLOBAL]
    now = [f"data.mixture={files[1]}", "data.on_mixture_change=continue"]
    with pytest.raises(Exception, match="set run=uniform to go on with that run, or run=three"):
        drawn_on(1, config_file, settings_of(tmp_path, "run", *now))
    now.append("run=uniform")
    changed = drawn_on(2, config_file, settings_of(tmp_path, "run", *now), 3)
    changed += drawn_on(1, config_file, settings_of(tmp_path, "run", *now))
    assert len(begun + changed) == len(whole)
    assert len(set(begun + changed)) == len(whole), "no sample comes twice"
    for position in range(3):
        of_domain = [sample for at, sample in begun + changed if at == position]
        in_whole = [sample for at, sample in whole if at == position]
        both = min(len(of_domain), len(in_whole))
        assert of_domain[:both] == in_whole[:both], "and none is left out"
    counts = [sum(at == position for at, _ in changed) for position in range(3)]
    assert counts == [20, 8, 4], "the shares of the new mixture, of 32 samples"
    result = json.loads((tmp_path / "run" / "uniform" / "result.json").read_text())
    assert [stage["samples"] for stage in result["stages"]] == [16, 32]
    assert {name: entry["samples"] for name, entry in result["domains"].items()} == {
        name: sum(at == position for at, _ in begun + changed)
        for position, name in enumerate(result["domains"])
    }


def test_domains_may_come_and_go(config_file: Path, tmp_path: Path) -> None:
    """A run goes on without a domain, and with a new one; what stays is not drawn again."""
    config = yaml.safe_load(config_file.read_text())
    extra = config["data"]["domains"].pop("legal")
    config_file.write_text(yaml.safe_dump(config, sort_keys=False))
    asked = ["data.mixture=uniform", "data.order=streams"]
    begun = drawn_on(1, config_file, settings_of(tmp_path, "run", *asked), 2)
    del config["data"]["domains"]["code"]
    config["data"]["domains"]["legal"] = extra
    config_file.write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.raises(Exception, match=r"is of a run with another plan: .code. has 0"):
        drawn_on(1, config_file, settings_of(tmp_path, "run", *asked))
    asked.append("data.on_mixture_change=continue")
    rest = drawn_on(1, config_file, settings_of(tmp_path, "run", *asked))
    assert len(set(begun + rest)) == 48
    assert sum(at == 0 for at, _ in rest) == 16, "prose is the first domain now"
    prose = [sample for at, sample in begun if at == 1]
    assert not set(prose) & {sample for at, sample in rest if at == 0}
    result = json.loads((tmp_path / "run" / "uniform" / "result.json").read_text())
    assert [stage["domains"] for stage in result["stages"]] == [
        {"code": 8, "prose": 8},
        {"legal": 16, "prose": 16},
    ]


def test_another_plan_is_refused_in_words(
    config_file: Path, tmp_path: Path, files: tuple[str, str]
) -> None:
    """A run that resumes under another plan says what differs, and how to go on."""
    settings = settings_of(tmp_path, "run", STAGES % files)
    drawn_on(1, config_file, settings, 2)
    later = [setting.replace("until: 28", "until: 40") for setting in settings]
    for changed, says in (
        (later, "stage 2 ends with sample 40 in place of 32; set it back, or set data.on_mixture"),
        (
            [s.replace("two.json", "three.json") for s in settings],
            "'code' has 0.625 of stage 2 in place of 0.25",
        ),
        ([s for s in settings if "stages" not in s] + ["data.mixture=uniform"], None),
    ):
        if says is None:
            changed.append("run=plan")
            says = "is of a run whose samples are ordered by streams: set data.order=streams"
        with pytest.raises(Exception, match=re.escape(says)):
            drawn_on(1, config_file, changed)


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (
            "[{until: 0.5}, {until: 0.5}, {}]",
            "data.stages[1].until=0.5 is sample 24, rounded to global batches of 8, and "
            "data.stages[0] ends at sample 24: a stage must end after it begins",
        ),
        ("[{}, {}]", "data.stages[0].until is not set: set it to where the stage ends, as in 0.8"),
        (
            "[{until: 0.5}, {until: 0.9}]",
            "data.stages[1].until=0.9 is sample 40, but the run has 48",
        ),
        ("[{until: 3 apples}, {}]", "data.stages[0].until='3 apples' must be a share such as 0.8"),
        ("[{until: 0}, {}]", "data.stages[0].until=0.0 must be positive and finite"),
        ("[{until: 0.5, mixtur: uniform}, {}]", "unknown key data.stages.mixtur; did you mean"),
        ("[{until: 0.5}, {mixture: nothere}]", "data.stages[1].mixture=nothere is neither a file"),
        ("{until: 0.5}", "data.stages must be a list, not a mapping"),
        ("[{until: 0.5}, {max_epochs: 0.001}]", "data.stages[1]: data.max_epochs=0.001 is drawn"),
        ("[{until: 0.5}, {}] data.order=megatron", "data.order=megatron has one mixture for the"),
        ("[{until: 0.5}, {pin: {nowhere: 0.1}}]", "data.stages[1]: data.pin.nowhere: 'nowhere' is"),
        (
            "[{until: 0.5}, {mixture: stranger.json}]",
            "data.stages[1]: stranger.json has weights for",
        ),
    ],
)
def test_wrong_plans_are_refused_before_anything_is_trained(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: str, says: str
) -> None:
    """A plan that cannot be followed is one error, which names the stage."""
    monkeypatch.chdir(tmp_path)
    Mixture.static({"code": 1, "stranger": 1}).save("stranger.json")
    more = f"data.stages={stages}".split(" data.order")
    more[1:] = [f"data.order{setting}" for setting in more[1:]]
    settings = settings_of(tmp_path, "run", "data.mixture=uniform", *more)
    with pytest.raises(UserError, match=re.escape(says)), process_group():
        provider.prepare(load_config(str(config_file), settings))
    assert not (tmp_path / "run").exists()


def test_a_cap_counts_what_earlier_stages_drew(
    config: Config, tmp_path: Path, files: tuple[str, str]
) -> None:
    """Over all stages no domain is drawn for more epochs than the cap; an exhausted one is left."""
    settings = settings_of(
        tmp_path, "run", STAGES.replace("28", "0.7") % files, "train.train_iters=300"
    )
    config = load_config(str(tmp_path / "config.yaml"), settings)
    with process_group():
        domains = provider.prepare(config).domains
        passes = {name: domain.tokens // 32 for name, domain in domains.items()}
        config.data.max_epochs = 1.001 * 2400 / sum(passes.values())
        plan = provider.resolve_run(config).plan
    assert plan is not None
    counts = plan.counts(plan.samples)
    for name, count in counts.items():
        assert count <= config.data.max_epochs * passes[name] + 3


@pytest.mark.parametrize(
    ("until", "samples"),
    [
        ("0.25", 16),
        ("1.0", 48),
        ("21", 24),
        ("900 tokens", 32),
        ("1.2K tokens", 40),
        ("0.02K samples", 16),
        ("2T tokens", 48),
    ],
)
def test_amounts_of_a_stage(config_file: Path, until: str, samples: int) -> None:
    """`until` is a share, samples or tokens, and is rounded to a whole global batch."""
    config = load_config(str(config_file), [f"data.stages=[{{until: {until}}}, {{}}]"])
    if samples == 48:
        with pytest.raises(UserError, match="a stage must end after it begins"):
            stage_samples(config)
        return
    assert stage_samples(config) == [samples, 48 - samples]


def test_a_comparison_has_no_stages(config_file: Path, tmp_path: Path) -> None:
    """A comparison of whole runs refuses stages, which it would not follow."""
    config = load_config(str(config_file), ["data.stages=[{until: 0.5}, {}]"])
    with pytest.raises(UserError, match=r"remove data\.stages"):
        candidates(config)


def test_a_mixture_that_a_stage_needs_is_computed_once(config_file: Path, tmp_path: Path) -> None:
    """Stages of data.mixture=chameleon share its file; data.mixture itself is not used then."""
    stages = "[{until: 0.5, mixture: chameleon}, {mixture: chameleon, floor: {code: 0.6}}]"
    settings = settings_of(tmp_path, "run", f"data.stages={stages}", "data.mixture=uniform")
    config = load_config(str(config_file), settings)
    with process_group():
        prepared = provider.prepare(config)
        assert prepared.stored is None
        run = provider.resolve_run(config, prepared)
    assert run.plan is not None
    first, second = run.plan.stages
    computed = Mixture.load(tmp_path / "run" / "mixture.json")
    assert first.mixture == computed
    assert second.mixture.weights["code"] == pytest.approx(0.6)
    assert run.mixture.name == "plan"
    alone = load_config(str(config_file), settings_of(tmp_path, "alone", *settings[-2:]))
    with process_group():
        mixture = provider.unbounded_mixture(provider.prepare_mixture(alone))
    assert mixture.weights == computed.weights, "what `mixture compute` computes"


def test_what_accept_has_drawn_is_not_known(
    config_file: Path, tmp_path: Path, files: tuple[str, str]
) -> None:
    """A run cannot count on after data.on_mixture_change=accept, and says so."""
    uniform = settings_of(tmp_path, "run", "run=mine", "data.mixture=uniform")
    drawn_on(1, config_file, uniform, 2)
    other = settings_of(tmp_path, "run", "run=mine", f"data.mixture={files[1]}")
    drawn_on(1, config_file, [*other, "data.on_mixture_change=accept"], 3)
    with pytest.raises(Exception, match="which samples it has drawn is not known"):
        drawn_on(1, config_file, [*uniform, "data.on_mixture_change=continue"])


@pytest.mark.parametrize("name", ["proxy", "compare", "cache", "a/b", ".."])
def test_a_run_has_a_name_of_its_own(config: Config, name: str) -> None:
    """`run` names a folder under `output` that nothing else uses."""
    config.run = name
    with pytest.raises(UserError, match=f"^run={name}: .* set run to another name"):
        run_name(config)


@pytest.mark.parametrize("order", ["megatron", "streams"])
def test_continue_without_a_change_changes_nothing(
    config_file: Path, tmp_path: Path, order: str
) -> None:
    """A run that may change and does not draws what it would have, also under a cap."""
    asked = ["data.mixture=uniform", f"data.order={order}", "data.on_mixture_change=continue"]
    asked += ["train.train_iters=40", "data.max_epochs=0.36"]
    whole = drawn_on(1, config_file, settings_of(tmp_path, "whole", *asked))
    killed = settings_of(tmp_path, "killed", *asked)
    parts = [drawn_on(1, config_file, killed, stop) for stop in (7, 20)]
    assert sum(parts, Drawn()) + drawn_on(2, config_file, killed) == whole
    result = json.loads((tmp_path / "killed" / "uniform" / "result.json").read_text())
    assert len(result.get("stages", [0])) == 1
    counts = [entry["samples"] for entry in result["domains"].values()]
    assert len(set(counts)) > 1, "the cap binds"


def test_caps_of_a_change_are_of_what_is_to_come(
    config_file: Path, tmp_path: Path, files: tuple[str, str]
) -> None:
    """A mixture whose cap would not suffice for the whole run may suffice for the rest of it."""
    begun = settings_of(tmp_path, "run", "run=mine", "data.mixture=uniform", "data.order=streams")
    drawn_on(1, config_file, begun, 4)
    asked = settings_of(tmp_path, "run", "run=mine", f"data.mixture={files[0]}")
    asked += ["data.stages=[{}]", "data.max_epochs=0.00625", "data.on_mixture_change=continue"]
    rest = drawn_on(1, config_file, asked)
    assert len(rest) == 16
    assert {at for at, _ in rest} == {0, 1}


def test_a_longer_stage_keeps_its_cap(
    config_file: Path, tmp_path: Path, files: tuple[str, str]
) -> None:
    """A stage that is made longer while it goes on draws no more of a domain than its cap."""
    for until, stop in ((24, 2), (40, None)):
        stages = f"data.stages=[{{until: {until}, mixture: uniform}}, {{mixture: {files[0]}}}]"
        settings = settings_of(tmp_path, "run", stages, "data.max_epochs=0.0675")
        drawn_on(1, config_file, [*settings, "data.on_mixture_change=continue"], stop)
    result = json.loads((tmp_path / "run" / "plan" / "result.json").read_text())
    tokens = result["domains"]["legal"]["tokens"]
    assert result["domains"]["legal"]["samples"] <= 0.0675 * tokens / 32 + 1.25
    assert [stage["mixture"] for stage in result["stages"]] == ["uniform", "uniform", "static"]


@pytest.mark.parametrize("order", ["megatron", "streams"])
def test_the_order_of_the_domains_may_change(config_file: Path, tmp_path: Path, order: str) -> None:
    """With `continue`, domains in another order are drawn without repeating or skipping one."""
    asked = ["data.mixture=uniform", f"data.order={order}", "data.on_mixture_change=continue"]
    begun = drawn_on(1, config_file, settings_of(tmp_path, "run", *asked), 3)
    config = yaml.safe_load(config_file.read_text())
    config["data"]["domains"] = dict(reversed(config["data"]["domains"].items()))
    config_file.write_text(yaml.safe_dump(config, sort_keys=False))
    rest = drawn_on(1, config_file, settings_of(tmp_path, "run", *asked))
    assert len({tokens for _, tokens in begun + rest}) == 48


def test_a_domain_that_comes_back_has_its_data(config_file: Path, tmp_path: Path) -> None:
    """A domain that is gone and comes back with other data is refused."""
    asked = ["data.mixture=uniform", "data.order=streams", "data.on_mixture_change=continue"]
    drawn_on(1, config_file, settings_of(tmp_path, "run", *asked), 2)
    config = yaml.safe_load(config_file.read_text())
    domains = config["data"]["domains"]
    legal = domains.pop("legal")
    config_file.write_text(yaml.safe_dump(config, sort_keys=False))
    drawn_on(1, config_file, settings_of(tmp_path, "run", *asked), 4)
    domains["legal"] = domains.pop("code")
    config_file.write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.raises(Exception, match="the data of 'legal' has changed"):
        drawn_on(1, config_file, settings_of(tmp_path, "run", *asked))
    domains["legal"] = legal
    config_file.write_text(yaml.safe_dump(config, sort_keys=False))
    assert len(drawn_on(1, config_file, settings_of(tmp_path, "run", *asked))) == 16


def test_a_damaged_checkpoint_before_a_change(
    config_file: Path, tmp_path: Path, files: tuple[str, str]
) -> None:
    """A plan is made for the checkpoint that is loaded; where another one is, it is made again."""
    begun = settings_of(tmp_path, "run", "run=mine", "data.mixture=uniform")
    drawn_on(1, config_file, begun, 4)
    (weights,) = (tmp_path / "run" / "mine" / "iter_0000004").glob("__0_0.distcp")
    contents = bytearray(weights.read_bytes())
    contents[len(contents) // 2] ^= 1
    weights.write_bytes(contents)
    asked = settings_of(tmp_path, "run", "run=mine", f"data.mixture={files[1]}")
    asked += ["data.on_mixture_change=continue"]
    with pytest.raises(Exception, match="start the same command again"):
        drawn_on(1, config_file, asked)
    assert len(drawn_on(1, config_file, asked)) == 24


def test_caps_of_answer_tokens_over_stages(corpus: Path, tmp_path: Path) -> None:
    """A stage that leaves out a domain of an earlier one has caps of answer tokens of its own."""
    file = write_sft_config(corpus, tmp_path)
    Mixture.static({"pairs": 1, "chats": 2}).save(tmp_path / "two.json")
    stages = f"data.stages=[{{until: 0.5, mixture: uniform}}, {{mixture: {tmp_path}/two.json}}]"
    settings = [stages, "data.unit=tokens", "data.max_epochs=2", "data.on_too_long=truncate"]
    config = load_config(file, settings)
    domains = kind_of(config.data).open_domains(config.data, config.model.seq_length)
    mixtures = [Mixture.uniform(domains), Mixture.load(tmp_path / "two.json")]
    plan = plan_of(config, domains, mixtures)
    assert [*plan.stages[1].weights] == ["chats", "pairs"]
    assert sum(plan.counts(plan.samples).values()) == 48
