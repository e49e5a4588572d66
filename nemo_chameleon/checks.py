"""Refusing a configuration that cannot run: what can be known without opening a data file."""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from nemo_chameleon import weights
from nemo_chameleon.config import nearest
from nemo_chameleon.errors import UserError
from nemo_chameleon.schema import (
    ALL,
    AUTO,
    COUNTED,
    DATASETS,
    ENGINES,
    MIXTURES,
    ON_MALFORMED,
    ON_MIXTURE_CHANGE,
    ON_TOO_LONG,
    SFT,
    SOURCES,
    UNITS,
    ChameleonConfig,
    Config,
    DataConfig,
    Run,
)

_MOST_DOMAINS = 2**15 - 2


def check(config: Config, world_size: int) -> None:
    """Refuse what cannot run, on `world_size` ranks.

    Raises:
        UserError: naming the key and what it would have to be.
    """
    check_mixture(config)
    _choice("engine", config.engine, list(ENGINES))
    check_run(config, world_size, "")
    if config.data.dataset == SFT and config.checkpoint.pretrained_checkpoint is None:
        raise UserError("data.dataset=sft finetunes a model: set checkpoint.pretrained_checkpoint")
    _at_least(1, "checkpoint.keep", config.checkpoint.keep)
    _choice("checkpoint.resume", config.checkpoint.resume, ("auto", "never"))
    _at_least(0, "checkpoint.save_interval", config.checkpoint.save_interval)
    _at_least(1, "logging.log_interval", config.logging.log_interval)


def check_mixture(config: Config) -> None:
    """`check` for the data and how its mixture is computed, whatever trains on it."""
    if len(config.data.domains) < 2:
        raise UserError(
            f"data.domains has {len(config.data.domains)} domain(s): a mixture needs at least two"
        )
    if len(config.data.domains) > _MOST_DOMAINS:
        raise UserError(
            f"data.domains has {len(config.data.domains):,} domains, Megatron's blend can number "
            f"{_MOST_DOMAINS:,}: put alike ones together"
        )
    if config.data.mixture not in MIXTURES and not _is_file(config.data.mixture):
        hint = nearest(config.data.mixture, MIXTURES)
        raise UserError(
            f"data.mixture={config.data.mixture} is neither a mixture file nor one of "
            f"{', '.join(MIXTURES)}{hint}"
        )
    if (config.data.tokenizer is None) == (config.data.vocab_size is None):
        raise UserError("set one of data.tokenizer and data.vocab_size")
    _choice("data.on_mixture_change", config.data.on_mixture_change, ON_MIXTURE_CHANGE)
    _check_dataset(config.data)
    if config.data.mixture == "chameleon":
        _check_chameleon(config)
    if Path(config.chameleon.file).suffix != ".json":
        raise UserError(f"chameleon.file={config.chameleon.file} must end in .json")
    if config.data.max_epochs is not None and not 0 < config.data.max_epochs < math.inf:
        raise UserError(
            f"data.max_epochs={config.data.max_epochs} must be positive and finite; null for no cap"
        )
    _at_least(1, "data.vocab_size", config.data.vocab_size)
    _at_least(0, "data.num_workers", config.data.num_workers)


def _check_dataset(data: DataConfig) -> None:
    _choice("data.dataset", data.dataset, DATASETS)
    _choice("data.unit", data.unit, UNITS)
    _choice("data.on_malformed", data.on_malformed, ON_MALFORMED)
    _choice("data.on_too_long", data.on_too_long, ON_TOO_LONG)
    if data.dataset == SFT:
        if data.tokenizer is None:
            raise UserError("data.dataset=sft needs data.tokenizer, to tokenise with")
        return
    for key in ("chat_template", "packing", "on_malformed", "on_too_long"):
        if getattr(data, key) != getattr(DataConfig(), key):
            raise UserError(f"data.{key} is for data.dataset=sft")


def check_proxy(config: Config, world_size: int) -> None:
    """`check` for the proxy, which need not run where the mixture is there already."""
    check_run(config.proxy, world_size, "proxy.")


def check_run(run: Run, world_size: int, prefix: str) -> None:
    """`check` for one training run; `prefix` is where its keys stand."""
    train, optimizer = run.train, run.optimizer
    check_model(run, world_size, prefix)
    _choice(
        f"{prefix}optimizer.lr_decay_style",
        optimizer.lr_decay_style,
        ("cosine", "linear", "constant"),
    )
    for name, least in (("train_iters", 1), ("global_batch_size", 1), ("micro_batch_size", 1)):
        _at_least(least, f"{prefix}train.{name}", getattr(train, name))
    _at_least(0, f"{prefix}train.eval_interval", train.eval_interval)
    _at_least(0, f"{prefix}train.eval_iters", train.eval_iters)
    if not 0 <= optimizer.min_lr <= optimizer.lr:
        raise UserError(f"{prefix}optimizer.min_lr must lie between 0 and {prefix}optimizer.lr")
    if not 0 <= optimizer.lr_warmup_iters < train.train_iters:
        raise UserError(
            f"{prefix}optimizer.lr_warmup_iters={optimizer.lr_warmup_iters} must be less than "
            f"{prefix}train.train_iters={train.train_iters}"
        )

    for name, high in (
        ("lr", math.inf),
        ("weight_decay", math.inf),
        ("adam_beta1", 1.0),
        ("adam_beta2", 1.0),
        ("adam_eps", math.inf),
        ("clip_grad", math.inf),
    ):
        _from_zero_to(high, f"{prefix}optimizer.{name}", getattr(optimizer, name))
    # numpy's seeds end at 2³², and pipeline stages and random states count up from this one.
    _from_zero_to(2**32 - 2**20, f"{prefix}train.seed", train.seed)
    replicas = world_size // (
        run.parallel.tensor_model_parallel_size * run.parallel.pipeline_model_parallel_size
    )
    _divides(
        train.micro_batch_size * replicas,
        train.global_batch_size,
        f"{prefix}train.micro_batch_size={train.micro_batch_size} times {replicas} data parallel "
        "ranks",
        f"{prefix}train.global_batch_size={train.global_batch_size}",
    )


def check_model(run: Run, world_size: int, prefix: str) -> None:
    """Refuse a model, a layout or a precision that cannot be."""
    model, train, parallel = run.model, run.train, run.parallel
    for section in (model, parallel):
        for item in fields(section):
            value = getattr(section, item.name)
            if isinstance(value, int) and not isinstance(value, bool):
                name = "model" if section is model else "parallel"
                _at_least(1, f"{prefix}{name}.{item.name}", value)
    _choice(f"{prefix}model.normalization", model.normalization, ("RMSNorm", "LayerNorm"))
    _choice(
        f"{prefix}model.position_embedding_type",
        model.position_embedding_type,
        ("rope", "learned_absolute"),
    )
    _choice(f"{prefix}train.precision", train.precision, ("auto", "bf16", "fp32"))
    _from_zero_to(math.inf, f"{prefix}model.init_method_std", model.init_method_std)
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    heads, groups = model.num_attention_heads, model.num_query_groups or model.num_attention_heads
    tp_key = f"{prefix}parallel.tensor_model_parallel_size={tensor}"
    _divides(heads, model.hidden_size, f"{prefix}model.num_attention_heads", "the hidden size")
    _divides(groups, heads, f"{prefix}model.num_query_groups", "the attention heads")
    _divides(tensor, heads, tp_key, f"{prefix}model.num_attention_heads={heads}")
    _divides(tensor, groups, tp_key, f"{prefix}model.num_query_groups={groups}")
    ffn = model.ffn_hidden_size or 4 * model.hidden_size
    _divides(tensor, ffn, tp_key, f"{prefix}model.ffn_hidden_size={ffn}")
    _divides(
        pipeline,
        model.num_layers,
        f"{prefix}parallel.pipeline_model_parallel_size={pipeline}",
        f"{prefix}model.num_layers={model.num_layers}",
    )
    if parallel.sequence_parallel:
        if tensor == 1:
            raise UserError(f"{prefix}parallel.sequence_parallel needs tensor parallelism")
        _divides(tensor, model.seq_length, tp_key, f"{prefix}model.seq_length={model.seq_length}")
    _divides(
        tensor * pipeline,
        world_size,
        f"{tp_key} times {prefix}parallel.pipeline_model_parallel_size={pipeline}",
        f"the number of processes, {world_size}",
    )
    if model.position_embedding_type == "rope" and model.hidden_size // heads % 2:
        raise UserError(
            f"{prefix}model.hidden_size over {prefix}model.num_attention_heads is odd; rope needs "
            "an even width"
        )


def preset_of(wanted: ChameleonConfig) -> weights.Preset:
    """The preset that chameleon.preset, ridge, exponent and min_effective name together.

    Raises:
        ValueError: as `weights.choose_preset`.
    """
    return weights.choose_preset(
        wanted.preset,
        ridge=wanted.ridge,
        exponent=wanted.exponent,
        min_effective=wanted.min_effective,
    )


def _check_chameleon(config: Config) -> None:
    wanted, proxy = config.chameleon, config.proxy
    _choice("chameleon.objective", wanted.objective, weights.OBJECTIVES)
    try:
        preset_of(wanted)
    except ValueError as error:
        raise UserError(f"chameleon.{error}") from error
    if isinstance(wanted.samples, str):
        if wanted.samples != AUTO:
            raise UserError(f"chameleon.samples={wanted.samples!r} is no whole number, nor {AUTO}")
    else:
        _at_least(1, "chameleon.samples", wanted.samples)
    if not 0 < wanted.tolerance < 1:
        raise UserError(f"chameleon.tolerance={wanted.tolerance} must lie between 0 and 1")
    _at_least(1, "chameleon.micro_batch_size", wanted.micro_batch_size)
    if isinstance(wanted.layer, str) and wanted.layer != ALL:
        raise UserError(f"chameleon.layer={wanted.layer!r} is no whole number, nor {ALL}")
    _choice("chameleon.source", wanted.source, SOURCES)
    _choice("chameleon.tokens", wanted.tokens, COUNTED)
    if wanted.cross_documents and config.data.dataset == SFT:
        raise UserError("chameleon.cross_documents is for data.dataset=gpt")
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


def _choice(key: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        hint = nearest(value, options)
        raise UserError(f"{key}={value} is not one of {', '.join(options)}{hint}")


def _at_least(least: int, key: str, value: int | None) -> None:
    if value is not None and value < least:
        raise UserError(f"{key}={value} must be at least {least}")


def _from_zero_to(high: float, key: str, value: float) -> None:
    if not 0 <= value < high:
        raise UserError(f"{key}={value} must be at least 0 and less than {high}")


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # longer than a path can be
        return False


def _divides(divisor: int, number: int, what: str, of: str) -> None:
    if number % divisor:
        raise UserError(f"{what} does not divide {of}")
