"""The plan of a host's run: a training set of this package in place of the host's own.

A host's blend cannot change while a run goes on. So a run of several stages, or with
data.order=streams, draws from a dataset that follows its plan. The host still builds its validation
and test sets itself. The plan is saved with the checkpoints as plan.json.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron.core.datasets.blended_megatron_dataset_config import parse_and_normalize_split

from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.stages import in_streams
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.planned import PlannedDataset, planned_dataset
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.engines.saved import FILE, PLAN_FILE, StrPath, require_choice, trained_in
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.plan import Plan
from nemo_chameleon.mixture.plan_tables import difference
from nemo_chameleon.provider.stages import Size, plan_of
from nemo_chameleon.utils.errors import UserError, reason_of
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.ranks import is_first_rank

_CONTINUE = (
    "on_mixture_change=continue, which keeps what was drawn and follows the new plan from there on"
)
_ACCEPT = "on_mixture_change=accept, which may repeat samples"
_ACCEPTED = "accepted_at"


@dataclass(frozen=True)
class HostPlan:
    """The plan of a host's run.

    Attributes:
        config: this package's configuration.
        domains: the opened domains by name.
        size: the size of the host's run.
        plan: the stages of the run.
    """

    config: Config
    domains: Mapping[str, Domain]
    size: Size
    plan: Plan

    def training_set(self, dataset_class: type | None = None) -> PlannedDataset:
        """Build the training set; once the ranks have met, every rank must call it.

        Args:
            dataset_class: a class of datasets; None for the one of data.dataset.

        Returns:
            The training set.

        Raises:
            UserError: a domain does not fill a sample, or the indices cannot be read or written.
        """
        return planned_dataset(
            self.config.data,
            self.domains,
            self.plan,
            seq_length=self.size.seq_length,
            seed=self.size.seed,
            dataset_class=dataset_class,
        )


@dataclass(frozen=True)
class _Begun:
    """What a run has saved about its plan.

    Attributes:
        file: the file of the plan.
        plan: the plan that the run has followed; None where it has followed none that can be read.
        facts: what decides the samples beside the plan.
        accepted: the entry of the file which says that the plan replaced another one; empty where
            the run has followed the plan from its start.
        drawn: samples that the run has drawn; None where that is not needed or not known.
    """

    file: Path
    plan: Plan | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    accepted: Mapping[str, int | None] = field(default_factory=dict)
    drawn: int | None = None


@dataclass(frozen=True)
class AskedPlan:
    """What a host's run is asked to follow, before it is known what the run has drawn.

    Attributes:
        config: this package's configuration.
        domains: the opened domains by name.
        mixtures: the mixture of each stage, before its bounds.
        size: the size of the host's run.
    """

    config: Config
    domains: Mapping[str, Domain]
    mixtures: tuple[Mixture, ...]
    size: Size

    def kept(
        self,
        save: StrPath | None,
        load: StrPath | None,
        on_change: str,
        consumed: Callable[[], int],
    ) -> HostPlan:
        """Plan the run: refuse a plan other than the one that it has followed, or go on from it.

        Once the ranks have met, every rank must call it; the first one saves the plan.

        Args:
            save: the folder that the run's checkpoints are saved in; None where the host saves
                none.
            load: the folder of checkpoints that the run continues from; None where it loads none.
            on_change: "refuse", "continue" or "accept", for another plan.
            consumed: returns how many samples the run has drawn at the checkpoint that the host
                loads; it is called where that decides the plan.

        Returns:
            The plan of the whole run.

        Raises:
            UserError: the plan is another one and is refused; the message says how they differ. Or
                a stage has no samples, or bounds that no weights keep.
        """
        require_choice(on_change)
        begun = on_first_rank(lambda: self._begun(save, load, on_change, consumed))
        lived = None
        if on_change == "continue" and begun is not None:
            assert begun.plan is not None and begun.drawn is not None
            lived = begun.plan, begun.drawn
        try:
            plan = plan_of(self.config, self.domains, self.mixtures, self.size, lived)
        except UserError as error:
            if begun is None or on_change != "refuse":
                raise
            raise UserError(f"{error}; to go on by another plan, set {_CONTINUE}") from error
        if on_change == "refuse" and begun is not None and (told := _difference(begun, plan)):
            raise UserError(
                f"{begun.file} is of a run with another plan: {told}; set it back, or {_CONTINUE}"
            )
        if save is not None:
            record = self._record(plan, begun, on_change)
            on_first_rank(lambda: _save(Path(save), plan, record))
        return HostPlan(self.config, self.domains, self.size, plan)

    def require_host(self, split: str | None, loader: str | None) -> None:
        """Refuse settings of a host under which a plan would not be followed.

        Args:
            split: the host's split of the training files; None where it has other files for
                validation.
            loader: the host's kind of data loader.

        Raises:
            UserError: the split is not that of the configuration, or samples are not read in order.
        """
        own = self.config.data.split
        if split is not None and parse_and_normalize_split(split) != parse_and_normalize_split(own):
            raise UserError(
                f"the host's split={split!r} is not data.split={own!r} of the mixture's "
                "configuration, so training samples would be validated on: set both to the same"
            )
        if loader != "single":
            raise UserError(
                f"dataloader_type={loader!r} does not read samples in the order of the plan: set "
                "it to 'single'"
            )

    def _begun(
        self,
        save: StrPath | None,
        load: StrPath | None,
        on_change: str,
        consumed: Callable[[], int],
    ) -> _Begun | None:
        """Read what the run has followed so far, and refuse what cannot go on from it."""
        # A host continues from `load`. Where it loads nothing, `save` must not hold another run.
        folder = trained_in(load, save)
        if folder is None:
            return None
        file = folder / PLAN_FILE
        if on_change == "accept":
            return _accepted(file, consumed)
        if not file.is_file():
            raise UserError(
                f"{folder} is of a run in the order of the host's own blend, which a plan cannot "
                f"continue: set data.order=megatron without data.stages, or {_ACCEPT}"
            )
        begun = _read(file)
        if (told := self._changed(begun.facts)) is not None:
            raise UserError(
                f"{file} is of a run on other samples: {told}; set it back, or {_ACCEPT}"
            )
        if on_change != "continue":
            return begun
        drawn = consumed()
        if begun.accepted and drawn:
            at = begun.accepted[_ACCEPTED]
            raise UserError(
                f"{file} was changed with on_mixture_change=accept"
                f"{'' if at is None else f' after {at:,} samples'}, so which samples the run has "
                "drawn is not known: set on_mixture_change=refuse to go on by that plan; by "
                "another plan only on_mixture_change=accept goes on, which may repeat samples"
            )
        return replace(begun, drawn=drawn)

    def _changed(self, before: Mapping[str, Any]) -> str | None:
        """Say what decides the samples of a domain and is not what it was."""
        now = self._facts
        for key in sorted({*now, *before} - {"domains"}):
            if now.get(key) != before.get(key):
                return f"{key} is {now.get(key)} in place of {before.get(key)}"
        known = before.get("domains", {})
        for name, content in now["domains"].items():
            if known.get(name, content) != content:
                return f"the data of domain {name!r} have changed"
        return None

    @property
    def _facts(self) -> dict[str, Any]:
        """What decides the samples of each domain, and their order."""
        data, kind = self.config.data, kind_of(self.config.data)
        return {
            "seed": self.size.seed,
            "seq_length": self.size.seq_length,
            **{f"data.{key}": getattr(data, key) for key in ("split", *kind.order_settings)},
            "domains": {name: domain.fingerprint for name, domain in self.domains.items()},
        }

    def _record(self, plan: Plan, begun: _Begun | None, on_change: str) -> dict[str, Any]:
        """Return what the run saves about its plan."""
        facts, known = self._facts, {} if begun is None else begun.facts.get("domains", {})
        # A domain that has left may come back, and must then be what it was.
        left = {name: known[name] for name in plan.names if name in known}
        facts["domains"] = {**left, **facts["domains"]}
        accepted: Mapping[str, int | None] = {}
        if begun is not None and begun.drawn != 0:
            accepted = begun.accepted
            other = begun.plan is None or self._changed(begun.facts) or _difference(begun, plan)
            if on_change == "accept" and other:
                accepted = {_ACCEPTED: begun.drawn}
        return {"stages": plan.record(), **accepted, **facts}


def _accepted(file: Path, consumed: Callable[[], int]) -> _Begun:
    """Read the plan that another one replaces, which may be one that cannot be read."""
    begun, drawn = _Begun(file), None
    with contextlib.suppress(UserError):
        begun = _read(file)
    with contextlib.suppress(UserError):
        drawn = consumed()
    return replace(begun, drawn=drawn)


def _difference(begun: _Begun, plan: Plan) -> str | None:
    return None if begun.plan is None else difference(begun.plan, plan)


def _save(folder: Path, plan: Plan, record: Mapping[str, Any]) -> None:
    if is_first_rank():
        write_atomically(folder / PLAN_FILE, json.dumps(record, indent=2) + "\n")
        plan.mixture.save(folder / FILE)


def _read(file: Path) -> _Begun:
    """Read a plan that a run saved, and what else decides its samples."""
    try:
        facts = dict(json.loads(file.read_text()))
        plan = Plan.of_record(facts.pop("stages"), str(file))
        accepted = {_ACCEPTED: facts.pop(_ACCEPTED)} if _ACCEPTED in facts else {}
        return _Begun(file, plan, facts, accepted)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"cannot read the plan {file}: {reason_of(error)}") from error


def asks_for_plan(config: Config, planned: bool) -> bool:
    """Return whether a host's run follows a plan.

    Args:
        config: this package's configuration.
        planned: whether the host can take a training set of this package.

    Returns:
        Whether it does.

    Raises:
        UserError: the configuration asks for a plan, and the host cannot follow one.
    """
    if planned or not in_streams(config):
        return in_streams(config)
    if len(config.data.stages) > 1 or config.data.order == "streams":
        raise UserError(
            "data.stages and data.order=streams need a host that takes a training set of this "
            "package: use NeMo 2 with MixtureDataModule, Bridge with MixtureDatasetConfig, or "
            "Megatron-LM; or remove data.stages and set data.order=megatron"
        )
    return False


def mean_of(mixtures: tuple[Mixture, ...]) -> Mixture:
    """Return the mean weights of several mixtures, for use before the stages' samples are known.

    Args:
        mixtures: at least one.

    Returns:
        The only mixture; or else the mean weights of all domains that any of them has.
    """
    if len(mixtures) == 1:
        return mixtures[0]
    names = dict.fromkeys(name for mixture in mixtures for name in mixture.weights)
    sums = {name: sum(mixture.weights.get(name, 0.0) for mixture in mixtures) for name in names}
    return Mixture.static(sums)
