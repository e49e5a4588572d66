"""NeMo 2: its pretraining data module, drawing by a mixture.

In a script that calls NeMo's `llm.pretrain`:

    from nemo_chameleon.engines.nemo import MixtureDataModule

    data = MixtureDataModule(mixture="chameleon", mixture_config="mine.yaml", seq_length=4096, ...)
    llm.pretrain(model=model, data=data, trainer=trainer, ...)

With a configuration of data.dataset=sft it is finetuning data, for `llm.finetune`.

docs/hosts/nemo.md has the rest.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from lightning.pytorch.callbacks import Callback
from megatron.core import parallel_state
from megatron.core.datasets.utils import get_blend_from_list
from nemo.collections.llm.gpt.data.pre_training import PreTrainingDataModule
from nemo.lightning.io import IOMixin
from nemo.lightning.resume import AutoResume

from nemo_chameleon.engines import host, sft
from nemo_chameleon.utils.errors import UserError


class MixtureDataModule(PreTrainingDataModule):
    """NeMo's PreTrainingDataModule whose training set follows a mixture.

    Args:
        paths: as PreTrainingDataModule; None for those of the mixture. Where it is a dictionary,
            the mixture is of its "train".
        mixture: chameleon, uniform, proportional, static (the weights of `paths`), or the path of a
            mixture file; None for NeMo's own way. One that has to be computed is computed here,
            where torchrun's processes have not met yet.
        mixture_config: file of this package's configuration, which says how.
        on_mixture_change: what is done when a run goes on from checkpoints of another mixture:
            refuse or accept. The mixture of a run is saved with them.
        kwargs: as PreTrainingDataModule.

    Raises:
        UserError: naming the culprit and the next step.
    """

    def __init__(
        self,
        paths: Any = None,
        *,
        # NeMo-Run's command line does not parse `str | None`.
        mixture: Optional[str] = None,  # noqa: UP045
        mixture_config: Optional[str] = None,  # noqa: UP045
        on_mixture_change: str = "refuse",
        **kwargs: Any,
    ) -> None:
        self.draw: host.Draw | None = None
        self.on_mixture_change = on_mixture_change
        if mixture is not None:
            training = paths.get("train") if isinstance(paths, Mapping) else paths
            if isinstance(training, str | Path):
                training = [training]
            prefixes, weights = get_blend_from_list(training) or (None, None)
            self.draw = host.resolve(
                mixture, prefixes, weights, config=mixture_config, finetuning=True
            )
            if self.draw.packed:
                if paths is not None:
                    raise UserError("paths: finetuning domains are named in mixture_config")
                kwargs["dataset_cls"] = sft.PackedSFTDataset
            pairs = self.draw.pairs
            paths = {**paths, "train": pairs} if isinstance(paths, Mapping) else pairs
            if not self.draw.packed:
                # What NeMo writes with a checkpoint has the weights: who reads it computes nothing.
                self.__io__.paths, self.__io__.mixture, self.__io__.mixture_config = (
                    paths,
                    None,
                    None,
                )
        super().__init__(paths=paths, **kwargs)

    def build(
        self,
        trainer_max_steps: int,
        trainer_val_check_interval: int,
        trainer_limit_val_batches: float,
        trainer_limit_test_batches: float,
    ) -> None:
        """Settle the weights, leave the rest to NeMo."""
        save, load = _checkpoints(getattr(self, "trainer", None))
        if self.draw is None:
            host.refuse_unasked(save, load, self.on_mixture_change)
        else:
            samples = int(trainer_max_steps * self.data_sampler.global_batch_size)
            if self.num_train_samples is not None:
                samples = self.num_train_samples
            evaluated = bool(trainer_limit_val_batches)
            draw = self.draw.within(samples, self.seq_length, self.seed, evaluated)
            self.draw = draw.kept(save, load, self.on_mixture_change)
            blend = self.draw.blend
            if "blend_per_split" in self.build_kwargs:
                self.build_kwargs["blend_per_split"][0] = blend
            else:
                self.build_kwargs["blend"] = blend
        super().build(
            trainer_max_steps=trainer_max_steps,
            trainer_val_check_interval=trainer_val_check_interval,
            trainer_limit_val_batches=trainer_limit_val_batches,
            trainer_limit_test_batches=trainer_limit_test_batches,
        )

    @property
    def gpt_dataset_config(self) -> Any:
        """NeMo's own, or for finetuning this package's."""
        if self.draw is None or not self.draw.packed:
            return super().gpt_dataset_config
        return sft.dataset_config(self.draw, self.seq_length, self.seed, self.micro_batch_size)

    def validation_by_domain(self) -> dict[str, Any]:
        """Parts of the validation set that `build` made: by domain name, or by prefix."""
        per_split = self.build_kwargs.get("blend_per_split")
        prefixes, _ = per_split[1] if per_split else self.build_kwargs["blend"]
        own = {} if self.draw is None else {path: name for name, path in self.draw.paths.items()}
        parts = getattr(self._validation_ds, "datasets", [self._validation_ds])
        named = [own.get(prefix, prefix) for prefix in prefixes]
        return dict(zip(named, parts, strict=True))


def _with_nemos_parameters() -> inspect.Signature:
    """NeMo-Run offers what a signature names."""
    own = inspect.signature(MixtureDataModule.__init__).parameters
    nemos = inspect.signature(PreTrainingDataModule.__init__).parameters
    names = [p for p in own.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    names += [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in nemos.values() if p.name not in own
    ]
    return inspect.Signature(names)


MixtureDataModule.__init__.__signature__ = _with_nemos_parameters()  # type: ignore[attr-defined]


class LossByDomain(Callback, IOMixin):
    """Validation loss of each domain, beside NeMo's `val_loss`: `val_loss_by_domain/NAME`.

    Of a MixtureDataModule's; with validation paths of their own, of each of these.
    Of as many batches a domain as `val_loss` is of, and after it: a list of validation dataloaders
    would take `val_loss` away, and count the first batch of each under the one before.
    """

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        if trainer.sanity_checking:
            return
        for name, dataset in data.validation_by_domain().items():
            loader = data.data_sampler.transform_dataloader(
                data._create_dataloader(dataset, mode="validation")
            )
            batches = ((batch, i, 0) for i, batch in enumerate(loader))
            # Lightning counts micro batches.
            micro = data.data_sampler.num_microbatches
            steps = min(trainer.limit_val_batches, len(loader)) // micro
            losses = []
            for _ in range(int(steps)):
                with trainer.precision_plugin.val_step_context():
                    losses.append(trainer.strategy.model.validation_step(batches).detach())
            if not losses:
                continue
            loss = torch.stack(losses).mean()
            # Stages but the last say 0.
            torch.distributed.all_reduce(
                loss, group=parallel_state.get_pipeline_model_parallel_group()
            )
            pl_module.log(f"val_loss_by_domain/{name}", loss, batch_size=1)


def _checkpoints(trainer: Any) -> Sequence[Path | None]:
    """Where a trainer saves checkpoints, and where it goes on from."""
    callback = getattr(trainer, "checkpoint_callback", None)
    save = Path(callback.dirpath) if callback is not None and callback.dirpath else None
    if not getattr(trainer, "ckpt_path", None):
        return save, None
    start = Path(trainer.ckpt_path)
    # A checkpoint is a folder, and AutoResume names the weights in it.
    return save, start.parents[1] if start.name == AutoResume.WEIGHTS_PATH else start.parent
