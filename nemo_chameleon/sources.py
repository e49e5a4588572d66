"""The model that embeds: a checkpoint of a megatron-core GPT, or a Hugging Face causal LM."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from nemo_chameleon import checkpoint, model, parallel
from nemo_chameleon.embedding import Extractor
from nemo_chameleon.errors import UserError
from nemo_chameleon.extractors import megatron_extractor, transformers_extractor
from nemo_chameleon.schema import ModelConfig, Run
from nemo_chameleon.tokenizer import load_tokenizer, vocabulary_digest


class Source(Protocol):
    """A model, described without its weights."""

    @property
    def num_layers(self) -> int:
        """That can be averaged over, counted from 1."""

    @property
    def seq_length(self) -> int:
        """Tokens of the longest window that it takes."""

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
    """

    path: Path
    run: Run
    vocab_size: int

    @property
    def num_layers(self) -> int:
        """See `Source`."""
        return self.run.model.num_layers

    @property
    def seq_length(self) -> int:
        """See `Source`."""
        return self.run.model.seq_length

    def identity(self) -> str:
        """See `Source`."""
        if (self.path / "state.json").is_file():
            return digest(checkpoint.read_state(self.path)["identity"])
        # Of another tool: its files' names and sizes have to do.
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
            try:
                checkpoint.load(self.path, gpt)
            except (CheckpointException, CheckpointingException, KeyError, RuntimeError) as error:
                cause = str(error).strip().splitlines()[-1]
                raise UserError(f"{self.path} is no checkpoint of proxy.model: {cause}") from error
            with megatron_extractor(gpt) as extractor:
                yield extractor


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
        return int(self.settings.max_position_embeddings)

    def identity(self) -> str:
        """See `Source`."""
        files = _files(Path(self.name)) if Path(self.name).is_dir() else []
        return digest({"model": json.loads(self.settings.to_json_string()), "files": files})

    def record(self) -> dict[str, Any]:
        """See `Source`."""
        return {"hf": self.name, "precision": str(self.dtype)}

    def require_tokenizer(self, path: str) -> None:
        """Raise a UserError unless a tokenizer.json has the model's own vocabulary."""
        own = _from_pretrained("AutoTokenizer", self.name).get_vocab()
        if vocabulary_digest(own) != vocabulary_digest(load_tokenizer(path).get_vocab()):
            raise UserError(
                f"proxy.hf={self.name} has another vocabulary than data.tokenizer={path}: tokenise "
                "the domains with its tokenizer"
            )

    @contextlib.contextmanager
    def opened(self) -> Iterator[Extractor]:
        """See `Source`."""
        lm = _from_pretrained("AutoModelForCausalLM", self.name, dtype=self.dtype)
        with transformers_extractor(lm.to(parallel.device())) as extractor:
            yield extractor


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
    if source.identity() != record.get("trained"):
        where = place or record.get("checkpoint", record.get("hf"))
        raise UserError(f"{where} is not the proxy that the mixture was computed through")
    return source


def digest(facts: Mapping[str, Any]) -> str:
    """Of facts that JSON can hold, whatever their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _precision(record: Mapping[str, Any]) -> torch.dtype:
    """As the mixture's other domains were embedded, where this machine can."""
    if record["precision"] != "torch.bfloat16":
        return torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16
    parallel.say("note: the other domains were embedded in bf16, these are in fp32")
    return torch.float32


def _files(folder: Path) -> list[list[Any]]:
    return sorted([path.name, path.stat().st_size] for path in folder.iterdir() if path.is_file())


def _from_pretrained(kind: str, name: str, **settings: Any) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("proxy.hf needs transformers: pip install nemo_chameleon[hf]") from error
    try:
        return getattr(transformers, kind).from_pretrained(name, **settings)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"proxy.hf={name}: {first}") from error
