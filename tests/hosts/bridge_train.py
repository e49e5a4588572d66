"""Megatron-Bridge's own `pretrain` on a tiny GPT, on CPUs; prints what it drew as JSON.

Started as `python bridge_train.py SETTINGS.json [dataset.mixture=... ...]`.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Train as Bridge does, with the mixture as a user of Bridge asks for it."""
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

    settings = json.loads(Path(sys.argv[1]).read_text())
    builder, seen = utils.BlendedMegatronDatasetBuilder, []

    class Watched(builder):  # type: ignore[misc, valid-type]
        def build(self) -> object:
            seen[:] = super().build()
            return seen

    utils.BlendedMegatronDatasetBuilder = Watched
    fp32 = {"bf16": False, "fp16": False}
    layers, size = get_gpt_layer_local_spec(normalization="LayerNorm"), tiny.BATCH
    if settings["finetune"]:
        from nemo_chameleon.engines import bridge as engine
        from nemo_chameleon.models.layers import layer_spec

        # Packed samples need Transformer Engine's attention, or this package's.
        layers, size = layer_spec, 1
        engine.BlendedMegatronDatasetBuilder = Watched
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
            eval_iters=0,
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
    tiny.say_drawn(seen[0], iterations)


if __name__ == "__main__":
    main()
