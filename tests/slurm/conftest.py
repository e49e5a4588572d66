"""Fixtures of the tests that submit jobs to a real SLURM."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import Cluster, shared_cluster
from project import ROOT


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a cluster whose jobs start one process per node, in this environment."""
    with shared_cluster(tmp_path_factory.mktemp("cluster"), ROOT) as running:
        yield running


@pytest.fixture(scope="module")
def corpus(slurm: Cluster, request: pytest.FixtureRequest) -> Path:
    """The corpus of all tests, also of those in other processes."""
    return Path(slurm.once("corpus", lambda: str(request.getfixturevalue("corpus"))))
