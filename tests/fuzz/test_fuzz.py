"""Every reader answers damaged input as it documents; `make fuzz` tries many more inputs."""

from pathlib import Path

import pytest

from fuzz_targets import targets_in
from fuzzing import Target, attempt, drawn, mutations

FOUND = sorted((Path(__file__).parent / "found").iterdir())
NAMES = """mixture import-megatron import-megatron-per-split import-nemo import-bridge import-hf
import-csv import-ratios import-json embeddings config overrides idx bin readers-text
readers-compressed readers-tables prepare examples result tracker state manifest metadata
common.pt""".split()
SLOW = {"config", "overrides", "prepare"}


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Return the targets by name."""
    return targets_in(tmp_path_factory.mktemp("fuzz"))


def test_all_targets_are_listed(targets: dict[str, Target]) -> None:
    """The tests below try every target, and every input that was found is of one of them."""
    assert list(targets) == NAMES
    assert {path.name.rpartition("-")[0] for path in FOUND} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_accepted(targets: dict[str, Target], name: str) -> None:
    """What is changed is valid, so that a change leads beyond the first check."""
    target = targets[name]
    assert [attempt(target, data) for data in target.seeds] == [("accepted", "")] * len(
        target.seeds
    )


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_inputs_that_found_something(targets: dict[str, Target], path: Path) -> None:
    """An input that once led to another exception is accepted or refused."""
    verdict, details = attempt(targets[path.name.rpartition("-")[0]], path.read_bytes())
    assert verdict in ("accepted", "refused"), details


@pytest.mark.parametrize("name", NAMES)
def test_a_few_changed_inputs(targets: dict[str, Target], name: str) -> None:
    """The same few hundred inputs are accepted or refused each time."""

    def use(data: bytes) -> None:
        verdict, details = attempt(targets[name], data)
        assert verdict in ("accepted", "refused"), f"{data!r}\n{details}"

    for data in mutations(targets[name], 0, 20 if name in SLOW else 200):
        use(data)
    drawn(targets[name], 0, 5 if name in SLOW else 20, use)


def test_what_a_finding_is(targets: dict[str, Target], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other exceptions, messages of several lines, warnings of NumPy and hangs are findings."""
    monkeypatch.setattr("fuzzing.SECONDS", 0.05)

    def verdict(program: str) -> str:
        return attempt(Target("any", [], lambda data: exec(data)), program.encode())[0]

    assert verdict("pass") == "accepted"
    refuse = "from nemo_chameleon.utils.errors import UserError\nraise UserError"
    assert verdict(f"{refuse}('one line')") == "refused"
    assert verdict(f"{refuse}('two\\nlines')").startswith("several lines")
    assert verdict("{}['x']").startswith("KeyError")
    assert verdict("import numpy\nnumpy.array([numpy.nan]).astype(int)").startswith("RuntimeW")
    assert verdict("while True: pass").startswith("_SlowError")
