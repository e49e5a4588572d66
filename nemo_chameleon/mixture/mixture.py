"""The Mixture: weights by domain name, where they came from, and the file they live in.

Everything before a Mixture makes one; everything after it only reads one. Uniform, proportional,
typed by hand and computed weights are all Mixtures, and look the same in the file:

    {"format": 1, "objective": "pretrain", "weights": {"wiki": 0.25, ...}, "domains": {...}, ...}

Knows no torch, no megatron and no configuration.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nemo_chameleon.method.bounds import bounded_weights
from nemo_chameleon.mixture.parsing import parse_mixture
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically

FORMAT = 1
SUM_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Mixture:
    """Shares of the training samples by domain name.

    Attributes:
        weights: share of each domain; finite, positive, summing to 1 within 1e-9.
        objective: "pretrain" or "finetune", what computed weights are for; None for others.
        domains: by name, facts about each domain: `path`, `tokens`, `fingerprint`, and for
            computed weights `documents`, `samples` (windows embedded), `embedding` (a digest of the
            numbers in the file of embeddings) and `score`.
        method: how the weights came to be: `name`, and the settings of the computation.
        proxy: of computed weights, the proxy model: `checkpoint`, `tokens` seen, `tokenizer`; or
            `averaged`, a list of such.
        uncertainty: of computed weights, by name: the two ends of a 95 % interval over the windows
            that were drawn, and over the proxies where several were averaged.
        created: versions and UTC time; says nothing about the weights.

    Raises:
        UserError: weights that are not a mixture, naming the domain.
    """

    weights: dict[str, float]
    objective: str | None = None
    domains: dict[str, dict[str, Any]] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    proxy: dict[str, Any] = field(default_factory=dict)
    uncertainty: dict[str, list[float]] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse anything that a run could not draw by."""
        if not self.weights:
            raise UserError("a mixture needs at least one domain")
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise UserError(f"weight of domain {name!r} is {weight!r}, not a number")
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(
                    f"weight of domain {name!r} is {weight}: it must be positive and finite; "
                    "leave the domain out to draw nothing from it"
                )
        total = math.fsum(self.weights.values())
        if abs(total - 1.0) > SUM_TOLERANCE:
            raise UserError(f"weights sum to {total!r}, not to 1")
        strangers = [
            name for name in (*self.domains, *self.uncertainty) if name not in self.weights
        ]
        if strangers:
            raise UserError(f"domain {strangers[0]!r} has an entry but no weight")

    @classmethod
    def uniform(cls, names: Iterable[str]) -> "Mixture":
        """The same share for every domain."""
        names = list(names)
        return cls({name: 1.0 / len(names) for name in names}, method={"name": "uniform"})

    @classmethod
    def proportional(cls, tokens: Mapping[str, int]) -> "Mixture":
        """Shares in proportion to each domain's tokens."""
        return cls(_normalised(tokens), method={"name": "proportional"})

    @classmethod
    def static(cls, weights: Mapping[str, float]) -> "Mixture":
        """Shares in proportion to weights typed by hand, which need not sum to 1."""
        return cls(_normalised(weights), method={"name": "static"})

    @property
    def name(self) -> str:
        """What the weights are called in reports: "uniform", "chameleon", ..."""
        return str(self.method.get("name", "mixture"))

    def blend(self, paths: Mapping[str, str]) -> tuple[list[str], list[float]]:
        """Megatron's blend for domains at `paths` (name to prefix), in the order of `paths`.

        Returns:
            Prefixes, and weights in the same order.

        Raises:
            UserError: the names here and there are not the same.
        """
        self.require_domains(paths)
        return list(paths.values()), [float(self.weights[name]) for name in paths]

    def within_bounds(
        self,
        tokens: Mapping[str, int],
        budget: int,
        max_epochs: float | None = None,
        *,
        pin: Mapping[str, float] | None = None,
        floor: Mapping[str, float] | None = None,
    ) -> "Mixture":
        """Return the nearest mixture that keeps a cap on epochs, fixed shares and least shares.

        Weight that a cap frees goes to the other domains in proportion to their weights.

        Args:
            tokens: tokens of each domain, by name.
            budget: tokens that the whole run draws.
            max_epochs: passes over any one domain, at most; None for no cap.
            pin: shares that are fixed, by name.
            floor: shares that are the least, by name.

        Returns:
            This mixture where nothing binds; else one whose `method` records the bounds, and in
            `bound` the domains that they hold.

        Raises:
            UserError: a name that is no domain, bounds that no weights can keep, or not enough
                data, with the number of tokens that are missing. The message begins with the name
                of the argument that is wrong.
        """
        self.require_domains(tokens)
        pin, floor = dict(pin or {}), dict(floor or {})
        for what, shares in (("pin", pin), ("floor", floor)):
            for name, share in shares.items():
                if name not in self.weights:
                    raise UserError(f"{what}.{name}: {name!r} is not one of the domains")
                if not 0 < share < 1:
                    raise UserError(f"{what}.{name}={share} is not a share between 0 and 1")
        caps = dict.fromkeys(self.weights, math.inf)
        if max_epochs is not None:
            caps = {name: max_epochs * tokens[name] / budget for name in self.weights}
            # Short by less than a rounding error is not short; bounds.py has the same tolerance.
            if (bearable := math.fsum(caps.values())) < 1 - 1e-12:
                raise UserError(
                    f"max_epochs={max_epochs} allows {round(bearable * budget):,} tokens in "
                    f"all, the run draws {budget:,}: {round((1 - bearable) * budget):,} are missing"
                )
        low = {name: pin.get(name, floor.get(name, 0.0)) for name in self.weights}
        high = {name: pin.get(name, caps[name]) for name in self.weights}
        for name in self.weights:
            if floor.get(name, 0.0) > pin.get(name, 1.0):
                raise UserError(f"pin.{name}={pin[name]} is below floor.{name}={floor[name]}")
            if low[name] > caps[name]:
                what = "pin" if name in pin else "floor"
                raise UserError(
                    f"{what}.{name}={low[name]} takes {low[name] * budget / tokens[name]:.2f} "
                    f"epochs of {name!r}, more than max_epochs={max_epochs}"
                )
        weights = self._bounded(low, high)
        for name, weight in weights.items():
            if not weight > 0:
                raise UserError(f"pin and floor leave nothing for domain {name!r}")
        held = [
            name
            for name, weight in weights.items()
            if weight <= low[name] * (1 + 1e-9) or weight >= high[name] * (1 - 1e-9)
        ]
        if not held:
            return self
        bounds = {"max_epochs": max_epochs, "pin": pin, "floor": floor, "bound": held}
        given = {key: value for key, value in bounds.items() if value not in (None, {})}
        # The intervals belong to the weights as they were computed.
        return replace(self, weights=weights, uncertainty={}, method={**self.method, **given})

    cap_epochs = within_bounds  # its name before 0.2

    def _bounded(self, low: Mapping[str, float], high: Mapping[str, float]) -> dict[str, float]:
        names = list(self.weights)
        try:
            weights = bounded_weights(
                [self.weights[name] for name in names],
                [low[name] for name in names],
                [high[name] for name in names],
            )
        except ValueError as error:
            raise UserError(f"pin and floor cannot be kept: {error}") from error
        return dict(zip(names, weights.tolist(), strict=True))

    def require_domains(self, names: Iterable[str]) -> None:
        """Raise a UserError unless these are exactly the domains of the mixture."""
        wanted = set(names)
        missing = sorted(wanted - set(self.weights))
        surplus = sorted(set(self.weights) - wanted)
        if missing or surplus:
            parts = []
            if missing:
                parts.append(f"it has no weight for {', '.join(missing)}")
            if surplus:
                parts.append(f"it has weights for {', '.join(surplus)}, which are not among them")
            raise UserError("the mixture is for other domains: " + " and ".join(parts))

    def to_json(self) -> str:
        """The text of the file; floats read back to the same bits."""
        body = {"format": FORMAT, **{k: v for k, v in asdict(self).items() if v not in ({}, None)}}
        return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "mixture") -> "Mixture":
        """A mixture from the text of its file; `source` names it in errors.

        Raises:
            UserError: not JSON, another format, or not a mixture.
        """
        try:
            return cls(**parse_mixture(text, FORMAT, cls.__dataclass_fields__))
        except (ValueError, OverflowError, RecursionError) as error:  # UserError is a ValueError
            raise UserError(f"{source}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file in one step: it is either there whole or not at all.

        Raises:
            UserError: the place cannot be written to.
        """
        try:
            write_atomically(Path(path), self.to_json())
        except OSError as error:
            raise UserError(f"cannot write the mixture file {path}: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Mixture":
        """Read a mixture file.

        Raises:
            UserError: no such file, or not a mixture.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the mixture file {path}: {error}") from error
        return cls.from_json(text, source=str(path))


def provenance() -> dict[str, str]:
    """UTC time and the versions of what computes, for the record."""
    versions = {}
    for package in ("nemo_chameleon", "megatron-core", "torch", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **versions}


def _normalised(amounts: Mapping[str, float]) -> dict[str, float]:
    for name, amount in amounts.items():
        if not (math.isfinite(amount) and amount > 0):
            raise UserError(
                f"weight of domain {name!r} is {amount}: it must be positive and finite"
            )
    total = math.fsum(amounts.values())
    return {name: amount / total for name, amount in amounts.items()}
