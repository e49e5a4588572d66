"""The range or choices of a setting, stored in the metadata of its dataclass field."""

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable
from typing import Any

from nemo_chameleon.utils.errors import UserError

_METADATA = "nemo_chameleon"
_BEYOND = 2**63
_SUGGESTED = 3  # keys that a message suggests


@dataclasses.dataclass(frozen=True)
class Constraint:
    """The values that a setting may have; None is allowed wherever the setting's type allows it.

    Attributes:
        choices: the texts that are allowed; empty allows any text.
        minimum: the least number that is allowed.
        above: a number that the value must be greater than.
        below: a number that the value must be less than; infinity requires a finite number.
        only_for: the value of data.dataset that the setting applies to; for any other the setting
            must keep its default.
    """

    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    only_for: str | None = None

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with a value.

        Args:
            value: of the setting.

        Returns:
            The rest of an error that begins with "key=value ", or None if the value is allowed.
        """
        if isinstance(value, str):
            return self._complaint_of_text(value)
        if value is None or isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if isinstance(value, int) and abs(value) >= _BEYOND:
            return "is too large: it must fit into 64 bits"
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
        if self.minimum is not None:  # an integer, or one of the choices
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
    """Make a dataclass field whose value is constrained.

    Args:
        default: the field's default value; every configuration gets its own copy of a list.
        constraint: attributes of the field's `Constraint`.

    Returns:
        The field.
    """
    metadata = {_METADATA: Constraint(**constraint)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def constraint_of(field: "dataclasses.Field[Any]") -> Constraint:
    """Return the constraint of a field.

    Args:
        field: of a configuration's dataclass.

    Returns:
        Its constraint; one that allows every value if the field has none.
    """
    constraint: Constraint = field.metadata.get(_METADATA, Constraint())
    return constraint


def require_valid(
    section: Any, prefix: str, dataset: str | None = None, only: Collection[str] = ()
) -> None:
    """Check every setting in one section of the configuration against its constraint.

    Args:
        section: a dataclass; sections inside it are not checked.
        prefix: what the section's keys begin with, for instance "proxy.train."; "" for the top.
        dataset: the value of data.dataset; None skips the check of `Constraint.only_for`.
        only: names of the settings that are checked; all of them if there are none.

    Raises:
        UserError: a value is not allowed; the error names the key and what the value must be.
    """
    for field in dataclasses.fields(section):
        if only and field.name not in only:
            continue
        key, value = prefix + field.name, getattr(section, field.name)
        constraint = constraint_of(field)
        if (complaint := constraint.complaint(value)) is not None:
            raise UserError(f"{key}={value} {complaint}")
        only_for = constraint.only_for
        default = field.default
        if field.default_factory is not dataclasses.MISSING:  # a list
            default = field.default_factory()
        if None not in (only_for, dataset) and only_for != dataset and value != default:
            raise UserError(
                f"{key} is for data.dataset={only_for}; this run has {dataset}: remove {key}"
            )


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that is most like a given one.

    Args:
        word: for instance a mistyped key.
        known: the words to choose from.

    Returns:
        "; did you mean X?", or an empty text if no known word is similar.
    """
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def nearest_keys(key: str, known: Collection[str]) -> str:
    """Suggest known keys for one that is not known.

    Args:
        key: the key, whose parts are divided by dots.
        known: all keys, with their sections.

    Returns:
        "; did you mean X or Y?": keys of the same section with a similar name, or else keys of the
        same name elsewhere, beside a list of those that the section has.
    """
    section, _, name = key.rpartition(".")
    names = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == section}
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    near = near or [one for one in names if name in one.split("_") or one in name.split("_")]
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    keys = [names[one] for one in near] or [one for one in known if one.endswith(f".{name}")]
    suggested = f"; did you mean {' or '.join(keys[:_SUGGESTED])}?" if keys else ""
    if near or not names or (keys and not section):
        return suggested
    return f"; the keys of {section or 'a configuration'} are {', '.join(names)}{suggested}"
