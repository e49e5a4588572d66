"""Changes to a computed mixture without training: other settings, other domains, several proxies.

The embeddings beside the mixture file are all that weights are computed from. Only new domains need
a model: `provider.new_domains.embed_new` embeds them with the mixture's proxy.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_chameleon.method.diagnostics import SETTINGS
from nemo_chameleon.method.embeddings import Embeddings
from nemo_chameleon.method.weights import Preset, choose_preset
from nemo_chameleon.mixture.compute import digest, mixture_from_embeddings, require_embeddings
from nemo_chameleon.mixture.embeddings_file import embeddings_file, load_embeddings, save_embeddings
from nemo_chameleon.mixture.mixture import UNRECORDED, Mixture, proxies_of
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.provenance import provenance

_SCORING = ("preset", "ridge", "exponent", "min_effective")
_EMBEDDING = (
    "layer",
    "samples",
    "sample_length",
    "seed",
    "cross_documents",
    "normalize_states",
    "tokens",
)


@dataclass(frozen=True)
class ComputedMixture:
    """A computed mixture and the embeddings that it was computed from.

    Attributes:
        mixture: the mixture.
        embeddings: by domain name, one mapping per proxy, in the order of `proxies`.
        settings: the names of settings in the caveats of changed mixtures.
    """

    mixture: Mixture
    embeddings: Sequence[Embeddings]
    settings: Mapping[str, str] = field(default_factory=lambda: SETTINGS)

    @classmethod
    def load(cls, file: str | Path, settings: Mapping[str, str] = SETTINGS) -> "ComputedMixture":
        """Read a mixture file and the embeddings beside it.

        Args:
            file: the mixture file.
            settings: the names of settings in the caveats of changed mixtures.

        Returns:
            The mixture and its embeddings.

        Raises:
            UserError: a file is missing or damaged, the mixture was not computed, or the embeddings
                are not the mixture's.
        """
        mixture = Mixture.load(file)
        if mixture.name != "chameleon":
            raise UserError(f"{file}: its weights were not computed, but are {mixture.name}")
        if "bound" in mixture.method:
            raise UserError(f"{file} has a run's weights within bounds; use the computed mixture")
        computed = cls(mixture, load_embeddings(embeddings_file(file)), settings)
        try:
            computed._require_complete()
        except UserError as error:
            raise UserError(f"{file} cannot be changed: {error}") from error
        return computed

    def _require_complete(self) -> None:
        method = self.mixture.method
        for key in ("layer", "sample_length", "seed"):
            if type(method.get(key)) is not int:
                raise UserError(f"its method has no integer {key!r}")
        for key in ("cross_documents", "normalize_states"):
            if not isinstance({**UNRECORDED, **method}.get(key), bool):
                raise UserError(f"its method has no {key!r}, which must be true or false")
        if not isinstance(method.get("tolerance"), float):
            raise UserError("its method has no number 'tolerance'")
        self.preset()  # raises a UserError if the settings are not those of a preset
        require_embeddings(self.embeddings, list(self.mixture.weights))
        for name, facts in self.facts.items():
            if facts.get("embedding") != digest(self.embeddings, name):
                raise UserError(f"the embeddings beside it are not those of its domain {name!r}")
            if "samples" not in facts:
                raise UserError(f"it has no number of 'samples' for domain {name!r}")

    def save(self, file: str | Path) -> None:
        """Write the embeddings, then the mixture file.

        If this is interrupted, an old mixture file still has the embeddings that it needs.

        Args:
            file: the mixture file, whose name ends in .json.

        Raises:
            UserError: the name has another ending, or a file cannot be written.
        """
        path = Path(file)
        if path.suffix != ".json":
            raise UserError(f"{file}: the name of a mixture file must end in .json")
        embeddings = [dict(proxy) for proxy in self.embeddings]
        if path.is_file() and embeddings_file(path).is_file():
            # The old mixture file still needs the embeddings of domains that the new one lacks.
            there = load_embeddings(embeddings_file(path))
            if len(there) == len(embeddings):
                embeddings = [{**old, **new} for old, new in zip(there, embeddings, strict=True)]
        save_embeddings(embeddings_file(path), embeddings)
        self.mixture.save(path)

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """The facts about each domain in the mixture file, by name."""
        return {name: self.mixture.domains.get(name, {}) for name in self.mixture.weights}

    @property
    def proxies(self) -> list[dict[str, Any]]:
        """The facts about each proxy in the mixture file."""
        return proxies_of(self.mixture.proxy)

    def rescored(self, objective: str | None = None, **settings: Any) -> "ComputedMixture":
        """Compute the weights again from the same embeddings with other settings.

        Args:
            objective: "pretrain" or "finetune"; None keeps the mixture's.
            settings: `preset`, `ridge`, `exponent` and `min_effective`. A setting that is None or
                left out keeps its value, unless another preset is given, which has its own.

        Returns:
            The new mixture with the same embeddings.

        Raises:
            UserError: a setting is wrong, or no weights follow from the embeddings.
        """
        preset = self.preset(**settings)
        return self._weighed(self.embeddings, self.facts, objective=objective, preset=preset)

    def preset(self, **settings: Any) -> Preset:
        """Return the preset that the weights were computed with.

        Args:
            settings: settings to replace, as in `rescored`.

        Returns:
            The preset with these settings.

        Raises:
            UserError: a setting is wrong.
        """
        given = {key: value for key, value in settings.items() if value is not None}
        before = {key: self.mixture.method.get(key) for key in _SCORING}
        if given.get("preset", before["preset"]) != before["preset"]:
            before = {}
        try:
            return choose_preset(**{**before, **given})
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error

    def without(self, names: Iterable[str]) -> "ComputedMixture":
        """Compute the weights again without some domains.

        Args:
            names: the domains to remove.

        Returns:
            The mixture of the other domains.

        Raises:
            UserError: the mixture has no domain of that name, or fewer than two would be left.
        """
        names = list(names)
        for name in names:
            if name not in self.mixture.weights:
                raise UserError(f"the mixture has no domain {name!r}")
        left = {name: facts for name, facts in self.facts.items() if name not in names}
        if not left:
            raise UserError("removing these leaves no domain; keep at least two")
        return self._weighed(self.embeddings, left)

    def with_domains(
        self, embeddings: Sequence[Embeddings], facts: Mapping[str, Mapping[str, Any]]
    ) -> "ComputedMixture":
        """Compute the weights again with new domains.

        Args:
            embeddings: of the new domains by name, one mapping per proxy of the mixture.
            facts: about each new domain, by name, for the mixture file.

        Returns:
            The mixture of the old and the new domains.

        Raises:
            UserError: the mixture already has a domain of that name or with the same data.
        """
        for name, new in facts.items():
            self.require_unknown(name, new.get("fingerprint"))
        together = [{**old, **new} for old, new in zip(self.embeddings, embeddings, strict=True)]
        return self._weighed(together, {**self.facts, **facts})

    def require_unknown(
        self, name: str, fingerprint: str | None = None, paths: Iterable[str] = ()
    ) -> None:
        """Check that the mixture has no domain of this name and none with this data.

        Args:
            name: of a new domain.
            fingerprint: of its data; None skips the check of the data.
            paths: of its parts; none may be a path of another domain.

        Raises:
            UserError: the mixture has such a domain.
        """
        if name in self.mixture.weights:
            raise UserError(f"the mixture already has a domain {name!r}: remove it first")
        for other, facts in self.facts.items():
            if fingerprint is not None and facts.get("fingerprint") == fingerprint:
                raise UserError(f"{name!r} has the same data as the mixture's domain {other!r}")
            recorded = facts.get("path", [])
            recorded = [recorded] if isinstance(recorded, str) else recorded
            taken = set(map(os.path.realpath, recorded))
            for path in paths:
                if os.path.realpath(path) in taken:
                    raise UserError(f"{path} is data of the mixture's domain {other!r} already")

    def _weighed(
        self,
        embeddings: Sequence[Embeddings],
        facts: Mapping[str, Mapping[str, Any]],
        proxy: Mapping[str, Any] | None = None,
        objective: str | None = None,
        preset: Preset | None = None,
    ) -> "ComputedMixture":
        """Compute the weights of these domains; what is not given stays as it was."""
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
            settings=self.settings,
        )
        return ComputedMixture(mixture, embeddings, self.settings)


def averaged(parts: Sequence[ComputedMixture]) -> ComputedMixture:
    """Average mixtures of the same domains that were computed with different proxies.

    The proxies may differ in their seeds or checkpoints. Their affinities are averaged, all scaled
    to the same mean, and the weights follow from the average.

    Args:
        parts: at least two computed mixtures.

    Returns:
        One mixture with the embeddings of all proxies.

    Raises:
        UserError: there are fewer than two mixtures, two have the same proxy, or they differ in
            their domains, data, windows or settings.
    """
    if len(parts) < 2:
        raise UserError("averaging needs at least two mixtures")
    first = parts[0]
    for part in parts[1:]:
        first.mixture.require_domains(part.mixture.weights)
        if part.mixture.objective != first.mixture.objective:
            raise UserError("the mixtures have different objectives: rescore one of them")
        for key in (*_SCORING, *_EMBEDDING):
            one, other = (
                {**UNRECORDED, **computed.mixture.method}.get(key) for computed in (first, part)
            )
            if one != other:
                raise UserError(f"the mixtures were made with {key}={one} and {key}={other}")
        for name, facts in first.facts.items():
            for key in ("fingerprint", "tokens"):
                if part.facts[name].get(key) != facts.get(key):
                    raise UserError(f"the mixtures have different data for domain {name!r}")
    embeddings = [proxy for part in parts for proxy in part.embeddings]
    digests = [tuple(proxy[name].digest() for name in first.facts) for proxy in embeddings]
    if len(set(digests)) < len(digests):
        raise UserError("two of the mixtures have the same proxy: average different seeds")
    proxies = {"averaged": [proxy for part in parts for proxy in part.proxies]}
    return first._weighed(embeddings, first.facts, proxy=proxies)
