"""What versions before model.kv_channels and model.norm_epsilon wrote is still recognised."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_chameleon import Mixture
from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config, ModelConfig
from nemo_chameleon.embedding.megatron import MegatronProxy
from nemo_chameleon.embedding.registry import proxy_from_record
from nemo_chameleon.models import tracker
from nemo_chameleon.models.gpt import model_of_identity, model_record, weights_shape
from nemo_chameleon.models.pretrained import PretrainedCheckpoint
from nemo_chameleon.provider import plan
from nemo_chameleon.provider.runs import base_run, proxy_run
from nemo_chameleon.utils.errors import UserError

# These literals were made with the version before the two settings.
MODEL: dict[str, Any] = {
    "num_layers": 6,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_query_groups": None,
    "ffn_hidden_size": None,
    "seq_length": 512,
    "position_embedding_type": "learned_absolute",
    "rotary_base": 10000,
    "normalization": "LayerNorm",
    "gated_linear_unit": False,
    "add_bias_linear": True,
    "share_embeddings_and_output_weights": True,
    "init_method_std": 0.02,
    "make_vocab_size_divisible_by": 128,
}
IDENTITY: dict[str, Any] = {
    **{f"model.{name}": value for name, value in MODEL.items()},
    "optimizer.lr": 0.0005,
    "optimizer.min_lr": 5e-05,
    "optimizer.lr_warmup_iters": 500,
    "optimizer.lr_decay_style": "cosine",
    "optimizer.weight_decay": 0.1,
    "optimizer.adam_beta1": 0.9,
    "optimizer.adam_beta2": 0.95,
    "optimizer.adam_eps": 1e-08,
    "optimizer.clip_grad": 1.0,
    "optimizer.use_distributed_optimizer": False,
    "train.precision": "torch.float32",
    "train.train_iters": 10000,
    "train.global_batch_size": 128,
    "train.seed": 1234,
    "vocabulary size": 512,
    "data.split": "95,5,0",
    "data.domains": [["code", "codecode"], ["prose", "proseprose"]],
    "weights": [["code", 0.5], ["prose", 0.5]],
}
RECORD: dict[str, Any] = {
    "model": {**MODEL, "use_cpu_initialization": True},
    "vocab_size": 512,
    "precision": "torch.float32",
    "trained": "586807c68e2e9704",
}
SETTINGS = "947e881f88278525"

DOMAINS: Any = {name: SimpleNamespace(fingerprint=2 * name) for name in ("code", "prose")}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return a run's folder with the tracker and the state.json of a checkpoint."""
    path = tmp_path / "iter_0000007"
    path.mkdir()
    (path / "state.json").write_text(json.dumps({"iteration": 7, "identity": IDENTITY}))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7\n")
    return tmp_path


def configured(*overrides: str) -> Config:
    """Return the configuration that the literals were made with, and perhaps further settings."""
    base = ["data.vocab_size=512", "train.train_iters=8", "train.global_batch_size=4"]
    precision = ["train.precision=fp32"]
    return load_config(None, ["output=out", *base, *precision, *overrides])


def test_identities_and_digests_are_what_they_were(tmp_path: Path) -> None:
    """A model without the new settings has the identity and the digests that it had before.

    Mixture files therefore stay valid for their proxies.
    """
    (tmp_path / "weights").write_text("weights of a small model\n")
    config = configured()
    assert proxy_run(config, DOMAINS).identity() == IDENTITY
    assert plan._training_settings(config, DOMAINS) == SETTINGS
    found = PretrainedCheckpoint(tmp_path, config.proxy, 512)
    assert found.identity == RECORD["trained"]
    written = {**MegatronProxy(found).record(), "trained": found.identity}
    assert written == {"checkpoint": str(tmp_path), **RECORD}
    assert proxy_from_record({**RECORD, "checkpoint": str(tmp_path)}).identity == found.identity


def test_checkpoints_say_which_model_they_are_of() -> None:
    """A state.json without the new settings is of a model that has their defaults."""
    model = model_of_identity(IDENTITY)
    assert model == ModelConfig(**MODEL)
    assert model_of_identity({"model.num_layers": 6}) is None
    shape = weights_shape(ModelConfig(**MODEL))
    assert shape == weights_shape(ModelConfig(**{**MODEL, "kv_channels": 64}))
    assert shape["kv_channels"] == 64


@pytest.mark.parametrize("setting", ["norm_epsilon=1e-06", "kv_channels=32"])
def test_runs_resume_from_earlier_checkpoints(written: Path, setting: str) -> None:
    """A run resumes from a checkpoint without the new settings if its own are the defaults.

    The same holds the other way round: what has another value is refused.
    """
    path = written / "iter_0000007"
    assert tracker.saved(written) == [path]
    own = proxy_run(configured(), DOMAINS).identity()
    assert tracker.state_for(path, own)["iteration"] == 7
    other = proxy_run(configured(f"proxy.model.{setting}"), DOMAINS).identity()
    key = f"model.{setting.split('=')[0]}"
    default = getattr(ModelConfig(), setting.split("=")[0])
    with pytest.raises(UserError, match=f"was made with {key} = {default}, but the run has"):
        tracker.state_for(path, other)
    state = path / "state.json"
    state.write_text(json.dumps({"identity": other}))
    with pytest.raises(UserError, match=f"{key} = .*, but the run has {default}"):
        tracker.state_for(path, own)
    assert tracker.state_for(path, other)


def test_new_settings_are_recorded() -> None:
    """Two models that differ in a new setting differ in their records and in their identities."""
    records, identities = [], []
    for overrides in ((), ("model.norm_epsilon=1e-06",), ("model.kv_channels=32",)):
        config = configured(*overrides)
        records.append(model_record(config.model))
        assert ModelConfig(**records[-1]) == config.model
        identities.append(base_run(config, DOMAINS, Mixture.uniform(DOMAINS)).identity())
        assert model_of_identity(identities[-1]) == config.model
    for found in (records, identities):
        assert all(one != other for one, other in zip(found, found[1:] + found[:1], strict=True))
