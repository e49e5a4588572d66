"""A training run before it starts: its model, its data and the checkpoint that it continues from.

The base model's run and the proxy's are both a `TrainingRun`, and the same loop trains them.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_chameleon.config.schema import Config, RunConfig
from nemo_chameleon.data.blend import training_dataset
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kind import DataKind
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.planned import planned_dataset
from nemo_chameleon.data.tokenizer import vocabulary_digest
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.device import dtype_of
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.plan import Plan
from nemo_chameleon.mixture.plan_tables import difference
from nemo_chameleon.models import tracker
from nemo_chameleon.models.content import digests_of
from nemo_chameleon.models.gpt import model_record, weights_shape
from nemo_chameleon.models.identity import START, START_DIGEST
from nemo_chameleon.models.pretrained import PretrainedCheckpoint, find_checkpoint
from nemo_chameleon.train.lived import GONE, PLAN
from nemo_chameleon.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """One training run: what is trained, on what, and where its files go.

    Attributes:
        name: the name of the run in reports, and of its folder under `config.output`.
        settings: the model and its training: `config` itself for the base model, and
            `config.proxy` for the proxy.
        config: the whole configuration; both runs share its data, checkpoints and logging.
        domains: the opened domains by name, in the order of a sample's `dataset_id`.
        mixture: the weights that the samples are drawn by; over all stages of a plan.
        plan: the stages of the run; None where it draws in the order of Megatron's blend.
        settled_at: the number of samples that were drawn when the plan was made; None where the
            plan is that of the whole run.
        gone: fingerprints of domains that the run has drawn from before, by name.
    """

    name: str
    settings: RunConfig
    config: Config
    domains: Mapping[str, Domain]
    mixture: Mixture
    plan: Plan | None = None
    settled_at: int | None = None
    gone: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """The folder of its checkpoints, scalars and result."""
        return Path(self.config.output) / self.name

    @property
    def kind(self) -> DataKind:
        """The kind of its data."""
        return kind_of(self.config.data)

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary of its data."""
        return Vocabulary.of(self.config.data).vocab_size

    def pretrained(self) -> PretrainedCheckpoint | None:
        """Find the checkpoint whose weights the run starts from.

        Returns:
            The checkpoint; None for the proxy, and where the configuration names none.

        Raises:
            UserError: there is no such checkpoint, or it is one of another model.
        """
        place = self.config.checkpoint.pretrained_checkpoint
        if place is None or self.settings is not self.config:
            return None
        source = find_checkpoint(START, place, self.settings, self.config.data, prefix="")
        # What is loaded now is recorded later, when the folder's tracker may name another one.
        vars(self)["_start_digest"] = on_first_rank(lambda: digests_of(source.path))
        own, its = weights_shape(self.settings.model), weights_shape(source.run.model)
        for name, value in its.items():
            if own[name] != value:
                raise UserError(
                    f"{START}={source.path} has model.{name}={value}, but the run has {own[name]}: "
                    f"set model.{name}={value}"
                )
        return source

    def identity(self) -> dict[str, Any]:
        """Collect what a checkpoint must have in common with a run that continues from it.

        Returns:
            The settings of the model and its optimizer, and everything that decides the order of
            the samples, by key; the values are such as JSON can hold.
        """
        run = self.settings
        sections = {
            "model": model_record(run.model),
            "optimizer": dataclasses.asdict(run.optimizer),
        }
        same: dict[str, Any] = {
            f"{section}.{key}": value
            for section, settings in sections.items()
            for key, value in settings.items()
            if key != "use_cpu_initialization"  # a checkpoint replaces the initial weights
        }
        same["train.precision"] = str(dtype_of(run.train.precision))
        for key in ("train_iters", "global_batch_size", "seed"):
            same[f"train.{key}"] = getattr(run.train, key)
        if (tokenizer := self.config.data.tokenizer) is not None:
            same["vocabulary"] = vocabulary_digest(tokenizer)
        same["vocabulary size"] = self.vocab_size
        data = self.config.data
        same["data.split"] = data.split
        same |= {f"data.{key}": getattr(data, key) for key in self.kind.order_settings}
        # These are lists of pairs because the order of the domains counts too.
        same["data.domains"] = [[name, d.fingerprint] for name, d in self.domains.items()]
        if self.plan is None:
            same["weights"] = [[name, self.mixture.weights[name]] for name in self.domains]
        else:
            same[PLAN] = self.plan.record()
            gone = [[name, was] for name, was in self.gone.items() if name not in self.domains]
            same |= {GONE: gone} if gone else {}
        if self.settings is self.config:
            same[START] = self.config.checkpoint.pretrained_checkpoint
            same[START_DIGEST] = self._start_digest
        return same

    @functools.cached_property
    def _start_digest(self) -> list[str] | None:
        place = self.config.checkpoint.pretrained_checkpoint
        if place is None:
            return None
        return digests_of(tracker.tracked(Path(place))[1] or Path(place))

    def resumable(self) -> Path | None:
        """Find the checkpoint that the run continues from, as far as one sees by its files' sizes.

        Returns:
            The folder of the checkpoint; None where there is none.

        Raises:
            UserError: the checkpoint is another run's, or checkpoint.resume=never forbids its use;
                or there are checkpoints, but none is whole.
        """
        path = tracker.newest(self.directory)
        if path is None:
            return None
        if self.config.checkpoint.resume == "never":
            raise UserError(
                f"checkpoint.resume=never, but {self.directory} holds checkpoints: remove them, or "
                "set output to another folder"
            )
        self.state_at(path)
        return path

    def state_at(self, path: Path) -> dict[str, Any]:
        """Read the state at a checkpoint of this run.

        Args:
            path: the folder of the checkpoint.

        Returns:
            The contents of its state.json.

        Raises:
            UserError: the checkpoint is another run's.
        """
        identity, made = self.identity(), tracker.read_state(path)["identity"]
        on_change = self.config.data.on_mixture_change
        if on_change == "refuse":
            self._require_same_plan(path, made)
        else:
            identity.pop("weights", None)
        for key in (PLAN, GONE):
            identity.pop(key, None)
        if on_change == "continue":
            # Domains may come and go. Those that stay or come back must have the same data.
            now = dict(identity["data.domains"])
            for key in [key for key in ("data.domains", GONE) if key in made]:
                identity[key] = [[name, now.get(name, was)] for name, was in made[key]]
        if self.config.checkpoint.on_optimizer_change == "accept":
            for key in dataclasses.asdict(self.settings.optimizer):
                del identity[f"optimizer.{key}"]
        return tracker.state_for(path, identity)

    def require_settled(self, iteration: int) -> None:
        """Check that the run continues from the checkpoint that its plan was made for.

        Args:
            iteration: of the checkpoint that was loaded.

        Raises:
            UserError: the plan was made for another one, which turned out to be damaged.
        """
        drawn = iteration * self.settings.train.global_batch_size
        if self.settled_at not in (None, drawn):
            raise UserError(
                f"{self.name}: the plan was made for sample {self.settled_at:,}, but the newest "
                f"whole checkpoint is of sample {drawn:,}: start the same command again"
            )

    def training_dataset(self) -> Any:
        """Build the samples of the run in order; every rank must call it.

        Returns:
            A dataset whose samples have the position of their domain as `dataset_id`.
        """
        sizes: dict[str, Any] = {"seq_length": self.settings.model.seq_length}
        sizes["seed"] = self.settings.train.seed
        if self.plan is not None:
            return planned_dataset(self.config.data, self.domains, self.plan, **sizes)
        sizes["samples"] = self.settings.train.samples
        return training_dataset(self.config.data, self.domains, self.mixture, **sizes)

    def _require_same_plan(self, path: Path, made: Mapping[str, Any]) -> None:
        go_on = "data.on_mixture_change=continue, which keeps what was drawn and follows the new"
        if self.plan is None and PLAN in made:
            raise UserError(
                f"{path} is of a run whose samples are ordered by streams: set data.order=streams "
                f"and the stages that it had, or {go_on} mixture from there on"
            )
        if self.plan is not None and PLAN not in made:
            raise UserError(
                f"{path} is of a run in the order of Megatron's blend: set data.order=megatron "
                f"without data.stages, or {go_on} stages from there on"
            )
        if self.plan is None:
            return
        told = difference(Plan.of_record(made[PLAN], str(path)), self.plan)
        if told is not None:
            raise UserError(
                f"{path} is of a run with another plan: {told}; set it back, or set {go_on} one"
            )
