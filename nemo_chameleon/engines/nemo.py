"""NeMo 2: its pretraining data module, with a training set that follows a mixture.

Use it like this in a script that calls NeMo's `llm.pretrain`:

    from nemo_chameleon.engines.nemo import MixtureDataModule

    data = MixtureDataModule(mixture="chameleon", mixture_config="mine.yaml", seq_length=4096, ...)
    llm.pretrain(model=model, data=data, trainer=trainer, ...)

With a configuration of data.dataset=sft the module holds finetuning data, for `llm.finetune`.

docs/hosts/nemo.md has more.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from lightning.pytorch.callbacks import Callback
from megatron.core import parallel_state
from megatron.core.datasets.utils import get_blend_from_list
from megatron.core.dist_checkpointing import load_common_state_dict
from nemo.collections.llm.gpt.data.pre_training import PreTrainingDataModule
from nemo.lightning.io import IOMixin
from nemo.lightning.resume import AutoResume

from nemo_chameleon.data.blend import in_turn
from nemo_chameleon.engines import host, sft
from nemo_chameleon.engines.host_datasets import reading_as, without_training
from nemo_chameleon.utils.errors import UserError


class MixtureDataModule(PreTrainingDataModule):
    """A PreTrainingDataModule of NeMo whose training set follows a mixture.

    NeMo records this class, by the name of its module, with every checkpoint.

    Args:
        paths: as for PreTrainingDataModule; None for the paths of the mixture. In a dictionary of
            splits the mixture applies to "train".
        mixture: chameleon, uniform, proportional, static (the weights of `paths`), or the path of a
            mixture file; None for NeMo's own behaviour. A mixture that has to be computed is
            computed here, if torchrun's processes have not met yet.
        mixture_config: path of a configuration of this package, which says how the mixture is
            computed.
        on_mixture_change: refuse, accept or, for data.stages of `mixture_config`, continue; for a
            run that continues from checkpoints of another mixture or other stages. They are saved
            with the checkpoints.
        kwargs: as for PreTrainingDataModule.

    Raises:
        UserError: the mixture cannot be read or computed; the message says what to do.
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
            if self.draw.supervised:
                if paths is not None:
                    raise UserError(
                        "leave out paths: finetuning domains are named in mixture_config"
                    )
                kwargs["dataset_cls"] = sft.PackedSFTDataset
            pairs = self.draw.pairs
            paths = {**paths, "train": pairs} if isinstance(paths, Mapping) else pairs
            if not self.draw.supervised:
                # NeMo writes these with a checkpoint. The paths hold the weights, so nothing is
                # computed when the checkpoint is read.
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
        """Apply the bounds to the weights, keep to the run's mixture, and let NeMo build the rest.

        Where the run follows a plan, NeMo builds only the validation and the test set.

        Args:
            trainer_max_steps: steps of the whole training.
            trainer_val_check_interval: as NeMo takes it.
            trainer_limit_val_batches: as NeMo takes it; 0 for no evaluation.
            trainer_limit_test_batches: as NeMo takes it.

        Raises:
            UserError: the bounds cannot be kept, or the run continues with another mixture.
        """
        save, load = _checkpoints(getattr(self, "trainer", None))
        if self.draw is None:
            host.refuse_unasked(save, load, self.on_mixture_change)
        else:
            batch = self.data_sampler.global_batch_size
            samples = int(trainer_max_steps * batch)
            if self.num_train_samples is not None:
                samples = self.num_train_samples
            evaluated = bool(trainer_limit_val_batches)
            draw = self.draw.within(samples, self.seq_length, self.seed, evaluated, batch)
            if draw.asked is not None:
                one = "blend" in self.build_kwargs and not draw.supervised
                draw.asked.require_host(self.split if one else None, self.dataloader_type)
            self.draw = draw.kept(save, load, self.on_mixture_change, self._consumed)
            blend = self.draw.blend
            if "blend_per_split" in self.build_kwargs:
                self.build_kwargs["blend_per_split"][0] = blend
            else:
                self.build_kwargs["blend"] = blend
        plan = None if self.draw is None else self.draw.plan
        if plan is not None and self.gpt_dataset_config is None:
            self._validation_ds = self._test_ds = None
        else:
            super().build(
                trainer_max_steps=trainer_max_steps,
                trainer_val_check_interval=trainer_val_check_interval,
                trainer_limit_val_batches=trainer_limit_val_batches,
                trainer_limit_test_batches=trainer_limit_test_batches,
            )
        if plan is not None:
            supervised = self.draw is not None and self.draw.supervised
            own = reading_as(self._whole_config, self.dataset_cls)
            self._train_ds = plan.training_set(sft.PackedSFTDataset if supervised else own)

    @property
    def gpt_dataset_config(self) -> Any:
        """The configuration of the datasets that NeMo builds.

        It is NeMo's own, or this package's for finetuning. Where the run follows a plan, it has no
        training set; it is None where no other set is left either.
        """
        if self.draw is None or self.draw.plan is None:
            return self._whole_config
        return without_training(self._whole_config)

    @property
    def _whole_config(self) -> Any:
        if self.draw is None or not self.draw.supervised:
            return super().gpt_dataset_config
        return sft.dataset_config(self.draw, self.seq_length, self.seed, self.micro_batch_size)

    def _consumed(self) -> int:
        """Return the samples that the run has drawn at the checkpoint that NeMo will load."""
        path = getattr(getattr(self, "trainer", None), "ckpt_path", None)
        if not path:
            return int(self.init_consumed_samples or 0)
        state = load_common_state_dict(str(path)).get(type(self).__qualname__, {})
        if "consumed_samples" not in state:
            raise UserError(
                f"{path} does not say what the run has drawn: on_mixture_change=continue needs a "
                "checkpoint of a run with MixtureDataModule"
            )
        return int(state["consumed_samples"])

    def validation_by_domain(self) -> dict[str, Any]:
        """Return the parts of the validation set that `build` made.

        Returns:
            The datasets by domain name, or by prefix where a prefix is no domain's. The samples of
            a domain of several datasets are one dataset.
        """
        per_split = self.build_kwargs.get("blend_per_split")
        prefixes, _ = per_split[1] if per_split else self.build_kwargs["blend"]
        own: dict[str, str] = {}
        for name, given in {} if self.draw is None else self.draw.paths.items():
            own |= dict.fromkeys([given] if isinstance(given, str) else given, name)
        parts = getattr(self._validation_ds, "datasets", [self._validation_ds])
        named: dict[str, list[Any]] = {}
        for prefix, part in zip(prefixes, parts, strict=True):
            named.setdefault(own.get(prefix, prefix), []).append(part)
        return {name: in_turn(datasets) for name, datasets in named.items()}


def _with_nemos_parameters() -> inspect.Signature:
    """Return a signature with NeMo's parameters too, because NeMo-Run offers what it names."""
    own = inspect.signature(MixtureDataModule.__init__).parameters
    nemos = inspect.signature(PreTrainingDataModule.__init__).parameters
    names = [p for p in own.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    names += [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in nemos.values() if p.name not in own
    ]
    return inspect.Signature(names)


MixtureDataModule.__init__.__signature__ = _with_nemos_parameters()  # type: ignore[attr-defined]


class LossByDomain(Callback, IOMixin):
    """Logs the validation loss of each domain as `val_loss_by_domain/NAME`, beside `val_loss`.

    The domains are those of a MixtureDataModule or, where validation has paths of its own, these
    paths. Each loss is over as many batches as `val_loss`, and is computed after it. A list of
    validation dataloaders would not do: NeMo would then log no `val_loss`, and count the first
    batch of each dataloader under the one before.
    """

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate on each domain and log its loss; every rank must call it.

        Args:
            trainer: Lightning's trainer, with a MixtureDataModule.
            pl_module: the module that logs.
        """
        data = trainer.datamodule
        if trainer.sanity_checking:
            return
        for name, dataset in data.validation_by_domain().items():
            loader = data.data_sampler.transform_dataloader(
                data._create_dataloader(dataset, mode="validation")
            )
            batches = ((batch, i, 0) for i, batch in enumerate(loader))
            # Lightning's limits are in micro-batches.
            micro = data.data_sampler.num_microbatches
            steps = min(trainer.limit_val_batches, len(loader)) // micro
            losses = []
            for _ in range(int(steps)):
                with trainer.precision_plugin.val_step_context():
                    losses.append(trainer.strategy.model.validation_step(batches).detach())
            if not losses:
                continue
            loss = torch.stack(losses).mean()
            # All pipeline stages except the last one give 0.
            torch.distributed.all_reduce(
                loss, group=parallel_state.get_pipeline_model_parallel_group()
            )
            pl_module.log(f"val_loss_by_domain/{name}", loss, batch_size=1)


def _checkpoints(trainer: Any) -> Sequence[Path | None]:
    """Return the folder where a trainer saves checkpoints, and the one that it resumes from."""
    callback = getattr(trainer, "checkpoint_callback", None)
    save = Path(callback.dirpath) if callback is not None and callback.dirpath else None
    if not getattr(trainer, "ckpt_path", None):
        return save, None
    start = Path(trainer.ckpt_path)
    # A checkpoint is a folder, and AutoResume gives the folder of the weights in it.
    return save, start.parents[1] if start.name == AutoResume.WEIGHTS_PATH else start.parent
