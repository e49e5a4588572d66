"""The schema of the configuration: every setting with its default, its values and its meaning.

The sections are plain dataclasses, which loading.py fills through OmegaConf. A setting has
Megatron's name if Megatron has it too. validation.py checks the ranges and choices given here.
"""

import math
from dataclasses import dataclass, field

from omegaconf import II, MISSING

from nemo_chameleon.config.comparison import CompareConfig
from nemo_chameleon.config.constraints import setting
from nemo_chameleon.config.data import GPT, DataConfig
from nemo_chameleon.method.weights import OBJECTIVES, PRESETS

AUTO, ALL = "auto", "all"
ENGINES = {
    "megatron": ("megatron.core", "megatron-core"),
    "nemo": ("nemo.collections.llm", "NeMo 2"),
    "bridge": ("megatron.bridge", "Megatron-Bridge"),
}
"""The engines that can train the base model: the module that each needs, and its usual name."""
CAVEAT_KEYS = {
    "samples": "chameleon.samples",
    "normalize_states": "chameleon.normalize_states",
    "min_effective": "chameleon.min_effective",
    "pin": "data.pin",
    "max_epochs": "data.max_epochs",
    "train_iters": "proxy.train.train_iters",
}
"""The keys of the settings that a mixture's caveats may advise, by the names in diagnostics.py."""


@dataclass
class ModelConfig:
    """A GPT of megatron-core."""

    num_layers: int = setting(12, minimum=1)
    hidden_size: int = setting(768, minimum=1)
    num_attention_heads: int = setting(12, minimum=1)
    num_query_groups: int | None = setting(None, minimum=1)
    """Key and value heads of grouped-query attention; null: as many as attention heads."""
    kv_channels: int | None = setting(None, minimum=1)
    """Width of an attention head; null: the hidden size divided by the number of heads."""
    ffn_hidden_size: int | None = setting(None, minimum=1)
    """Width of the feed-forward layers; null: four times the hidden size."""
    seq_length: int = setting(2048, minimum=1)
    position_embedding_type: str = setting("rope", choices=("rope", "learned_absolute"))
    rotary_base: int = setting(10000, minimum=1)
    normalization: str = setting("RMSNorm", choices=("RMSNorm", "LayerNorm"))
    norm_epsilon: float = setting(1e-5, above=0, below=1)
    """What the norms add to the variance, so that they never divide by zero."""
    gated_linear_unit: bool = True
    """SwiGLU if true, GELU if false."""
    add_bias_linear: bool = False
    share_embeddings_and_output_weights: bool = False
    init_method_std: float = setting(0.02, minimum=0, below=math.inf)
    make_vocab_size_divisible_by: int = setting(128, minimum=1)
    use_cpu_initialization: bool = False
    """Make the initial weights on the CPU, the same at any tensor parallel size; slow for large
    models. Without CUDA this is always so."""

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward layers, with the default filled in."""
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def query_groups(self) -> int:
        """Key and value heads, with the default filled in."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of an attention head, with the default filled in."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads


@dataclass
class TrainConfig:
    """The length of a run, its batch sizes, and how often it evaluates."""

    train_iters: int = setting(MISSING, minimum=1)
    global_batch_size: int = setting(MISSING, minimum=1)
    micro_batch_size: int = setting(1, minimum=1)
    eval_interval: int = setting(1000, minimum=0)
    """Iterations between evaluations; 0 evaluates only at the end."""
    eval_iters: int = setting(8, minimum=0)
    """Global batches of validation samples per domain, at most one pass; 0: no evaluation."""
    precision: str = setting("auto", choices=("auto", "bf16", "fp32"))
    """bf16, fp32, or auto: bf16 with CUDA and fp32 without."""
    # numpy's seeds are below 2³², and pipeline stages and random states add to this seed.
    seed: int = setting(1234, minimum=0, below=2**32 - 2**20)
    """Seed of the initial weights and of the order of the samples."""

    @property
    def samples(self) -> int:
        """Samples that the whole run draws."""
        return self.train_iters * self.global_batch_size


@dataclass
class OptimizerConfig:
    """Adam with a warm-up and a decay, through megatron-core."""

    lr: float = setting(3e-4, minimum=0, below=math.inf)
    min_lr: float = 3e-5
    lr_warmup_iters: int = 0
    lr_decay_style: str = setting("cosine", choices=("cosine", "linear", "constant"))
    weight_decay: float = setting(0.1, minimum=0, below=math.inf)
    adam_beta1: float = setting(0.9, minimum=0, below=1)
    adam_beta2: float = setting(0.95, minimum=0, below=1)
    adam_eps: float = setting(1e-8, minimum=0, below=math.inf)
    clip_grad: float = setting(1.0, minimum=0, below=math.inf)
    use_distributed_optimizer: bool = False
    """Shard the optimizer's state over the data parallel ranks."""


@dataclass
class ParallelConfig:
    """How the model is laid out over the ranks; the remaining ranks are data parallel."""

    tensor_model_parallel_size: int = setting(1, minimum=1)
    pipeline_model_parallel_size: int = setting(1, minimum=1)
    sequence_parallel: bool = False


@dataclass
class RunConfig:
    """Everything that one training run needs besides data."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass
class ProxyConfig(RunConfig):
    """The model that embeds the domains; it is trained on them unless `load` or `hf` is set."""

    count: int = setting(1, minimum=1)
    """Number of proxies to train, with the seeds train.seed, train.seed + 1 and so on; the mixture
    is that of their mean affinity, and its intervals then cover what one more proxy would give."""
    load: str | None = None
    """Checkpoint of a megatron-core GPT that embeds instead of a trained proxy: a folder that
    dist_checkpointing wrote at any layout, or the folder above it. proxy.model must describe the
    model, unless this package trained it."""
    hf: str | None = None
    """A Hugging Face causal LM that embeds instead, by name or folder; each process loads all."""
    tokenizer: str | None = None
    """The tokenizer.json of the model in `load`; null: the one beside it, or else data.tokenizer.
    Domains in other tokens are encoded again. A model in `hf` brings its own tokenizer."""


def _proxy() -> ProxyConfig:
    """Return the paper's proxy: GPT-2's shape with 82M parameters and a context of 512 tokens."""
    return ProxyConfig(
        model=ModelConfig(
            num_layers=6,
            hidden_size=768,
            num_attention_heads=12,
            seq_length=512,
            position_embedding_type="learned_absolute",
            normalization="LayerNorm",
            gated_linear_unit=False,
            add_bias_linear=True,
            share_embeddings_and_output_weights=True,
            use_cpu_initialization=True,
        ),
        train=TrainConfig(
            train_iters=10_000,
            global_batch_size=128,
            micro_batch_size=4,
            eval_interval=0,
            eval_iters=2,
            precision=II("train.precision"),
            seed=II("train.seed"),
        ),
        optimizer=OptimizerConfig(lr=5e-4, min_lr=5e-5, lr_warmup_iters=500),
        parallel=ParallelConfig(
            # The base model's size, as far as the number of the proxy's heads allows it.
            tensor_model_parallel_size=II(
                "gcd:${parallel.tensor_model_parallel_size},${proxy.model.num_attention_heads}"
            ),
        ),
    )


@dataclass
class ChameleonConfig:
    """How the weights of data.mixture=chameleon are computed."""

    objective: str | None = setting(None, choices=OBJECTIVES)
    """pretrain (common domains are drawn more) or finetune (distinct ones are; the published form
    for finetuning); null: that of an existing mixture file, or else pretrain. In finetuning,
    finetune lost to uniform weights on both sets measured, and pretrain, not told apart from them
    on one, lost on the other: until a fair test, data.mixture=uniform is the safe choice."""
    source: str = setting("proxy", choices=("model", "proxy"))
    """What embeds the domains: proxy; or model, the model to be finetuned as it is stored at
    checkpoint.pretrained_checkpoint (the default for data.dataset=sft)."""
    tokens: str = setting("answers", choices=("answers", "all"))
    """sft: the tokens that embeddings are means over: answers or all."""
    preset: str = setting("calibrated", choices=tuple(PRESETS))
    """calibrated or paper: nemo_chameleon/method/weights.py has the formulas."""
    ridge: float | None = None
    """The ridge λ: a share of the mean self-affinity, absolute for paper; null: the preset's."""
    exponent: float | None = None
    """The exponent γ of the calibrated preset; null: the preset's own."""
    min_effective: float | None = None
    """The least effective number of domains, exp(entropy of the weights), as a share of the number
    of domains; null: the preset's own."""
    samples: int | str = setting(2048, minimum=1, choices=(AUTO,))
    """Windows drawn per domain; auto: as many as `tolerance` needs and the domain has tokens."""
    tolerance: float = setting(0.005, above=0, below=1)
    """Half-width of the weights' 95 % intervals that is narrow enough."""
    sample_length: int | None = None
    """The most tokens in a window; null: proxy.model.seq_length, or the context length of an
    existing proxy if that is less."""
    layer: int | str | None = setting(None, minimum=1, choices=(ALL,))
    """The layer of the proxy whose output is averaged, counted from 1; null: (num_layers + 1) // 2;
    all: that layer, and in addition the weights that each other layer would give."""
    cross_documents: bool | None = setting(None, only_for=GPT)
    """Whether a window continues into the next document; null: true, but false for paper."""
    normalize_states: bool | None = None
    """Whether each token's state is divided by its root mean square; null: not for paper."""
    micro_batch_size: int | None = setting(None, minimum=1)
    """Windows that a rank embeds at once; null: 32 on CUDA, 4 on CPUs."""
    seed: int = 1234
    """Seed of the draw of the windows."""
    file: str = "${output}/mixture.json"
    """The mixture file: used as it is if it exists, written otherwise."""


def _chameleon() -> ChameleonConfig:
    """Return defaults that depend on data.dataset: finetuning embeds with its own model."""
    return ChameleonConfig(source=II("of_dataset:${data.dataset},proxy,model"))


@dataclass
class CheckpointConfig:
    """When the run's state is saved, and how a run starts from saved states."""

    save_interval: int = setting(1000, minimum=0)
    """Iterations between checkpoints; 0 saves only at the end."""
    keep: int | None = setting(None, minimum=1)
    """How many of the newest checkpoints are kept; null: all."""
    resume: str = setting("auto", choices=("auto", "never"))
    """auto: continue from the newest checkpoint, if there is one; never: refuse to start if there
    is one."""
    on_optimizer_change: str = setting("refuse", choices=("refuse", "accept"))
    """What a run does when it resumes with other settings of `optimizer` than it began with, such
    as a lower learning rate after it diverged."""
    pretrained_checkpoint: str | None = None
    """The checkpoint whose weights the run starts from, with a new optimizer: a folder that
    dist_checkpointing wrote at any layout, or the folder above it. `model` must describe the
    checkpoint's model."""


@dataclass
class LoggingConfig:
    """What the run reports while it trains."""

    log_interval: int = setting(10, minimum=1)
    """Iterations between reports."""
    tensorboard: bool = True
    """Write scalars for TensorBoard, if it is installed."""
    progress: bool = True
    """Draw progress bars on the first rank."""


@dataclass
class Config(RunConfig):
    """The whole configuration: the base run at the top level, the proxy's run under `proxy`."""

    output: str = MISSING
    """The folder that holds everything the run makes."""
    run: str | None = None
    """The name of the base model's run, and of its folder under `output`; null: the value of
    data.mixture, the name of its file without the ending, or `plan` for several data.stages."""
    engine: str = setting("megatron", choices=tuple(ENGINES))
    """What trains the base model: megatron (this package, on megatron-core), nemo (NeMo 2) or
    bridge (Megatron-Bridge), through their own training entries."""
    data: DataConfig = field(default_factory=DataConfig)
    chameleon: ChameleonConfig = field(default_factory=_chameleon)
    proxy: ProxyConfig = field(default_factory=_proxy)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
