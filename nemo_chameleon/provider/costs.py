"""What the start of a run costs, calculated from measured rates.

The rates are of two CPU cores and a local disk; a network file system takes longer for every call.
Those of Megatron's blend are in docs/scale.md. The calls of streams were counted with strace for
100 domains of one dataset each, on megatron-core 0.16.1. The machine was busy meanwhile: opening a
domain took 6.8 ms in place of 1.3. The seconds of streams, 13.3 and 2 ms, are divided by as much.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_chameleon.data.blend import blended_sizes
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kind import DataKind
from nemo_chameleon.data.planned import asked_of_blend
from nemo_chameleon.mixture.plan import Plan

RANKS_OF_NODE = 8
"""So many ranks are taken to share a node."""
# Opening, checking and fingerprinting a dataset, once per node.
_OPEN_CALLS, _OPEN_SECONDS = 18, 1.3e-3
# Megatron's builder opening a dataset whose indices are whole, on every rank; and in addition the
# first rank, which verifies the indices and reads the numbers of sequences.
_BLEND_CALLS, _BLEND_SECONDS, _BLEND_FIRST = 6, 0.3 / 22, 31
# A rank verifying the indices of an epoch, and every rank opening them when it first draws.
_VERIFY_CALLS, _VERIFY_SECONDS = 22, 2.6e-3
_EPOCH_CALLS, _EPOCH_SECONDS = 18, 4e-4
_VERIFIED = 4.6e9 / 7.1  # bytes of indices per second, partly from the disk
_MADE = 45e6  # bytes of indices per second and core, from 22 domains without their order
_ORDER = 2.6e-9, 0.85e-9  # seconds per sample and dataset of Megatron's order: 22 of them, or more
_FEW = 100  # datasets
# Bytes of Megatron's arrays: document_index; sample_index and shuffle_index; the two of a blend.
_DOCUMENT, _SAMPLE, _BLENDED = 4, 8 + 4, 2 + 8
_SMALL = 2000  # bytes of the arrays' headers and of the description, for a dataset


@dataclass(frozen=True)
class Indices:
    """The training indices of a run on the disk.

    Attributes:
        folders: number of their folders.
        datasets: number of Megatron's datasets that have indices, counted once for each epoch.
        size: their size in bytes.
        kept: bytes of tokens and packs that are kept beside them, to finetune.
    """

    folders: int
    datasets: int
    size: int
    kept: int


@dataclass(frozen=True)
class Start:
    """What happens between the start of a run and its first step, besides building the model.

    Attributes:
        calls: metadata calls (stat and open) of all ranks.
        of_first_rank: those of the first rank.
        seconds: how long all ranks wait for the data if the indices are there.
        making: how long they wait in addition where the indices are not there.
    """

    calls: int
    of_first_rank: int
    seconds: float
    making: float


def indices_of(
    plan: Plan, domains: Mapping[str, Domain], kind: DataKind, *, seq_length: int, streams: bool
) -> Indices:
    """Calculate the size of the indices that a run draws from.

    Args:
        plan: the plan of the run; of Megatron's order, its only stage.
        domains: the opened domains by name.
        kind: the kind of their data.
        seq_length: tokens per sample.
        streams: whether the run draws in streams, or else in Megatron's order.

    Returns:
        The sizes.
    """
    counts = {n: c for n, c in plan.counts(plan.samples).items() if c and n in domains}
    asked = asked_of_blend(kind, domains, plan)
    if not streams:
        asked = blended_sizes(plan.stages[0].weights, plan.samples)
    folders = 0 if streams else 1
    datasets = size = kept = 0
    for name, count in counts.items():
        domain, per_epoch = domains[name], epoch_samples(domains[name], kind, seq_length)
        several = len(domain.datasets)
        if kind.packed:
            files = [f for prefix in domain.datasets for f in Path(prefix).parent.iterdir()]
            kept += sum(file.stat().st_size for file in files)
            folders += int(streams)
            datasets += several
            continue
        one_epoch = _DOCUMENT * domain.documents + _SAMPLE * per_epoch
        epochs = 0
        if name in asked:  # whole epochs of tokens, for a number of samples that is a little larger
            epochs = math.ceil((asked[name] * seq_length + 1) / domain.tokens)
            size += epochs * one_epoch + several * _SMALL
            datasets += several
            folders += int(streams)
        if not streams:
            size += _BLENDED * count if several > 1 else 0
            continue
        fresh = max(1, math.ceil(count / per_epoch) - epochs)
        size += fresh * (one_epoch + several * _SMALL)
        datasets += fresh * several
        folders += fresh
    size += 0 if streams else _BLENDED * plan.samples
    return Indices(folders, datasets, size, kept)


def epoch_samples(domain: Domain, kind: DataKind, seq_length: int) -> int:
    """Return how many samples a run draws of a domain before one of them comes again.

    Args:
        domain: the domain.
        kind: the kind of its data.
        seq_length: tokens per sample.

    Returns:
        At least 1.
    """
    if kind.packed:
        return max(1, domain.pass_tokens(seq_length) // seq_length)
    # A sample takes one token more than its length, for its last label.
    return max(1, sum(int(max(0, size - 1)) // seq_length for size in domain.datasets.values()))


def start_of(
    indices: Indices, domains: Mapping[str, Domain], samples: int, ranks: int, *, streams: bool
) -> Start:
    """Calculate what the start of a run costs.

    Args:
        indices: the indices of the run.
        domains: the opened domains by name.
        samples: samples of the run.
        ranks: number of ranks.
        streams: whether the run draws in streams, or else in Megatron's order.

    Returns:
        The costs. In streams a rank opens an epoch when it first draws from it, and the calls for
        it are counted as if this were at the start.
    """
    opened = sum(len(domain.datasets) for domain in domains.values())
    nodes = math.ceil(ranks / RANKS_OF_NODE)
    making, opening = indices.size / _MADE, _OPEN_CALLS * opened
    reading = indices.size / _VERIFIED + _VERIFY_SECONDS * indices.folders
    if streams:  # the ranks verify the indices together, each those of some domains
        verifying, each = _VERIFY_CALLS * indices.folders, _EPOCH_CALLS * opened
        sharing = min(ranks, len(domains))
        own, seconds = math.ceil(verifying / sharing), reading / sharing + _EPOCH_SECONDS * opened
    else:
        verifying, each = _BLEND_FIRST * opened, _BLEND_CALLS * opened
        own, seconds = verifying, reading + _BLEND_SECONDS * opened
        making += samples * opened * _ORDER[opened > _FEW]
    calls = nodes * opening + verifying + ranks * each
    return Start(calls, opening + own + each, seconds + opened * _OPEN_SECONDS, making)
