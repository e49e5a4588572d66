"""What CUDA changes: bf16, NCCL, Megatron's mixed-precision optimizer. Run with `make test-gpu`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE

from conftest import Launch
from nemo_chameleon import embedding, model, parallel
from nemo_chameleon.domains import open_domains
from nemo_chameleon.extractors import megatron_extractor
from nemo_chameleon.schema import Config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

needs_fused_adam = pytest.mark.skipif(
    not HAVE_APEX_OR_TE, reason="needs Transformer Engine or NVIDIA's apex"
)


@pytest.mark.parametrize("distributed", [pytest.param("true", marks=needs_fused_adam), "false"])
def test_recipe_in_bf16(launch: Launch, tmp_path: Path, distributed: str) -> None:
    """Proxy, mixture and base model train in bf16, with either of Megatron's optimizers."""
    launch(f"optimizer.use_distributed_optimizer={distributed}", "train.train_iters=60")
    result = json.loads((tmp_path / "out" / "chameleon" / "result.json").read_text())
    assert result["loss"] < np.log(512) - 1.0
    mixture = json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert sum(mixture["weights"].values()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("distributed", [pytest.param("true", marks=needs_fused_adam), "false"])
def test_resumed_run_in_bf16(launch: Launch, tmp_path: Path, distributed: str) -> None:
    """From the checkpoint at iteration 3 a run ends at the loss of the one that went through."""
    optimizer = f"optimizer.use_distributed_optimizer={distributed}"
    uniform = ("data.mixture=uniform", "checkpoint.save_interval=3", optimizer)
    launch(*uniform)
    folder = tmp_path / "out" / "uniform"
    whole = json.loads((folder / "result.json").read_text())
    (folder / "latest_checkpointed_iteration.txt").write_text("3")
    launch(*uniform)
    resumed = json.loads((folder / "result.json").read_text())
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=1e-6)


def test_embeddings_in_bf16_are_those_in_fp32(config: Config, alone: None) -> None:
    """The proxy's embeddings in bf16 are within bf16's rounding of the same weights' in fp32."""
    domains = open_domains(config.data.domains, config.data.split)
    embeddings = {}
    for precision in ("fp32", "bf16"):
        config.proxy.train.precision = precision
        with parallel.layout(config.proxy.parallel, seed=3):
            gpt = model.build(config.proxy, 512, for_training=False)
            settings = {"layers": (2,), "samples": 64, "sample_length": 32, "seed": 1}
            with megatron_extractor(gpt) as extractor:
                (embeddings[precision],) = embedding.embed(
                    extractor, domains, micro_batch_size=16, **settings
                )
    for name, shards in embeddings["fp32"].items():
        exact = shards.embedding
        error = np.linalg.norm(embeddings["bf16"][name].embedding - exact) / np.linalg.norm(exact)
        assert error < 0.02
