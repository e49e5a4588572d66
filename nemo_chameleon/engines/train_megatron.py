"""engine=megatron: this package's own training loop on megatron-core."""

from nemo_chameleon import provider
from nemo_chameleon.config.schema import Config
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.train import report, trainer
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)


def train(config: Config) -> None:
    """Resolve the mixture, train the base model on it, and log its loss by domain.

    Args:
        config: the whole configuration.
    """
    with process_group():
        prepared = provider.prepare(config)
        result = trainer.train(provider.resolve_run(config, prepared))
        logger.info("%s", report.compare([result]))
