"""engine=megatron: this package's own training loop on megatron-core."""

from nemo_chameleon import parallel, provider, report, training
from nemo_chameleon.schema import Config


def train(config: Config) -> None:
    """Resolve the mixture, train the base model on it, print its loss by domain."""
    with parallel.processes():
        domains = provider.prepare(config)
        mixture = provider.resolve_mixture(config, domains)
        result = training.train(provider.base_job(config, domains, mixture))
        parallel.say(report.compare([result]))
