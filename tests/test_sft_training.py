"""Finetuning: what attention sees, and that no layout changes the loss."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ranks
from nemo_chameleon import Mixture
from nemo_chameleon.config.schema import Config
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.models.gpt import build_gpt
from nemo_chameleon.train.step import packed_sequences
from project import RECIPE, ROOT, Console, Launch, write_config
from sft_data import write_sft_config

SFT = ROOT / "recipes" / "sft_chameleon.py"
NAMES = ("pairs", "chats", "text")
KNOWN = "objective={} decides the weights; in finetuning no weights have beaten uniform ones here"


def result(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return facts


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint to start from, because pipeline stages start from seeds of their own."""
    folder = tmp_path_factory.mktemp("base")
    given = ["--config", str(write_config(corpus, folder)), "data.mixture=uniform"]
    ranks.run(RECIPE, [*given, "model.seq_length=64"])
    return folder / "out" / "uniform"


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("positions", ["rope", "learned_absolute"])
@pytest.mark.parametrize("groups", [None, 2])
def test_packed_examples_do_not_see_each_other(
    config: Config, positions: str, groups: int | None
) -> None:
    """The logits of an example do not depend on what stands before it in the sample.

    They are those of the example alone.
    """
    config.model.position_embedding_type = positions
    config.model.num_query_groups = groups
    generator = torch.Generator().manual_seed(0)
    one, other, mine = torch.randint(512, (3, 16), generator=generator)

    def logits(*examples: torch.Tensor) -> torch.Tensor:
        position_ids = torch.cat([torch.arange(len(example)) for example in examples])[None]
        with torch.no_grad():
            rows: torch.Tensor = gpt(
                torch.cat(examples)[None],
                position_ids,
                None,
                packed_seq_params=packed_sequences(position_ids),
            )[0]
        return rows

    with model_parallel(config.parallel, seed=1):
        gpt = build_gpt(config, 512, for_training=False)
        assert torch.equal(logits(one, mine)[16:], logits(other, mine)[16:])
        assert not torch.equal(logits(one, mine)[:16], logits(other, mine)[:16])
        for before in (one, one[:5]):
            after = logits(before, mine)[len(before) :]
            torch.testing.assert_close(after, logits(mine), rtol=0, atol=1e-6)
        plain = gpt(mine[None], torch.arange(16)[None], None)[0]
        torch.testing.assert_close(logits(mine), plain, rtol=0, atol=1e-6)


def test_no_layout_changes_the_loss(
    corpus: Path, base: Path, launch: Launch, tmp_path: Path
) -> None:
    """Tensor, pipeline and data parallel runs have one process's loss, in all and by domain."""
    settings = ("data.mixture=uniform", f"checkpoint.pretrained_checkpoint={base}")
    write_sft_config(corpus, tmp_path)
    layouts = {
        "one": (),
        "TP": ("parallel.tensor_model_parallel_size=2",),
        "SP": ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"),
        "PP": ("parallel.pipeline_model_parallel_size=2",),
        "DP": (),
        # One micro-batch has as many samples as the two ranks of DP have together.
        "large": ("train.micro_batch_size=4",),
    }
    results = {}
    for name, layout in layouts.items():
        processes = 1 if name in ("one", "large") else 2
        given = (*settings, *layout, f"output={tmp_path / name}")
        launch(*given, processes=processes, recipe=SFT)
        results[name] = result(tmp_path / name / "uniform")
    for name, found in results.items():
        assert found["loss"] == pytest.approx(results["one"]["loss"], abs=1e-5), name
        for domain, facts in found["domains"].items():
            same = results["one"]["domains"][domain]
            assert facts["loss"] == pytest.approx(same["loss"], abs=1e-5), (name, domain)
            assert facts["answer_tokens"] == same["answer_tokens"] > 0


def test_from_a_checkpoint_that_embeds(
    corpus: Path, base: Path, launch: Launch, console: Console, tmp_path: Path
) -> None:
    """The model that is finetuned embeds its answers, and similar domains are drawn more.

    Two tensor parallel processes give the weights of one, and a new domain is embedded by the same
    model. The run says what such weights have achieved.
    """
    given = ("chameleon.source=model", f"checkpoint.pretrained_checkpoint={base}")
    write_sft_config(corpus, tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    launch(*given, f"output={one}", recipe=SFT)
    tensor = "parallel.tensor_model_parallel_size=2"
    said = launch(*given, tensor, f"output={two}", processes=2, recipe=SFT).stdout
    assert "weights written to" in said
    assert not (two / "proxy").exists()
    mixtures = {folder: Mixture.load(folder / "mixture.json") for folder in (one, two)}
    assert mixtures[one].objective == "pretrain"
    assert KNOWN.format("pretrain") in said
    assert mixtures[one].method["tokens"] == "answers"
    assert Path(mixtures[one].proxy["checkpoint"]).parent == base
    assert mixtures[one].weights == pytest.approx(mixtures[two].weights, abs=1e-5)
    losses = [result(folder / "chameleon")["loss"] for folder in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    again = launch(*given, f"output={one}", recipe=SFT).stdout
    assert f"weights from {one / 'mixture.json'}" in again
    # A domain that is removed and added again is embedded as before, and has the same weight.
    changed = tmp_path / "changed.json"
    console("mixture", "remove", str(one / "mixture.json"), "pairs", f"--output={changed}")
    console("mixture", "add", str(changed), f"pairs={tmp_path / 'pairs.jsonl'}")
    assert Mixture.load(changed).weights == pytest.approx(mixtures[one].weights, abs=1e-6)
    other = launch(*given, f"output={one}", "chameleon.tokens=all", recipe=SFT, check=False)
    assert other.returncode == 2
    assert "it was made with tokens=answers, but the run asks for all" in other.stderr


def test_mixtures_are_compared_by_finetuning(
    corpus: Path, base: Path, launch: Launch, tmp_path: Path
) -> None:
    """A comparison finetunes the given model on every mixture; the domains are embedded by it."""
    write_sft_config(corpus, tmp_path)
    recipe = ROOT / "recipes" / "compare_mixtures.py"
    start = (f"checkpoint.pretrained_checkpoint={base}", "data.on_too_long=truncate")
    asked = ("compare.mixtures=[uniform,chameleon]", "compare.seeds=[1,2]")
    done = launch(*start, *asked, processes=2, recipe=recipe)
    assert "chameleon against uniform, mean over the domains: " in done.stdout
    losses = result(tmp_path / "out" / "compare" / "uniform" / "seed1")["domains"]
    assert set(losses) == set(NAMES)


def test_a_run_of_the_former_default_goes_on(
    corpus: Path, base: Path, launch: Launch, tmp_path: Path
) -> None:
    """A run that began with objective=finetune goes on by its mixture where the key is not set.

    So does one whose mixture was computed when it was stopped before its first iteration.
    """
    given = ["chameleon.source=model", f"checkpoint.pretrained_checkpoint={base}"]
    write_sft_config(corpus, tmp_path)
    folder = tmp_path / "out"
    launch(*given, "chameleon.objective=finetune", f"output={folder}", recipe=SFT)
    first = result(folder / "chameleon")
    (folder / "chameleon" / "result.json").unlink()
    said = launch(*given, f"output={folder}", recipe=SFT).stdout
    assert "chameleon: resuming from" in said
    assert "computed with chameleon.objective=finetune and is used as it is" in said
    assert KNOWN.format("finetune") in said
    assert result(folder / "chameleon")["domains"] == first["domains"]
    shutil.rmtree(folder / "chameleon")
    said = launch(*given, f"output={folder}", recipe=SFT).stdout
    assert f"weights from {folder / 'mixture.json'}" in said
    assert result(folder / "chameleon")["domains"] == first["domains"]
    for settings in (["data.mixture=uniform"], [f"data.mixture={folder / 'mixture.json'}"]):
        said = launch(*given, *settings, f"output={tmp_path / 'other'}", recipe=SFT).stdout
        assert "objective=" not in said


def test_recipes_differ_in_what_data_is(
    corpus: Path, base: Path, launch: Launch, tmp_path: Path
) -> None:
    """The finetuning recipe reads JSONL without data.dataset=sft; the pretraining one needs it."""
    start = f"checkpoint.pretrained_checkpoint={base}"
    path = write_sft_config(corpus, tmp_path)
    path.write_text(path.read_text().replace("  dataset: sft\n", ""))
    done = launch("data.mixture=uniform", start, recipe=SFT)
    assert "perplexity" in done.stdout
    assert "answer" in done.stdout
    for given, recipe, says in (
        (start, RECIPE, "data.chat_template is for data.dataset=sft"),
        ("train.seed=1", SFT, "set checkpoint.pretrained_checkpoint"),
    ):
        done = launch("data.mixture=uniform", given, check=False, recipe=recipe)
        assert done.returncode == 2
        assert says in done.stderr
