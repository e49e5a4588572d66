"""Proxy, mixture and base model as a NeMo-Run experiment: what `recipes/slurm/chain.sh` submits."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_chameleon.utils.errors import UserError

if TYPE_CHECKING:
    import nemo_run

STEPS = ("train_proxy", "compute_mixture", "pretrain_chameleon")
"""Recipes, each of which goes on with what the one before it left."""


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
    """Three tasks on SLURM, each after the one before it; nothing is submitted yet.

    With the result as a context, `dryrun()` prints the three scripts and `run(detach=True)` submits
    them. A task whose time is nearly up saves, ends and goes back into the queue, where it goes on.

    Args:
        executor: of the base model's task, which gets whole nodes; one torchrun a node starts as
            many processes as it has GPUs there. With `retries` a task that fails is started again.
        config: file, as the nodes see it from the checkout's root.
        overrides: `key=value`, over the file.
        checkout: folder of this project's checkout, as the nodes see it. None: what the executor's
            packager brings is one, as GitArchivePackager's is that is used from within a checkout.
        proxy_nodes: of the first two tasks.
        seconds_to_save: before a task's time is up.
        title: of the experiment.

    Raises:
        UserError: NeMo-Run is not installed.
    """
    try:
        import nemo_run
    except ImportError as error:
        raise UserError(f"pip install nemo_run: {error}") from error

    # NeMo-Run itself starts again what failed for any reason, or nothing.
    when_asked = """trap '[[ ${exitcode:-} != 254 ]] || scontrol requeue "$SLURM_JOB_ID"' EXIT"""
    enter = [] if checkout is None else [f"cd {shlex.quote(checkout)}"]
    with nemo_run.Experiment(title) as experiment:
        before: list[str] = []
        for step in STEPS:
            task = executor.clone()
            # One task a node, which starts the processes.
            tasks = executor.ntasks_per_node
            gpus = executor.gpus_per_node or (executor.gpus_per_task or 0) * tasks
            processes = executor.torchrun_nproc_per_node or gpus or tasks
            task.ntasks_per_node, task.launcher = 1, None
            task.gpus_per_node, task.gpus_per_task = gpus or None, None
            task.cpus_per_task = executor.cpus_per_task and executor.cpus_per_task * tasks
            task.exclusive, task.mem = executor.exclusive or True, executor.mem or "0"
            # NeMo-Run's script finds the first node.
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
