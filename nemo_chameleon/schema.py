"""The configuration's schema: what can be set, its default and what it means.

Plain dataclasses; config.py fills them through OmegaConf. The names are Megatron's where Megatron
has one.
"""

from dataclasses import dataclass, field

from omegaconf import II, MISSING

AUTO, ALL = "auto", "all"
ENGINES = {
    "megatron": ("megatron.core", "megatron-core"),
    "nemo": ("nemo.collections.llm", "NeMo 2"),
    "bridge": ("megatron.bridge", "Megatron-Bridge"),
}
"""What trains the base model: the module that it takes, and what that is called."""
ON_MIXTURE_CHANGE = ("refuse", "accept")
MIXTURES = ("chameleon", "uniform", "proportional", "static")
DATASETS = ("gpt", "sft")
SFT = "sft"
ON_MALFORMED = ("refuse", "skip")
ON_TOO_LONG = ("refuse", "skip", "truncate")
UNITS = ("samples", "tokens")
SOURCES = ("model", "proxy")
COUNTED = ("answers", "all")


@dataclass
class DatasetConfig:
    """A Megatron dataset, or JSONL to finetune on."""

    path: str = MISSING
    """Prefix of the .bin and .idx files; for data.dataset=sft a .jsonl file or a folder of them."""


@dataclass
class DomainConfig(DatasetConfig):
    """One domain: its data and, for data.mixture=static, its weight."""

    weight: float | None = None
    """Share of the samples under data.mixture=static; need not sum to 1."""


@dataclass
class DataConfig:
    """The domains, and the weights to draw them by."""

    dataset: str = "gpt"
    """gpt: Megatron's indexed datasets of tokens, with loss on all of them. sft: JSONL of chats,
    pairs of prompt and completion, or text, with loss on the answers."""
    mixture: str = "chameleon"
    """chameleon, uniform, proportional, static, or the path of a mixture file."""
    domains: dict[str, DomainConfig] = field(default_factory=dict)
    """By name; at least two."""
    validation: dict[str, DatasetConfig] = field(default_factory=dict)
    """Datasets to evaluate on and never to draw from, by name: one of a domain's name takes the
    place of its validation split, any other is evaluated beside the domains."""
    on_mixture_change: str = "refuse"
    """What a run does that goes on from a checkpoint of another mixture: refuse or accept."""
    max_epochs: float | None = None
    """Passes over any one domain, at most; the weight that it frees goes to the others."""
    pin: dict[str, float] = field(default_factory=dict)
    """Shares that are fixed, by domain; the others keep their proportions."""
    floor: dict[str, float] = field(default_factory=dict)
    """Shares that are the least, by domain."""
    unit: str = "samples"
    """What weights are shares of: samples, or the tokens that carry loss."""
    split: str = "95,5,0"
    """Megatron's split of each domain's documents into training, validation and test."""
    tokenizer: str | None = None
    """tokenizer.json the domains were tokenised with, or for data.dataset=sft are to be; gives the
    vocabulary size."""
    chat_template: str | None = None
    """sft: Jinja file that chats are written by; null: what lies beside the tokenizer."""
    packing: bool = True
    """sft: several examples in a sample, each on its own to attention; false: one."""
    on_malformed: str = "refuse"
    """sft: what is done about lines that are no examples: refuse or skip."""
    on_too_long: str = "refuse"
    """sft: what is done about examples longer than model.seq_length: refuse; truncate, which leaves
    out their beginnings and keeps their last answers whole; or skip."""
    vocab_size: int | None = None
    """In place of a tokenizer: the size of its vocabulary."""
    cache: str = "${output}/cache"
    """Where Megatron keeps the sample indices it builds."""
    num_workers: int = 2
    """Processes that read samples, per rank; 0 reads in the training process."""


@dataclass
class ModelConfig:
    """A megatron-core GPT."""

    num_layers: int = 12
    hidden_size: int = 768
    num_attention_heads: int = 12
    num_query_groups: int | None = None
    """Key/value heads of grouped-query attention; null: as many as attention heads."""
    ffn_hidden_size: int | None = None
    """Null: four times the hidden size."""
    seq_length: int = 2048
    position_embedding_type: str = "rope"
    """rope or learned_absolute."""
    rotary_base: int = 10000
    normalization: str = "RMSNorm"
    """RMSNorm or LayerNorm."""
    gated_linear_unit: bool = True
    """SwiGLU if true, GELU if false."""
    add_bias_linear: bool = False
    share_embeddings_and_output_weights: bool = False
    init_method_std: float = 0.02
    make_vocab_size_divisible_by: int = 128
    use_cpu_initialization: bool = False
    """Slow for large models, but the same initial weights at any tensor parallel size. Always so
    where there is no CUDA."""


@dataclass
class TrainConfig:
    """How long, how much at once, how often to look."""

    train_iters: int = MISSING
    global_batch_size: int = MISSING
    micro_batch_size: int = 1
    eval_interval: int = 1000
    """Iterations between evaluations; 0: only at the end."""
    eval_iters: int = 8
    """Global batches of validation samples per domain, at most one pass; 0: no evaluation."""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 with CUDA, fp32 without."""
    seed: int = 1234
    """Of the initial weights and of the order of the samples."""

    @property
    def samples(self) -> int:
        """Samples that the whole run draws."""
        return self.train_iters * self.global_batch_size


@dataclass
class OptimizerConfig:
    """Adam with a warm-up and a decay, through megatron-core."""

    lr: float = 3e-4
    min_lr: float = 3e-5
    lr_warmup_iters: int = 0
    lr_decay_style: str = "cosine"
    """cosine, linear or constant."""
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_grad: float = 1.0
    use_distributed_optimizer: bool = False
    """Shard the optimizer's state over the data parallel ranks."""


@dataclass
class ParallelConfig:
    """How the model lies over the ranks; what is left over is data parallel."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    sequence_parallel: bool = False


@dataclass
class Run:
    """All that one training run needs besides data."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass
class ProxyConfig(Run):
    """The model that domains are embedded with: trained on them, unless there is one already."""

    load: str | None = None
    """Checkpoint of a megatron-core GPT to embed with, in place of training one: a folder that
    dist_checkpointing wrote at any layout, or the folder above it. proxy.model has to be its own
    model, unless it was trained here."""
    hf: str | None = None
    """In place of training one: a Hugging Face causal LM, by name or folder. Every process loads
    the whole of it, whatever proxy.parallel says."""


def _proxy() -> ProxyConfig:
    """The paper's proxy: GPT-2's shape at 82M parameters and context 512."""
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
            # As the base model, as far as the proxy's heads allow.
            tensor_model_parallel_size=II(
                "gcd:${parallel.tensor_model_parallel_size},${proxy.model.num_attention_heads}"
            ),
        ),
    )


@dataclass
class ChameleonConfig:
    """How the weights of data.mixture=chameleon are computed."""

    objective: str = "pretrain"
    """pretrain (common domains are drawn more) or finetune (distinct ones are; the default for
    data.dataset=sft)."""
    source: str = "proxy"
    """What embeds the domains: the proxy, or the model that is finetuned, as it lies at
    checkpoint.pretrained_checkpoint (the default for data.dataset=sft)."""
    tokens: str = "answers"
    """sft: what embeddings are means over: the answers, or all tokens."""
    preset: str = "calibrated"
    """calibrated or paper: see nemo_chameleon/weights.py."""
    ridge: float | None = None
    """In the preset's unit: of the mean self-affinity (calibrated), or absolute (paper)."""
    exponent: float | None = None
    """γ of the calibrated preset."""
    min_effective: float | None = None
    """Floor on exp(entropy of the weights) as a share of the number of domains."""
    samples: int | str = 2048
    """Windows drawn per domain; auto: as many as `tolerance` takes, or as the domain's tokens
    fill."""
    tolerance: float = 0.005
    """Half-width of the weights' 95 % intervals that is good enough."""
    sample_length: int | None = None
    """Tokens a window, at most; null: proxy.model.seq_length, or what an existing proxy takes if
    that is less."""
    layer: int | str | None = None
    """Layer of the proxy whose output is averaged, from 1; null: (num_layers + 1) // 2; all: that
    one, and what the weights would be after each of the others."""
    cross_documents: bool = False
    """Let windows run on into the next document, as training samples do."""
    micro_batch_size: int | None = None
    """Windows a rank embeds at once; null: 32 on CUDA, 4 on CPUs, whose caches hold no more."""
    seed: int = 1234
    file: str = "${output}/mixture.json"
    """The mixture file; used as it is if it exists, written otherwise."""


def _chameleon() -> ChameleonConfig:
    """Finetuning weighs by other rules than pretraining, and has a model to embed with."""
    return ChameleonConfig(
        objective=II("of_dataset:${data.dataset},pretrain,finetune"),
        source=II("of_dataset:${data.dataset},proxy,model"),
    )


@dataclass
class CheckpointConfig:
    """When the run's state is saved, and what a new start does with it."""

    save_interval: int = 1000
    """Iterations between checkpoints; 0: only at the end."""
    keep: int | None = None
    """How many of the newest to keep; null: all."""
    resume: str = "auto"
    """auto: go on from the newest checkpoint, if any; never: refuse to start over one."""
    pretrained_checkpoint: str | None = None
    """Checkpoint whose weights the run starts from, with a new optimizer: a folder that
    dist_checkpointing wrote at any layout, or the folder above it. `model` has to be its own."""


@dataclass
class LoggingConfig:
    """What the run tells while it works."""

    log_interval: int = 10
    tensorboard: bool = True
    progress: bool = True
    """Progress bars on rank 0."""


@dataclass
class Config(Run):
    """The whole configuration: the base run at the top level, the proxy's under `proxy`."""

    output: str = MISSING
    """Folder that everything the run makes goes under."""
    engine: str = "megatron"
    """What trains the base model: megatron (this package, on megatron-core), nemo (NeMo 2) or
    bridge (Megatron-Bridge), by their own training entries."""
    data: DataConfig = field(default_factory=DataConfig)
    chameleon: ChameleonConfig = field(default_factory=_chameleon)
    proxy: ProxyConfig = field(default_factory=_proxy)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
