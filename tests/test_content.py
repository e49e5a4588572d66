"""models/content.py: a checkpoint is known by its weights, whoever trained it and however long."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_chameleon import Mixture, provider
from nemo_chameleon.config.validation import preset_of
from nemo_chameleon.embedding.megatron import MegatronProxy
from nemo_chameleon.embedding.registry import proxy_from_record
from nemo_chameleon.models.content import digests_of, weights_digest
from nemo_chameleon.models.pickles import read_metadata
from nemo_chameleon.models.pretrained import PretrainedCheckpoint
from nemo_chameleon.provider.stored import stored_mixture
from nemo_chameleon.train import trainer
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")


def trained(job: TrainingRun, output: Path, seed: int = 1234) -> Path:
    """Train a run without pauses for checkpoints, in a folder of its own; return its checkpoint."""
    train = replace(job.config.train, seed=seed)
    config = replace(job.config, output=str(output), train=train)
    trainer.train(replace(job, settings=config, config=config))
    return output / "base" / "iter_0000006"


@pytest.fixture
def one(job: TrainingRun, tmp_path: Path) -> Path:
    """Return a checkpoint."""
    return trained(job, tmp_path / "one")


def proxy_of(job: TrainingRun, path: Path) -> MegatronProxy:
    """Return the proxy that a checkpoint is."""
    return MegatronProxy(PretrainedCheckpoint(path, job.settings, job.vocab_size))


def test_equal_training_gives_equal_digests(job: TrainingRun, one: Path, tmp_path: Path) -> None:
    """Two proxies that were trained alike are one proxy to a mixture file; other seeds are not."""
    time.sleep(0.1)
    other, another = trained(job, tmp_path / "other"), trained(job, tmp_path / "seed", 5)
    states = [json.loads((path / "state.json").read_text()) for path in (one, other)]
    assert states[0].pop("seconds") != states[1].pop("seconds")
    assert states[0] == states[1]
    assert weights_digest(one) == weights_digest(other) != weights_digest(another)
    own = proxy_of(job, one)
    assert own.identity == proxy_of(job, other).identity
    assert own.earlier_identity != proxy_of(job, other).earlier_identity
    record = {**own.record(), "trained": own.identity}
    assert proxy_from_record(record, str(other)).identity == own.identity
    with pytest.raises(UserError, match="is not the proxy that the mixture was computed through"):
        proxy_from_record(record, str(another))


def test_every_tensor_of_the_model_counts(one: Path) -> None:
    """A byte of any weight changes the digest, and a byte of the optimizer's state does not."""
    before, places = weights_digest(one), read_metadata(one).storage_data
    seen = set()
    for index, place in places.items():
        if index.offset is None:  # an extra state of a layer
            continue
        file = one / place.relative_path
        whole = file.read_bytes()
        middle = place.offset + place.length // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        counts = not index.fqn.startswith("optimizer.")
        assert (weights_digest(one) != before) == counts, index
        file.write_bytes(whole)
        seen.add(counts)
    assert seen == {True, False}
    with next(one.glob("*.distcp")).open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(UserError, match=r"is damaged: __0_.* ends before byte"):
        weights_digest(one)
    files = digests_of(one)
    assert files is not None
    assert len(files) == 1


def test_what_earlier_versions_recorded_is_known(
    job: TrainingRun, one: Path, tmp_path: Path
) -> None:
    """A mixture file with the digest of all files is still that of its own checkpoint."""
    own = proxy_of(job, one)
    record = {**own.record(), "trained": own.earlier_identity}
    assert proxy_from_record(record).identity == own.identity

    config = replace(job.config, data=replace(job.config.data, mixture="chameleon"))
    config.proxy.load, config.chameleon.file = str(one), str(tmp_path / "mixture.json")
    for copy in (one, Path(shutil.copytree(one, tmp_path / "copy"))):
        config.proxy.load = str(copy)
        prepared = provider.prepare_mixture(config)
        plan = prepared.plan
        assert plan is not None
        for settings in (plan.settings, plan.earlier_settings):
            Mixture(
                Mixture.uniform(job.domains).weights,
                objective="pretrain",
                method={"name": "chameleon", **preset_of(config.chameleon).settings()}
                | plan.method,
                proxy={"settings": settings[0]},
            ).save(config.chameleon.file)
            assert stored_mixture(config, job.domains, plan) is not None
        Path(config.chameleon.file).unlink()
    (one / "state.json").write_text(
        (one / "state.json").read_text().replace('"seconds"', '"duration"')
    )
    with pytest.raises(UserError, match="is not the proxy that the mixture was computed through"):
        proxy_from_record(record)
