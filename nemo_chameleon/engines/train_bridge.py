"""engine=bridge: this package's configuration in Megatron-Bridge's terms, for its `pretrain`.

Bridge trains, logs, saves and resumes in its own way; the mixture decides the weights of its blend.
"""

from pathlib import Path

import torch
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.training import config as bridge
from megatron.bridge.training.gpt_step import forward_step
from megatron.bridge.training.pretrain import pretrain
from megatron.bridge.training.tokenizers.config import TokenizerConfig

from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.distributed.device import dtype_of
from nemo_chameleon.engines import host
from nemo_chameleon.engines.bridge import MixtureDatasetConfig, apply_mixture
from nemo_chameleon.models.gpt import host_settings
from nemo_chameleon.models.optimizer import optimizer_settings
from nemo_chameleon.utils.files import digest


def train(config: Config) -> None:
    """Resolve the mixture and train the base model with Bridge's `pretrain`.

    Args:
        config: the whole configuration.

    Raises:
        UserError: the mixture cannot be read or computed, or another job has the run's folder.
    """
    with host.owned_folder(host.run_folder(config)):
        pretrain(container(config), forward_step)


def container(config: Config) -> bridge.ConfigContainer:
    """Return Bridge's configuration of the run, with the mixture applied.

    Args:
        config: the whole configuration.

    Returns:
        The configuration, for `pretrain`.

    Raises:
        UserError: the mixture cannot be read or computed; the message says what to do.
    """
    train, wanted = config.train, config.optimizer
    bf16 = dtype_of(train.precision) == torch.bfloat16
    run = host.run_folder(config)
    draw = host.resolve(config.data.mixture, config=config, saved=(run,))
    settings = host_settings(config, Vocabulary.of(config.data).vocab_size)
    contents = [domain.fingerprint for domain in (draw.domains or {}).values()]
    cfg = bridge.ConfigContainer(
        model=GPTModelProvider(**settings),
        train=bridge.TrainingConfig(
            train_iters=train.train_iters,
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            eval_interval=train.eval_interval or train.train_iters,
            eval_iters=train.eval_iters,
        ),
        optimizer=bridge.OptimizerConfig(**optimizer_settings(config)),
        scheduler=bridge.SchedulerConfig(
            lr_decay_style=wanted.lr_decay_style,
            lr_warmup_iters=wanted.lr_warmup_iters,
            lr_decay_iters=train.train_iters,
            start_weight_decay=wanted.weight_decay,
            end_weight_decay=wanted.weight_decay,
            weight_decay_incr_style="constant",
        ),
        ddp=bridge.DistributedDataParallelConfig(
            use_distributed_optimizer=wanted.use_distributed_optimizer,
            grad_reduce_in_fp32=bf16,
        ),
        dataset=MixtureDatasetConfig(
            blend=draw.blend,
            split=config.data.split,
            # The digest keeps Bridge from using the cached indices of other data at this path.
            path_to_cache=str(Path(config.data.cache) / digest(contents)),
            seq_length=config.model.seq_length,
            random_seed=train.seed,
            num_workers=config.data.num_workers,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            dataloader_type="single",
        ),
        logger=bridge.LoggerConfig(
            log_interval=config.logging.log_interval,
            tensorboard_dir=str(run / "tensorboard") if config.logging.tensorboard else None,
        ),
        # The data is tokenised already, so Bridge needs only the size of the vocabulary.
        tokenizer=TokenizerConfig(
            tokenizer_type="NullTokenizer", vocab_size=settings["vocab_size"] - 1
        ),
        checkpoint=bridge.CheckpointConfig(
            save=str(run),
            load=str(run),
            save_interval=config.checkpoint.save_interval or train.train_iters,
            most_recent_k=config.checkpoint.keep or -1,
            ckpt_format="torch_dist",
        ),
        rng=bridge.RNGConfig(seed=train.seed),
        mixed_precision="bf16_mixed" if bf16 else None,
    )
    return apply_mixture(cfg, draw, on_mixture_change=config.data.on_mixture_change)
