"""The plan of a host's run: a training set of this package in place of the host's own.

A host's blend cannot change while a run goes on. So a run of several stages, or with
data.order=streams, draws from a dataset that follows its plan. The host still builds its validation
and test sets itself. The plan is saved with the checkpoints as plan.json.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

Lived = tuple[Plan, int]
"""The plan that a run has followed so far, and how many samples it has drawn."""
_CONTINUE = (
    "on_mixture_change=continue, which keeps what was drawn and follows the new plan from there on"
)
_ACCEPT = "on_mixture_change=accept, which may repeat samples"


@dataclass(frozen=True)
class HostPlan:
    """The plan of a host's run, and what decides the samples beside it.

    Attributes:
        config: this package's configuration.
        domains: the opened domains by name.
        mixtures: the mixture of each stage, before its bounds.
        size: the size of the host's run.
        plan: the stages of the run.
    """

    config: Config
    domains: Mapping[str, Domain]
    mixtures: tuple[Mixture, ...]
    size: Size
    plan: Plan

    @classmethod
    def of(
        cls,
        config: Config,
        domains: Mapping[str, Domain],
        mixtures: tuple[Mixture, ...],
        size: Size,
        lived: Lived | None = None,
    ) -> "HostPlan":
        """Plan a run; once the ranks have met, every rank must call it.

        Args:
            config: this package's configuration.
            domains: the opened domains by name.
            mixtures: the mixture of each stage, before its bounds.
            size: the size of the host's run.
            lived: the plan that the run has followed so far, and how many samples it has drawn.

        Returns:
            The plan.

        Raises:
            UserError: a stage has no samples, or bounds that no weights keep.
        """
        plan = plan_of(config, domains, mixtures, size, lived)
        return cls(config, domains, mixtures, size, plan)

    def kept(
        self,
        save: StrPath | None,
        load: StrPath | None,
        on_change: str,
        consumed: Callable[[], int],
    ) -> "HostPlan":
        """Refuse a plan other than the one that the run has followed, or go on from that one.

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
            UserError: the plan is another one and is refused; the message says how they differ.
        """
        require_choice(on_change)
        lived = on_first_rank(lambda: self._lived(save, load, on_change, consumed))
        kept = self
        if lived is not None:
            kept = self.of(self.config, self.domains, self.mixtures, self.size, lived)
        if save is not None:
            on_first_rank(lambda: kept._save(Path(save)))
        return kept

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

    def _lived(
        self,
        save: StrPath | None,
        load: StrPath | None,
        on_change: str,
        consumed: Callable[[], int],
    ) -> Lived | None:
        # A host continues from `load`. Where it loads nothing, `save` must not hold another run.
        folder = trained_in(load, save)
        if folder is None or on_change == "accept":
            return None
        file = folder / PLAN_FILE
        if not file.is_file():
            raise UserError(
                f"{folder} is of a run in the order of the host's own blend, which a plan cannot "
                f"continue: set data.order=megatron without data.stages, or {_ACCEPT}"
            )
        saved, facts = _read(file)
        if (told := self._changed(facts)) is not None:
            raise UserError(
                f"{file} is of a run on other samples: {told}; set it back, or {_ACCEPT}"
            )
        if on_change == "continue":
            return saved, consumed()
        if (told := difference(saved, self.plan)) is not None:
            raise UserError(
                f"{file} is of a run with another plan: {told}; set it back, or {_CONTINUE}"
            )
        return None

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

    def _save(self, folder: Path) -> None:
        if is_first_rank():
            record = {"stages": self.plan.record(), **self._facts}
            write_atomically(folder / PLAN_FILE, json.dumps(record, indent=2) + "\n")
            self.plan.mixture.save(folder / FILE)


def _read(file: Path) -> tuple[Plan, dict[str, Any]]:
    """Read a plan that a run saved, and what else decides its samples."""
    try:
        facts = dict(json.loads(file.read_text()))
        return Plan.of_record(facts.pop("stages"), str(file)), facts
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
