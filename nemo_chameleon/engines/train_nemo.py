"""engine=nemo: this package's configuration in NeMo 2's terms, for its `llm.train`.

NeMo trains, logs, saves and resumes in its own way; the mixture decides the weights of its blend.
"""

import os
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from nemo.lightning import io

from nemo_chameleon.config.schema import Config
from nemo_chameleon.data import vocabulary
from nemo_chameleon.distributed.device import dtype_of
from nemo_chameleon.distributed.processes import world_size
from nemo_chameleon.engines import host
from nemo_chameleon.engines.nemo import LossByDomain, MixtureDataModule
from nemo_chameleon.models.gpt import host_settings
from nemo_chameleon.models.optimizer import optimizer_settings
from nemo_chameleon.utils.errors import UserError


class Vocabulary:
    """The part of a tokenizer that NeMo needs for a run whose data is tokenised already.

    NeMo records this class, by the name of its module, with every checkpoint.
    """

    def __init__(self, vocab_size: int, contents: list[str]) -> None:
        """Take the size of the vocabulary and the data that it is for.

        Args:
            vocab_size: number of tokens in the vocabulary.
            contents: fingerprints of the domains, which become part of the key of cached indices.
        """
        own = vocabulary.Vocabulary.of_size(vocab_size, contents)
        self.vocab_size, self.unique_identifiers = own.vocab_size, own.unique_identifiers
        self.eod = self.eos_id = self.bos_id = own.eod
        self.additional_special_tokens_ids: list[int] = []


io.track_io(Vocabulary)


def train(config: Config) -> None:
    """Resolve the mixture and train the base model with NeMo's `llm.train`.

    Args:
        config: the whole configuration.

    Raises:
        UserError: a setting that NeMo does not have, or another job has the run's folder.
    """
    if config.optimizer.lr_decay_style == "linear":
        raise UserError(
            "optimizer.lr_decay_style=linear: engine=nemo has only cosine and constant, set one of "
            "them"
        )
    run = host.run_folder(config)
    with host.owned_folder(run):
        _train(config, run)


def _train(config: Config, run: Path) -> None:
    draw = host.resolve(config.data.mixture, config=config, saved=(run / "checkpoints",))
    data = _data(config, draw)
    llm.train(
        model=llm.GPTModel(
            llm.GPTConfig(**host_settings(config, data.tokenizer.vocab_size)),
            tokenizer=data.tokenizer,
        ),
        data=data,
        trainer=_trainer(config),
        log=nl.NeMoLogger(
            name=run.name,
            log_dir=str(run.parent),
            use_datetime_version=False,
            ckpt=nl.ModelCheckpoint(
                every_n_train_steps=config.checkpoint.save_interval or config.train.train_iters,
                # The newest checkpoints are kept.
                monitor="global_step",
                mode="max",
                save_top_k=config.checkpoint.keep or -1,
                save_last=True,
                save_optim_on_train_end=True,
            ),
            tensorboard=_tensorboard(run) if config.logging.tensorboard else None,
        ),
        resume=nl.AutoResume(resume_if_exists=True, resume_ignore_no_checkpoint=True),
        optim=_optimizer(config),
    )


def _data(config: Config, draw: host.Draw) -> MixtureDataModule:
    data = MixtureDataModule(
        draw.pairs,
        on_mixture_change=config.data.on_mixture_change,
        seq_length=config.model.seq_length,
        micro_batch_size=config.train.micro_batch_size,
        global_batch_size=config.train.global_batch_size,
        num_workers=config.data.num_workers,
        split=config.data.split,
        seed=config.train.seed,
        index_mapping_dir=config.data.cache,
        tokenizer=Vocabulary(
            vocabulary.Vocabulary.of(config.data).vocab_size,
            [domain.fingerprint for domain in (draw.domains or {}).values()],
        ),
    )
    data.draw = draw
    return data


def _trainer(config: Config) -> Any:
    train, layout = config.train, config.parallel
    precision = dtype_of(train.precision)
    bf16 = precision == torch.bfloat16
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    iterations = train.train_iters
    return nl.Trainer(
        devices=here,
        num_nodes=world_size() // here,
        max_steps=iterations,
        accelerator="auto",
        strategy=nl.MegatronStrategy(
            tensor_model_parallel_size=layout.tensor_model_parallel_size,
            pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
            sequence_parallel=layout.sequence_parallel,
            pipeline_dtype=precision,
            ddp=DistributedDataParallelConfig(
                use_distributed_optimizer=config.optimizer.use_distributed_optimizer,
                grad_reduce_in_fp32=bf16,
            ),
        ),
        plugins=nl.MegatronMixedPrecision(precision="bf16-mixed") if bf16 else None,
        val_check_interval=min(train.eval_interval or iterations, iterations),
        limit_val_batches=train.eval_iters,
        limit_test_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=config.logging.log_interval,
        enable_progress_bar=config.logging.progress,
        callbacks=[LossByDomain()] if train.eval_iters else [],
    )


def _optimizer(config: Config) -> Any:
    wanted = config.optimizer
    constant = wanted.lr_decay_style == "constant"
    return nl.MegatronOptimizerModule(
        config=OptimizerConfig(**optimizer_settings(config)),
        lr_scheduler=nl.lr_scheduler.CosineAnnealingScheduler(
            max_steps=config.train.train_iters,
            warmup_steps=wanted.lr_warmup_iters,
            constant_steps=0,
            min_lr=wanted.lr if constant else wanted.min_lr,
        ),
    )


def _tensorboard(run: Path) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=str(run / "tensorboard"))
