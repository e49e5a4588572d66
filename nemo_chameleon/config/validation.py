"""Checks of a configuration that need no data file, so that a run fails before it starts."""

from dataclasses import replace
from pathlib import Path

from nemo_chameleon.config.constraints import nearest, require_valid
from nemo_chameleon.config.data import MIXTURES, SFT
from nemo_chameleon.config.places import require_places
from nemo_chameleon.config.schema import ChameleonConfig, Config, RunConfig
from nemo_chameleon.method.weights import Preset, choose_preset
from nemo_chameleon.mixture.datasets import MOST_DATASETS
from nemo_chameleon.utils.errors import UserError, reason_of
from nemo_chameleon.utils.names import require_unicode


def check(config: Config, world_size: int) -> None:
    """Check that a configuration can run.

    Args:
        config: the whole configuration.
        world_size: number of processes that train the base model.

    Raises:
        UserError: it cannot; the error names the key and what its value must be.
    """
    check_mixture(config)
    require_valid(config, "")
    check_run(config, world_size, "")
    try:
        is_file = Path(config.output).is_file()
    except OSError as error:  # a name that is too long
        raise UserError(f"output={config.output} cannot be used: {reason_of(error)}") from error
    if is_file:
        raise UserError(f"output={config.output} is a file: name a folder")
    if config.data.dataset == SFT and config.checkpoint.pretrained_checkpoint is None:
        raise UserError("data.dataset=sft finetunes a model: set checkpoint.pretrained_checkpoint")
    require_valid(config.checkpoint, "checkpoint.")
    require_valid(config.logging, "logging.")


def check_mixture(config: Config) -> None:
    """Check the sections `data` and `chameleon`, which do not depend on what trains on the data.

    Args:
        config: the whole configuration.

    Raises:
        UserError: a value is wrong; the error names the key and what its value must be.
    """
    data = config.data
    require_places(config)
    if len(data.domains) < 2:
        raise UserError(
            f"data.domains has {len(data.domains)} domain(s): a mixture needs at least two"
        )
    if len(data.domains) > MOST_DATASETS:
        raise UserError(
            f"data.domains has {len(data.domains):,} domains, but Megatron's blend can number only "
            f"{MOST_DATASETS:,}: merge domains that are alike"
        )
    for name in (*data.domains, *data.validation):
        require_unicode(name, f"the name of domain {name!r}")
    for key, mixture in _mixtures(config):
        if mixture not in MIXTURES and not _is_file(mixture):
            raise UserError(
                f"{key}={mixture} is neither a file that exists nor one of "
                f"{', '.join(MIXTURES)}{nearest(mixture, MIXTURES)}"
            )
    for at, stage in enumerate(data.stages):
        require_valid(stage, f"data.stages[{at}].")
    if data.order == "megatron" and len(data.stages) > 1:
        raise UserError(
            "data.order=megatron has one mixture for the whole run: remove it, because several "
            "data.stages need data.order=streams"
        )
    if (data.tokenizer is None) == (data.vocab_size is None):
        both = "both are" if data.tokenizer is not None else "neither is"
        raise UserError(f"set one of data.tokenizer and data.vocab_size: {both} set")
    require_valid(data, "data.", data.dataset)
    if data.dataset == SFT and data.tokenizer is None:
        raise UserError("data.dataset=sft needs data.tokenizer: set it to a tokenizer.json")
    if any(mixture == "chameleon" for _, mixture in _mixtures(config)):
        _check_chameleon(config)
    if Path(config.chameleon.file).suffix != ".json":
        raise UserError(f"chameleon.file={config.chameleon.file} must end in .json")


def check_drawn(config: Config) -> None:
    """Check what decides the samples of a run, whatever trains on them.

    Args:
        config: the whole configuration.

    Raises:
        UserError: a value is wrong; the error names the key and what its value must be.
    """
    check_mixture(config)
    require_valid(config, "")
    require_valid(config.model, "model.")
    require_valid(config.train, "train.")


def _mixtures(config: Config) -> list[tuple[str, str]]:
    """Return the mixtures that a run draws by, with their keys."""
    data = config.data
    own = [(f"data.stages[{at}].mixture", stage.mixture) for at, stage in enumerate(data.stages)]
    named = [(key, mixture) for key, mixture in own if mixture is not None]
    return named if own and len(named) == len(own) else [*named, ("data.mixture", data.mixture)]


def check_proxy(config: Config, world_size: int) -> None:
    """Check that the proxy's training can run; it is not needed if the mixture exists already.

    Args:
        config: the whole configuration.
        world_size: number of processes that train the proxy.

    Raises:
        UserError: it cannot; the error names the key and what its value must be.
    """
    check_run(config.proxy, world_size, "proxy.")


def check_run(run: RunConfig, world_size: int, prefix: str) -> None:
    """Check the settings of a training run.

    Args:
        run: the settings.
        world_size: number of processes that train.
        prefix: what the settings' keys begin with: "" or "proxy.".

    Raises:
        UserError: a value is wrong; the error names the key and what its value must be.
    """
    train, optimizer = run.train, run.optimizer
    check_model(run, world_size, prefix)
    require_valid(train, f"{prefix}train.")
    require_valid(optimizer, f"{prefix}optimizer.")
    if not 0 <= optimizer.min_lr <= optimizer.lr:
        raise UserError(
            f"{prefix}optimizer.min_lr={optimizer.min_lr} must be between 0 and "
            f"{prefix}optimizer.lr={optimizer.lr}"
        )
    if not 0 <= optimizer.lr_warmup_iters < train.train_iters:
        raise UserError(
            f"{prefix}optimizer.lr_warmup_iters={optimizer.lr_warmup_iters} must be at least "
            f"0 and less than {prefix}train.train_iters={train.train_iters}"
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
    """Check a model, its layout and its precision.

    Args:
        run: settings that include the model and its layout.
        world_size: number of processes that the model is laid out over.
        prefix: what the settings' keys begin with: "" or "proxy.".

    Raises:
        UserError: a value is wrong; the error names the key and what its value must be.
    """
    model, parallel = run.model, run.parallel
    require_valid(model, f"{prefix}model.")
    require_valid(parallel, f"{prefix}parallel.")
    require_valid(run.train, f"{prefix}train.", only=("precision",))
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    heads, groups = model.num_attention_heads, model.query_groups
    tp_key = f"{prefix}parallel.tensor_model_parallel_size={tensor}"
    heads_key = f"{prefix}model.num_attention_heads={heads}"
    groups_key = f"{prefix}model.num_query_groups={groups}"
    hidden_key = f"{prefix}model.hidden_size={model.hidden_size}"
    if model.kv_channels is None:
        _require_divides(heads, model.hidden_size, heads_key, hidden_key)
    _require_divides(groups, heads, groups_key, heads_key)
    _require_divides(tensor, heads, tp_key, heads_key)
    _require_divides(tensor, groups, tp_key, groups_key)
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
            raise UserError(
                f"{prefix}parallel.sequence_parallel needs tensor parallelism: set it to false, or "
                f"set {prefix}parallel.tensor_model_parallel_size above 1"
            )
        length = model.seq_length
        _require_divides(tensor, length, tp_key, f"{prefix}model.seq_length={length}")
    _require_divides(
        tensor * pipeline,
        world_size,
        f"{tp_key} times {prefix}parallel.pipeline_model_parallel_size={pipeline}",
        f"the number of processes, {world_size}",
    )
    if model.position_embedding_type == "rope" and model.head_width % 2:
        size = f"{prefix}model.kv_channels={model.kv_channels} is"
        if model.kv_channels is None:
            size = f"{hidden_key} divided by {heads_key} is {model.head_width},"
        raise UserError(f"{size} the size of a head; rope needs an even size")


def preset_of(wanted: ChameleonConfig) -> Preset:
    """Return the preset that chameleon.preset, ridge, exponent and min_effective describe.

    Args:
        wanted: the section `chameleon`.

    Returns:
        The preset.

    Raises:
        ValueError: as `choose_preset`; the message begins with the setting's name.
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
    require_valid(proxy, "proxy.", only=("count",))
    last = replace(proxy.train, seed=proxy.train.seed + proxy.count - 1)
    require_valid(last, "proxy.train.", only=("seed",))
    for key, given in (
        ("proxy.load", proxy.load is not None),
        ("proxy.hf", proxy.hf is not None),
        ("chameleon.source=model", wanted.source == "model"),
    ):
        if given and proxy.count > 1:
            raise UserError(
                f"proxy.count={proxy.count} trains proxies, but with {key} a model that exists "
                "embeds: remove one of the two"
            )
    if proxy.load is not None and proxy.hf is not None:
        raise UserError("set only one of proxy.load and proxy.hf")
    if proxy.tokenizer is not None and proxy.load is None:
        raise UserError(
            "proxy.tokenizer is for the model in proxy.load: set proxy.load, or remove "
            "proxy.tokenizer"
        )
    if wanted.source == "model":
        if proxy.load is not None or proxy.hf is not None:
            raise UserError(
                "chameleon.source=model does not use proxy.load or proxy.hf: set "
                "chameleon.source=proxy, or remove the other key"
            )
        if config.checkpoint.pretrained_checkpoint is None:
            raise UserError(
                "chameleon.source=model needs checkpoint.pretrained_checkpoint: set it, or set "
                "chameleon.source=proxy to embed with a proxy"
            )
    elif proxy.load is None and proxy.hf is None:
        check_windows(wanted, proxy.model.num_layers, proxy.model.seq_length)


def check_windows(wanted: ChameleonConfig, num_layers: int, seq_length: int) -> None:
    """Check that a proxy has the layer and the context length that are asked for.

    Args:
        wanted: the section `chameleon`.
        num_layers: number of layers of the proxy.
        seq_length: the most tokens in a window of the proxy.

    Raises:
        UserError: it does not; the error names the key and what its value must be.
    """
    if isinstance(wanted.layer, int) and not 1 <= wanted.layer <= num_layers:
        raise UserError(
            f"chameleon.layer={wanted.layer} must be between 1 and the proxy's number of layers, "
            f"{num_layers}"
        )
    length = seq_length if wanted.sample_length is None else wanted.sample_length
    if not 1 <= length <= seq_length:
        raise UserError(
            f"chameleon.sample_length={length} must be between 1 and the proxy's seq_length, "
            f"{seq_length}"
        )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # the text is too long for a path
        return False


def _require_divides(divisor: int, number: int, what: str, of: str) -> None:
    if number % divisor:
        raise UserError(f"{of} is not a multiple of {what}")
