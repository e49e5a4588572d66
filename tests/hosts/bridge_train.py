"""Run Megatron-Bridge's own `pretrain` on a tiny GPT on CPUs, and print what it drew as JSON.

It is started as `python bridge_train.py SETTINGS.json [dataset.mixture=... ...]`.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Train as Bridge does, with the mixture as a user of Bridge sets it."""
    import stand_in

    stand_in.without_transformer_engine()
    stand_in.install()
    from megatron.bridge.data import utils
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.training import config as bridge
    from megatron.bridge.training.finetune import finetune
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain
    from megatron.bridge.training.tokenizers.config import TokenizerConfig
    from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    import tiny
    from nemo_chameleon.engines.bridge import MixtureDatasetConfig, MixtureSFTConfig, apply_mixture
    from running import MICRO_BATCH

    settings = json.loads(Path(sys.argv[1]).read_text())
    builder: Any = utils.BlendedMegatronDatasetBuilder
    seen: list[Any] = []

    class Watched(builder):
        def build(self) -> object:
            seen[:] = super().build()
            return seen

    utils.BlendedMegatronDatasetBuilder = Watched
    plan, size = settings["plan"], tiny.BATCH
    if plan is not None:
        tiny.watch(plan["last"])
        size = MICRO_BATCH
    fp32 = {"bf16": False, "fp16": False}
    layers = get_gpt_layer_local_spec(normalization="LayerNorm")
    if settings["finetune"]:
        from nemo_chameleon.engines import bridge as engine
        from nemo_chameleon.models.layers import layer_spec

        # Packed samples need the attention of Transformer Engine or of this package.
        layers, size = layer_spec, 1
        engine.BlendedMegatronDatasetBuilder = Watched  # type: ignore[attr-defined]
        dataset = MixtureSFTConfig(num_workers=0, seq_length=32, **settings["dataset"])
    else:
        dataset = MixtureDatasetConfig(
            random_seed=1,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            num_workers=0,
            dataloader_type="single",
            **{"seq_length": 32, **settings["dataset"]},
        )
    model = GPTModelProvider(
        vocab_size=512,
        transformer_layer_spec=layers,
        **fp32,
        **tiny.GPT,
    )
    iterations = settings["train_iters"]
    cfg = bridge.ConfigContainer(
        model=model,
        train=bridge.TrainingConfig(
            train_iters=iterations,
            eval_interval=1000,
            eval_iters=settings["eval_iters"],
            global_batch_size=tiny.BATCH,
            micro_batch_size=size,
        ),
        optimizer=bridge.OptimizerConfig(
            optimizer="adam",
            clip_grad=0.0,
            lr=1e-3,
            min_lr=1e-4,
            use_distributed_optimizer=False,
            **fp32,
        ),
        scheduler=bridge.SchedulerConfig(
            lr_decay_style="constant",
            lr_warmup_iters=0,
            lr_decay_iters=40,
            start_weight_decay=0.0,
            end_weight_decay=0.0,
            weight_decay_incr_style="constant",
            override_opt_param_scheduler=True,
        ),
        ddp=bridge.DistributedDataParallelConfig(
            use_distributed_optimizer=False, overlap_grad_reduce=False, overlap_param_gather=False
        ),
        dataset=dataset,
        logger=bridge.LoggerConfig(log_interval=1, tensorboard_dir=None),
        tokenizer=TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=511),
        checkpoint=bridge.CheckpointConfig(
            async_save=False, ckpt_format="torch_dist", **settings["checkpoint"]
        ),
        dist=bridge.DistributedInitConfig(distributed_backend="gloo", use_gloo_process_groups=True),
        rng=bridge.RNGConfig(seed=1),
        mixed_precision=None,
    )
    process_config_with_overrides(cfg, cli_overrides=sys.argv[2:])
    train = finetune if settings["finetune"] else pretrain
    train(apply_mixture(cfg), forward_step)
    if plan is None:
        tiny.say_drawn(seen[0], iterations)
    else:
        tiny.say_read(iterations - plan["first"])
        print("BUILT", json.dumps([None if part is None else len(part) for part in seen]))


if __name__ == "__main__":
    main()
