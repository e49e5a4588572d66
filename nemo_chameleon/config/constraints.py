"""What a setting may be, written beside the setting as metadata of its field."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any

from nemo_chameleon.utils.errors import UserError

_METADATA = "nemo_chameleon"


@dataclasses.dataclass(frozen=True)
class Constraint:
    """The values that a setting takes; None is always one of them where the type allows it.

    Attributes:
        choices: the texts that it may be; all texts where there are none.
        minimum: the least number.
        above: a number that it must be greater than.
        below: a number that it must be less than; infinity asks for a finite number.
        only_for: the value of data.dataset that it has a meaning for; under another it must keep
            its default.
    """

    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    only_for: str | None = None

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with a value, to be written after "key=value "; None if nothing."""
        if isinstance(value, str):
            return self._complaint_of_text(value)
        if value is None or isinstance(value, bool) or not isinstance(value, int | float):
            return None
        wrong = (
            (self.minimum is not None and not value >= self.minimum)
            or (self.above is not None and not value > self.above)
            or (self.below is not None and not value < self.below)
        )
        return f"must be {' and '.join(self._bounds())}" if wrong else None

    def _complaint_of_text(self, value: str) -> str | None:
        if not self.choices or value in self.choices:
            return None
        hint = nearest(value, self.choices)
        if self.minimum is not None:  # a number, or one of some words
            return f"must be an integer or {' or '.join(map(repr, self.choices))}{hint}"
        return f"is not one of {', '.join(self.choices)}{hint}"

    def _bounds(self) -> list[str]:
        bounds = []
        if self.minimum is not None:
            bounds.append(f"at least {self.minimum:g}")
        if self.above is not None:
            bounds.append("positive" if self.above == 0 else f"greater than {self.above:g}")
        if self.below is not None:
            bounds.append("finite" if math.isinf(self.below) else f"less than {self.below:,g}")
        return bounds


def setting(default: Any, **constraint: Any) -> Any:
    """Return the field of a configuration's dataclass, with what its value may be.

    Args:
        default: its default value.
        constraint: attributes of its `Constraint`.
    """
    return dataclasses.field(default=default, metadata={_METADATA: Constraint(**constraint)})


def constraint_of(field: "dataclasses.Field[Any]") -> Constraint:
    """Return the constraint that a field was made with."""
    constraint: Constraint = field.metadata.get(_METADATA, Constraint())
    return constraint


def require_valid(section: Any, prefix: str, dataset: str | None = None) -> None:
    """Check every setting of one section of the configuration against its constraint.

    Args:
        section: a dataclass; sections within it are not looked at.
        prefix: of its keys, for instance "proxy.train."; "" for the top level.
        dataset: the value of data.dataset, for settings that have a meaning for one of them alone.

    Raises:
        UserError: naming the key, its value and what it must be.
    """
    for field in dataclasses.fields(section):
        key, value, constraint = prefix + field.name, getattr(section, field.name), None
        constraint = constraint_of(field)
        if (complaint := constraint.complaint(value)) is not None:
            raise UserError(f"{key}={value} {complaint}")
        only_for = constraint.only_for
        if None not in (only_for, dataset) and only_for != dataset and value != field.default:
            raise UserError(f"{key} is for data.dataset={only_for}; this run has {dataset}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?", or an empty text where no known word is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near:  # the right name in the wrong place
        last = [key for key in known if key.rpartition(".")[2] == word.rpartition(".")[2]]
        near = last[:1]
    return f"; did you mean {near[0]}?" if near else ""
