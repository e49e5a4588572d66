"""Engines that train the base model: this package's own loop, and hosts.

A configuration's `engine` names one of these:

    train_megatron.py    train/trainer.py, the default
    train_nemo.py        NeMo 2, with this package's configuration in NeMo's terms
    train_bridge.py      Megatron-Bridge, with this package's configuration in Bridge's terms

Users of a host import nemo.py, nemo1.py, bridge.py or megatron_lm.py in scripts of their own. All
hosts get their datasets and weights from host.py and saved.py; where a run has several stages,
plans.py has its plan, and host_datasets.py reads the plan's samples as the host reads its own.

Three names must not change, because NeMo records them in its checkpoints:
`nemo_chameleon.engines.train_nemo.Vocabulary`, `nemo_chameleon.engines.nemo.MixtureDataModule` and
`nemo_chameleon.engines.sft.PackedSFTDataset`. A checkpoint is loaded by these names.
"""

from importlib import import_module, util

from nemo_chameleon.config.schema import ENGINES, Config
from nemo_chameleon.config.validation import check
from nemo_chameleon.distributed.device import require_device
from nemo_chameleon.distributed.processes import world_size
from nemo_chameleon.utils.errors import UserError

# Keys that have no effect in a host, and what to do instead.
_OWN_ALONE = {
    "data.dataset": "to finetune in a host, write a script for it as docs/hosts shows",
    "data.validation": "remove it, because a host evaluates on the domains' own splits",
    "checkpoint.resume": "remove it; a host always resumes, unless output is a new folder",
    "checkpoint.pretrained_checkpoint": "to start from it in a host, write a script for that host",
}


def train(config: Config) -> None:
    """Resolve the mixture and train the base model on it, with `config.engine`.

    Every process of the job must call it.

    Args:
        config: the whole configuration.

    Raises:
        UserError: the run cannot start; the message names the culprit and the next step.
    """
    check(config, world_size())
    needed, package = ENGINES[config.engine]
    if not _is_there(needed):
        raise UserError(
            f"engine={config.engine} needs {package}, which is not installed here; "
            "`nemo-chameleon doctor` says what to install"
        )
    for key, theirs in _OWN_ALONE.items() if config.engine != "megatron" else ():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value != getattr(getattr(Config(), section), name):
            raise UserError(f"{key}={value} is for engine=megatron: {theirs}")
    require_device(config)
    import_module(f"nemo_chameleon.engines.train_{config.engine}").train(config)


def _is_there(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around the module is not installed
        return False
