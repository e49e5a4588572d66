"""The package's layout: where keys are named, what lies at the top, and how long modules are."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import nemo_chameleon
from nemo_chameleon.config.schema import Config

PACKAGE = Path(nemo_chameleon.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
LONGEST = 350  # lines of a module
TOP = {"__init__.py", "__main__.py", "py.typed"}


def keys_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of the configuration, such as `data.mixture` and `train.seed`.

    Keys without a dot are left out, for they are words such as `output` too.
    """
    for item in fields(kind):
        if isinstance(item.type, type) and is_dataclass(item.type):
            yield from keys_of(item.type, f"{prefix}{item.name}.")
        elif prefix:
            yield prefix + item.name


KEYS = sorted(keys_of(Config))
SECTIONS = sorted({key.split(".")[0] for key in KEYS})
NAMED = re.compile(rf"(?<![\w./])(?:{'|'.join(map(re.escape, KEYS))})(?!\w)")
# `proxy.*` names all keys of a section, and an f-string with `data.{key}` names one of them.
ANY_OF = re.compile(rf"(?<![\w./])(?:{'|'.join(SECTIONS)})\.[*{{]")


def test_keys_are_those_of_the_schema() -> None:
    """The search below knows keys of every section, nested ones included."""
    assert {"data.mixture", "chameleon.ridge", "proxy.model.num_layers"} <= set(KEYS)
    assert NAMED.search("set data.max_epochs")
    assert NAMED.search("data.domains.wiki.path=x")
    assert ANY_OF.search("proxy.* differ")
    assert ANY_OF.search('f"data.{key} is')
    assert not NAMED.search("set data.max_epochs_of and my.data.split in nemo_chameleon/data.split")


@pytest.mark.parametrize("name", ["method", "mixture"])
def test_the_method_and_the_mixture_name_no_key_of_the_configuration(name: str) -> None:
    """No text of a package that knows no configuration names one of its keys."""
    named = [
        f"{path.relative_to(PACKAGE)}:{number}: {found[0]}"
        for path in sorted((PACKAGE / name).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        for found in [*NAMED.finditer(line), *ANY_OF.finditer(line)]
    ]
    assert not named, "\n".join(named)


def test_nothing_but_packages_lies_at_the_top() -> None:
    """The package's folder holds its entry points, py.typed and packages."""
    others = {
        path.name
        for path in PACKAGE.iterdir()
        if not (path / "__init__.py").is_file() and path.name != "__pycache__"
    }
    assert others == TOP


def test_modules_are_short() -> None:
    """No module is longer than 350 lines."""
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text().splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_promises_name_tests_that_exist() -> None:
    """Every test that docs/guarantees.md names is there, and every promise names one."""
    tests = Path(__file__).parent
    rows = re.findall(r"^\| .* \| .* \| (`.*) \|$", (DOCS / "guarantees.md").read_text(), re.M)
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([a-z_/]+\.py)(?:::(\w+))?`", row)
        assert named, row
        for file, name in named:
            assert not name or f"\ndef {name}(" in (tests / file).read_text(), f"{file}::{name}"
