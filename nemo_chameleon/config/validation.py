"""Refusing a configuration that cannot run: what can be known without opening a data file."""

from pathlib import Path

from nemo_chameleon.config.constraints import nearest, require_valid
from nemo_chameleon.config.schema import (
    MIXTURES,
    SFT,
    ChameleonConfig,
    Config,
    RunConfig,
)
from nemo_chameleon.method.weights import Preset, choose_preset
from nemo_chameleon.utils.errors import UserError

_MOST_DOMAINS = 2**15 - 2


def check(config: Config, world_size: int) -> None:
    """Refuse a configuration that cannot run.

    Args:
        config: the whole configuration.
        world_size: processes that train the base model.

    Raises:
        UserError: naming the key and what it would have to be.
    """
    check_mixture(config)
    require_valid(config, "")
    check_run(config, world_size, "")
    if config.data.dataset == SFT and config.checkpoint.pretrained_checkpoint is None:
        raise UserError("data.dataset=sft finetunes a model: set checkpoint.pretrained_checkpoint")
    require_valid(config.checkpoint, "checkpoint.")
    require_valid(config.logging, "logging.")


def check_mixture(config: Config) -> None:
    """Refuse data, and settings of its mixture, that cannot be used, whatever trains on it.

    Raises:
        UserError: naming the key and what it would have to be.
    """
    data = config.data
    if len(data.domains) < 2:
        raise UserError(
            f"data.domains has {len(data.domains)} domain(s): a mixture needs at least two"
        )
    if len(data.domains) > _MOST_DOMAINS:
        raise UserError(
            f"data.domains has {len(data.domains):,} domains, and Megatron's blend can number "
            f"{_MOST_DOMAINS:,}: merge domains that are alike"
        )
    if data.mixture not in MIXTURES and not _is_file(data.mixture):
        raise UserError(
            f"data.mixture={data.mixture} is neither a mixture file nor one of "
            f"{', '.join(MIXTURES)}{nearest(data.mixture, MIXTURES)}"
        )
    if (data.tokenizer is None) == (data.vocab_size is None):
        raise UserError("set one of data.tokenizer and data.vocab_size")
    require_valid(data, "data.", data.dataset)
    if data.dataset == SFT and data.tokenizer is None:
        raise UserError("data.dataset=sft needs data.tokenizer, to tokenise with")
    if data.mixture == "chameleon":
        _check_chameleon(config)
    if Path(config.chameleon.file).suffix != ".json":
        raise UserError(f"chameleon.file={config.chameleon.file} must end in .json")


def check_proxy(config: Config, world_size: int) -> None:
    """Do what `check` does for the proxy, which is not used where the mixture exists already."""
    check_run(config.proxy, world_size, "proxy.")


def check_run(run: RunConfig, world_size: int, prefix: str) -> None:
    """Refuse a training run that cannot be.

    Args:
        run: its settings.
        world_size: processes that train.
        prefix: what its keys begin with: "" or "proxy.".

    Raises:
        UserError: naming the key and what it would have to be.
    """
    train, optimizer = run.train, run.optimizer
    check_model(run, world_size, prefix)
    require_valid(optimizer, f"{prefix}optimizer.")
    if not 0 <= optimizer.min_lr <= optimizer.lr:
        raise UserError(f"{prefix}optimizer.min_lr must lie between 0 and {prefix}optimizer.lr")
    if not 0 <= optimizer.lr_warmup_iters < train.train_iters:
        raise UserError(
            f"{prefix}optimizer.lr_warmup_iters={optimizer.lr_warmup_iters} must be less than "
            f"{prefix}train.train_iters={train.train_iters}"
        )
    replicas = world_size // (
        run.parallel.tensor_model_parallel_size * run.parallel.pipeline_model_parallel_size
    )
    _require_divides(
        train.micro_batch_size * replicas,
        train.global_batch_size,
        f"{prefix}train.micro_batch_size={train.micro_batch_size} times {replicas} data parallel "
        "ranks",
        f"{prefix}train.global_batch_size={train.global_batch_size}",
    )


def check_model(run: RunConfig, world_size: int, prefix: str) -> None:
    """Refuse a model, a layout or a precision that cannot be.

    Args:
        run: with the model and its layout.
        world_size: processes that the model is laid out over.
        prefix: what its keys begin with: "" or "proxy.".

    Raises:
        UserError: naming the key and what it would have to be.
    """
    model, parallel = run.model, run.parallel
    for section in ("model", "parallel", "train"):
        require_valid(getattr(run, section), f"{prefix}{section}.")
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    heads, groups = model.num_attention_heads, model.query_groups
    tp_key = f"{prefix}parallel.tensor_model_parallel_size={tensor}"
    _require_divides(
        heads, model.hidden_size, f"{prefix}model.num_attention_heads", "the hidden size"
    )
    _require_divides(groups, heads, f"{prefix}model.num_query_groups", "the attention heads")
    _require_divides(tensor, heads, tp_key, f"{prefix}model.num_attention_heads={heads}")
    _require_divides(tensor, groups, tp_key, f"{prefix}model.num_query_groups={groups}")
    ffn = model.ffn_width
    _require_divides(tensor, ffn, tp_key, f"{prefix}model.ffn_hidden_size={ffn}")
    _require_divides(
        pipeline,
        model.num_layers,
        f"{prefix}parallel.pipeline_model_parallel_size={pipeline}",
        f"{prefix}model.num_layers={model.num_layers}",
    )
    if parallel.sequence_parallel:
        if tensor == 1:
            raise UserError(f"{prefix}parallel.sequence_parallel needs tensor parallelism")
        length = model.seq_length
        _require_divides(tensor, length, tp_key, f"{prefix}model.seq_length={length}")
    _require_divides(
        tensor * pipeline,
        world_size,
        f"{tp_key} times {prefix}parallel.pipeline_model_parallel_size={pipeline}",
        f"the number of processes, {world_size}",
    )
    if model.position_embedding_type == "rope" and model.hidden_size // heads % 2:
        raise UserError(
            f"{prefix}model.hidden_size divided by {prefix}model.num_attention_heads is odd; rope "
            "needs an even width"
        )


def preset_of(wanted: ChameleonConfig) -> Preset:
    """Return the preset that chameleon.preset, ridge, exponent and min_effective describe together.

    Raises:
        ValueError: as `choose_preset` raises it; the message begins with the setting's name.
    """
    return choose_preset(
        wanted.preset,
        ridge=wanted.ridge,
        exponent=wanted.exponent,
        min_effective=wanted.min_effective,
    )


def _check_chameleon(config: Config) -> None:
    wanted, proxy = config.chameleon, config.proxy
    require_valid(wanted, "chameleon.", config.data.dataset)
    try:
        preset_of(wanted)
    except ValueError as error:
        raise UserError(f"chameleon.{error}") from error
    if proxy.load is not None and proxy.hf is not None:
        raise UserError("set one of proxy.load and proxy.hf")
    if wanted.source == "model":
        if proxy.load is not None or proxy.hf is not None:
            raise UserError(
                "chameleon.source=model embeds with checkpoint.pretrained_checkpoint: set "
                "chameleon.source=proxy for proxy.load or proxy.hf"
            )
        if config.checkpoint.pretrained_checkpoint is None:
            raise UserError(
                "chameleon.source=model needs checkpoint.pretrained_checkpoint; "
                "chameleon.source=proxy embeds with a proxy"
            )
    elif proxy.load is None and proxy.hf is None:
        check_windows(wanted, proxy.model.num_layers, proxy.model.seq_length)


def check_windows(wanted: ChameleonConfig, num_layers: int, seq_length: int) -> None:
    """Refuse windows and layers that a proxy does not have.

    Args:
        wanted: the settings.
        num_layers: layers of the proxy.
        seq_length: tokens of the longest window that the proxy takes.

    Raises:
        UserError: naming the key and what it would have to be.
    """
    if isinstance(wanted.layer, int) and not 1 <= wanted.layer <= num_layers:
        raise UserError(
            f"chameleon.layer={wanted.layer}: the proxy's layers count from 1 to {num_layers}"
        )
    length = seq_length if wanted.sample_length is None else wanted.sample_length
    if not 1 <= length <= seq_length:
        raise UserError(
            f"chameleon.sample_length={length} must lie between 1 and the proxy's seq_length, "
            f"{seq_length}"
        )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # longer than a path can be
        return False


def _require_divides(divisor: int, number: int, what: str, of: str) -> None:
    if number % divisor:
        raise UserError(f"{what} does not divide {of}")
