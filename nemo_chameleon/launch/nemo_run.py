"""Proxy, mixture and base model as a NeMo-Run experiment of three tasks.

The tasks are those that recipes/slurm/chain.sh submits. Each task starts when the one before it has
ended, and continues with what that one has left.
"""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_chameleon.utils.errors import UserError

if TYPE_CHECKING:
    import nemo_run

STEPS = ("train_proxy", "compute_mixture", "pretrain_chameleon")
"""The recipes of the three tasks, in their order."""


def chain(
    executor: "nemo_run.SlurmExecutor",
    config: str,
    overrides: Sequence[str] = (),
    *,
    checkout: str | None = None,
    proxy_nodes: int = 1,
    seconds_to_save: int = 300,
    title: str = "chameleon",
) -> "nemo_run.Experiment":
    """Return an experiment of three SLURM tasks, one after the other; nothing is submitted yet.

    Enter the result as a context: `dryrun()` then prints the three scripts, and `run(detach=True)`
    submits them. A task whose time is nearly up saves its state, ends and goes back into the queue.
    When it starts again, it continues from that state.

    Args:
        executor: the executor of the base model's task, which gets whole nodes. One torchrun per
            node starts as many processes as the task has GPUs there. With `retries` a task that
            fails is started again.
        config: path of the configuration, as the nodes see it from the root of the checkout.
        overrides: settings `key=value` that replace those of the file.
        checkout: path of a checkout of this project, as the nodes see it. None if the executor's
            packager brings a checkout, as GitArchivePackager does from within one.
        proxy_nodes: number of nodes of the first two tasks.
        seconds_to_save: seconds before a task's time is up at which it is asked to save.
        title: the title of the experiment.

    Returns:
        The experiment.

    Raises:
        UserError: NeMo-Run is not installed.
    """
    try:
        import nemo_run
    except ImportError as error:
        raise UserError(f"NeMo-Run is not installed ({error}): pip install nemo_run") from error

    # NeMo-Run starts a task again after every failure or after none. This is for exit code 254
    # alone, with which a task that was asked to save ends.
    when_asked = """trap '[[ ${exitcode:-} != 254 ]] || scontrol requeue "$SLURM_JOB_ID"' EXIT"""
    enter = [] if checkout is None else [f"cd {shlex.quote(checkout)}"]
    with nemo_run.Experiment(title) as experiment:
        before: list[str] = []
        for step in STEPS:
            task = executor.clone()
            # There is one SLURM task per node; its torchrun starts the processes.
            tasks = executor.ntasks_per_node
            gpus = executor.gpus_per_node or (executor.gpus_per_task or 0) * tasks
            processes = executor.torchrun_nproc_per_node or gpus or tasks
            task.ntasks_per_node, task.launcher = 1, None
            task.gpus_per_node, task.gpus_per_task = gpus or None, None
            task.cpus_per_task = executor.cpus_per_task and executor.cpus_per_task * tasks
            task.exclusive, task.mem = executor.exclusive or True, executor.mem or "0"
            # NeMo-Run's script sets this variable to the address of the first node.
            own = {"NPROC": str(processes), "RENDEZVOUS_HOST": f"${executor.HEAD_NODE_IP_VAR}"}
            task.env_vars = {**own, **executor.env_vars}
            if step != STEPS[-1]:
                task.nodes = proxy_nodes
            task.signal = f"USR1@{seconds_to_save}"
            task.setup_lines = "\n".join(filter(None, [executor.setup_lines, when_asked]))
            given = executor.additional_parameters or {}
            task.additional_parameters = {"kill_on_invalid_dep": "yes", **given}
            command = ["recipes/slurm/on_node.sh", f"recipes/{step}.py", "--config", config]
            script = "\n".join([*enter, f"exec bash {shlex.join([*command, *overrides])}\n"])
            before = [
                experiment.add(
                    nemo_run.Script(inline=script), executor=task, name=step, dependencies=before
                )
            ]
    return experiment
