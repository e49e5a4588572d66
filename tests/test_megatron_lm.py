"""engines/megatron_lm.py: Megatron-LM's provider draws by a mixture, and is else unchanged."""

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import get_blend_from_list

from nemo_chameleon import Mixture, UserError
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.engines import megatron_lm
from project import write_stages

SAMPLES = 100
END = 7


@pytest.fixture
def args(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Return parsed arguments as Megatron-LM has them; its get_args() returns them too."""
    weighed = ["0.7", str(corpus / "code"), "0.3", str(corpus / "prose")]
    own = dict.fromkeys(("train_data_path", "valid_data_path", "test_data_path"))
    own |= dict.fromkeys(("data_args_path", "per_split_data_args_path", "save", "load"))
    parser = megatron_lm.add_arguments(argparse.ArgumentParser())
    namespace = argparse.Namespace(
        **vars(parser.parse_args([])),
        **own,
        data_path=weighed,
        split="90,10,0",
        seq_length=32,
        seed=1,
        global_batch_size=8,
        dataloader_type="single",
        consumed_train_samples=0,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=True,
        create_attention_mask_in_dataloader=False,
        finetune=False,
        cache=str(tmp_path / "cache"),
    )
    module: Any = types.ModuleType("megatron.training")
    module.get_args = lambda: namespace
    module.get_tokenizer = lambda: Vocabulary(512, END, {})
    monkeypatch.setitem(sys.modules, "megatron.training", module)
    facts = {name: {"path": str(corpus / name)} for name in ("code", "prose")}
    Mixture({"prose": 0.75, "code": 0.25}, domains=facts).save(tmp_path / "mine.json")
    return namespace


def provider(sizes: list[int], vp_stage: int | None = None) -> Any:
    """Build datasets as Megatron-LM's provider does."""
    args = sys.modules["megatron.training"].get_args()
    splits = [args.train_data_path, args.valid_data_path, args.test_data_path]
    per_split = [get_blend_from_list(paths) for paths in splits] if any(splits) else None
    config = GPTDatasetConfig(
        blend=None if per_split else get_blend_from_list(args.data_path),
        blend_per_split=per_split,
        split=None if per_split else args.split,
        random_seed=1,
        sequence_length=args.seq_length,
        path_to_cache=args.cache,
        tokenizer=Vocabulary(512, -2, {}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        mid_level_dataset_surplus=0.5,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()


def drawn(dataset: Any) -> list[int]:
    """Return the number of samples of each dataset among the first hundred."""
    counts: list[int] = np.bincount(dataset.dataset_index[:SAMPLES]).tolist()
    return counts


def build() -> Any:
    """Return what `pretrain` gets from the provider that is handed to it."""
    provider.is_distributed = True  # type: ignore[attr-defined]
    handed = megatron_lm.with_mixture(provider)
    assert handed.is_distributed  # type: ignore[attr-defined]
    return handed([SAMPLES, 0, 0], vp_stage=None)


def test_weights_and_nothing_else(args: argparse.Namespace, tmp_path: Path, alone: None) -> None:
    """The weights are those of --data-path without --mixture, and the mixture's with it.

    Nothing else changes, and each dataset's samples are the same.
    """
    before = dict(vars(args))
    static = build()[0]
    assert vars(args) == before
    assert drawn(static) == [70, 30]
    args.mixture = str(tmp_path / "mine.json")
    mixed = build()[0]
    assert drawn(mixed) == [25, 75]
    assert vars(args) == before | {"mixture": args.mixture, "data_path": args.data_path}
    assert args.data_path[1::2] == before["data_path"][1::2]
    both = zip(static.datasets, mixed.datasets, strict=True)
    assert all(np.array_equal(a[0]["tokens"], b[0]["tokens"]) for a, b in both)


def test_where_the_blend_can_stand(args: argparse.Namespace, corpus: Path, tmp_path: Path) -> None:
    """The blend may stand in a file or be that of the training split alone.

    If there is none, the mixture's own paths are used.
    """
    args.mixture = str(tmp_path / "mine.json")
    wanted = ["0.25", str(corpus / "code"), "0.75", str(corpus / "prose")]
    file, args.data_path = tmp_path / "blend.txt", None
    file.write_text(f"1 {corpus / 'code'} 1 {corpus / 'prose'}")
    args.data_args_path = str(file)
    megatron_lm.apply(args, SAMPLES)
    assert (args.data_path, args.data_args_path) == (wanted, None)

    args.data_path = None
    train = ["1", str(corpus / "prose"), "1", str(corpus / "code")]
    splits = {"train": train, "valid": "v w", "test": None}  # a string is split at blanks
    args.per_split_data_args_path = str(tmp_path / "splits.json")
    Path(args.per_split_data_args_path).write_text(json.dumps(splits))
    megatron_lm.apply(args, SAMPLES)
    assert args.train_data_path == wanted[2:] + wanted[:2]
    assert (args.valid_data_path, args.test_data_path) == (["v", "w"], None)

    args.train_data_path = args.valid_data_path = None
    megatron_lm.apply(args, SAMPLES)
    assert args.data_path == wanted[2:] + wanted[:2]  # in the order of the mixture file


def test_a_run_that_goes_on(args: argparse.Namespace, corpus: Path, tmp_path: Path) -> None:
    """The mixture is saved with the checkpoints of --save, and a continued run refuses another one.

    --finetune starts anew.
    """
    args.mixture, args.save = str(tmp_path / "mine.json"), str(tmp_path / "run")
    megatron_lm.apply(args, SAMPLES)
    saved = tmp_path / "run" / "mixture.json"
    assert Mixture.load(saved).weights == {"prose": 0.75, "code": 0.25}
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("4")
    args.mixture = None
    with pytest.raises(UserError, match="no mixture is asked for"):
        megatron_lm.apply(args, SAMPLES)
    args.mixture, args.load, args.save = "uniform", args.save, str(tmp_path / "next")
    with pytest.raises(UserError, match="another mixture is asked"):
        megatron_lm.apply(args, SAMPLES)
    args.finetune = True
    megatron_lm.apply(args, SAMPLES)
    assert args.data_path[::2] == ["0.5", "0.5"]


UNIFORM = {"code": 1, "prose": 1, "legal": 1}
TWO, THREE = {"code": 1, "prose": 3}, {"code": 5, "prose": 2, "legal": 1}
NAMES = ("code", "prose", "legal")
Samples = list[tuple[int, tuple[int, ...]]]


@pytest.fixture
def planned(args: argparse.Namespace, config_file: Path, tmp_path: Path) -> argparse.Namespace:
    """Return arguments of a run of three stages: 24 samples, 24 and 48, in batches of eight."""
    write_stages(config_file, UNIFORM, TWO, THREE, samples=24, split="90,10,0")
    args.mixture, args.mixture_config = "uniform", str(config_file)
    args.data_path, args.save = None, str(tmp_path / "run")
    return args


def trained(sizes: tuple[int, ...] = (96, 8, 0), first: int = 0) -> tuple[Samples, Any]:
    """Return the samples that the provider gives from one sample on, and all that it returns."""
    built = megatron_lm.with_mixture(provider)(list(sizes), vp_stage=None)
    samples = (built[0][at] for at in range(first, len(built[0])))
    return [(int(s["dataset_id"]), tuple(s["tokens"].tolist())) for s in samples], built


def checkpoint(args: argparse.Namespace, samples: int) -> None:
    """Let the run go on from a checkpoint after so many samples."""
    Path(args.save, "latest_checkpointed_iteration.txt").write_text("4")
    args.load, args.consumed_train_samples = args.save, samples


def test_a_plan_of_three_stages(planned: argparse.Namespace, alone: None) -> None:
    """Each stage draws its mixture to the sample, and no sample twice; the rest is the provider's.

    The samples are masked as the provider's own, and stay the same after a restart. The indices are
    those of this package's own engine.
    """
    seen, (training, validation, _) = trained()
    for start, stop, counts in ((0, 24, [8, 8, 8]), (24, 48, [6, 18, 0]), (48, 96, [30, 12, 6])):
        positions = [position for position, _ in seen[start:stop]]
        assert [positions.count(at) for at in range(3)] == counts
    assert len(set(seen)) == 96
    assert [Path(part.dataset_path).name for part in validation.datasets] == [*NAMES]
    masked = [s["loss_mask"][s["tokens"] == END] for s in map(training.__getitem__, range(96))]
    assert sum(map(len, masked)) and not any(mask.any() for mask in masked)
    planned.data_path = None
    draw = megatron_lm.apply(planned, 96)
    assert draw is not None and draw.plan is not None
    folder = Path(draw.plan.config.data.cache, "indices")
    indices = {*folder.iterdir()}
    assert len(draw.plan.training_set()) == 96 and {*folder.iterdir()} == indices
    planned.data_path = None
    for stop in (24, 40, 48):
        checkpoint(planned, stop)
        assert trained(first=stop)[0] == seen[stop:]
        planned.data_path = None


def test_what_a_provider_builds_beside_a_plan(
    planned: argparse.Namespace, corpus: Path, monkeypatch: pytest.MonkeyPatch, alone: None
) -> None:
    """The provider builds no training set beside a plan, or one of a sample where it must."""
    asked: list[Any] = []

    def watched(sizes: list[int], vp_stage: int | None = None) -> Any:
        built = provider(sizes)
        asked.append((sizes, built[0]))
        return built

    handed = megatron_lm.with_mixture(watched)
    first, second = handed([96, 8, 0]), handed([96, 8, 0])
    assert first[0] is second[0], "virtual pipeline stages share it"
    assert [sizes for sizes, _ in asked] == [[1, 8, 0]] * 2 and len(asked[0][1]) <= 3
    planned.data_path = None
    assert megatron_lm.with_mixture(watched)([96, 0, 0])[1:] == (None, None) and len(asked) == 2
    planned.train_data_path = [str(corpus / name) for name in NAMES]
    planned.valid_data_path = [str(corpus / "legal")]
    training, validation, _ = megatron_lm.with_mixture(watched)([96, 8, 0])
    assert len(training) == 96 and len(validation) >= 8
    assert asked[-1] == ([1, 8, 0], None)


def test_another_plan(planned: argparse.Namespace, config_file: Path, alone: None) -> None:
    """A run that goes on by another plan is refused in words, or keeps what was drawn."""
    before, _ = trained()
    checkpoint(planned, 40)
    planned.data_path = None
    write_stages(config_file, UNIFORM, {"legal": 1, "prose": 1}, THREE, samples=24)
    with pytest.raises(
        UserError, match=r"plan\.json is of a run with another plan: 'code' has 0 of"
    ):
        trained()
    planned.on_mixture_change = "continue"
    for _ in range(2):  # once more from the same checkpoint
        planned.data_path = None
        now, _ = trained(first=40)
        positions = [position for position, _ in now]
        assert [positions[:8].count(at) for at in range(3)] == [0, 4, 4]
        assert [positions[8:].count(at) for at in range(3)] == [30, 12, 6]
        assert len({*before[:40], *now}) == 96, "no sample comes twice"
    stages = json.loads(Path(planned.save, "plan.json").read_text())["stages"]
    assert [stage["samples"] for stage in stages] == [24, 16, 8, 48]
    checkpoint(planned, 64)
    planned.data_path = None
    assert trained(first=64)[0] == now[24:]
    planned.on_mixture_change, planned.data_path = "refuse", None
    with pytest.raises(UserError, match="3 stages in place of 4 stages"):
        trained()
    planned.mixture = planned.mixture_config = None
    with pytest.raises(UserError, match="no mixture is asked for"):
        trained()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"split": "80,20,0"}, "split='80,20,0' is not data.split='90,10,0'"),
        ({"dataloader_type": "cyclic"}, "dataloader_type='cyclic' does not read samples in the"),
        ({"phase_transition_iterations": [3]}, "--phase-transition-iterations draws each phase"),
        ({"sft": True}, "--sft draws from datasets of another kind"),
    ],
)
def test_settings_under_which_no_plan_is_followed(
    planned: argparse.Namespace, settings: dict[str, Any], says: str
) -> None:
    """Megatron-LM's settings that contradict a plan are refused before anything is written."""
    vars(planned).update(settings)
    with pytest.raises(UserError, match=says):
        megatron_lm.apply(planned, 96)
    assert not Path(planned.save).exists()
