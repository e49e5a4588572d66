"""The training set of a run that follows a plan.

It asks the plan for the domain of a sample, and that domain's stream for the sample itself. Neither
needs an index of the whole run, so the weights may change while the run goes on.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from megatron.core.datasets.utils import Split
from torch.utils.data import Dataset

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.blend import blended_sizes
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.epochs import EpochDatasets, Epochs
from nemo_chameleon.data.streams import Blocks, Stream
from nemo_chameleon.distributed.collectives import on_every_rank, on_first_rank, share_of_rank
from nemo_chameleon.mixture.plan import Plan, PlannedOrder

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
        self._order = Blocks(PlannedOrder(plan, names).draws, plan.samples)

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
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        position, number = self._order.at(int(index))
        if position < 0:
            raise IndexError(f"sample {index} was drawn in the order of Megatron's blend")
        stream = self.streams[position]
        assert stream is not None, "the order draws from domains of the plan alone"
        return {"dataset_id": position, **stream[number]}


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
    begun = plan.stages[0].blended
    asked = {} if begun is None else blended_sizes(begun.weights, begun.samples)
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
    streams = {name: Stream(one, epochs[name]) for name, one in made.items()}
    gone = [name for name in plan.names if name not in domains]
    return PlannedDataset(plan, streams, [*domains, *gone])
