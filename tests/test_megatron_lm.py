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

SAMPLES = 100


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
        finetune=False,
        cache=str(tmp_path / "cache"),
    )
    module: Any = types.ModuleType("megatron.training")
    module.get_args = lambda: namespace
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
