"""The Mixture: weights by domain name, how they were made, and the file that stores them.

Weights that are uniform, proportional, set by hand or computed are all Mixtures, and their files
have the same format:

    {"format": 1, "objective": "pretrain", "weights": {"wiki": 0.25, ...}, "domains": {...}, ...}
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_chameleon.method.bounds import bounded_weights
from nemo_chameleon.mixture.datasets import Datasets, blend_of
from nemo_chameleon.mixture.parsing import normalised, parse_mixture
from nemo_chameleon.utils.errors import UserError, reason_of
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.tables import listed

FORMAT = 1
"""The version of the file's format."""
SUM_TOLERANCE = 1e-9
"""How far the sum of weights may be from 1."""
UNRECORDED: dict[str, Any] = {"normalize_states": False}
"""Settings that the `method` of older files lacks, and the values they were made with."""


def proxies_of(proxy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the facts about each proxy from a mixture's `proxy`, which may have `averaged`."""
    return list(proxy.get("averaged", [proxy]))


@dataclass(frozen=True)
class Mixture:
    """Each domain's share of the training samples, by name.

    Computed weights are those of Chameleon (arXiv 2505.24844); they also fill in the entries that
    are marked so below.

    Attributes:
        weights: share of each domain: finite, positive, with a sum of 1 within 1e-9.
        objective: "pretrain" or "finetune" for computed weights, else None.
        domains: facts about each domain, by name: `path`, or a list of the paths of its parts with
            the tokens of each as `part_tokens`; `tokens`, `fingerprint`; for computed weights also
            `documents`, `samples` (the number of windows embedded), `embedding` (a digest of its
            numbers in the embeddings file), `score`, `heaviest_share` (of the squared norm of the
            embedding, what the heaviest 1 % of its tokens give) and `heaviest_token`.
        method: how the weights were made: `name`, and the settings of the computation.
        proxy: for computed weights, the proxy: `checkpoint`, `tokens` seen and `tokenizer`; or
            `averaged`, a list of such proxies.
        uncertainty: for computed weights, the two ends of each weight's 95 % interval, by name.
            `method["intervals"]` says what they cover: "windows" alone, or "proxies", which stands
            for other windows and one more proxy. Files of earlier versions do not say it.
        created: versions and UTC time, for the record only.

    Raises:
        UserError: the weights are not a mixture; the error names the domain.

    Example:
        >>> mixture = Mixture.static({"wiki": 3, "code": 1})
        >>> mixture.weights
        {'wiki': 0.75, 'code': 0.25}
        >>> mixture.blend({"code": "/data/code", "wiki": "/data/wiki"})
        (['/data/code', '/data/wiki'], [0.25, 0.75])
        >>> Mixture.from_json(mixture.to_json()) == mixture
        True
    """

    weights: dict[str, float]
    objective: str | None = None
    domains: dict[str, dict[str, Any]] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    proxy: dict[str, Any] = field(default_factory=dict)
    uncertainty: dict[str, list[float]] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that a run can draw by these weights."""
        if not self.weights:
            raise UserError("a mixture needs at least one domain")
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise UserError(f"the weight of domain {name!r} is {weight!r}, not a number")
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(
                    f"the weight of domain {name!r} is {weight}, but must be positive and finite; "
                    "leave the domain out to draw nothing from it"
                )
        total = math.fsum(self.weights.values())
        if abs(total - 1.0) > SUM_TOLERANCE:
            raise UserError(f"the weights sum to {total!r}, but must sum to 1")
        strangers = [
            name for name in (*self.domains, *self.uncertainty) if name not in self.weights
        ]
        if strangers:
            raise UserError(f"domain {strangers[0]!r} has an entry but no weight")

    @classmethod
    def uniform(cls, names: Iterable[str]) -> "Mixture":
        """Make a mixture with the same share for every domain.

        Args:
            names: the domains.

        Returns:
            The mixture, named "uniform".
        """
        names = list(names)
        return cls({name: 1.0 / len(names) for name in names}, method={"name": "uniform"})

    @classmethod
    def proportional(cls, tokens: Mapping[str, int]) -> "Mixture":
        """Make a mixture with shares in proportion to the domains' tokens.

        Args:
            tokens: number of tokens of each domain, by name; positive.

        Returns:
            The mixture, named "proportional".

        Raises:
            UserError: a domain has no tokens.
        """
        return cls(normalised(tokens), method={"name": "proportional"})

    @classmethod
    def static(cls, weights: Mapping[str, float]) -> "Mixture":
        """Make a mixture from weights that were set by hand.

        Args:
            weights: by domain name; positive. They need not sum to 1.

        Returns:
            The mixture with the weights divided by their sum, named "static".

        Raises:
            UserError: a weight is not positive and finite.
        """
        return cls(normalised(weights), method={"name": "static"})

    @property
    def name(self) -> str:
        """The name of the weights in reports: "uniform", "chameleon", ..."""
        return str(self.method.get("name", "mixture"))

    def blend(self, paths: Mapping[str, Datasets]) -> tuple[list[str], list[float]]:
        """Return Megatron's blend of these domains.

        Args:
            paths: prefix of each domain's files by name or, for a domain of several datasets, the
                training tokens of each by prefix. They share the domain's weight.

        Returns:
            The prefixes and their weights, both in the order of `paths`.

        Raises:
            UserError: the mixture has other domains than `paths`, or a prefix stands twice.
        """
        self.require_domains(paths)
        return blend_of(self.weights, paths)

    def within_bounds(
        self,
        tokens: Mapping[str, int],
        budget: int,
        max_epochs: float | None = None,
        *,
        pin: Mapping[str, float] | None = None,
        floor: Mapping[str, float] | None = None,
        drawn: Mapping[str, float] | None = None,
        prefix: str = "",
    ) -> "Mixture":
        """Apply a cap on epochs, fixed shares and least shares to the weights.

        Domains that are not at a bound keep their proportions.

        Args:
            tokens: number of tokens of each domain, by name.
            budget: tokens that are drawn by these weights.
            max_epochs: the most passes over any one domain; None for no cap.
            pin: fixed shares, by domain name.
            floor: least shares, by domain name.
            drawn: tokens of each domain that are drawn before; None for none.
            prefix: what errors put before the names of these bounds, for instance "data.".

        Returns:
            This mixture if the weights are within the bounds; else a mixture whose `method` records
            the bounds and, as `bound`, the domains that are at one.

        Raises:
            UserError: a bound is for a name that is not a domain, no weights are within the
                bounds, or there is too little data; then the error has the number of missing
                tokens. Or `tokens` has other domains than the mixture.
        """
        self.require_domains(tokens)
        pin, floor = dict(pin or {}), dict(floor or {})
        for what, shares in (("pin", pin), ("floor", floor)):
            for name, share in shares.items():
                if name not in self.weights:
                    raise UserError(f"{prefix}{what}.{name}: {name!r} is not one of the domains")
                if not 0 < share < 1:
                    raise UserError(
                        f"{prefix}{what}.{name}={share} must be a share between 0 and 1"
                    )
        caps = dict.fromkeys(self.weights, math.inf)
        if max_epochs is not None:
            for name in self.weights:
                left = max_epochs * tokens[name] - (drawn or {}).get(name, 0)
                caps[name] = max(0.0, left / budget)
            # A rounding error is not a lack of data; bounds.py has the same tolerance.
            if (bearable := math.fsum(caps.values())) < 1 - 1e-12:
                missing = round((1 - bearable) * budget)
                raise UserError(
                    f"{prefix}max_epochs={max_epochs} allows {round(bearable * budget):,} tokens "
                    f"in all, but the run draws {budget:,}: {missing:,} are missing"
                )
        low = {name: pin.get(name, floor.get(name, 0.0)) for name in self.weights}
        high = {name: pin.get(name, caps[name]) for name in self.weights}
        for name in self.weights:
            if floor.get(name, 0.0) > pin.get(name, 1.0):
                raise UserError(
                    f"{prefix}pin.{name}={pin[name]} is below {prefix}floor.{name}={floor[name]}"
                )
            if low[name] > caps[name]:
                what = "pin" if name in pin else "floor"
                epochs = low[name] * budget / tokens[name]
                raise UserError(
                    f"{prefix}{what}.{name}={low[name]} takes {epochs:.2f} epochs of {name!r}, "
                    f"more than {prefix}max_epochs={max_epochs}"
                )
        weights = self._bounded(low, high, prefix)
        for name, weight in weights.items():
            if not weight > 0:
                raise UserError(
                    f"{prefix}pin and {prefix}floor leave no weight for domain {name!r}"
                )
        held = [
            name
            for name, weight in weights.items()
            if weight <= low[name] * (1 + 1e-9) or weight >= high[name] * (1 - 1e-9)
        ]
        if not held:
            return self
        bounds = {"max_epochs": max_epochs, "pin": pin, "floor": floor, "bound": held}
        given = {key: value for key, value in bounds.items() if value not in (None, {})}
        # The intervals are those of the computed weights, so they are dropped.
        return replace(self, weights=weights, uncertainty={}, method={**self.method, **given})

    cap_epochs = within_bounds  # the method's former name

    def _bounded(
        self, low: Mapping[str, float], high: Mapping[str, float], prefix: str
    ) -> dict[str, float]:
        names = list(self.weights)
        try:
            weights = bounded_weights(
                [self.weights[name] for name in names],
                [low[name] for name in names],
                [high[name] for name in names],
            )
        except ValueError as error:
            raise UserError(f"{prefix}pin and {prefix}floor cannot be kept: {error}") from error
        return dict(zip(names, weights.tolist(), strict=True))

    def require_domains(self, names: Iterable[str]) -> None:
        """Check that these are exactly the domains of the mixture.

        Args:
            names: the domains.

        Raises:
            UserError: the mixture lacks a weight for one of them, or has other domains.
        """
        wanted = set(names)
        missing = sorted(wanted - set(self.weights))
        surplus = sorted(set(self.weights) - wanted)
        if missing or surplus:
            parts = []
            if missing:
                parts.append(f"it has no weight for {listed(missing)}")
            if surplus:
                parts.append(f"it has weights for {listed(surplus)}")
            raise UserError("the domains differ from the mixture's: " + " and ".join(parts))

    def to_json(self) -> str:
        """Return the text of the mixture's file; every float reads back to the same bits."""
        body = {"format": FORMAT, **{k: v for k, v in asdict(self).items() if v not in ({}, None)}}
        return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "mixture") -> "Mixture":
        """Read a mixture from the text of its file.

        Args:
            text: of the file.
            source: the name of the text in errors.

        Returns:
            The mixture.

        Raises:
            UserError: the text is not JSON, has another format, or is not a mixture.
        """
        try:
            return cls(**parse_mixture(text, FORMAT, cls.__dataclass_fields__))
        except (ValueError, OverflowError, RecursionError) as error:  # UserError is a ValueError
            raise UserError(f"{source}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mixture file in one step, so that no reader sees half of it.

        Args:
            path: the file.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            write_atomically(Path(path), self.to_json())
        except (OSError, ValueError) as error:  # a path without a name is a ValueError
            raise UserError(f"cannot write the mixture file {path}: {reason_of(error)}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Mixture":
        """Read a mixture file.

        Args:
            path: the file.

        Returns:
            The mixture.

        Raises:
            UserError: the file cannot be read, or is not a mixture.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the mixture file {path}: {reason_of(error)}") from error
        return cls.from_json(text, source=str(path))
