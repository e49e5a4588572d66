"""Megatron-Bridge: dataset configurations whose samples follow a mixture.

Use it like this in a script that calls Bridge's `pretrain`:

    from nemo_chameleon.engines.bridge import MixtureDatasetConfig, apply_mixture

    cfg.dataset = MixtureDatasetConfig(mixture="chameleon", mixture_config="mine.yaml", ...)
    process_config_with_overrides(cfg, cli_overrides=["dataset.mixture=uniform"])
    pretrain(apply_mixture(cfg), forward_step)

docs/hosts/bridge.md has more, also on finetuning.
"""

import functools
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.bridge.training import config as bridge
from megatron.bridge.training.config import ConfigContainer, GPTDatasetConfig
from megatron.bridge.training.utils import checkpoint_utils
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.utils import get_blend_from_list

from nemo_chameleon.engines import host, sft
from nemo_chameleon.engines.host_datasets import reading_as, with_plan
from nemo_chameleon.engines.plans import HostPlan
from nemo_chameleon.utils.errors import UserError, reason_of

# Releases of Bridge before 0.5 ask a subclass of GPTDatasetConfig to build its own datasets.
_Provider: type = getattr(bridge, "DatasetProvider", object)


@dataclass(init=False)
class MixtureDatasetConfig(GPTDatasetConfig, _Provider):
    """A GPTDatasetConfig of Bridge whose training set follows a mixture, through `apply_mixture`.

    Attributes:
        mixture: chameleon, uniform, proportional, static (the blend's own weights), or the path of
            a mixture file; None leaves the blend as it is.
        mixture_config: path of a configuration of this package, which says how the mixture is
            computed.
        on_mixture_change: refuse, accept or, for data.stages of `mixture_config`, continue; for a
            run that continues from checkpoints of another mixture or other stages. They are saved
            with the checkpoints.
    """

    mixture: str | None = None
    mixture_config: str | None = None
    on_mixture_change: str = "refuse"

    def __init__(
        self,
        *args: Any,
        mixture: str | None = None,
        mixture_config: str | None = None,
        on_mixture_change: str = "refuse",
        **kwargs: Any,
    ) -> None:
        """Take the attributes of this class; all other arguments are GPTDatasetConfig's."""
        self.mixture, self.mixture_config = mixture, mixture_config
        self.on_mixture_change = on_mixture_change
        self._applied: str | None = None
        self._plan: HostPlan | None = None
        super().__init__(*args, **kwargs)

    def finalize(self) -> None:
        """Do what GPTDatasetConfig does, if the mixture has been applied.

        Raises:
            UserError: `mixture` was set, but `apply_mixture` was not called.
        """
        if self.mixture != self._applied:
            raise UserError(
                f"dataset.mixture={self.mixture} is not applied yet: call "
                "nemo_chameleon.engines.bridge.apply_mixture(cfg) before pretrain"
            )
        super().finalize()

    def build_datasets(self, context: Any) -> Any:
        """Build the datasets with Bridge's own provider for GPT datasets.

        Where the run follows a plan, the provider builds only the validation and the test set.

        Args:
            context: what Bridge gives, with the numbers of samples.

        Returns:
            The training, validation and test set.
        """
        from megatron.bridge.data.utils import pretrain_train_valid_test_datasets_provider

        sizes = [context.train_samples, context.valid_samples, context.test_samples]
        build = functools.partial(pretrain_train_valid_test_datasets_provider, sizes)
        return with_plan(self._plan, reading_as(self), self, build)


@dataclass(kw_only=True)
class MixtureSFTConfig(_Provider):
    """Finetuning data for Bridge: domains of JSONL that are drawn by a mixture.

    Attributes:
        mixture_config: path of a configuration of this package, with data.dataset=sft.
        seq_length: tokens of a sample.
        mixture: chameleon, uniform, proportional, static, or the path of a mixture file.
        random_seed: seed of the order of the samples.
        on_mixture_change: as for `MixtureDatasetConfig`.
        dataloader_type: Bridge's kind of data loader.
        blend: prefixes and weights, which `apply_mixture` sets.
    """

    mixture_config: str
    seq_length: int
    mixture: str = "chameleon"
    random_seed: int = 1234
    on_mixture_change: str = "refuse"
    dataloader_type: str | None = "single"
    blend: tuple[list[str], list[float]] | None = None

    def settle(self, draw: host.Draw, micro_batch_size: int) -> None:
        """Take the datasets and weights that `apply_mixture` found.

        Args:
            draw: the datasets and their weights.
            micro_batch_size: samples in a micro-batch; it has to be 1.

        Raises:
            UserError: the configuration is not one for finetuning, or `micro_batch_size` is not 1.
        """
        if not draw.supervised:
            raise UserError(
                f"{self.mixture_config}: MixtureSFTConfig needs data.dataset=sft; for pretraining, "
                "use MixtureDatasetConfig"
            )
        self.blend, self._plan = draw.blend, draw.plan
        self._dataset_config = sft.dataset_config(
            draw, self.seq_length, self.random_seed, micro_batch_size
        )

    def build_datasets(self, context: Any) -> Any:
        """Build the datasets of packed samples with Megatron's builder.

        Where the run follows a plan, the builder builds only the validation and the test set.

        Args:
            context: what Bridge gives, with the numbers of samples.

        Returns:
            The training, validation and test set.

        Raises:
            UserError: `apply_mixture` was not called.
        """
        if self.blend is None:
            raise UserError(
                f"dataset.mixture={self.mixture} is not applied yet: call "
                "nemo_chameleon.engines.bridge.apply_mixture(cfg) before finetune"
            )
        sizes = [context.train_samples, context.valid_samples, context.test_samples]
        kind = sft.PackedSFTDataset

        def build(config: Any) -> Any:
            return BlendedMegatronDatasetBuilder(kind, sizes, lambda: True, config).build()

        return with_plan(self._plan, kind, self._dataset_config, build)


def apply_mixture(
    cfg: ConfigContainer,
    mixture: str | host.Draw | None = None,
    mixture_config: str | None = None,
    on_mixture_change: str = "refuse",
) -> ConfigContainer:
    """Set the weights of a run's blend, before Bridge finalizes the configuration.

    Args:
        cfg: the configuration of the run; its `dataset` is changed in place. The other arguments
            are for a dataset configuration that has no `mixture`; where both are given, the
            arguments are used.
        mixture: as for `MixtureDatasetConfig`, or what `host.resolve` gave.
        mixture_config: as for `MixtureDatasetConfig`.
        on_mixture_change: as for `MixtureDatasetConfig`.

    Returns:
        The same configuration.

    Raises:
        UserError: the mixture cannot be read or computed; the message says what to do.
    """
    data = cfg.dataset
    if isinstance(data, MixtureDatasetConfig):
        data._applied = data.mixture
    if isinstance(data, MixtureDatasetConfig | MixtureSFTConfig) and mixture is None:
        mixture, mixture_config = data.mixture, data.mixture_config
        on_mixture_change = data.on_mixture_change
    save, load = cfg.checkpoint.save, None if cfg.checkpoint.finetune else cfg.checkpoint.load
    if mixture is None:
        host.refuse_unasked(save, load, on_mixture_change)
        return cfg
    train = cfg.train
    if not (train.train_samples or (train.train_iters and train.global_batch_size)):
        raise UserError(
            "set train.train_iters and train.global_batch_size: the mixture's bounds depend on the "
            "number of samples"
        )
    samples = train.train_samples or train.train_iters * train.global_batch_size
    batch = train.global_batch_size or 1
    if isinstance(data, MixtureSFTConfig):
        draw = host.resolve(mixture, config=mixture_config, saved=(save, load), finetuning=True)
        evaluated = bool(train.eval_iters)
        draw = draw.within(samples, data.seq_length, data.random_seed, evaluated, batch)
        data.settle(_kept(draw, cfg, None, on_mixture_change), train.micro_batch_size)
        return cfg
    if not (data.blend or data.blend_per_split) and getattr(data, "data_path", None):
        # From 0.4 on, Bridge makes data_path the blend when it finalizes the configuration.
        given = data.data_path
        data.blend = get_blend_from_list(given.split() if isinstance(given, str) else list(given))
    paths, weights = (data.blend_per_split or [data.blend])[0] or (None, None)
    own = isinstance(data, MixtureDatasetConfig)
    draw = host.resolve(
        *(mixture, paths, weights),
        config=mixture_config,
        saved=(save, load),
        planned=own,  # others are built by Bridge alone
    )
    draw = draw.within(samples, data.seq_length, data.random_seed, batch=batch)
    draw = _kept(draw, cfg, None if data.blend_per_split else data.split, on_mixture_change)
    if own:
        data._plan = draw.plan
    if data.blend_per_split:
        data.blend_per_split[0] = draw.blend
    else:
        data.blend = draw.blend
    return cfg


def _kept(
    draw: host.Draw, cfg: ConfigContainer, split: str | None, on_mixture_change: str
) -> host.Draw:
    """Keep to what the run has drawn, and refuse settings under which a plan is not followed."""
    saved = cfg.checkpoint
    load = None if saved.finetune else saved.load
    if draw.asked is not None:
        draw.asked.require_host(split, cfg.dataset.dataloader_type)
    return draw.kept(saved.save, load, on_mixture_change, lambda: _consumed(cfg))


def _consumed(cfg: ConfigContainer) -> int:
    """Return the samples that the run has drawn at the checkpoint that Bridge will load."""
    saved = cfg.checkpoint
    # Bridge resumes a run of PEFT although it is told to finetune.
    anew = saved.finetune and cfg.peft is None
    if saved.load is None or anew or not checkpoint_utils.checkpoint_exists(saved.load):
        return 0
    if saved.non_persistent_ckpt_type not in (None, "None"):
        raise UserError(
            f"checkpoint.non_persistent_ckpt_type={saved.non_persistent_ckpt_type}: which "
            "checkpoint Bridge loads is not known beforehand, so on_mixture_change=continue cannot "
            "be used; leave the key out for the start that changes the mixture"
        )
    folder, prefix = saved.load, checkpoint_utils.TRACKER_PREFIX
    if saved.ckpt_step is not None:
        folder, prefix = checkpoint_utils.get_checkpoint_name(folder, saved.ckpt_step), None
    file = Path(checkpoint_utils.get_checkpoint_train_state_filename(folder, prefix))
    try:
        return int(torch.load(file, weights_only=True)["consumed_train_samples"])
    except (OSError, KeyError, pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(
            f"{file} does not say what the run has drawn: {reason_of(error)}; set "
            "checkpoint.load to a folder of Bridge's own checkpoints"
        ) from error
