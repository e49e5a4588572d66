"""The runs of a comparison: every mixture with every seed, as many at once as fit.

A finished run leaves its result.json and finished.json, which says what it was trained with. A
comparison that is started again trains what is missing; a run that was killed continues from its
newest checkpoint.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from nemo_chameleon.distributed.shared_storage import require_shared
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.plan import Plan
from nemo_chameleon.models import tracker
from nemo_chameleon.models.identity import require_same
from nemo_chameleon.provider.preflight import Prepared, inspect
from nemo_chameleon.provider.resolve import resolve_run
from nemo_chameleon.provider.runs import COMPARED, run_name
from nemo_chameleon.train import trainer
from nemo_chameleon.train.report import Result, read_result
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.ranks import is_first_rank

logger = package_logger(__package__)

FINISHED = "finished.json"


@dataclass(frozen=True)
class Candidate:
    """A run that a comparison asks for.

    Attributes:
        name: of the mixture, which is also the name of a folder.
        seed: the run's train.seed.
        mixture: the weights that it draws by, within the run's bounds.
        plan: what it draws, where the order is streams; None for the order of Megatron's blend.
    """

    name: str
    seed: int
    mixture: Mixture
    plan: Plan | None = None

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
        own = replace(
            config,
            train=replace(config.train, seed=self.seed),
            # With `accept` a result could be of two mixtures.
            data=replace(config.data, on_mixture_change="refuse"),
        )
        return TrainingRun(self._run_name, own, own, domains, self.mixture, self.plan)

    @property
    def _run_name(self) -> str:
        return f"{COMPARED}/{self.name}/seed{self.seed}"


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
    if config.data.stages:
        raise UserError(
            "a comparison trains each of compare.mixtures for the whole run: remove data.stages"
        )
    if config.run is not None:
        raise UserError("a comparison names its runs after compare.mixtures: remove run")
    require_device(config)
    processes, prepared = processes_of_a_run(config), dict[str, Prepared]()
    for value in config.compare.mixtures:
        data = replace(config.data, mixture=value, on_mixture_change="refuse")
        of_this = replace(config, data=data)
        name = run_name(of_this)
        if name in prepared:
            raise UserError(f"compare.mixtures names {name} twice: remove one, or rename the file")
        known = next(iter(prepared.values())).domains if prepared else None
        prepared[name] = inspect(of_this, processes, world_size(), known)
    require_shared(config)
    drawn = {name: resolve_run(of.config, of) for name, of in prepared.items()}
    runs = [
        Candidate(name, seed, run.mixture, run.plan)
        for seed in config.compare.seeds
        for name, run in drawn.items()
    ]
    return runs, next(iter(prepared.values())).domains


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
    for seed in wanted.seeds:
        require_valid(replace(config.train, seed=seed), "compare.seeds: train.", only=("seed",))
    if not config.train.eval_iters:
        raise UserError("a comparison needs losses: set train.eval_iters above 0")
    if config.engine != "megatron":
        raise UserError(
            f"engine={config.engine}: a comparison trains with this package's own loop; set "
            "engine=megatron"
        )
    layout = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    processes = wanted.processes or layout
    if processes % layout:
        raise UserError(
            f"compare.processes={processes}: `parallel` lays a model out over {layout} processes; "
            f"set it to a multiple of {layout}"
        )
    if world_size() % processes:
        raise UserError(
            f"a run has {processes} processes by compare.processes or `parallel`, but the job has "
            f"{world_size()}: start a multiple of {processes}"
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
        UserError: runs were made with other settings, which is found out before any is trained; or
            runs failed, which does not keep the others from being finished.
        StoppedError: the job was asked to stop; the runs that were going on have saved their state.
    """
    with part_of_job(processes_of_a_run(config)) as part:
        opened = kind_of(config.data).open_validation(config.data, domains, config.model.seq_length)
        validation = {name: dataset.fingerprint for name, dataset in opened.items()}
        if part.count > 1:
            config = replace(config, logging=replace(config.logging, progress=False))
        wanted = [run.run(config, domains) for run in runs]

        def find() -> list[int]:
            missing = [i for i, run in enumerate(wanted) if not _finished(run, validation)]
            for i in missing:
                wanted[i].resumable()
            return missing

        missing, failed = on_first_rank(find), list[str]()
        # Parts may find different runs missing, so all runs are shared out by their numbers.
        for task in part.claimed(len(runs)):
            try:
                if task in missing:
                    _train(wanted[task], validation, runs[task])
            except UserError as error:  # every process of the run raises it
                failed.append(str(error))
                logger.warning("%s", error)
        if failed and is_first_rank():
            part.failed(failed)
    if failures := part.failures():
        raise UserError(
            f"{'; '.join(failures)}. All other runs are finished: leave a mixture or a seed out, "
            "or change the settings and `output`"
        )


def _train(run: TrainingRun, validation: Mapping[str, str], candidate: Candidate) -> None:
    result = trainer.train(run)
    if is_first_rank():
        facts = json.dumps(_facts(run, validation), indent=1)
        write_atomically(run.directory / FINISHED, facts + "\n")
        if not run.config.compare.keep_checkpoints:
            tracker.remove_all(run.directory)
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
    before = json.loads(file.read_text())
    now = json.loads(json.dumps(_facts(run, validation)))
    remedy = f"remove {run.directory.parent.parent}, or set output to another folder"
    require_same(
        before, {**dict.fromkeys(before), **now}, str(run.directory), "the comparison", remedy
    )
    return True


def _facts(run: TrainingRun, validation: Mapping[str, str]) -> dict[str, Any]:
    """Return what the result of a run depends on, by key."""
    return {
        **run.identity(),
        # Initial weights depend on both, and no checkpoint replaces them.
        "model.use_cpu_initialization": run.settings.model.use_cpu_initialization,
        "parallel": asdict(run.settings.parallel),
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
