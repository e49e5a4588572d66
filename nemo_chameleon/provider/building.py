"""The indices of a run, made before it in several processes, so that no GPU waits for them.

Each index has a folder in data.cache that is whole or not there, and that the run finds by the same
facts. So a build that was killed goes on where it was, and the run that comes after makes nothing.
"""

import logging
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.validation import check_drawn
from nemo_chameleon.data import sft
from nemo_chameleon.data.blend import validation_datasets
from nemo_chameleon.data.epochs import EpochDatasets
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.planned import asked_of_blend
from nemo_chameleon.distributed.processes import process_group, world_size
from nemo_chameleon.provider.preflight import STANDS_FOR, foresee, mixtures_of
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.console import progress_bar
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.workers import workers

_BROKEN = (
    "a process that makes indices has ended by itself: if memory ran out, use fewer --processes; "
    "the same command goes on from there"
)


class Built(NamedTuple):
    """What a build has made.

    Attributes:
        files: number of files.
        size: their size in bytes.
    """

    files: int
    size: int


class _Done(NamedTuple):
    """What comes of a task: progress, and the tasks that became known by it."""

    progress: int
    tasks: "tuple[_Task, ...]" = ()


class _Task(NamedTuple):
    """A part of the work that one process does: `do` is called with a context and `arguments`."""

    do: Callable[..., _Done]
    arguments: tuple[Any, ...] = ()


def build(config: Config, processes: int) -> Built:
    """Make all that a run draws from: its indices and, to finetune, its tokens and packs.

    Args:
        config: the whole configuration.
        processes: number of processes that work.

    Returns:
        What was made; nothing if all of it was there.

    Raises:
        UserError: the run cannot be drawn, a mixture has to be computed first, or something cannot
            be written.
    """
    check_drawn(config)
    if world_size() > 1:
        raise UserError(
            f"plan build starts its own processes, but WORLD_SIZE={world_size()}: run it without "
            "torchrun, with --processes"
        )
    before = _files(config.data.cache)
    packed = kind_of(config.data).packed
    if packed and processes > 1:
        _tokenise(config, processes)
    prepared, run = foresee(config)
    if any(STANDS_FOR in mixture.method for mixture in mixtures_of(prepared)):
        raise UserError(
            "the indices depend on the weights of the run, which are not computed yet: compute "
            "them with `nemo-chameleon mixture compute` and the same settings, then build"
        )
    if run.plan is None and config.engine != "megatron":
        raise UserError(
            f"engine={config.engine} makes the indices of Megatron's order in a folder of its own: "
            "set data.order=streams, or start the run without a build"
        )
    with progress_bar(
        desc="indices", total=config.train.samples, unit=" samples", unit_scale=True, delay=5
    ) as bar:
        # Tokens and packs are there by now, and what is left to make of them is small.
        _do(1 if packed else processes, run, _tasks(run), bar.update)
    after = _files(config.data.cache)
    made = [size for file, size in after.items() if file not in before]
    return Built(len(made), sum(made))


def _files(cache: str) -> dict[Path, int]:
    """Return the sizes of the files in data.cache, of finished folders alone."""
    folders = (path for place in ("indices", "sft") for path in (Path(cache) / place).glob("*"))
    whole = (folder for folder in folders if "." not in folder.name and folder.is_dir())
    return {file: file.stat().st_size for folder in whole for file in folder.iterdir()}


def _tasks(run: TrainingRun) -> list[_Task]:
    """Return the tasks that are known at the beginning, the largest ones first."""
    tasks = []
    if run.plan is None:
        tasks.append(_Task(_training))
    else:
        asked = asked_of_blend(run.kind, run.domains, run.plan)
        counts = run.plan.counts(run.plan.samples)
        drawn = {name: count for name, count in counts.items() if count and name in run.domains}
        for name in sorted(drawn, key=lambda name: -run.domains[name].tokens):
            if name in asked:  # where the epochs begin is known once the blend's index is there
                tasks.append(_Task(_stream, (name, drawn[name], asked[name])))
            else:
                tasks.append(_Task(_first_epoch, (name, drawn[name])))
    if run.settings.train.eval_iters and run.config.engine == "megatron":
        tasks.append(_Task(_validation))
    return tasks


def _training(run: TrainingRun) -> _Done:
    with process_group():  # Megatron's builder asks for it
        run.training_dataset()
    return _Done(run.settings.train.samples)


def _validation(run: TrainingRun) -> _Done:
    with process_group():
        validation_datasets(run.config.data, run.domains, **_sizes(run))
    return _Done(0)


def _stream(run: TrainingRun, name: str, samples: int, asked: int) -> _Done:
    _epochs(run, name).made(samples, asked)
    return _Done(samples)


def _first_epoch(run: TrainingRun, name: str, samples: int) -> _Done:
    """Make a domain's first epoch, by which it is known how many there are."""
    epochs = _epochs(run, name)
    size = sum(epochs.made_epoch(0)[1].values())
    if epochs.reordered:
        return _Done(samples)
    later = (_Task(_epoch, (name, samples, size, n)) for n in range(1, -(-samples // size)))
    return _Done(min(samples, size), tuple(later))


def _epoch(run: TrainingRun, name: str, samples: int, size: int, number: int) -> _Done:
    _epochs(run, name).made_epoch(number)
    return _Done(min(size, samples - number * size))


def _epochs(run: TrainingRun, name: str) -> EpochDatasets:
    return EpochDatasets(run.config.data, run.domains[name], **_sizes(run))


def _sizes(run: TrainingRun) -> dict[str, Any]:
    return {"seq_length": run.settings.model.seq_length, "seed": run.settings.train.seed}


def _tokenise(config: Config, processes: int) -> None:
    """Make the tokens and packs of each domain and validation set, a process for each."""
    tasks = [_Task(_examples, (name,)) for name in config.data.domains]
    tasks += [_Task(_held_out, (name,)) for name in config.data.validation]
    with progress_bar(desc="tokens", total=len(tasks), unit=" sets", delay=5) as bar:
        _do(processes, config, tasks, bar.update)


def _examples(config: Config, name: str) -> _Done:
    data, length = config.data, config.model.seq_length
    evaluated = bool(config.train.eval_iters) and name not in data.validation
    alone = replace(data, domains={name: data.domains[name]}, validation={})
    domains = kind_of(data).open_domains(alone, length)
    kind_of(data).require_samples(alone, domains, length, "model.", evaluated)
    return _Done(1)


def _held_out(config: Config, name: str) -> _Done:
    data = replace(config.data, validation={name: config.data.validation[name]})
    kind_of(data).open_validation(data, {}, config.model.seq_length)
    return _Done(1)


def _do(processes: int, context: Any, tasks: list[_Task], advance: Callable[[int], object]) -> None:
    """Do tasks, and those that become known meanwhile."""
    waiting = list(tasks)
    if processes == 1:
        while waiting:
            task = waiting.pop(0)
            done = task.do(context, *task.arguments)
            advance(done.progress)
            waiting += done.tasks
        return
    with workers(processes, _begin, (context,), _BROKEN) as pool:
        running = {pool.submit(_in_worker, task) for task in waiting}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done = future.result()
                advance(done.progress)
                running |= {pool.submit(_in_worker, task) for task in done.tasks}


_context: Any = None


def _begin(context: Any) -> None:
    global _context  # what a process of the pool keeps between tasks
    _context = context
    # The process that started this one opens the same domains later, and says the same of them.
    logging.getLogger(sft.__name__).setLevel(logging.ERROR)


def _in_worker(task: _Task) -> _Done:
    return task.do(_context, *task.arguments)
