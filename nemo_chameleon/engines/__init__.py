"""Who trains the base model: this package, or a host by its own training entry.

What a configuration's `engine` names:

    train_megatron.py    train/trainer.py, the default
    train_nemo.py        NeMo 2, given this package's configuration in its own terms
    train_bridge.py      Megatron-Bridge, the same

What users of a host put into their own scripts: nemo.py, nemo1.py, bridge.py, megatron_lm.py. All
of them ask host.py which datasets are drawn, and by which weights.
"""

from importlib import import_module, util

from nemo_chameleon.config.schema import ENGINES, Config
from nemo_chameleon.config.validation import check
from nemo_chameleon.distributed.device import require_device
from nemo_chameleon.distributed.processes import world_size
from nemo_chameleon.utils.errors import UserError

_OWN_ALONE = {
    "data.dataset": "finetune in a host by a script of its own: docs/hosts",
    "data.validation": "a host validates on the domains' own splits",
    "checkpoint.resume": "a host goes on from what it finds; set another output",
    "checkpoint.pretrained_checkpoint": "start a host from a checkpoint in a script of its own",
}
"""Keys that no host is given, and what to do about it."""


def train(config: Config) -> None:
    """Resolve the mixture and train the base model on it, with `config.engine`.

    Raises:
        UserError: naming the culprit and the next step.
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
    except ModuleNotFoundError:  # of the package that it would be in
        return False
