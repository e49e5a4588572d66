"""engines/host.py: what a host asks for becomes a blend over its own datasets."""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_provider import written

from nemo_chameleon import Mixture, UserError, engines
from nemo_chameleon.config import load_config
from nemo_chameleon.config.loading import load_sft_config
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.engines import host, sft
from nemo_chameleon.engines.plans import HostPlan
from nemo_chameleon.provider import plan
from project import write_stages
from ranks import on_ranks

NAMES = ("code", "prose", "legal")


@pytest.fixture
def mixture(corpus: Path) -> Mixture:
    """Return weights over `corpus`, with the paths of the domains."""
    facts = {name: {"path": str(corpus / name)} for name in NAMES}
    return Mixture({"code": 0.5, "prose": 0.3, "legal": 0.2}, domains=facts)


def test_a_hosts_datasets_are_found_by_where_they_lie(corpus: Path, mixture: Mixture) -> None:
    """Datasets are matched by path, however the path is written.

    The blend has the host's own order and prefixes.
    """
    relative = os.path.relpath(corpus / "code")
    paths = [str(corpus / "legal"), relative, str(corpus / ".." / corpus.name / "prose")]
    assert host.resolve(mixture, paths).blend == (paths, [0.2, 0.5, 0.3])
    own = host.resolve(mixture)
    assert own.pairs[:2] == ["0.5", str(corpus / "code")]


def test_a_hosts_datasets_by_name(mixture: Mixture, tmp_path: Path) -> None:
    """Where the data lies elsewhere, the host gives each domain's name."""
    mixture.save(tmp_path / "mine.json")
    elsewhere = {"legal": "/data/l", "prose": "/data/p", "code": "/data/c"}
    draw = host.resolve(tmp_path / "mine.json", elsewhere)
    assert draw.blend == (["/data/l", "/data/p", "/data/c"], [0.2, 0.3, 0.5])
    typed = Mixture({"a": 0.25, "b": 0.75})
    assert host.resolve(typed, ["b", "a"]).blend == (["b", "a"], [0.75, 0.25])


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["/data/c"], "the mixture has no domain at /data/c; its domains are at"),
        (["code", "code"], "code: domain 'code' is given twice"),
        (["code", "prose"], "it has weights for legal"),
        ({"code": "/data/c"}, "it has weights for legal, prose"),
    ],
)
def test_other_datasets_than_the_mixtures(mixture: Mixture, paths: Any, message: str) -> None:
    """Datasets that are not exactly those of the mixture are refused."""
    with pytest.raises(UserError, match=message):
        host.resolve(mixture, paths)


def test_mixtures_of_no_file() -> None:
    """The mixture static takes the host's own weights, and uniform needs none.

    A mixture that needs more is refused with what it needs.
    """
    assert host.resolve("static", ["a", "b"], [3, 1]).blend == (["a", "b"], [0.75, 0.25])
    assert host.resolve("uniform", ["a", "b"]).blend == (["a", "b"], [0.5, 0.5])
    with pytest.raises(UserError, match="static takes the host's own weights"):
        host.resolve("static", ["a", "b"])
    with pytest.raises(UserError, match="mixture=chameleon needs the configuration"):
        host.resolve("chameleon", ["a", "b"])
    with pytest.raises(UserError, match="does not say where its domains are"):
        host.resolve(Mixture({"a": 0.25, "b": 0.75}))
    with pytest.raises(UserError, match=r"cannot read the mixture file .*gone\.json"):
        host.resolve("gone.json")


def test_bounds_are_kept_for_what_the_host_draws(corpus: Path, config_file: Path) -> None:
    """data.max_epochs counts the host's samples, not those of the configuration."""
    config_file.write_text(config_file.read_text().replace("split:", "max_epochs: 1\n  split:"))
    draw = host.resolve("uniform", [str(corpus / n) for n in NAMES], config=config_file)
    assert draw.domains is not None
    tokens = {name: domain.tokens for name, domain in draw.domains.items()}
    assert draw.within(8, 32).blend[1] == pytest.approx([1 / 3] * 3)
    samples = sum(tokens.values()) // 32 - 8
    bounded = draw.within(samples, 32).mixture.weights
    for name in NAMES:
        assert bounded[name] * samples * 32 <= tokens[name] * (1 + 1e-9)


def test_a_run_goes_on_by_the_mixture_that_it_began_with(mixture: Mixture, tmp_path: Path) -> None:
    """The mixture is saved with the checkpoints.

    A continued run refuses another mixture and shows both, unless on_mixture_change=accept.
    """
    run, copy = tmp_path / "run", tmp_path / "copy"
    run.mkdir()
    first = host.resolve(mixture)
    assert host.saved_in(None, run) is None
    first.kept(run)
    assert host.saved_in(None, run) == run / "mixture.json"
    uniform = host.Draw(Mixture.uniform(NAMES), first.paths)
    uniform.kept(run)  # there is no checkpoint yet, so nothing was drawn
    first.kept(run)
    (run / "latest_checkpointed_iteration.txt").write_text("4")
    host.resolve(run / "mixture.json").kept(run)
    other, turned = uniform, host.Draw(mixture, dict(reversed([*first.paths.items()])))
    with pytest.raises(UserError, match="another mixture is asked"):
        turned.kept(run)  # the same weights in another order draw other samples
    with pytest.raises(UserError, match=r"no mixture is asked for: ask for mixture=.*run/mixture"):
        host.refuse_unasked(run, None, "refuse")
    host.refuse_unasked(run, None, "accept")
    with pytest.raises(UserError, match="the run has drawn samples by") as refused:
        other.kept(copy, run)
    assert "0.5000" in str(refused.value)
    assert "0.3333" in str(refused.value)
    assert not copy.exists()
    other.kept(copy, run, "accept")
    assert Mixture.load(copy / "mixture.json").weights == other.mixture.weights
    assert Mixture.load(run / "mixture.json").weights == mixture.weights
    with pytest.raises(UserError, match="on_mixture_change='maybe' is not one of"):
        first.kept(run, on_change="maybe")


def test_the_saved_mixture_serves_where_the_computed_one_is_gone(
    config: Config, mixture: Mixture, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that continues uses its saved mixture and computes nothing again.

    A saved mixture of other settings, or one that was not computed, is refused. One of another
    objective than the default is used where the configuration leaves the objective open.
    """
    written(config, objective="finetune")
    computed = Mixture.load(config.chameleon.file)
    Path(config.chameleon.file).unlink()
    bounded = {**computed.method, "bound": ["code"]}
    dataclasses.replace(computed, method=bounded).save(tmp_path / "mixture.json")
    draw = host.resolve("chameleon", config=config, saved=(None, tmp_path))
    assert draw.mixture.weights == computed.weights
    assert draw.within(8, 32).mixture == draw.mixture
    assert (
        "chameleon.objective=finetune and is used as it is; set the key to confirm" in caplog.text
    )
    assert "rescore" not in caplog.text, "no command may change what the run has drawn by"
    config.chameleon.objective = "pretrain"
    with pytest.raises(UserError, match=r"objective=finetune, but the run asks for pretrain$"):
        host.resolve("chameleon", config=config, saved=(tmp_path,))
    config.chameleon.objective, config.chameleon.ridge = None, 0.7
    with pytest.raises(UserError, match=r"is gone, and .*ridge=0\.3, but the run asks for 0\.7"):
        host.resolve("chameleon", config=config, saved=(tmp_path,))
    mixture.save(tmp_path / "mixture.json")
    with pytest.raises(UserError, match="it is a 'mixture' mixture, which was not computed"):
        host.resolve("chameleon", config=config, saved=(tmp_path,))


def test_an_engine_that_is_not_there(config: Config) -> None:
    """An engine that is not installed is refused in one line that names the package."""
    if importlib.util.find_spec("nemo") is None:
        config.engine = "nemo"
        with pytest.raises(UserError, match="engine=nemo needs NeMo 2, which is not installed"):
            engines.train(config)
    config.engine = "nemu"
    with pytest.raises(UserError, match="engine=nemu is not one of megatron, nemo, bridge"):
        engines.train(config)


def test_nothing_is_computed_amid_a_hosts_processes(config: Config, alone: None) -> None:
    """When the host's processes have met, the mixture must have been computed before."""
    with pytest.raises(UserError, match="with torchrun -m nemo_chameleon mixture compute"):
        host.resolve("chameleon", config=config)
    assert set(open_indexed(config.data.domains, config.data.split)) == set(NAMES)


@pytest.mark.usefixtures("alone")
def test_finetuning_goes_on_as_it_began(finetuning: tuple[Path, Path], tmp_path: Path) -> None:
    """A continued run refuses another unit, packing or sample length.

    Shares of tokens are converted to shares of samples.
    """
    mixture, config = finetuning

    def drawn(**data: object) -> host.Draw:
        configured = load_config(config, ["train.train_iters=50", f"data.mixture={mixture}"])
        for key, value in data.items():
            setattr(configured.data, key, value)
        draw = host.resolve(mixture, config=configured, finetuning=True)
        return draw.within(400, 64, seed=1, evaluated=True)

    folder = tmp_path / "run"
    first = drawn().kept(folder)
    (folder / "latest_checkpointed_iteration.txt").write_text("1")
    assert first.blend[1] == [0.5, 0.3, 0.2]
    assert all(Path(f"{prefix}.idx").is_file() for prefix in first.blend[0])
    drawn().kept(folder)
    in_tokens = drawn(unit="tokens")
    assert in_tokens.blend[1] != first.blend[1]
    assert sum(in_tokens.blend[1]) == pytest.approx(1)
    for other in (in_tokens, drawn(packing=False)):
        with pytest.raises(UserError, match="another mixture is asked for"):
            other.kept(folder)
    with pytest.raises(UserError, match=r"samples have 32 tokens, but model\.seq_length=64"):
        first.within(400, 32)
    with pytest.raises(UserError, match="this takes datasets of tokens"):
        host.resolve(mixture, config=config)


@dataclasses.dataclass(frozen=True)
class Existing:
    """As much of an existing proxy as a plan asks for."""

    identity: str
    earlier_identity: str = ""
    num_layers: int = 4
    seq_length: int = 32


def embeds_with(config_file: str) -> list[str]:
    """Resolve a mixture on a rank whose files name another proxy than those of other ranks."""
    found: list[str] = []

    def compute(prepared: Any) -> Mixture:
        found.append(prepared.plan.proxy.identity)
        return Mixture.uniform(prepared.domains)

    existing: Any = Existing(os.environ["RANK"])
    plan._existing_proxy = lambda config: (existing, None)
    host.compute_mixture = compute  # type: ignore[attr-defined]
    host.resolve("chameleon", config=config_file)
    return found


def test_a_hosts_run_has_one_owner(tmp_path: Path) -> None:
    """The folder of a host's run is one job's until that ends, with nothing put into it."""
    run = tmp_path / "mine-nemo"
    with (
        host.owned_folder(run),
        pytest.raises(
            UserError, match=f"mine-nemo is in use by process {os.getpid()} on .*, or set"
        ),
        host.owned_folder(run),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_all_ranks_embed_with_the_first_ranks_proxy(config_file: Path) -> None:
    """Ranks that see different checkpoints in one folder take the one that the first rank sees."""
    assert on_ranks(2, embeds_with, str(config_file)) == [["0"], ["0"]]


def test_a_mistyped_dataset_is_named(config: Config) -> None:
    """A kind of data that does not exist is refused with the nearest one, as in a run."""
    config.data.dataset = "spt"
    with pytest.raises(
        UserError, match=r"data\.dataset=spt is not one of gpt, sft; did you mean sft"
    ):
        host.resolve("chameleon", config=config)


def test_a_plan_is_not_mistaken_for_a_blend(config_file: Path, tmp_path: Path) -> None:
    """A run in the order of the host's blend and a run that follows a plan do not replace another.

    Where on_mixture_change=accept says so, they do; continue needs a plan from the start.
    """
    run = tmp_path / "run"

    def kept(on_change: str, **data: object) -> host.Draw:
        config = load_config(config_file, ["data.mixture=uniform"])
        for key, value in data.items():
            setattr(config.data, key, value)
        draw = host.resolve("uniform", config=config)
        return draw.within(96, 32, 1, batch=8).kept(run, run, on_change, lambda: 40)

    assert kept("refuse").plan is None
    (run / "latest_checkpointed_iteration.txt").write_text("5")
    assert kept("continue").plan is None, "nothing has changed"
    for on_change in ("refuse", "continue"):
        with pytest.raises(UserError, match="is of a run in the order of the host's own blend"):
            kept(on_change, order="streams")
    with pytest.raises(UserError, match=r"only a run that began with data\.order=streams"):
        kept("continue", pin={"code": 0.5})
    assert not (run / "plan.json").exists()
    plan = kept("accept", order="streams").plan
    assert plan is not None and (run / "plan.json").is_file()
    assert len(plan.training_set()) == 96
    for on_change in ("refuse", "continue"):
        with pytest.raises(UserError, match=r"the run has followed .*plan\.json so far"):
            kept(on_change)
    with pytest.raises(UserError, match=r"other samples: data.split is 50,50 in place of 80,20,0"):
        kept("continue", order="streams", split="50,50")
    with pytest.raises(UserError, match=r"after 40 samples, so which samples the run has drawn is"):
        kept("continue", order="streams", pin={"code": 0.5})
    (run / "plan.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot read the plan .*plan\.json"):
        kept("refuse", order="streams")
    kept("accept")
    assert not (run / "plan.json").exists()


def test_a_host_that_takes_weights_alone(config_file: Path) -> None:
    """Stages are refused where a host cannot follow them; one stage is the host's own blend."""
    config = load_config(config_file, ["data.stages=[{mixture: uniform, pin: {code: 0.6}}]"])
    draw = host.resolve("proportional", config=config, planned=False).within(96, 32)
    assert not draw.stages and draw.blend[1] == pytest.approx([0.6, 0.2, 0.2])
    config = load_config(config_file, ["data.stages=[{until: 0.5, mixture: uniform}, {}]"])
    with pytest.raises(UserError, match=r"data\.stages and data\.order=streams need a host that"):
        host.resolve("proportional", config=config, planned=False)


@pytest.mark.usefixtures("alone")
def test_finetuning_follows_a_plan(finetuning: tuple[Path, Path], tmp_path: Path) -> None:
    """Packs are drawn by the stages to the sample, with the names that a host's own step reads."""
    _, file = finetuning
    first, second = {"pairs": 1, "chats": 1, "text": 2}, {"pairs": 3, "chats": 1}
    write_stages(file, first, second, samples=16)
    draw = host.resolve("uniform", config=file, finetuning=True)
    draw = draw.within(32, 64, seed=1, batch=8).kept(tmp_path / "run")
    assert draw.plan is not None and draw.supervised
    seen = [*map(draw.plan.training_set(sft.PackedSFTDataset).__getitem__, range(32))]
    positions = [sample["dataset_id"] for sample in seen]
    assert [positions[:16].count(at) for at in range(3)] == [4, 4, 8]
    assert [positions[16:].count(at) for at in range(3)] == [12, 4, 0]
    assert all("cu_seqlens" in sample for sample in seen)
    packs = {tuple(sample["tokens"].tolist()) for sample in seen}
    assert len(packs) == 32, "no pack comes twice"
    again = host.resolve(
        "uniform", config=load_sft_config(file, ["data.packing=false"]), finetuning=True
    )
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("1")
    with pytest.raises(UserError, match=r"data\.packing is False in place of True"):
        again.within(32, 64, seed=1, batch=8).kept(tmp_path / "run")


Planned = Callable[..., HostPlan]


@pytest.fixture
def follow(config_file: Path, tmp_path: Path) -> Planned:
    """Return a function that starts a run by streams which goes on from `drawn` samples."""
    run = tmp_path / "run"

    def kept(on_change: str, drawn: int, samples: int = 96, **data: object) -> HostPlan:
        config = load_config(config_file, ["data.mixture=uniform", "data.order=streams"])
        for key, value in data.items():
            setattr(config.data, key, value)
        draw = host.resolve("uniform", config=config).within(samples, 32, 1, batch=8)
        plan = draw.kept(run, run, on_change, lambda: drawn).plan
        assert plan is not None
        (run / "latest_checkpointed_iteration.txt").write_text("5")
        return plan

    return kept


def record_of(run: Path) -> dict[str, Any]:
    """Return what a run has saved about its plan."""
    found: dict[str, Any] = json.loads((run / "plan.json").read_text())
    return found


def test_bounds_count_what_a_run_has_drawn(follow: Planned) -> None:
    """A plan that no run could follow from its start is followed from where the run stands.

    The whole run draws more than the domains that are left allow, so the error of a run that may
    not change says how it can go on.
    """
    before = follow("refuse", 0)
    domains = dict(before.domains)
    passes = {name: int(domain.pass_tokens(32) // 32) for name, domain in domains.items()}
    samples = (passes["prose"] + passes["legal"]) // 8 * 8 + 8  # a batch more than there are
    two = {name: before.config.data.domains[name] for name in ("prose", "legal")}
    with pytest.raises(UserError, match=r"max_epochs.*set on_mixture_change=continue"):
        follow("refuse", 48, samples, domains=two, max_epochs=1)
    plan = follow("continue", 48, samples, domains=two, max_epochs=1).plan
    assert plan.counts(48) == {"code": 16, "prose": 16, "legal": 16}
    drawn = plan.counts(samples)
    assert drawn["code"] == 16 and sum(drawn.values()) == samples
    assert all(drawn[name] <= passes[name] + 1 for name in two), "a pass may end in a sample"


def test_what_accept_replaced_is_not_counted(follow: Planned, tmp_path: Path) -> None:
    """After on_mixture_change=accept, continue is refused: what was drawn is in no file.

    The run goes on by the accepted plan, and a run that has drawn nothing begins anew.
    """
    pinned = {"pin": {"code": 0.5}}
    follow("refuse", 0)
    follow("accept", 40)
    assert "accepted_at" not in record_of(tmp_path / "run"), "nothing was replaced"
    assert len(follow("continue", 40).plan.stages) == 1
    follow("accept", 40, **pinned)
    for on_change in ("refuse", "accept"):
        follow(on_change, 64, **pinned)
        assert record_of(tmp_path / "run")["accepted_at"] == 40
    for data in (pinned, {}):
        with pytest.raises(
            UserError,
            match=r"plan\.json was changed with on_mixture_change=accept after 40 samples, so "
            "which samples the run has drawn is not known: set on_mixture_change=refuse",
        ):
            follow("continue", 64, **data)
    follow("accept", 0)
    assert "accepted_at" not in record_of(tmp_path / "run"), "nothing was drawn"
    assert [stage.samples for stage in follow("continue", 40, **pinned).plan.stages] == [40, 56]


def test_a_domain_that_comes_back_is_what_it_was(follow: Planned) -> None:
    """The data of a domain that has left the run are remembered as long as the plan names it."""
    domains = follow("refuse", 0).config.data.domains
    two = {name: domains[name] for name in ("prose", "legal")}
    for drawn in (40, 48):
        follow("continue", drawn, domains=two)
    other = {"code": domains["prose"], "legal": domains["legal"]}
    with pytest.raises(UserError, match="the data of domain 'code' have changed"):
        follow("continue", 56, domains=other)
    plan = follow("continue", 56, domains=domains).plan
    assert plan.counts(56)["code"] == 14, "a share of the first 40 samples"
    assert plan.counts(96)["code"] > 14
