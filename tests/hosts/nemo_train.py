"""Run NeMo 2's own `llm.pretrain` on a tiny GPT on CPUs, and print what it drew as JSON.

It is started as `python nemo_train.py SETTINGS.json`. It must not be called nemo_run.py, because
that name would hide NeMo-Run's package.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import ClassVar


class Tokenizer:
    """A tokenizer with what NeMo needs for a run whose data is tokenised already."""

    vocab_size = 512
    eod = eos_id = bos_id = 0
    pad = pad_id = 1
    unique_identifiers: ClassVar[dict[str, str]] = {"class": "Tokenizer"}
    additional_special_tokens_ids: ClassVar[list[int]] = []


def main() -> None:
    """Train as NeMo does, with the mixture as a user of NeMo sets it."""
    import stand_in

    stand_in.install()
    import torch
    from megatron.core.optimizer import OptimizerConfig
    from nemo import lightning as nl
    from nemo.collections import llm
    from nemo.collections.llm.gpt.model.base import local_layer_spec
    from nemo.lightning import io
    from nemo.lightning.io import pl

    import tiny
    from nemo_chameleon.engines.nemo import LossByDomain, MixtureDataModule
    from nemo_chameleon.models.layers import layer_spec
    from running import MICRO_BATCH

    # This function needs a CUDA device when a checkpoint is loaded.
    pl._fix_tensors_device = lambda checkpoint: checkpoint
    io.track_io(Tokenizer)
    settings = json.loads(Path(sys.argv[1]).read_text())
    steps = settings["max_steps"]
    tokenizer = Tokenizer()
    layers, size, entry = local_layer_spec, tiny.BATCH, llm.pretrain
    if settings["finetune"]:
        from nemo.collections.llm.gpt.model import base

        # Packed samples need the attention of Transformer Engine or of this package.
        base.HAVE_TE = True
        layers, size, entry = layer_spec, 1, llm.finetune
    plan, every = settings["plan"], steps
    if plan is not None:
        tiny.watch(plan["last"])
        size, every = min(size, MICRO_BATCH), 1
    data = MixtureDataModule(
        seq_length=32,
        micro_batch_size=size,
        global_batch_size=tiny.BATCH,
        num_workers=0,
        pin_memory=False,
        tokenizer=tokenizer,
        split="90,10,0",
        **settings["data"],
    )
    model = llm.GPTModel(
        llm.GPTConfig(
            transformer_layer_spec=layers,
            **tiny.GPT,
        ),
        tokenizer=tokenizer,
    )
    checkpoint = nl.ModelCheckpoint(
        monitor="reduced_train_loss",
        every_n_train_steps=every,
        save_top_k=1,
        save_last=True,
        save_optim_on_train_end=True,
    )
    trainer = nl.Trainer(
        devices=int(os.environ["WORLD_SIZE"]),
        max_steps=steps,
        accelerator="cpu",
        strategy=nl.MegatronStrategy(
            ddp="megatron",
            process_group_backend="gloo",
            pipeline_dtype=torch.float32,
            ckpt_async_save=False,
        ),
        logger=False,
        limit_val_batches=settings["eval_iters"],
        limit_test_batches=0,
        num_sanity_val_steps=0,
        val_check_interval=steps,
        log_every_n_steps=1,
        enable_progress_bar=False,
        callbacks=[LossByDomain()],
    )
    optimizer = OptimizerConfig(
        optimizer="adam",
        lr=1e-3,
        clip_grad=0.0,
        use_distributed_optimizer=False,
        bf16=False,
        fp16=False,
        params_dtype=torch.float32,
    )
    entry(
        model=model,
        data=data,
        trainer=trainer,
        log=nl.NeMoLogger(
            name="run", log_dir=settings["log_dir"], ckpt=checkpoint, use_datetime_version=False
        ),
        resume=nl.AutoResume(**settings["resume"]),
        optim=nl.MegatronOptimizerModule(config=optimizer),
    )
    configured = dataclasses.asdict(data.gpt_dataset_config)
    print("CONFIGURED", json.dumps(configured, default=lambda value: type(value).__name__))
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    print("VALIDATED", json.dumps(metrics))
    if plan is None:
        tiny.say_drawn(data._train_ds, steps)
    else:
        tiny.say_read(steps - plan["first"])


if __name__ == "__main__":
    main()
