"""A computed mixture changed without training: scored anew, other domains, several proxies.

All that weights follow from lies beside the mixture file, in its embeddings. Only new domains need
a model: proxy.py's `embed_new` embeds them with the proxy that the mixture came through.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_chameleon.method.embeddings import Embeddings
from nemo_chameleon.method.weights import Preset, choose_preset
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.compute import digest, mixture_from_embeddings, require_embeddings
from nemo_chameleon.mixture.embeddings_file import embeddings_file, load_embeddings, save_embeddings
from nemo_chameleon.mixture.mixture import provenance
from nemo_chameleon.utils.errors import UserError

_SCORING = ("preset", "ridge", "exponent", "min_effective")
_EMBEDDING = ("layer", "samples", "sample_length", "seed", "cross_documents", "tokens")


@dataclass(frozen=True)
class ComputedMixture:
    """A computed mixture and the embeddings that it was computed from.

    Attributes:
        mixture: as its file has it.
        embeddings: by domain name, for each proxy, in the order of `proxies`.
    """

    mixture: Mixture
    embeddings: Sequence[Embeddings]

    @classmethod
    def load(cls, file: str | Path) -> "ComputedMixture":
        """Read a mixture file and the embeddings beside it.

        Raises:
            UserError: one of them missing or damaged, or a mixture that was not computed.
        """
        mixture = Mixture.load(file)
        if mixture.name != "chameleon":
            raise UserError(f"{file}: its weights were not computed, they are {mixture.name}")
        if "bound" in mixture.method:
            raise UserError(f"{file} holds a run's weights within bounds, not those computed")
        computed = cls(mixture, load_embeddings(embeddings_file(file)))
        try:
            computed._require_complete()
        except UserError as error:
            raise UserError(f"{file} cannot be changed: {error}") from error
        return computed

    def _require_complete(self) -> None:
        method = self.mixture.method
        for key in ("layer", "sample_length", "seed"):
            if type(method.get(key)) is not int:
                raise UserError(f"its method has no {key}")
        if not isinstance(method.get("cross_documents"), bool):
            raise UserError("its method does not say whether windows cross_documents")
        if not isinstance(method.get("tolerance"), float):
            raise UserError("its method has no tolerance")
        self.preset()  # its settings are those of a preset
        require_embeddings(self.embeddings, list(self.mixture.weights))
        for name, facts in self.facts.items():
            if facts.get("embedding") != digest(self.embeddings, name):
                raise UserError(f"the embedding beside it is not that of its domain {name!r}")
            if "samples" not in facts:
                raise UserError(f"it does not say of how many samples domain {name!r} is")

    def save(self, file: str | Path) -> None:
        """Write the embeddings and the mixture file; between the two the old file stays whole.

        Raises:
            UserError: the place cannot be written to.
        """
        path = Path(file)
        if path.suffix != ".json":
            raise UserError(f"{file}: a mixture file's name ends in .json")
        embeddings = [dict(proxy) for proxy in self.embeddings]
        if path.is_file() and embeddings_file(path).is_file():
            # A mixture that is there goes on needing the domains that this one has not.
            there = load_embeddings(embeddings_file(path))
            if len(there) == len(embeddings):
                embeddings = [{**old, **new} for old, new in zip(there, embeddings, strict=True)]
        save_embeddings(embeddings_file(path), embeddings)
        self.mixture.save(path)

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """What the file says of each domain, by name."""
        return {name: self.mixture.domains.get(name, {}) for name in self.mixture.weights}

    @property
    def proxies(self) -> list[dict[str, Any]]:
        """What the file says of each proxy."""
        proxy = self.mixture.proxy
        return list(proxy.get("averaged", [proxy]))

    def rescored(self, objective: str | None = None, **settings: Any) -> "ComputedMixture":
        """The same embeddings under other settings of the scores and weights.

        Args:
            objective: "pretrain" or "finetune"; None as it was.
            settings: `preset`, `ridge`, `exponent`, `min_effective`; None or left out as it was,
                but another preset comes with its own.

        Raises:
            UserError: a setting that is none, or embeddings that have no weights.
        """
        preset = self.preset(**settings)
        return self._weighed(self.embeddings, self.facts, objective=objective, preset=preset)

    def preset(self, **settings: Any) -> Preset:
        """How its weights were made of scores; with `settings` as `rescored` takes them."""
        given = {key: value for key, value in settings.items() if value is not None}
        before = {key: self.mixture.method.get(key) for key in _SCORING}
        if given.get("preset", before["preset"]) != before["preset"]:
            before = {}
        try:
            return choose_preset(**{**before, **given})
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error

    def without(self, names: Iterable[str]) -> "ComputedMixture":
        """The mixture of the other domains.

        Raises:
            UserError: a name that it does not have.
        """
        names = list(names)
        for name in names:
            if name not in self.mixture.weights:
                raise UserError(f"the mixture has no domain {name!r}")
        left = {name: facts for name, facts in self.facts.items() if name not in names}
        if not left:
            raise UserError("that leaves no domain")
        return self._weighed(self.embeddings, left)

    def with_domains(
        self, embeddings: Sequence[Embeddings], facts: Mapping[str, Mapping[str, Any]]
    ) -> "ComputedMixture":
        """The mixture with new domains, embedded through the same proxies.

        Args:
            embeddings: of the new domains, for each proxy.
            facts: about them, by name.

        Raises:
            UserError: a name that it has already, or the data of a domain that it has.
        """
        for name, new in facts.items():
            self.require_unknown(name, new.get("fingerprint"))
        together = [{**old, **new} for old, new in zip(self.embeddings, embeddings, strict=True)]
        return self._weighed(together, {**self.facts, **facts})

    def require_unknown(self, name: str, fingerprint: str | None = None) -> None:
        """Raise a UserError if the mixture has a domain of this name, or this data."""
        if name in self.mixture.weights:
            raise UserError(f"the mixture has a domain {name!r} already: remove it first")
        for other, facts in self.facts.items():
            if fingerprint is not None and facts.get("fingerprint") == fingerprint:
                raise UserError(f"{name!r} is the same data as the mixture's {other!r}")

    def _weighed(
        self,
        embeddings: Sequence[Embeddings],
        facts: Mapping[str, Mapping[str, Any]],
        proxy: Mapping[str, Any] | None = None,
        objective: str | None = None,
        preset: Preset | None = None,
    ) -> "ComputedMixture":
        """Weights of these domains, all else as it was but for what is given."""
        method = self.mixture.method
        mixture = mixture_from_embeddings(
            [{name: through[name] for name in facts} for through in embeddings],
            facts,
            objective=objective or self.mixture.objective or "pretrain",
            preset=preset or self.preset(),
            tolerance=method["tolerance"],
            method={key: method[key] for key in _EMBEDDING if key in method},
            proxy=self.mixture.proxy if proxy is None else proxy,
            created=provenance(),
        )
        return ComputedMixture(mixture, embeddings)


def averaged(parts: Sequence[ComputedMixture]) -> ComputedMixture:
    """One mixture through several proxies: other seeds, other checkpoints.

    Their affinities are averaged, each proxy's at the same scale.

    Raises:
        UserError: fewer than two, one proxy twice, or mixtures of other domains, data, windows or
            settings.
    """
    if len(parts) < 2:
        raise UserError("there is one mixture only: nothing to average it with")
    first = parts[0]
    for part in parts[1:]:
        first.mixture.require_domains(part.mixture.weights)
        if part.mixture.objective != first.mixture.objective:
            raise UserError("the mixtures have different objectives; rescore one of them")
        for key in (*_SCORING, *_EMBEDDING):
            one, other = first.mixture.method.get(key), part.mixture.method.get(key)
            if one != other:
                raise UserError(f"the mixtures were made with {key}={one} and {key}={other}")
        for name, facts in first.facts.items():
            for key in ("fingerprint", "tokens"):
                if part.facts[name].get(key) != facts.get(key):
                    raise UserError(f"the mixtures are of other data for domain {name!r}")
    embeddings = [proxy for part in parts for proxy in part.embeddings]
    digests = [tuple(proxy[name].digest() for name in first.facts) for proxy in embeddings]
    if len(set(digests)) < len(digests):
        raise UserError("one proxy is there twice: average mixtures of different seeds")
    proxies = {"averaged": [proxy for part in parts for proxy in part.proxies]}
    return first._weighed(embeddings, first.facts, proxy=proxies)
