"""How far the weights of a proxy still move over the last quarter of its training.

Another proxy would show how far a proxy's weights can be trusted, but it costs another training.
The drift costs the embedding of a few windows, twice: when three quarters of the training are done,
and at its end. The same windows are drawn both times, so the windows hardly matter. A proxy that
was trained before drift was measured has none.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.validation import preset_of
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.embedding.draws import KeptDraws
from nemo_chameleon.embedding.megatron import megatron_extractor
from nemo_chameleon.embedding.sampler import Sampler
from nemo_chameleon.method.embeddings import Embeddings
from nemo_chameleon.mixture import compute
from nemo_chameleon.provider.plan import EmbeddingPlan
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.train.trainer import Pauses
from nemo_chameleon.utils.arrays import Floats
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)

SAMPLES = 128
"""The most windows per domain that the drift is measured on."""


class Drift:
    """The drift of one proxy; its first embeddings are kept in a folder until they are used."""

    def __init__(
        self,
        config: Config,
        domains: Mapping[str, Domain],
        plan: EmbeddingPlan,
        run: TrainingRun,
        folder: Path,
    ) -> None:
        """Say what is measured; nothing is embedded yet.

        Args:
            config: the whole configuration.
            domains: the opened domains, by name.
            plan: how the domains are embedded.
            run: the proxy's training.
            folder: where finished draws are kept.
        """
        self._config, self._domains, self._windows = config, domains, plan.windows
        self._objective = plan.objective
        self._iteration = run.settings.train.train_iters * 3 // 4
        wanted = config.chameleon.samples
        self._samples = min(wanted, SAMPLES) if isinstance(wanted, int) else SAMPLES
        # Equal runs train equal models, so the draws are found without the model's checkpoint.
        self._model = f"{digest(run.identity())} at iteration {self._iteration}"
        self._folder = folder
        self._draws = KeptDraws(folder, plan.windows, self._model)

    @property
    def pauses(self) -> Pauses:
        """When `trainer.train` must pause, and what it then calls on every rank."""
        return {self._iteration: self._embed} if self._iteration else {}

    def measured(self, sampler: Sampler) -> dict[str, Any]:
        """Compare the weights with those from the finished proxy; every rank must call it.

        Args:
            sampler: embeds with the finished proxy.

        Returns:
            `drift`, the total variation between the weights, for the facts about the proxy in a
            mixture file; nothing if the draws of the unfinished proxy are missing.
        """
        before = on_first_rank(lambda: self._draws.all_of(self._domains, self._samples))
        if before is None:
            return {}
        try:
            after = sampler.draw(self._domains, self._samples)[0]
            return {"drift": on_first_rank(lambda: self._moved(before, after))}
        except UserError as error:
            logger.info("how far the weights still moved is not known: %s", error)
            return {}

    def forget(self) -> None:
        """Remove the kept draws; call it on one rank when the mixture file has been written."""
        self._draws.forget()

    def _embed(self, model: Any) -> None:
        try:
            with megatron_extractor(model) as extractor:
                Sampler(
                    extractor,
                    self._windows,
                    micro_batch_size=self._config.chameleon.micro_batch_size,
                    model=self._model,
                    folder=self._folder,
                    progress=False,
                ).draw(self._domains, self._samples)
        except UserError as error:  # what is only for a warning ends no training
            logger.info("how far the weights still move is not measured: %s", error)

    def _moved(self, before: Embeddings, after: Embeddings) -> float:
        return round(float(np.abs(self._weights(before) - self._weights(after)).sum() / 2), 4)

    def _weights(self, embeddings: Embeddings) -> Floats:
        x = np.stack([embeddings[name].embedding for name in self._domains])
        return compute.weigh([x], self._objective, preset_of(self._config.chameleon))
