"""The proxies that a configuration trains, one after another, with proxy.count seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.embedding.megatron import MegatronProxy
from nemo_chameleon.embedding.registry import Proxy
from nemo_chameleon.models import tracker
from nemo_chameleon.models.pretrained import PretrainedCheckpoint
from nemo_chameleon.provider.drift import Drift
from nemo_chameleon.provider.plan import EmbeddingPlan
from nemo_chameleon.provider.runs import proxy_runs
from nemo_chameleon.train import trainer
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)


@dataclass(frozen=True)
class EmbeddingProxy:
    """A model that embeds, and what is known about its training.

    Attributes:
        proxy: the model.
        facts: about its training, for the mixture file; empty for a model that existed.
        drift: how far its weights still moved; None for a model that existed.
    """

    proxy: Proxy
    facts: Mapping[str, Any]
    drift: Drift | None


def train_proxies(
    config: Config, domains: Mapping[str, Domain], plan: EmbeddingPlan
) -> list[EmbeddingProxy]:
    """Train the proxies, or continue their training; every rank must call it.

    Args:
        config: the whole configuration.
        domains: the opened domains, by name.
        plan: how the domains are embedded.

    Returns:
        The proxies, in the order of their seeds.
    """
    runs = proxy_runs(config, domains)
    trained = []
    for number, run in enumerate(runs, start=1):
        if len(runs) > 1:
            logger.info("proxy %d of %d", number, len(runs))
        drift = Drift(config, domains, plan, run, kept_draws(config))
        result = trainer.train(run, drift.pauses)
        facts = {key: result[key] for key in ("loss", "parameters", "tokens", "iterations")}
        trained.append(EmbeddingProxy(_newest(run, config), facts, drift))
    return trained


def kept_draws(config: Config) -> Path:
    """Return the folder where finished draws wait for the mixture file.

    Args:
        config: the whole configuration.

    Returns:
        A folder beside the mixture file, which may not exist.
    """
    file = Path(config.chameleon.file)
    return file.with_name(f"{file.stem}.partial")


def _newest(run: TrainingRun, config: Config) -> Proxy:
    def find() -> MegatronProxy:
        path = tracker.newest(run.directory)
        assert path is not None, "trainer.train leaves a checkpoint"
        found = PretrainedCheckpoint(path, config.proxy, run.vocab_size)
        _ = found.identity  # the other ranks get it with the rest, and read no file for it
        return MegatronProxy(found)

    return on_first_rank(find)
