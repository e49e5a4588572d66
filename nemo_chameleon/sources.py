"""The model that embeds: a checkpoint of a megatron-core GPT, or a Hugging Face causal LM."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch.distributed.checkpoint.api import CheckpointException

from nemo_chameleon import checkpoint, model, parallel
from nemo_chameleon.datasets import Vocabulary
from nemo_chameleon.embedding import Extractor
from nemo_chameleon.errors import UserError
from nemo_chameleon.extractors import megatron_extractor, transformers_extractor
from nemo_chameleon.files import digest, sampled_digest
from nemo_chameleon.schema import DataConfig, ModelConfig, Run
from nemo_chameleon.tokenizer import vocabulary_digest

_TABLE = "embedding.word_embeddings.weight"
_PADDING = 128 * 64
_WEIGHTS = (".safetensors", ".bin")


class Source(Protocol):
    """A model, described without its weights."""

    @property
    def num_layers(self) -> int:
        """That can be averaged over, counted from 1."""

    @property
    def seq_length(self) -> int:
        """Tokens of the longest window that it takes."""

    @property
    def identity(self) -> str:
        """A digest that tells it from any other."""

    def record(self) -> dict[str, Any]:
        """What a mixture file says of it: enough for `source_from_record`."""

    def opened(self) -> contextlib.AbstractContextManager[Extractor]:
        """Load it, to embed with; every rank must enter it."""


@dataclass(frozen=True)
class MegatronSource:
    """A checkpoint of megatron-core's dist_checkpointing, saved in any layout.

    Attributes:
        path: its folder.
        run: the model, and the layout to load it in.
        vocab_size: of its tokenizer.
        prefix: of the run's keys in the configuration, for errors.
    """

    path: Path
    run: Run
    vocab_size: int
    prefix: str = "proxy."

    @property
    def num_layers(self) -> int:
        """See `Source`."""
        return self.run.model.num_layers

    @property
    def seq_length(self) -> int:
        """See `Source`."""
        return self.run.model.seq_length

    @functools.cached_property
    def identity(self) -> str:
        """See `Source`."""
        return digest({"files": _files(self.path), "model": asdict(self.run.model)})

    def record(self) -> dict[str, Any]:
        """See `Source`."""
        return {
            "checkpoint": str(self.path),
            "model": asdict(self.run.model),
            "vocab_size": self.vocab_size,
            "precision": str(parallel.precision(self.run.train.precision)),
        }

    @contextlib.contextmanager
    def opened(self) -> Iterator[Extractor]:
        """See `Source`."""
        with parallel.layout(self.run.parallel, 0):
            gpt = model.build(self.run, self.vocab_size, for_training=False)
            self.fill(gpt)
            with megatron_extractor(gpt) as extractor:
                yield extractor

    def fill(self, gpt: torch.nn.Module, *, whole: bool = False) -> None:
        """Load its weights into a model; every rank of a layout must call it.

        Args:
            gpt: the model.
            whole: with the output layer, which embedding has no use for.

        Raises:
            UserError: they are another model's.
        """
        try:
            self._require_the_same(gpt, whole)
            checkpoint.load(self.path, gpt)
        except (CheckpointException, CheckpointingException, KeyError) as error:
            cause = " ".join(str(error).split())[-200:]
            raise UserError(
                f"{self.path} is no checkpoint of {self.prefix}model: {cause}"
            ) from error

    def _require_the_same(self, gpt: torch.nn.Module, whole: bool) -> None:
        """Refuse what loading lets pass: weights that the model has not, and other vocabularies."""
        there = dist_checkpointing.load_tensors_metadata(str(self.path))
        wanted = {
            part.key
            for part in nested_values(model.unwrap(gpt).sharded_state_dict())
            if isinstance(part, ShardedTensor | ShardedTensorFactory)  # the latter of SwiGLU
        }
        parts = ("decoder.", "embedding.", *(["output_layer."] if whole else []))
        own = {key for key in there if key.startswith(parts)}
        if more := sorted(own - parallel.over_stages(wanted)):
            raise UserError(
                f"{self.path} is no checkpoint of {self.prefix}model: it has {more[0]} too"
            )
        rows = there[_TABLE].global_shape[0] if _TABLE in there else self.vocab_size
        # Padded, by this package or another, to a multiple for the tensor parallel ranks.
        if not self.vocab_size <= rows < self.vocab_size + _PADDING:
            raise UserError(
                f"{self.path} has {rows} tokens, the domains {self.vocab_size}: tokenise them with "
                "its tokenizer"
            )


@dataclass(frozen=True)
class TransformersSource:
    """A Hugging Face causal LM.

    Attributes:
        name: of the model, or its folder.
        dtype: of its weights when it embeds.
        settings: its own configuration.
    """

    name: str
    dtype: torch.dtype
    settings: Any

    @classmethod
    def of(cls, name: str, dtype: torch.dtype) -> "TransformersSource":
        """Read a model's configuration.

        Raises:
            UserError: transformers is not installed, or there is no such model.
        """
        return cls(name, dtype, _from_pretrained("AutoConfig", name).get_text_config())

    @property
    def num_layers(self) -> int:
        """See `Source`."""
        return int(self.settings.num_hidden_layers)

    @property
    def seq_length(self) -> int:
        """See `Source`."""
        # Without positions of its own it takes windows of any length.
        return int(getattr(self.settings, "max_position_embeddings", None) or 2**31)

    @functools.cached_property
    def identity(self) -> str:
        """See `Source`."""
        files = _files(Path(self.name), _WEIGHTS) if Path(self.name).is_dir() else []
        return digest({"name": "" if files else self.name, "files": files, "commit": self.commit})

    @property
    def commit(self) -> str | None:
        """Of a model that is not in a folder."""
        return getattr(self.settings, "_commit_hash", None)

    def record(self) -> dict[str, Any]:
        """See `Source`."""
        return {"hf": self.name, "precision": str(self.dtype)}

    def require_tokenizer(self, path: str) -> None:
        """Raise a UserError unless a tokenizer.json has the model's own vocabulary."""
        own = _from_pretrained("AutoTokenizer", self.name).get_vocab()
        if digest(own) != vocabulary_digest(path):
            raise UserError(
                f"proxy.hf={self.name} has another vocabulary than data.tokenizer={path}: tokenise "
                "the domains with its tokenizer"
            )

    @contextlib.contextmanager
    def opened(self) -> Iterator[Extractor]:
        """See `Source`."""
        lm, loading = _from_pretrained(
            "AutoModelForCausalLM", self.name, dtype=self.dtype, output_loading_info=True
        )
        for what in ("missing_keys", "mismatched_keys"):
            if loading[what]:
                raise UserError(
                    f"proxy.hf={self.name} has no weights for {sorted(loading[what])[0]}"
                )
        with transformers_extractor(lm.to(parallel.device())) as extractor:
            yield extractor


def megatron_source(
    key: str, place: str, run: Run, data: DataConfig, prefix: str = "proxy."
) -> MegatronSource:
    """The checkpoint that a key of the configuration names.

    Args:
        key: of the configuration.
        place: its value: the checkpoint's folder, or the one above it.
        run: the model, unless the checkpoint says itself what it is of, and the layout.
        data: whose tokenizer has to be its own.
        prefix: of the run's keys in the configuration.

    Raises:
        UserError: it is not there, or of another tokenizer.
    """
    folder = Path(place)
    # A folder that is being trained in may look different to every rank.
    path = parallel.on_first_rank(lambda: checkpoint.tracked(folder)) or folder
    if not path.is_dir():
        raise UserError(f"{key}={place}: there is no such checkpoint")
    if not dist_checkpointing.check_is_distributed_checkpoint(str(path)):
        raise UserError(f"{key}={path} holds no checkpoint that dist_checkpointing wrote")
    run, vocab_size = replace(run), Vocabulary.of(data).vocab_size
    if (path / "state.json").is_file():
        identity = checkpoint.read_state(path)["identity"]
        run.model = model.of_identity(identity) or run.model
        own: dict[str, Any] = {"vocabulary size": vocab_size}
        if data.tokenizer is not None:
            own["vocabulary"] = vocabulary_digest(data.tokenizer)
        elif "vocabulary" in identity:
            raise UserError(f"{key} needs data.tokenizer, to know that the domains are its own")
        for fact, value in own.items():
            if identity.get(fact, value) != value:
                raise UserError(
                    f"{key}={path} has another {fact} than the domains: tokenise them with its "
                    "tokenizer"
                )
    return MegatronSource(path, run, vocab_size, prefix)


@functools.cache
def transformers_source(name: str, dtype: torch.dtype, tokenizer: str) -> TransformersSource:
    """A Hugging Face causal LM of the same vocabulary as a tokenizer.json; looked up once.

    Raises:
        UserError: there is none, or it has another vocabulary.
    """
    source = TransformersSource.of(name, dtype)
    source.require_tokenizer(tokenizer)
    return source


def source_from_record(record: Mapping[str, Any], place: str | None = None) -> Source:
    """The model that a mixture file says its domains were embedded with.

    Args:
        record: of the file.
        place: where the model lies, if no longer where it says.

    Raises:
        UserError: it is not there, or is another model.
    """
    try:
        dtype = _precision(record)
        if "hf" in record:
            source: Source = TransformersSource.of(place or record["hf"], dtype)
        else:
            path = Path(place or record["checkpoint"])
            if not path.is_dir():
                raise UserError(f"the proxy's checkpoint {path} is not there; name it with --proxy")
            run = Run(model=ModelConfig(**record["model"]))
            run.train.precision = "bf16" if dtype == torch.bfloat16 else "fp32"
            source = MegatronSource(path, run, record["vocab_size"])
    except (KeyError, TypeError) as error:
        raise UserError(f"the mixture file does not say enough of its proxy: {error!r}") from error
    if source.identity != record.get("trained"):
        where = place or record.get("checkpoint", record.get("hf"))
        raise UserError(f"{where} is not the proxy that the mixture was computed through")
    return source


def _precision(record: Mapping[str, Any]) -> torch.dtype:
    """As the mixture's other domains were embedded, where this machine can."""
    if record["precision"] != "torch.bfloat16":
        return torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16
    parallel.say("note: the other domains were embedded in bf16, these are in fp32")
    return torch.float32


def _files(folder: Path, endings: tuple[str, ...] = ("",)) -> list[list[Any]]:
    """Name, size and a digest of some blocks of each file."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name.endswith(endings):
            files.append([path.name, path.stat().st_size, sampled_digest(path)])
    return files


def _from_pretrained(kind: str, name: str, **settings: Any) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("proxy.hf needs transformers: pip install nemo_chameleon[hf]") from error
    try:
        return getattr(transformers, kind).from_pretrained(name, **settings)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"proxy.hf={name}: {' '.join(str(error).split())[:200]}") from error
