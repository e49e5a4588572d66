"""A computed mixture changed without training: scored anew, other domains, several proxies.

All that weights follow from lies beside the mixture file, in its embeddings. Only new domains need
a model: proxy.py's `embed_new` embeds them with the proxy that the mixture came through.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_chameleon.errors import UserError
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.scoring import TOLERANCE, check_embeddings, mixture_from_embeddings
from nemo_chameleon.shards import Embeddings, embeddings_file, load_embeddings, save_embeddings
from nemo_chameleon.weights import choose_preset

_SCORING = ("preset", "ridge", "exponent", "min_effective")


@dataclass(frozen=True)
class Computed:
    """A computed mixture and the embeddings that it was computed from.

    Attributes:
        mixture: as its file has it.
        embeddings: by domain name, for each proxy, in the order of `proxies`.
    """

    mixture: Mixture
    embeddings: Sequence[Embeddings]

    @classmethod
    def load(cls, file: str | Path) -> "Computed":
        """Read a mixture file and the embeddings beside it.

        Raises:
            UserError: one of them missing or damaged, or a mixture that was not computed.
        """
        mixture = Mixture.load(file)
        if mixture.name != "chameleon":
            raise UserError(f"{file}: its weights were not computed, they are {mixture.name}")
        if "bound" in mixture.method:
            raise UserError(f"{file} holds a run's weights within bounds, not those computed")
        embeddings = load_embeddings(embeddings_file(file))
        try:
            check_embeddings(embeddings, list(mixture.weights))
            if len(embeddings) != len(cls(mixture, ()).proxies):
                raise UserError("they are of another number of proxies")
        except UserError as error:
            raise UserError(f"{file} and its embeddings do not fit: {error}") from error
        return cls(mixture, embeddings)

    def save(self, file: str | Path) -> None:
        """Write the embeddings, then the mixture file.

        Raises:
            UserError: the place cannot be written to.
        """
        if Path(file).suffix != ".json":
            raise UserError(f"{file}: a mixture file's name ends in .json")
        try:
            save_embeddings(embeddings_file(file), self.embeddings)
            self.mixture.save(file)
        except OSError as error:
            raise UserError(f"cannot write {file}: {error}") from error

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """What the file says of each domain, by name."""
        return {name: self.mixture.domains.get(name, {}) for name in self.mixture.weights}

    @property
    def proxies(self) -> list[dict[str, Any]]:
        """What the file says of each proxy."""
        proxy = self.mixture.proxy
        return list(proxy.get("averaged", [proxy]))

    def rescored(self, objective: str | None = None, **settings: Any) -> "Computed":
        """The same embeddings under other settings of the scores and weights.

        Args:
            objective: "pretrain" or "finetune"; None as it was.
            settings: `preset`, `ridge`, `exponent`, `min_effective`; None or left out as it was,
                but another preset comes with its own.

        Raises:
            UserError: a setting that is none, or embeddings that have no weights.
        """
        given = {key: value for key, value in settings.items() if value is not None}
        before = {key: self.mixture.method.get(key) for key in _SCORING}
        if given.get("preset", before["preset"]) != before["preset"]:
            before = {}
        try:
            preset = choose_preset(**{**before, **given})
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        method = {
            key: value
            for key, value in self.mixture.method.items()
            if key not in (*_SCORING, "name", "tempering", "caveats")
        }
        mixture = mixture_from_embeddings(
            self.embeddings,
            self.facts,
            objective=objective or self.mixture.objective or "pretrain",
            preset=preset,
            tolerance=method.get("tolerance", TOLERANCE),
            method=method,
            proxy=self.mixture.proxy,
            created=self.mixture.created,
        )
        return Computed(mixture, self.embeddings)

    def without(self, names: Iterable[str]) -> "Computed":
        """The mixture of the other domains.

        Raises:
            UserError: a name that it does not have.
        """
        names = list(names)
        for name in names:
            if name not in self.mixture.weights:
                raise UserError(f"the mixture has no domain {name!r}")
        return self._over({n: f for n, f in self.facts.items() if n not in names})

    def with_domains(
        self, embeddings: Sequence[Embeddings], facts: Mapping[str, Mapping[str, Any]]
    ) -> "Computed":
        """The mixture with new domains, embedded through the same proxies.

        Args:
            embeddings: of the new domains, for each proxy.
            facts: about them, by name.

        Raises:
            UserError: a name that it has already, or the data of a domain that it has.
        """
        for name, new in facts.items():
            self.refuse_known(name, new.get("fingerprint"))
        together = [{**old, **new} for old, new in zip(self.embeddings, embeddings, strict=True)]
        return Computed(self.mixture, together)._over({**self.facts, **facts})

    def refuse_known(self, name: str, fingerprint: str | None = None) -> None:
        """Raise a UserError if the mixture has a domain of this name, or this data."""
        if name in self.mixture.weights:
            raise UserError(f"the mixture has a domain {name!r} already: remove it first")
        for other, facts in self.facts.items():
            if fingerprint is not None and facts.get("fingerprint") == fingerprint:
                raise UserError(f"{name!r} is the same data as the mixture's {other!r}")

    def _over(self, domains: Mapping[str, Mapping[str, Any]]) -> "Computed":
        if not domains:
            raise UserError("that leaves no domain")
        embeddings = [{name: proxy[name] for name in domains} for proxy in self.embeddings]
        mixture = Mixture(
            Mixture.uniform(domains).weights,
            objective=self.mixture.objective,
            domains={name: dict(facts) for name, facts in domains.items()},
            method=self.mixture.method,
            proxy=self.mixture.proxy,
            created=self.mixture.created,
        )
        return Computed(mixture, embeddings).rescored()


def averaged(parts: Sequence[Computed]) -> Computed:
    """One mixture through several proxies: other seeds, other checkpoints.

    Their affinities are averaged, each proxy's at the same scale; settings are the first's.

    Raises:
        UserError: mixtures of other domains or data, or embedded from other windows.
    """
    first = parts[0].mixture
    for part in parts[1:]:
        first.require_domains(part.mixture.weights)
        for name, facts in parts[0].facts.items():
            if part.facts[name].get("fingerprint") != facts.get("fingerprint"):
                raise UserError(f"the mixtures are of other data for domain {name!r}")
        for key in ("sample_length", "seed"):
            if part.mixture.method.get(key) != first.method.get(key):
                raise UserError(f"the mixtures were made with another {key}")
    mixture = Mixture(
        first.weights,
        objective=first.objective,
        domains=first.domains,
        method=first.method,
        proxy={"averaged": [proxy for part in parts for proxy in part.proxies]},
        created=first.created,
    )
    embeddings = [
        {name: proxy[name] for name in first.weights} for part in parts for proxy in part.embeddings
    ]
    return Computed(mixture, embeddings).rescored()
