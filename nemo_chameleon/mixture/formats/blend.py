"""What all formats share: a format, what is read from it, and the entries that are written."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_chameleon.mixture.datasets import recorded_datasets
from nemo_chameleon.mixture.mixture import Mixture
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.tables import listed

ROUNDING = 0.01  # shares are often written with few digits
_EXACT = 1e-6  # what computed shares differ from 1 at most
_SUMS = ("total", "totals", "grand total", "sum")  # rows of spreadsheets, in lower case
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Blend:
    """What was read from another tool's file.

    Attributes:
        weights: by domain name; positive and finite.
        domains: what the file says about each domain, as a mixture file records it: its path and,
            for several datasets, the tokens of each.
        notes: what the mixture does not have of the file, or has otherwise, in sentences.
    """

    weights: dict[str, float]
    domains: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class MixtureFormat:
    """A file format for mixtures.

    Attributes:
        meaning: what its numbers mean, and which tool or option takes the file.
        write: makes the text of a mixture.
        read: reads weights, and paths if the format has them, from a text.
    """

    meaning: str
    write: Callable[[Mixture], str]
    read: Callable[[str], Blend]


def number(value: Any, where: str) -> float:
    """Read a weight.

    Args:
        value: a number, or its text.
        where: the entry, for the error: its number in the list, or its line.

    Returns:
        The weight, which is 0 or positive.

    Raises:
        UserError: it is not a number, or it is negative or not finite.
    """
    weight = as_number(value)
    if weight is None:
        raise UserError(
            f"{where}: the weight must be a number, not {short(value)}: write a decimal number, "
            "as in 0.3"
        )
    if not (math.isfinite(weight) and weight >= 0):
        raise UserError(f"{where}: the weight is {value}, but must be positive and finite")
    return weight


def as_number(value: Any) -> float | None:
    """Return the number that a value or its text stands for.

    Prefixes such as 2019_30, nan and 0x1f are text, though Python takes the first two for numbers.

    Args:
        value: any value.

    Returns:
        The number; None if it is no decimal number.
    """
    if isinstance(value, float):
        return value
    text = value.strip() if isinstance(value, str) else ""
    return float(text) if _DECIMAL.fullmatch(text) else None


def short(value: Any) -> str:
    """Show a value of a file in an error.

    Args:
        value: any value.

    Returns:
        Its first 60 characters; text is in quotes.
    """
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def total_of(weights: Mapping[str, float]) -> float:
    """Add up weights.

    Args:
        weights: by domain name.

    Returns:
        Their sum.

    Raises:
        UserError: there are no weights, or the sum is too large for a number.
    """
    if not weights:
        raise UserError("there is no domain with a weight above 0")
    try:
        return math.fsum(weights.values())
    except OverflowError as error:
        raise UserError("the weights are too large to be added up: divide all of them") from error


def named_blend(entries: Iterable[tuple[str, Any, float, dict[str, Any]]]) -> Blend:
    """Make a blend of domains that have names.

    Args:
        entries: where each entry is, its name, its weight, and what a mixture file records.

    Returns:
        The blend; domains of weight 0 are left out with a note.

    Raises:
        UserError: a name is missing or stands twice.
    """
    weights: dict[str, float] = {}
    domains: dict[str, dict[str, Any]] = {}
    for where, name, weight, facts in entries:
        if not (isinstance(name, str) and name):
            raise UserError(f"{where}: a domain must have a name, not {short(name)}")
        if name in weights:
            raise UserError(f"{where}: duplicate domain {name!r}")
        weights[name], domains[name] = weight, facts
    drawn = {name: weight for name, weight in weights.items() if weight > 0}
    notes = left_out([name for name in weights if name not in drawn])
    return Blend(drawn, {name: domains[name] for name in drawn if domains[name]}, notes)


def with_sum(blend: Blend) -> Blend:
    """Say what weights add up to that are amounts and not shares.

    Args:
        blend: what was read.

    Returns:
        The blend, with a note if its weights add up to something far from 1.

    Raises:
        UserError: an entry stands beside two or more shares that add up to 1 without it, whatever
            its name is; or it has a name such as total, and is the sum of the others.
    """
    total = total_of(blend.weights)
    others = {name: total - weight for name, weight in blend.weights.items()}
    for name, rest in others.items():
        weight, is_row = blend.weights[name], name.strip().casefold() in _SUMS
        if is_row and (abs(rest - weight) <= ROUNDING * weight or abs(rest - 1) <= ROUNDING):
            raise UserError(
                f"the entry {name!r} is the sum of the others, so it seems to be no domain: delete "
                "it, or rename it if it is one"
            )
    largest = max(blend.weights, key=blend.weights.__getitem__)
    # The difference of two large numbers is not exact.
    others[largest] = math.fsum(blend.weights[name] for name in others if name != largest)
    for name, rest in others.items():
        if len(others) > 2 and abs(rest - 1) <= _EXACT < abs(total - 1):
            raise UserError(
                f"the entry {name!r} stands beside shares that add up to 1, so it seems to be no "
                f"domain: delete it; if it is one, divide each weight by {total:.6g}"
            )
    if abs(total - 1) <= ROUNDING:
        return blend
    note = f"the weights add up to {total:.6g}, and were divided by it; is each entry a domain?"
    return Blend(blend.weights, blend.domains, [*blend.notes, note])


def left_out(names: Sequence[str]) -> list[str]:
    """Say that domains of weight 0 are not in the mixture.

    Args:
        names: the domains, or their prefixes.

    Returns:
        One sentence, or none if there are no names.
    """
    if not names:
        return []
    return [f"the weight is 0, so nothing is drawn: left out {listed(names)}"]


def entries_of(mixture: Mixture, blanks: bool = True) -> list[tuple[str, float]]:
    """Return the prefixes of a mixture's domains with their weights, as hosts draw by them.

    A domain of several datasets has an entry for each; its weight is divided by their tokens.

    Args:
        mixture: the mixture.
        blanks: whether the format can hold paths with blanks.

    Returns:
        Each prefix and its weight.

    Raises:
        UserError: a domain has no path, or one with blanks where the format cannot hold it; or
            Megatron cannot draw from these datasets, as `blend_of` says.
    """
    datasets = {}
    for name in mixture.weights:
        fact(mixture, name, "path")
        datasets[name] = recorded_datasets(name, mixture.domains[name])
        for path in datasets[name]:
            if not blanks and path != "".join(path.split()):
                raise UserError(
                    f"the path of domain {name!r}, {path!r}, has blanks, which this format cannot "
                    "hold: rename the files, or use --format megatron-per-split"
                )
    return list(zip(*mixture.blend(datasets), strict=True))


def fact(mixture: Mixture, name: str, key: str) -> Any:
    """Return a fact about a domain that a format needs.

    Args:
        mixture: the mixture.
        name: of the domain.
        key: of the fact in the mixture file.

    Returns:
        The fact.

    Raises:
        UserError: the mixture file does not have it.
    """
    value = mixture.domains.get(name, {}).get(key)
    if not value:
        raise UserError(
            f"the mixture has no {key!r} for domain {name!r}, which this format needs: add it to "
            f"the mixture file, or use another format"
        )
    return value
