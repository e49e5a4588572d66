"""Megatron-Bridge's own `pretrain` on a tiny GPT, on CPUs; prints what it drew as JSON.

python bridge_train.py SETTINGS.json [dataset.mixture=... ...]
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Train as Bridge does, with the mixture as a user of Bridge asks for it."""
    import stand_in

    stand_in.without_transformer_engine()
    stand_in.install()
    import torch
    from megatron.bridge.data import utils
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.training import config as bridge
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain
    from megatron.bridge.training.tokenizers.config import TokenizerConfig
    from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from nemo_chameleon.engines.bridge import MixtureDatasetConfig, apply_mixture

    settings = json.loads(Path(sys.argv[1]).read_text())
    builder, seen = utils.BlendedMegatronDatasetBuilder, []

    class Watched(builder):  # type: ignore[misc, valid-type]
        def build(self) -> object:
            seen[:] = super().build()
            return seen

    utils.BlendedMegatronDatasetBuilder = Watched
    fp32 = {"bf16": False, "fp16": False}
    off = dict.fromkeys(
        (
            *("gradient_accumulation_fusion", "masked_softmax_fusion", "bias_dropout_fusion"),
            *("bias_activation_fusion", "persist_layer_norm", "apply_rope_fusion"),
            *("cross_entropy_loss_fusion",),
        ),
        False,
    )
    model = GPTModelProvider(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        ffn_hidden_size=64,
        seq_length=32,
        vocab_size=512,
        use_cpu_initialization=True,
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        make_vocab_size_divisible_by=1,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="LayerNorm"),
        **fp32,
        **off,
    )
    iterations = settings["train_iters"]
    cfg = bridge.ConfigContainer(
        model=model,
        train=bridge.TrainingConfig(
            train_iters=iterations,
            eval_interval=1000,
            eval_iters=0,
            global_batch_size=4,
            micro_batch_size=4,
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
        dataset=MixtureDatasetConfig(
            random_seed=1,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            num_workers=0,
            dataloader_type="single",
            **{"seq_length": 32, **settings["dataset"]},
        ),
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
    pretrain(apply_mixture(cfg), forward_step)
    drawn = [
        int((seen[0].dataset_index[: 4 * iterations] == i).sum())
        for i in range(len(seen[0].datasets))
    ]
    print("DRAWN", json.dumps(drawn))


if __name__ == "__main__":
    main()
