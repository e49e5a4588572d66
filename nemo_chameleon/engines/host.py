"""What a host's run draws: its own datasets, by the weights that a mixture gives them.

A host builds its datasets itself, and an adapter changes nothing but the weights of their blend.
Where a run follows a plan, the adapter replaces the training set too (plans.py). All of this is
settled here, for every host in the same way, before the host builds anything:

    resolve     finds the mixture and matches it to the host's datasets, as a Draw
    within      applies data.max_epochs, pin and floor for the samples that the host draws
    kept        makes a run that continues draw by the mixture that it has drawn by so far

A run that follows a plan is bounded in `kept`, because what it has drawn counts there.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_chameleon.config import load_mixture_config
from nemo_chameleon.config.data import MIXTURES
from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.stages import configuration_of
from nemo_chameleon.config.validation import check_mixture
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.token_shares import sample_shares
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.processes import process_group, world_size
from nemo_chameleon.engines.folders import owned_folder, run_folder
from nemo_chameleon.engines.matching import Prefixes, matched, named, summed
from nemo_chameleon.engines.plans import AskedPlan, HostPlan, asks_for_plan, mean_of
from nemo_chameleon.engines.saved import Folders, StrPath, keep_mixture, refuse_unasked, saved_in
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.datasets import Datasets, blend_of, recorded_datasets
from nemo_chameleon.mixture.parsing import normalised
from nemo_chameleon.provider.preflight import Prepared, prepare_mixture
from nemo_chameleon.provider.proxy import compute_mixture
from nemo_chameleon.provider.runs import within_bounds
from nemo_chameleon.provider.stages import Size
from nemo_chameleon.provider.stored import saved_mixture
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest

__all__ = ["Draw", "owned_folder", "refuse_unasked", "resolve", "run_folder", "saved_in"]


@dataclass(frozen=True)
class Draw:
    """A mixture, and the datasets of its domains.

    Attributes:
        mixture: the weights, by domain name.
        paths: the prefix of each domain's dataset by name, or the tokens of each of several by
            prefix, in the order of the host's datasets.
        config: this package's configuration, where its bounds apply.
        domains: the opened domains by name, where there is a configuration.
        shares: shares of the run's samples by name, where the mixture's weights are shares of
            answer tokens.
        stages: the mixture of each stage before its bounds, where the run follows a plan.
        asked: the stages and the size of the run, once `within` knows it; None without a plan.
        plan: the plan, once `kept` has made it; `mixture` then has the shares of all samples.
    """

    mixture: Mixture
    paths: Mapping[str, Datasets]
    config: Config | None = None
    domains: Mapping[str, Domain] | None = None
    shares: Mapping[str, float] | None = None
    stages: tuple[Mixture, ...] = ()
    asked: AskedPlan | None = None
    plan: HostPlan | None = None

    @property
    def blend(self) -> tuple[list[str], list[float]]:
        """Megatron's `blend`: the prefixes, and the weights in the same order."""
        self.mixture.require_domains(self.paths)
        return blend_of(self.mixture.weights if self.shares is None else self.shares, self.paths)

    @property
    def pairs(self) -> list[str]:
        """Weights and prefixes in turn, as `--data-path` and `data_prefix` take them."""
        return [
            part for path, weight in zip(*self.blend, strict=True) for part in (repr(weight), path)
        ]

    def within(
        self,
        samples: int,
        seq_length: int,
        seed: int | None = None,
        evaluated: bool = False,
        batch: int = 1,
    ) -> "Draw":
        """Apply the bounds of the configuration for the samples that the host draws.

        Once the ranks have met, every rank must call it.

        Args:
            samples: number of samples that the host draws.
            seq_length: tokens of each sample.
            seed: seed of the host's order of samples; None for the configuration's.
            evaluated: whether the host evaluates on validation splits.
            batch: samples of a global batch, of which a stage has a whole number.

        Returns:
            The draw with weights within the bounds; this one where there is no configuration. The
            stages of a plan stay as they are: `kept` applies their bounds.

        Raises:
            UserError: bounds that cannot be kept, samples of another length than the
                configuration's, or examples that do not fit into a sample.
        """
        if self.config is None or self.domains is None:
            return self
        data = self.config.data
        sizes: dict[str, Any] = {"samples": samples, "seq_length": seq_length}
        if kind_of(data).supervised:
            own = self.config.model.seq_length
            if own != seq_length:
                raise UserError(
                    f"the host's samples have {seq_length} tokens, but model.seq_length={own} in "
                    "the mixture's configuration: set both to the same number"
                )
            kind_of(data).require_samples(data, self.domains, seq_length, "model.", evaluated)
        seed = self.config.train.seed if seed is None else seed
        if self.stages:
            size = Size(samples, seq_length, batch, seed)
            asked = AskedPlan(self.config, self.domains, self.stages, size)
            return replace(self, asked=asked, plan=None)
        bounded = within_bounds(self.config, self.domains, self.mixture, **sizes)
        if data.unit == "samples":
            return replace(self, mixture=bounded)
        shares = sample_shares(bounded.weights, self.domains, **sizes, seed=seed)
        return replace(self, mixture=bounded, shares=shares)

    def kept(
        self,
        save: StrPath | None,
        load: StrPath | None = None,
        on_change: str = "refuse",
        consumed: Callable[[], int] = lambda: 0,
    ) -> "Draw":
        """Refuse a mixture other than the one that the run has drawn by, or else save it.

        Once the ranks have met, every rank must call it.

        Args:
            save: the folder that the run's checkpoints are saved in; None where the host saves
                none.
            load: the folder of checkpoints that the run continues from; None where it loads none.
            on_change: "refuse", "continue" or "accept", for a mixture other than the saved one.
            consumed: returns how many samples the run has drawn at the checkpoint that the host
                loads, for a plan that continues another one.

        Returns:
            This draw; with the plan of the whole run, where it follows one.

        Raises:
            UserError: the mixture is another one and is refused; the message shows both. Or the
                bounds of a plan cannot be kept.
        """
        if self.asked is not None:
            return self._following(self.asked.kept(save, load, on_change, consumed))
        weights = {name: self.mixture.weights[name] for name in self.paths}
        # The order of the host's datasets decides the order of its samples, so it is saved too.
        mine = replace(self.mixture, weights=weights, method={**self.mixture.method, **self._read})
        keep_mixture(mine, save, load, on_change)
        return self

    def _following(self, plan: HostPlan) -> "Draw":
        """Return the draw of a plan, with the shares of all its samples for the host's blend."""
        mixture = plan.plan.mixture
        paths = {name: path for name, path in self.paths.items() if name in mixture.weights}
        weights = normalised({name: mixture.weights[name] for name in paths})
        facts = {name: mixture.domains[name] for name in paths if name in mixture.domains}
        mixture = replace(mixture, weights=weights, domains=facts, uncertainty={})
        return replace(self, mixture=mixture, paths=paths, plan=plan)

    @property
    def supervised(self) -> bool:
        """Whether the samples hold several examples to finetune on."""
        return self.config is not None and kind_of(self.config.data).supervised

    @property
    def _read(self) -> dict[str, Any]:
        """What else decides the samples of finetuning, for the mixture file of the run."""
        if self.config is None or self.domains is None or not self.supervised:
            return {}
        data = self.config.data
        keys = [key for key in kind_of(data).order_settings if key != "dataset"]
        contents = [domain.fingerprint for domain in self.domains.values()]
        settings = {key: getattr(data, key) for key in keys}
        return {"drawn": {**settings, "contents": digest(contents)}}


def resolve(
    mixture: "StrPath | Mixture | Draw",
    paths: Prefixes | None = None,
    weights: Sequence[float] | None = None,
    *,
    config: StrPath | Config | None = None,
    saved: Folders = (),
    finetuning: bool = False,
    planned: bool = True,
) -> Draw:
    """Find the mixture that a host asks for, and match it to the host's datasets.

    A mixture that has to be computed is computed here by all ranks, if their processes have not met
    in the host yet.

    Args:
        mixture: "chameleon", "uniform", "proportional", "static", the path of a mixture file, or a
            Mixture; a Draw is returned as it is.
        paths: the host's prefixes, by domain name or as a list; None for those of the configuration
            or of the mixture file. A domain of several datasets has all of them in the list.
        weights: the host's own weights for "static", in the order of `paths`.
        config: this package's configuration, or the path of its file. It names the domains and, for
            "chameleon", says how the mixture is computed. Settings of its base model are not used.
        saved: folders of the run's checkpoints. The mixture saved there is used where the file of a
            computed mixture is gone.
        finetuning: whether the host takes examples to finetune on.
        planned: whether the host can take a training set of this package, which a plan needs.

    Returns:
        The mixture and the datasets, before bounds.

    Raises:
        UserError: the mixture cannot be read or computed, or does not match the datasets; the
            message says what to do.
    """
    if isinstance(mixture, Draw):
        return mixture
    if isinstance(mixture, Mixture):
        return _at(mixture, paths)
    wanted = os.fspath(mixture)
    if wanted == "static" and (weights or config is None):
        if not paths or not weights:
            raise UserError(
                "mixture=static takes the host's own weights, but it has none: give each prefix a "
                "weight"
            )
        if isinstance(paths, Mapping):
            own = dict(zip(paths, weights, strict=True))
            return Draw(Mixture.static(own), named(paths))
        own = summed(paths, weights)
        return Draw(Mixture.static(own), named(list(own)))
    if config is not None:
        return _configured(wanted, config, paths, saved, finetuning, planned)
    if wanted == "uniform" and paths:
        own_names = named(paths)
        return Draw(Mixture.uniform(own_names), own_names)
    if wanted in MIXTURES:
        raise UserError(
            f"mixture={wanted} needs the configuration that names the domains: give its file as "
            "mixture_config (nemo_chameleon/config/schema.py has the keys)"
        )
    return _at(Mixture.load(wanted), paths)


def _configured(
    wanted: str,
    config: StrPath | Config,
    paths: Prefixes | None,
    folders: Folders,
    finetuning: bool,
    planned: bool,
) -> Draw:
    if not isinstance(config, Config):
        config = load_mixture_config(Path(config), [f"data.mixture={wanted}"])
    check_mixture(config)
    if kind_of(config.data).supervised and not finetuning:
        raise UserError(
            "data.dataset=sft: this takes datasets of tokens alone; to finetune, use NeMo 2 with "
            "MixtureDataModule or Bridge with MixtureSFTConfig"
        )
    planned = asks_for_plan(config, planned)
    # Where the host's processes have not met, the ranks meet here, so that the first one decides
    # for all of them which files exist and which checkpoint embeds.
    meets = world_size() > 1 and "RANK" in os.environ and not dist.is_initialized()
    with process_group() if meets else contextlib.nullcontext():
        prepared = prepare_mixture(config)
        if planned:
            # A run's saved mixture is within the bounds of its whole run, so no stage can use it.
            own = prepared.stages or (prepared,)
            stages = tuple(_computed(stage, (), meets) for stage in own)
            mixture = mean_of(stages)
        else:
            only = prepared.stages[0] if prepared.stages else prepared
            stages, mixture = (), _computed(only, folders, meets)
    domains = prepared.domains
    places = {
        name: dict.fromkeys([d.path] if isinstance(d.path, str) else d.path, 1.0)
        for name, d in domains.items()
    }
    datasets = {name: domains[name].datasets for name in matched(places, paths)}
    if planned:
        datasets = {name: given for name, given in datasets.items() if name in mixture.weights}
        return Draw(mixture, datasets, config, domains, stages=stages)
    # A mixture that a run saved is within the bounds of that run already.
    bounds = None if "bound" in mixture.method else configuration_of(config, 0)
    return Draw(mixture, datasets, bounds, domains)


def _computed(prepared: Prepared, folders: Folders, have_met: bool) -> Mixture:
    """Return the configuration's mixture: stored, from a run's folder, or computed by all ranks."""
    config = prepared.config

    def find() -> str | None:
        found = prepared.stored or prepared.stored_since()
        if found is None and (file := saved_in(*folders)) is not None:
            found = saved_mixture(config, prepared.domains, prepared.plan, file)
        return None if found is None else found.to_json()

    text = on_first_rank(find) if have_met else find()
    if text is not None:
        return Mixture.from_json(text)
    if not have_met and (world_size() > 1 or dist.is_initialized()):
        raise UserError(
            f"there is no {config.chameleon.file} yet, and the host starts the processes: compute "
            "it first, with torchrun -m nemo_chameleon mixture compute --config FILE"
        )
    with process_group():
        return compute_mixture(prepared)


def _at(mixture: Mixture, paths: Prefixes | None) -> Draw:
    """Match a mixture to the host's paths, or to the paths that its own file records."""
    own = {name: recorded_datasets(name, mixture.domains.get(name, {})) for name in mixture.weights}
    if paths is None and not all(own.values()):
        raise UserError("the mixture does not say where its domains are: give the paths by name")
    datasets = matched(own, paths)
    mixture.require_domains(datasets)
    return Draw(mixture, datasets)
