"""What a host's run draws by: its own datasets, and the weights that a mixture gives them.

A host builds its datasets itself, and all that an adapter changes is their blend. What is asked
for is settled here, the same for every host, before the host builds anything:

    resolve     a mixture's name or file, and the host's datasets, to a Draw
    within      data.max_epochs, pin and floor, for as much as the host is going to draw
    kept        that a run that goes on draws by what it has drawn by
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_chameleon.config import load_mixture_config
from nemo_chameleon.config.schema import MIXTURES, ON_MIXTURE_CHANGE, Config
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kind import kind_of
from nemo_chameleon.data.token_shares import sample_shares
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.processes import process_group, world_size
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.tables import diff_mixtures
from nemo_chameleon.models.checkpoint import tracked
from nemo_chameleon.provider.preflight import Prepared, prepare_mixture
from nemo_chameleon.provider.proxy import compute_mixture
from nemo_chameleon.provider.runs import run_name, within_bounds
from nemo_chameleon.provider.stored import saved_mixture
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest
from nemo_chameleon.utils.ranks import is_first_rank

StrPath = str | os.PathLike[str]
Prefixes = Sequence[str] | Mapping[str, str]
Folders = Sequence[StrPath | None]
FILE = "mixture.json"


@dataclass(frozen=True)
class Draw:
    """A mixture, and where its domains lie.

    Attributes:
        mixture: weights by domain name.
        paths: prefix of each domain, in the order of the host's datasets.
        config: of this package, where its bounds are to be kept.
        domains: opened, where there is a configuration.
        shares: of the run's samples, where the mixture's weights are shares of answer tokens.
    """

    mixture: Mixture
    paths: Mapping[str, str]
    config: Config | None = None
    domains: Mapping[str, Domain] | None = None
    shares: Mapping[str, float] | None = None

    @property
    def blend(self) -> tuple[list[str], list[float]]:
        """Prefixes, and weights in their order: Megatron's `blend`."""
        prefixes, weights = self.mixture.blend(self.paths)
        return prefixes, weights if self.shares is None else [self.shares[n] for n in self.paths]

    @property
    def pairs(self) -> list[str]:
        """Weight, prefix, weight, prefix, ...: what `--data-path` and `data_prefix` take."""
        return [
            part for path, weight in zip(*self.blend, strict=True) for part in (repr(weight), path)
        ]

    def within(
        self, samples: int, seq_length: int, seed: int | None = None, evaluated: bool = False
    ) -> "Draw":
        """Within the bounds of the configuration, for so many samples; the same without one.

        Args:
            samples: that the host draws.
            seq_length: tokens of each.
            seed: of the host's order of samples; None for the configuration's.
            evaluated: whether the host evaluates on validation splits.

        Raises:
            UserError: bounds that cannot be kept, or examples that do not fit into a sample.
        """
        if self.config is None or self.domains is None:
            return self
        data, sizes = self.config.data, {"samples": samples, "seq_length": seq_length}
        if kind_of(data).packed:
            own = self.config.model.seq_length
            if own != seq_length:
                raise UserError(
                    f"the host's samples have {seq_length} tokens, model.seq_length={own} in the "
                    "mixture's configuration: set both the same"
                )
            kind_of(data).require_samples(data, self.domains, seq_length, "model.", evaluated)
        bounded = within_bounds(self.config, self.domains, self.mixture, **sizes)
        if data.unit == "samples":
            return replace(self, mixture=bounded)
        seed = self.config.train.seed if seed is None else seed
        shares = sample_shares(bounded.weights, self.domains, **sizes, seed=seed)
        return replace(self, mixture=bounded, shares=shares)

    def kept(
        self, save: StrPath | None, load: StrPath | None = None, on_change: str = "refuse"
    ) -> "Draw":
        """Compared with the mixture of the run that this one goes on from, and saved.

        Args:
            save: where this run's checkpoints go; None where the host saves none.
            load: where those of the run that it goes on from lie.
            on_change: what is done about another mixture than the saved one: "refuse" or "accept".

        Raises:
            UserError: another mixture, and it is refused; with both.
        """
        weights = {name: self.mixture.weights[name] for name in self.paths}
        # In the order of the host's datasets, which the order of its samples follows from.
        mine = replace(self.mixture, weights=weights, method={**self.mixture.method, **self._read})

        def compare() -> None:
            file = begun_in(save, load, on_change)
            if file is not None and not _same(saved := Mixture.load(file), mine):
                raise UserError(
                    f"{file} is what the run has drawn by so far, and another mixture is asked "
                    "for: ask for that one, or on_mixture_change=accept\n"
                    + diff_mixtures(saved, mine)
                )
            if save is not None and is_first_rank():
                mine.save(Path(save) / FILE)

        on_first_rank(compare)
        return self

    @property
    def packed(self) -> bool:
        """Whether what is drawn is examples to finetune on, several in a sample."""
        return self.config is not None and kind_of(self.config.data).packed

    @property
    def _read(self) -> dict[str, Any]:
        """What more the samples of finetuning follow from, for the file of the run."""
        if self.config is None or self.domains is None or not self.packed:
            return {}
        data = self.config.data
        keys = [key for key in kind_of(data).order_settings if key != "dataset"]
        contents = [domain.fingerprint for domain in self.domains.values()]
        settings = {key: getattr(data, key) for key in keys}
        return {"drawn": {**settings, "contents": digest(contents)}}


def begun_in(save: StrPath | None, load: StrPath | None, on_change: str) -> Path | None:
    """The mixture that a run which goes on has to keep to; None where it may take any.

    Raises:
        UserError: `on_change` is neither "refuse" nor "accept".
    """
    if on_change not in ON_MIXTURE_CHANGE:
        choices = ", ".join(ON_MIXTURE_CHANGE)
        raise UserError(f"on_mixture_change={on_change!r} is not one of {choices}")
    file = saved_in(save, load)
    # A start that came to no checkpoint has drawn nothing that would have to be kept to.
    trained = file is not None and _has_checkpoints(file.parent)
    return file if trained and on_change == "refuse" else None


def refuse_unasked(save: StrPath | None, load: StrPath | None, on_change: str) -> None:
    """Refuse to go on without a mixture where a run began with one.

    Raises:
        UserError: it did.
    """
    file = begun_in(save, load, on_change)
    if file is not None:
        raise UserError(
            f"{file} is what the run has drawn by so far, and no mixture is asked for: ask for "
            f"mixture={file}, or on_mixture_change=accept"
        )


def _same(saved: Mixture, asked: Mixture) -> bool:
    pairs = zip(saved.weights.items(), asked.weights.items(), strict=False)
    if saved.method.get("drawn") != asked.method.get("drawn"):
        return False
    return len(saved.weights) == len(asked.weights) and all(
        before[0] == now[0] and math.isclose(before[1], now[1], rel_tol=1e-9)
        for before, now in pairs
    )


def _has_checkpoints(folder: Path) -> bool:
    """Return whether there are any, under the names of Megatron-LM and Bridge, or of NeMo."""
    return tracked(folder)[0] is not None or any(folder.glob("*/weights"))


def run_folder(config: Config) -> Path:
    """Return the folder of a host's run, apart from the runs of this package's own engine."""
    return Path(config.output) / f"{run_name(config)}-{config.engine}"


def saved_in(*folders: StrPath | None) -> Path | None:
    """The mixture that a run saved with its checkpoints, if it did."""
    files = [Path(folder) / FILE for folder in folders if folder is not None]
    return next((file for file in files if file.is_file()), None)


def resolve(
    mixture: "StrPath | Mixture | Draw",
    paths: Prefixes | None = None,
    weights: Sequence[float] | None = None,
    *,
    config: StrPath | Config | None = None,
    saved: Folders = (),
    finetuning: bool = False,
) -> Draw:
    """What a host is to draw by.

    A mixture that has to be computed is computed here, by all ranks, if their processes have not
    met in the host yet.

    Args:
        mixture: "chameleon", "uniform", "proportional", "static", the path of a mixture file, or a
            Mixture; what was resolved before stays as it is.
        paths: the host's prefixes, by name or in their order; None for those of the configuration
            or of the mixture file.
        weights: the host's own, in the order of `paths`, for "static".
        config: this package's configuration, or its file: `data.domains` and, for "chameleon",
            how it is computed. Its base model's keys are not used.
        saved: folders of the run's checkpoints: what lies there serves where the file of a computed
            mixture is gone.
        finetuning: whether the host takes examples to finetune on.

    Raises:
        UserError: naming the culprit and the next step.
    """
    if isinstance(mixture, Draw):
        return mixture
    if isinstance(mixture, Mixture):
        return _at(mixture, paths)
    wanted = os.fspath(mixture)
    if wanted == "static" and (weights or config is None):
        if not paths or not weights:
            raise UserError("mixture=static takes the host's own weights, and it has none")
        named = _named(paths)
        return Draw(Mixture.static(dict(zip(named, weights, strict=True))), named)
    if config is not None:
        return _configured(wanted, config, paths, saved, finetuning)
    if wanted == "uniform" and paths:
        named = _named(paths)
        return Draw(Mixture.uniform(named), named)
    if wanted in MIXTURES:
        raise UserError(
            f"mixture={wanted} needs the configuration that says how: give its file as well (its "
            "keys: nemo_chameleon/config/schema.py)"
        )
    return _at(Mixture.load(wanted), paths)


def _configured(
    wanted: str,
    config: StrPath | Config,
    paths: Prefixes | None,
    folders: Folders,
    finetuning: bool,
) -> Draw:
    if not isinstance(config, Config):
        config = load_mixture_config(Path(config), [f"data.mixture={wanted}"])
    if kind_of(config.data).packed and not finetuning:
        raise UserError(
            "data.dataset=sft: this takes datasets of tokens; finetune with NeMo 2's "
            "MixtureDataModule or with Bridge's MixtureSFTConfig"
        )
    prepared = prepare_mixture(config)
    domains = prepared.domains
    own = {name: domain.path for name, domain in domains.items()}
    mixture = _computed(prepared, folders)
    # What was saved is within the bounds of its run already, and those are its own.
    bounds = None if "bound" in mixture.method else config
    named = {name: domains[name].prefix for name in _paths(own, paths)}
    return Draw(mixture, named, bounds, domains)


def _computed(prepared: Prepared, folders: Folders) -> Mixture:
    """Return the configuration's mixture: stored, from a run's folder, or computed by all ranks."""
    config = prepared.config

    def find() -> str | None:
        found = prepared.stored
        if found is None and (file := saved_in(*folders)) is not None:
            found = saved_mixture(config, prepared.domains, prepared.plan, file)
        return None if found is None else found.to_json()

    several = world_size() > 1
    if several and "RANK" in os.environ and not dist.is_initialized():
        # The ranks agree on which files are there.
        with process_group():
            text = on_first_rank(find)
            return Mixture.from_json(text) if text else compute_mixture(prepared)
    text = find()
    if text is not None:
        return Mixture.from_json(text)
    if several or dist.is_initialized():
        raise UserError(
            f"there is no {config.chameleon.file} yet, and the host starts the processes: compute "
            "it first, with torchrun recipes/compute_mixture.py"
        )
    with process_group():
        return compute_mixture(prepared)


def _named(paths: Prefixes) -> Mapping[str, str]:
    """Prefixes by name: their own where they have no other."""
    return paths if isinstance(paths, Mapping) else dict(zip(paths, paths, strict=True))


def _at(mixture: Mixture, paths: Prefixes | None) -> Draw:
    """A mixture of a file, over the host's paths or its own."""
    own = {name: mixture.domains.get(name, {}).get("path", "") for name in mixture.weights}
    if paths is None and not all(own.values()):
        raise UserError("the mixture does not say where its domains lie: give the paths by name")
    named = _paths(own, paths)
    mixture.require_domains(named)
    return Draw(mixture, named)


def _paths(own: Mapping[str, str], paths: Prefixes | None) -> dict[str, str]:
    """Prefixes by domain name: of a list, those of the domains that lie there.

    Raises:
        UserError: a prefix that is no domain's, or given twice.
    """
    if paths is None:
        return dict(own)
    if isinstance(paths, Mapping):
        return dict(paths)
    lie = {os.path.realpath(path): name for name, path in own.items() if path}
    named: dict[str, str] = {}
    for path in paths:
        name = lie.get(os.path.realpath(path), path if path in own else None)
        if name is None:
            raise UserError(
                f"no domain of the mixture lies at {path}; they lie at "
                f"{', '.join(lie) or 'places that it does not name'}: give the paths by name"
            )
        if name in named:
            raise UserError(f"{path}: domain {name!r} is given twice")
        named[name] = path
    return named
