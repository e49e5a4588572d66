"""The plan of an embedding: the model and the windows, decided once when a run starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.config.schema import ALL, AUTO, Config
from nemo_chameleon.config.validation import preset_of
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.device import dtype_of
from nemo_chameleon.embedding.huggingface import HuggingFaceProxy
from nemo_chameleon.embedding.megatron import MegatronProxy
from nemo_chameleon.embedding.pooling import middle_layer
from nemo_chameleon.embedding.reencoding import Reencoding
from nemo_chameleon.embedding.registry import Proxy
from nemo_chameleon.embedding.windows import Windows
from nemo_chameleon.method.weights import OBJECTIVES
from nemo_chameleon.models.pretrained import find_checkpoint, tokenizer_beside
from nemo_chameleon.provider.runs import proxy_run
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest

LEFT_OPEN = ("objective", "cross_documents", "normalize_states")
"""Keys under `chameleon` that, unless they are set, do not refuse a file made with other values."""


@dataclass(frozen=True)
class EmbeddingPlan:
    """How the domains are embedded, and what a mixture file records about it.

    Attributes:
        proxy: the existing model that embeds; None where a proxy is trained first.
        num_layers: number of layers of the model that embeds.
        seq_length: tokens of the longest window that this model takes.
        windows: the layers and windows that embeddings are means over.
        method: the settings that decide the embeddings, as a mixture file records them.
        objective: the objective that a new mixture is computed for.
        settings: for each proxy a digest of what the configuration asks of it.
        earlier_settings: the same digests as versions before 0.3 recorded them.
        reencoding: how the domains' tokens become those of an existing proxy; None if they are the
            same.
        tokenizer: the tokenizer of the model that embeds; None if it is not known.
    """

    proxy: Proxy | None
    num_layers: int
    seq_length: int
    windows: Windows
    method: dict[str, Any]
    objective: str
    settings: tuple[str, ...]
    earlier_settings: tuple[str, ...]
    reencoding: Reencoding | None
    tokenizer: str | None

    def cost(self, domains: int) -> str:
        """Say how much is embedded, for a person who decides whether to start.

        Args:
            domains: number of domains.

        Returns:
            A sentence without a full stop.
        """
        samples, length = self.method["samples"], self.method["sample_length"]
        if samples == AUTO:
            much = f"as many windows as chameleon.tolerance={self.method['tolerance']} needs"
        else:
            much = f"at most {domains * samples * length:,} tokens"
        layers = f"layers 1 to {max(self.windows.layers)} of {self.num_layers}"
        by = "a model that exists embeds"
        if self.proxy is None:
            count = len(self.settings)
            by = "a proxy that is trained first embeds"
            by = by if count == 1 else f"each of {count} proxies that are trained first embeds"
        again = "" if self.reencoding is None else ", encoded again with its tokenizer"
        return f"{by} the domains: {much} of them go through {layers}{again}"


def plan_embedding(config: Config, domains: Mapping[str, Domain]) -> EmbeddingPlan:
    """Decide how the domains are embedded; once the ranks have met, every rank must call it.

    Args:
        config: the whole configuration.
        domains: the opened domains, by name.

    Returns:
        The plan; all ranks get the first rank's.

    Raises:
        UserError: the configuration names an existing proxy or a tokenizer that is not there, or a
            proxy that has another tokenizer than the configuration says.
    """
    return on_first_rank(lambda: _plan(config, domains))


def _plan(config: Config, domains: Mapping[str, Domain]) -> EmbeddingPlan:
    wanted, model = config.chameleon, config.proxy.model
    proxy, reencoding = _existing_proxy(config)
    num_layers = model.num_layers if proxy is None else proxy.num_layers
    longest = model.seq_length if proxy is None else proxy.seq_length
    length = config.model.seq_length
    if wanted.source != "model":
        length = min(model.seq_length, longest)
    layer = wanted.layer if isinstance(wanted.layer, int) else middle_layer(num_layers)
    preset = preset_of(wanted)
    defaults: dict[str, Any] = {
        "objective": OBJECTIVES[0],
        "cross_documents": preset.cross_documents,
        "normalize_states": preset.normalize_states,
    }
    given = {key: getattr(wanted, key) for key in LEFT_OPEN}
    settled = {key: defaults[key] if value is None else value for key, value in given.items()}
    method: dict[str, Any] = {
        "layer": layer,
        "samples": wanted.samples,
        "sample_length": wanted.sample_length or length,
        "seed": wanted.seed,
        "cross_documents": settled["cross_documents"],
        "normalize_states": settled["normalize_states"],
        **kind_of(config.data).embedding_settings(wanted),
    }
    if wanted.samples == AUTO:
        method["tolerance"] = wanted.tolerance
    others = range(1, num_layers + 1) if wanted.layer == ALL else ()
    # The weights are computed from the first of these layers.
    layers = (layer, *(other for other in others if other != layer))
    windows = Windows.recorded(layers, method)
    numbers = range(1, config.proxy.count + 1)
    if proxy is None:
        settings = earlier = [_training_settings(config, domains, number) for number in numbers]
    else:
        settings = [_existing_settings(config, proxy.identity, reencoding)]
        earlier = [_existing_settings(config, proxy.earlier_identity, reencoding)]
    tokenizer = config.data.tokenizer if reencoding is None else reencoding.target
    return EmbeddingPlan(
        proxy,
        num_layers,
        longest,
        windows,
        method,
        settled["objective"],
        tuple(settings),
        tuple(earlier),
        reencoding,
        tokenizer,
    )


def trains_proxy(config: Config) -> bool:
    """Return whether the configuration trains a proxy, because no existing model embeds.

    Args:
        config: the whole configuration.

    Returns:
        False where the base model, proxy.load or proxy.hf embeds.
    """
    proxy = config.chameleon.source == "proxy"
    return proxy and config.proxy.load is None and config.proxy.hf is None


def _existing_proxy(config: Config) -> tuple[Proxy | None, Reencoding | None]:
    """Return the existing model that embeds, and how the domains' tokens become its own."""
    wanted, data = config.proxy, config.data
    if trains_proxy(config):
        return None, None
    if config.chameleon.source == "model":
        key, place = "checkpoint.pretrained_checkpoint", config.checkpoint.pretrained_checkpoint
        assert place is not None, "config.validation refuses source=model without it"
        return MegatronProxy(find_checkpoint(key, place, config, data, prefix="")), None
    if wanted.hf is not None:
        proxy = HuggingFaceProxy.of(wanted.hf, dtype_of(wanted.train.precision))
        return proxy, _reencoding(data, wanted.hf)
    assert wanted.load is not None
    own, reencoding = wanted.tokenizer, None
    if own is None and data.tokenizer is not None:
        own = tokenizer_beside(wanted.load)
    if own is not None:
        reencoding = _reencoding(data, own)
        data = replace(data, tokenizer=own, vocab_size=None)
    return MegatronProxy(find_checkpoint("proxy.load", wanted.load, wanted, data)), reencoding


def _reencoding(data: DataConfig, target: str) -> Reencoding | None:
    if data.tokenizer is None:
        raise UserError(
            f"the proxy has its own tokenizer, {target}: set data.tokenizer to the one that the "
            "domains were tokenised with, so that their text can be encoded for the proxy"
        )
    return Reencoding.between(data.tokenizer, target)


def _training_settings(config: Config, domains: Mapping[str, Domain], number: int = 1) -> str:
    """Return a digest of what a configuration asks of a proxy's training.

    Settings of the machine are left out, because a mixture may be used on another machine. The
    domains are left out too: a proxy may embed domains that it was not trained on, and a mixture
    file records fingerprints of its own domains.
    """
    of_others = ["train.precision", "optimizer.use_distributed_optimizer"]
    of_others += ["data.domains", "weights"]
    identity = proxy_run(config, domains, number).identity()
    return digest({key: value for key, value in identity.items() if key not in of_others})


def _existing_settings(config: Config, identity: str, reencoding: Reencoding | None) -> str:
    """Return a digest of what a configuration asks of a model that exists."""
    asked = {"proxy": identity, "data.split": config.data.split}
    return digest(asked if reencoding is None else {**asked, "tokens": reencoding.identity})
