"""The training set of a run that follows a plan.

It asks the plan for the domain of a sample, and that domain's stream for the sample itself. Neither
needs an index of the whole run, so the weights may change while the run goes on.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from megatron.core.datasets.utils import Split
from torch.utils.data import Dataset

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.blend import blended_sizes
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.epochs import EpochDatasets, Epochs
from nemo_chameleon.data.kind import DataKind
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.streams import OpenDatasets, Stream
from nemo_chameleon.distributed.collectives import on_every_rank, on_first_rank, share_of_rank
from nemo_chameleon.mixture.plan import Plan, PlannedOrder
from nemo_chameleon.utils.errors import UserError

_OPENED_AT_ONCE = 8  # on storage that is shared, opening is waiting


class PlannedDataset(Dataset[dict[str, Any]]):
    """The samples of a run in order.

    Attributes:
        plan: the plan.
        streams: the samples of each domain, by the position that a sample's `dataset_id` has; None
            for domains that are not drawn.
    """

    # Hosts ask a training set which split it is.
    split = index_split = Split.train

    def __init__(self, plan: Plan, streams: Mapping[str, Stream], names: Sequence[str]) -> None:
        """Take a plan and the streams of its domains.

        Args:
            plan: the plan.
            streams: those of the domains that are drawn, by name.
            names: the domains; a sample's `dataset_id` is a position in them.
        """
        self.plan = plan
        self.streams = [streams.get(name) for name in names]
        self._order = PlannedOrder(plan, names)

    def __len__(self) -> int:
        """Return the number of samples of the run."""
        return self.plan.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a sample.

        Args:
            index: number of the sample in the run.

        Returns:
            Tensors by name, and `dataset_id`.

        Raises:
            IndexError: the run has no such sample, or has drawn it in the order of a blend.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the samples of a micro-batch; torch's data loader asks for them together.

        Args:
            indices: numbers of samples in the run.

        Returns:
            The samples, as `__getitem__` returns each.

        Raises:
            IndexError: as `__getitem__`.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"sample {index} of {len(self)}")
        samples, places = [], self._order.at(np.array(indices, np.int64))
        for index, position, number in zip(indices, *map(np.ndarray.tolist, places), strict=True):
            if position < 0:
                raise IndexError(f"sample {index} was drawn in the order of Megatron's blend")
            stream = self.streams[position]
            assert stream is not None, "the order draws from domains of the plan alone"
            samples.append({"dataset_id": position, **stream[number]})
        return samples


def planned_dataset(
    data: DataConfig,
    domains: Mapping[str, Domain],
    plan: Plan,
    *,
    seq_length: int,
    seed: int,
    dataset_class: type | None = None,
) -> PlannedDataset:
    """Build the training set of a plan; once the ranks have met, every rank must call it.

    The ranks verify the indices in data.cache together, and the first one makes those that are not
    there. Every process opens an index when it first draws from it.

    Args:
        data: the data configuration.
        domains: the opened domains by name.
        plan: the plan; each of its domains must be there.
        seq_length: tokens per sample.
        seed: seed of the order of the samples.
        dataset_class: a class of datasets; None for the one of data.dataset.

    Returns:
        The training set. A sample's `dataset_id` is its domain's position in `domains`.

    Raises:
        UserError: a domain does not fill a sample, or the indices cannot be read or written.
    """
    counts = plan.counts(plan.samples)
    made = {
        name: EpochDatasets(
            data, domains[name], seq_length=seq_length, seed=seed, dataset_class=dataset_class
        )
        for name, count in counts.items()
        if count and name in domains
    }
    asked = asked_of_blend(kind_of(data), domains, plan)
    # Each rank verifies its part of the indices, which is reading all of them.
    mine = share_of_rank(made)

    def find() -> dict[str, Epochs | None]:
        with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
            found = pool.map(lambda name: made[name].found(counts[name], asked.get(name)), mine)
            return dict(zip(mine, found, strict=True))

    parts = on_every_rank(find)
    epochs = {name: found for part in parts for name, found in part.items() if found is not None}
    epochs |= on_first_rank(
        lambda: {n: one.made(counts[n], asked.get(n)) for n, one in made.items() if n not in epochs}
    )
    opened = OpenDatasets()
    streams = {name: Stream(one, epochs[name], opened) for name, one in made.items()}
    gone = [name for name in plan.names if name not in domains]
    return PlannedDataset(plan, streams, [*domains, *gone])


def asked_of_blend(kind: DataKind, domains: Mapping[str, Domain], plan: Plan) -> dict[str, int]:
    """Return how many samples Megatron was asked for of each domain, where a run began in a blend.

    Args:
        kind: the kind of the data.
        domains: the opened domains by name.
        plan: the plan.

    Returns:
        Samples by domain name; none where the run did not begin in a blend.

    Raises:
        UserError: the datasets of the blend cannot be ordered again as they were.
    """
    begun = plan.stages[0].blended
    if begun is None:
        return {}
    if not kind.reorders_epochs:
        _require_one_dataset_each(begun.weights, domains)
    return blended_sizes(begun.weights, begun.samples)


def _require_one_dataset_each(blended: Iterable[str], domains: Mapping[str, Domain]) -> None:
    go_on = "set data.on_mixture_change=accept, which may repeat samples"
    for name in blended:
        if name not in domains:
            raise UserError(
                f"the run began in the order of Megatron's blend with domain {name!r}, which is "
                "gone: keep it in data.domains, and leave it out of the mixture with data.stages="
                f"'[{{mixture: FILE}}]', where FILE has no weight for it; or {go_on}"
            )
    several = [name for name, domain in domains.items() if len(domain.datasets) > 1]
    if several:
        raise UserError(
            f"domain {several[0]!r} has several parts, so the order of Megatron's blend cannot be "
            f"continued: {go_on}, or begin the next run with data.order=streams"
        )
