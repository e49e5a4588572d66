"""The runs of a comparison: every mixture with every seed, as many at once as fit.

A finished run leaves its result.json and finished.json, which says what it was trained with. A
comparison that is started again trains what is missing; a run that was killed continues from its
newest checkpoint.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_chameleon.config.constraints import require_valid
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.device import require_device
from nemo_chameleon.distributed.parts import part_of_job
from nemo_chameleon.distributed.processes import world_size
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.models import checkpoint
from nemo_chameleon.provider.preflight import inspect
from nemo_chameleon.provider.resolve import resolve_mixture
from nemo_chameleon.provider.runs import run_name
from nemo_chameleon.train import trainer
from nemo_chameleon.train.report import Result, read_result
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.ranks import is_first_rank

logger = package_logger(__package__)

FOLDER, FINISHED = "compare", "finished.json"


@dataclass(frozen=True)
class Candidate:
    """A run that a comparison asks for.

    Attributes:
        name: of the mixture, which is also the name of a folder.
        seed: the run's train.seed.
        mixture: the weights that it draws by, within the run's bounds.
    """

    name: str
    seed: int
    mixture: Mixture

    def directory(self, config: Config) -> Path:
        """Return the folder of the run.

        Args:
            config: the whole configuration.

        Returns:
            The folder, under `output`.
        """
        return Path(config.output) / self._run_name

    def run(self, config: Config, domains: Mapping[str, Domain]) -> TrainingRun:
        """Return the training run.

        Args:
            config: the whole configuration, whose train.seed is replaced.
            domains: the opened domains, by name.

        Returns:
            The run.
        """
        own = replace(config, train=replace(config.train, seed=self.seed))
        return TrainingRun(self._run_name, own, own, domains, self.mixture)

    @property
    def _run_name(self) -> str:
        return f"{FOLDER}/{self.name}/seed{self.seed}"


def candidates(config: Config) -> tuple[list[Candidate], Mapping[str, Domain]]:
    """Resolve the mixtures that a comparison asks for; every rank must call it.

    All runs of a mixture have the same weights, whatever their seeds. A computed mixture is
    computed here if it does not exist, by all processes of the job.

    Args:
        config: the whole configuration.

    Returns:
        The runs, seed by seed, and the opened domains by name.

    Raises:
        UserError: the comparison cannot start; the message names the culprit and the next step.
    """
    wanted = config.compare
    processes = processes_of_a_run(config)
    mixtures: dict[str, Mixture] = {}
    domains: Mapping[str, Domain] = {}
    require_device(config)
    for value in wanted.mixtures:
        of_this = replace(config, data=replace(config.data, mixture=value))
        prepared = inspect(of_this, processes, world_size())
        mixture, name = resolve_mixture(of_this, prepared), run_name(of_this)
        if name in mixtures:
            raise UserError(f"compare.mixtures names {name} twice: remove one, or rename the file")
        mixtures[name], domains = mixture, prepared.domains
    runs = [Candidate(name, seed, mixtures[name]) for seed in wanted.seeds for name in mixtures]
    return runs, domains


def processes_of_a_run(config: Config) -> int:
    """Return how many processes train one run of a comparison.

    Args:
        config: the whole configuration.

    Returns:
        compare.processes or, if that is null, as few as the model's layout needs.

    Raises:
        UserError: the job's processes cannot be divided into groups of this size, or another key
            under `compare` has a value that it may not have.
    """
    wanted, parallel = config.compare, config.parallel
    require_valid(wanted, "compare.")
    for key, least in (("mixtures", 2), ("seeds", 1)):
        values = getattr(wanted, key)
        if len(values) < least or len(set(values)) < len(values):
            raise UserError(f"compare.{key}={values} must have {least} or more, and none twice")
    if not config.train.eval_iters:
        raise UserError("a comparison needs losses: set train.eval_iters above 0")
    if config.engine != "megatron":
        raise UserError(
            f"engine={config.engine}: a comparison trains with this package's own loop; set "
            "engine=megatron"
        )
    layout = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    processes = wanted.processes or layout
    if world_size() % processes:
        raise UserError(
            f"compare.processes={processes}, the processes of one run, must divide the number of "
            f"processes, {world_size()}"
        )
    return processes


def train_missing(config: Config, domains: Mapping[str, Domain], runs: Sequence[Candidate]) -> None:
    """Train the runs that are not finished, as many at once as there are parts of the job.

    Every process of the job must call it, outside of any process group.

    Args:
        config: the whole configuration.
        domains: the opened domains, by name.
        runs: the runs, in the order in which they start.

    Raises:
        UserError: a run cannot be trained, or was finished with other settings.
        StoppedError: the job was asked to stop; the runs that were going on have saved their state.
    """
    with part_of_job(processes_of_a_run(config)) as part:
        opened = kind_of(config.data).open_validation(config.data, domains, config.model.seq_length)
        validation = {name: dataset.fingerprint for name, dataset in opened.items()}
        if part.count > 1:  # each part has its own indices, as Megatron does not lock their files
            cache = str(Path(config.data.cache) / f"part{part.index}")
            logging = replace(config.logging, progress=False)
            config = replace(config, data=replace(config.data, cache=cache), logging=logging)
        wanted = [run.run(config, domains) for run in runs]
        missing = on_first_rank(
            lambda: [i for i, run in enumerate(wanted) if not _finished(run, validation)]
        )
        # Parts may find different runs missing, so all runs are shared out by their numbers.
        for task in part.claimed(len(runs)):
            if task in missing:
                _train(wanted[task], validation, runs[task])


def _train(run: TrainingRun, validation: Mapping[str, str], candidate: Candidate) -> None:
    result = trainer.train(run)
    if is_first_rank():
        facts = json.dumps(_facts(run, validation), indent=1)
        write_atomically(run.directory / FINISHED, facts + "\n")
        if not run.config.compare.keep_checkpoints:
            checkpoint.remove_all(run.directory)
    logger.info(
        "%s, seed %d: mean loss %.4f on the domains%s, %.0f s",
        candidate.name,
        candidate.seed,
        result["macro"]["loss"],
        "".join(f", {loss:.4f} on the other sets" for loss in _other_loss(result)),
        result["seconds"],
    )


def _other_loss(result: Result) -> list[float]:
    return [result["validation macro"]["loss"]] if result["validation"] else []


def _finished(run: TrainingRun, validation: Mapping[str, str]) -> bool:
    """Return whether a run has its result; refuse a result of other settings."""
    file = run.directory / FINISHED
    if not file.is_file():
        return False
    before, now = json.loads(file.read_text()), json.loads(json.dumps(_facts(run, validation)))
    for key in (*now, *before):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{run.directory} was made with {key} = {before.get(key)}, but the comparison has "
                f"{now.get(key)}: remove that folder, or set output to another one"
            )
    return True


def _facts(run: TrainingRun, validation: Mapping[str, str]) -> dict[str, Any]:
    """Return what the result of a run depends on, by key."""
    return {
        **run.identity(),
        "train.eval_iters": run.settings.train.eval_iters,
        "data.validation": [[name, fingerprint] for name, fingerprint in validation.items()],
    }


def results(config: Config, runs: Iterable[Candidate]) -> dict[str, dict[int, Result]]:
    """Read the results of finished runs.

    Args:
        config: the whole configuration.
        runs: the runs.

    Returns:
        The results by seed, by mixture, in the order of the runs.

    Raises:
        UserError: a result cannot be read.
    """
    found: dict[str, dict[int, Result]] = {}
    for run in runs:
        found.setdefault(run.name, {})[run.seed] = read_result(run.directory(config))
    return found
