"""What CUDA changes: bf16, NCCL, Megatron's mixed-precision optimizer. Run `make test-gpu`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE

from nemo_chameleon import provider
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.embedding import embed
from nemo_chameleon.embedding.megatron import megatron_extractor
from nemo_chameleon.models.gpt import build_gpt
from nemo_chameleon.provider import proxy
from nemo_chameleon.train.step import packed_sequences
from project import ROOT, Launch
from sft_data import write_sft_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

needs_fused_adam = pytest.mark.skipif(
    not HAVE_APEX_OR_TE, reason="needs Transformer Engine or NVIDIA's apex"
)


@pytest.mark.parametrize("distributed", [pytest.param("true", marks=needs_fused_adam), "false"])
def test_recipe_in_bf16(torchrun: Launch, tmp_path: Path, distributed: str) -> None:
    """Proxy, mixture and base model train in bf16, with either of Megatron's optimizers."""
    torchrun(f"optimizer.use_distributed_optimizer={distributed}", "train.train_iters=60")
    result = json.loads((tmp_path / "out" / "chameleon" / "result.json").read_text())
    assert result["loss"] < np.log(512) - 1.0
    mixture = json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert sum(mixture["weights"].values()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("distributed", [pytest.param("true", marks=needs_fused_adam), "false"])
def test_resumed_run_in_bf16(torchrun: Launch, tmp_path: Path, distributed: str) -> None:
    """A run that continues from iteration 3 ends at the loss of an uninterrupted run."""
    optimizer = f"optimizer.use_distributed_optimizer={distributed}"
    uniform = ("data.mixture=uniform", "checkpoint.save_interval=3", optimizer)
    torchrun(*uniform)
    folder = tmp_path / "out" / "uniform"
    whole = json.loads((folder / "result.json").read_text())
    (folder / "latest_checkpointed_iteration.txt").write_text("3")
    torchrun(*uniform)
    resumed = json.loads((folder / "result.json").read_text())
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=1e-6)


def test_the_proxys_memory_is_freed(config: Config, alone: None) -> None:
    """The proxy's weights, gradients and optimizer are freed before the base model is built."""
    proxy.compute_mixture(provider.prepare(config))  # the first time makes what is made only once
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    proxy.compute_mixture(provider.prepare(config))
    assert torch.cuda.max_memory_allocated() > before + 4 * 512 * 32
    assert torch.cuda.memory_allocated() - before < 2**16


def test_finetuning_in_bf16(corpus: Path, torchrun: Launch, tmp_path: Path) -> None:
    """The checkpoint embeds the answers, and packed samples then train from it, in bf16."""
    torchrun("data.mixture=uniform", "model.seq_length=64", f"output={tmp_path / 'base'}")
    write_sft_config(corpus, tmp_path)
    start = f"checkpoint.pretrained_checkpoint={tmp_path / 'base' / 'uniform'}"
    given = (start, "chameleon.source=model", "train.train_iters=60")
    torchrun(*given, recipe=ROOT / "recipes" / "sft_chameleon.py")
    result = json.loads((tmp_path / "out" / "chameleon" / "result.json").read_text())
    assert result["loss"] < np.log(512) - 1.0


@pytest.mark.parametrize("positions", ["rope", "learned_absolute"])
def test_packed_examples_do_not_see_each_other(config: Config, alone: None, positions: str) -> None:
    """An example in a packed sample has the logits that it has alone, in bf16."""
    config.model.position_embedding_type = positions
    generator = torch.Generator().manual_seed(0)
    one, other, mine = torch.randint(512, (3, 16), generator=generator)

    def logits(*examples: torch.Tensor) -> torch.Tensor:
        position_ids = torch.cat([torch.arange(len(example)) for example in examples])[None]
        ends = packed_sequences(position_ids)
        tokens = torch.cat(examples)[None].cuda()
        with torch.no_grad():
            rows: torch.Tensor = gpt(tokens, position_ids.cuda(), None, packed_seq_params=ends)[0]
        return rows.float()

    with model_parallel(config.parallel, seed=1):
        gpt = build_gpt(config, 512, for_training=False)
        assert torch.equal(logits(one, mine)[16:], logits(other, mine)[16:])
        torch.testing.assert_close(logits(one, mine)[16:], logits(mine), rtol=0, atol=0.02)


def test_embeddings_in_bf16_are_those_in_fp32(config: Config, alone: None) -> None:
    """Embeddings in bf16 differ from those in fp32 by no more than bf16's rounding."""
    domains = open_indexed(config.data.domains, config.data.split)
    embeddings = {}
    for precision in ("fp32", "bf16"):
        config.proxy.train.precision = precision
        with model_parallel(config.proxy.parallel, seed=3):
            gpt = build_gpt(config.proxy, 512, for_training=False)
            settings: dict[str, Any] = {"layers": (2,), "samples": 64}
            settings |= {"sample_length": 32, "seed": 1}
            with megatron_extractor(gpt) as extractor:
                (embeddings[precision],) = embed(
                    extractor, domains, micro_batch_size=16, **settings
                )
    for name, shards in embeddings["fp32"].items():
        exact = shards.embedding
        error = np.linalg.norm(embeddings["bf16"][name].embedding - exact) / np.linalg.norm(exact)
        assert error < 0.02
