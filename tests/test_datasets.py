"""mixture/datasets.py, engines/matching.py: the datasets of a mixture's domains and of a host."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_indexed import write
from test_parts import documents_of

from nemo_chameleon import Mixture
from nemo_chameleon.engines import host
from nemo_chameleon.mixture.datasets import MOST_DATASETS, Datasets
from nemo_chameleon.utils.errors import UserError

WEB = ["/d/web-0", "/d/web-1", "/d/web-2"]
BLEND = ([*WEB, "/d/code"], [0.6 * 0.25, 0.6 * 0.5, 0.6 * 0.25, 0.4])


def about(prefixes: list[str], weights: list[float]) -> Any:
    """Return a blend that one with nearly the same weights is equal to."""
    return prefixes, pytest.approx(weights)


@pytest.fixture
def mixture() -> Mixture:
    """Return weights of a domain of three datasets and a domain of one."""
    web = {"path": WEB, "part_tokens": [10, 20, 10], "tokens": 40}
    return Mixture({"web": 0.6, "code": 0.4}, domains={"web": web, "code": {"path": "/d/code"}})


def test_datasets_of_one_domain_share_its_weight(mixture: Mixture) -> None:
    """Each has the weight of the domain times its share of the tokens; one without has none."""
    given: dict[str, Datasets] = {"code": "/d/code", "web": {"/d/w": 3, "/d/empty": 0, "/d/v": 1}}
    prefixes, weights = mixture.blend(given)
    assert prefixes == ["/d/code", "/d/w", "/d/v"]
    assert weights == pytest.approx([0.4, 0.45, 0.15])
    third = Mixture({"a": 1 / 3, "b": 2 / 3})
    assert third.blend({"a": "a", "b": {"b": 7.0}})[1] == [1 / 3, 2 / 3], "to the last bit"
    with pytest.raises(UserError, match=r"/d/./w is there twice, for domain 'code' and for 'web'"):
        mixture.blend({"code": "/d/w", "web": {"/d/./w": 1}})
    many = {f"/d/{i}": 1 for i in range(MOST_DATASETS)}
    with pytest.raises(UserError, match="32,767 datasets"):
        mixture.blend({"code": "/d/code", "web": many})


def test_the_file_has_the_datasets(mixture: Mixture, tmp_path: Path) -> None:
    """A mixture file gives the same blend as the mixture that it was written from."""
    mixture.save(tmp_path / "m.json")
    assert Mixture.load(tmp_path / "m.json") == mixture
    prefixes, weights = host.resolve(tmp_path / "m.json").blend
    assert (prefixes, weights) == about(*BLEND)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"path": []}, "'path' of domain 'web' must be text, or a list of texts"),
        ({"path": ["/a", 3]}, "'path' of domain 'web' must be text, or a list of texts"),
        ({"path": ["/a", "/a"]}, "has a path twice"),
        ({"path": ["/a", "/b"], "part_tokens": [1]}, "'part_tokens' of domain 'web' must have"),
        ({"path": ["/a", "/b"], "part_tokens": [1, -1]}, "'part_tokens' of domain 'web' must"),
        ({"path": ["/a", "/b"], "part_tokens": 7}, "'part_tokens' of domain 'web' must"),
        ({"path": ["/a", "/b"]}, "'web' has 2 paths, but the mixture has no 'part_tokens'"),
    ],
)
def test_recorded_datasets_that_are_refused(
    mixture: Mixture, facts: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """What a file says about datasets is checked, and the error names the domain."""
    domains = {**mixture.domains, "web": facts}
    dataclasses.replace(mixture, domains=domains).save(tmp_path / "m.json")
    with pytest.raises(UserError, match=says):
        host.resolve(tmp_path / "m.json")


def test_a_hosts_list_has_all_datasets_of_a_domain(mixture: Mixture) -> None:
    """Datasets of one domain may stand anywhere in the list; the domain's own order is drawn by."""
    listed = [WEB[2], "/d/code", "/d/x/../web-0", WEB[1]]
    draw = host.resolve(mixture, listed)
    expected = about(["/d/x/../web-0", *WEB[1:], "/d/code"], BLEND[1])
    assert draw.blend == expected
    assert draw.pairs[1::2] == expected[0]
    assert host.resolve(mixture, ["/d/code", *WEB]).blend[0] == ["/d/code", *WEB]
    for lacking, says in (
        (listed[:-1], "'web' has 3 datasets, and the list lacks 1 of them: add /d/web-1"),
        ([*listed, "/d/web-0"], "/d/web-0: domain 'web' is given twice"),
        ([*listed, "web"], "web: domain 'web' is given twice"),
        (["web", *listed], "web-2: domain 'web' is given twice"),
        ([*listed, "/d/web-3"], "no domain at /d/web-3"),
    ):
        with pytest.raises(UserError, match=says):
            host.resolve(mixture, lacking)


def test_datasets_by_name_that_have_moved(mixture: Mixture) -> None:
    """As many prefixes as the domain has are taken in the order of the mixture file."""
    moved = [f"/new/{i}" for i in range(3)]
    draw = host.resolve(mixture, {"web": moved, "code": ["/new/code"]})
    assert draw.blend == about([*moved, "/new/code"], BLEND[1])
    merged = host.resolve(mixture, {"web": "/new/web", "code": "/new/code"})
    assert merged.blend == (["/new/web", "/new/code"], [0.6, 0.4])
    with pytest.raises(UserError, match="'web' is given 2 prefixes, but the mixture has 3: give"):
        host.resolve(mixture, {"web": moved[:2], "code": "/new/code"})
    with pytest.raises(UserError, match="/new/0 is there twice"):
        host.resolve(mixture, {"web": [*moved[:2], "/new/0"], "code": "/new/code"})
    with pytest.raises(UserError, match="'a' is given 2 prefixes, but nothing says how many"):
        host.resolve("uniform", {"a": ["/d/a", "/d/b"], "b": "/d/c"})


def test_a_prefix_that_stands_twice_in_a_hosts_list() -> None:
    """The host's own weights of a prefix are summed; uniform weights name it."""
    listed = ["/d/wiki", "/d/x/../wiki", "/d/code"]
    drawn = host.resolve("static", listed, [3, 3, 4]).blend
    assert drawn == about(["/d/wiki", "/d/code"], [0.6, 0.4])
    with pytest.raises(UserError, match=r"/d/x/\.\./wiki is there twice"):
        host.resolve("uniform", listed)
    for wrong in (-1.0, 0.0, float("nan")):
        with pytest.raises(UserError, match="the weight of /d/code is"):
            host.resolve("static", ["/d/code", *listed], [wrong, 1, 1, 2])


def test_a_host_draws_all_datasets_of_the_configuration(
    config_file: Path, tmp_path: Path, corpus: Path
) -> None:
    """With a configuration the host gets every dataset of each domain, by tokens to train on."""
    parts = [write(tmp_path / f"web-{i}", documents_of(0, 10 * (i + 1))) for i in range(2)]
    settings = yaml.safe_load(config_file.read_text())
    settings["data"]["domains"] = {
        "web": {"path": f"{tmp_path}/web-*"},
        "code": {"path": str(corpus / "code")},
    }
    settings["data"]["vocab_size"] = 1000
    del settings["data"]["tokenizer"]
    config_file.write_text(yaml.safe_dump(settings, sort_keys=False))
    expected = about([*parts, str(corpus / "code")], [1 / 6, 1 / 3, 1 / 2])
    assert host.resolve("uniform", config=config_file).blend == expected
    draw = host.resolve("uniform", [parts[1], str(corpus / "code"), parts[0]], config=config_file)
    assert draw.within(8, 32).blend == expected
    with pytest.raises(UserError, match="'web' has 2 datasets, and the list lacks 1"):
        host.resolve("uniform", [parts[1], str(corpus / "code")], config=config_file)
    proportional = host.resolve("proportional", config=config_file).blend[1]
    assert np.isclose(proportional[1], 2 * proportional[0])
