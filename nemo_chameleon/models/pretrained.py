"""Finds a megatron-core checkpoint that exists already, and loads its weights.

The checkpoint may be this package's or another tool's. Before it is used, its model and vocabulary
are compared with the configuration's.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch.distributed.checkpoint.api import CheckpointException

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.config.schema import RunConfig
from nemo_chameleon.data.tokenizer import vocabulary_digest
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.layout import union_over_stages
from nemo_chameleon.models import checkpoint, tracker
from nemo_chameleon.models.content import weights_digest
from nemo_chameleon.models.finite import NotFiniteError
from nemo_chameleon.models.gpt import model_of_identity, model_record, unwrap
from nemo_chameleon.models.identity import START
from nemo_chameleon.models.whole import fault_of, fault_of_contents
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest, digest_of_files

_TABLE = "embedding.word_embeddings.weight"
_PADDING = 128 * 64
# What else helps against a vocabulary that is not the domains'.
_OR_SAY_WHICH = {"proxy.load": ", or set proxy.tokenizer to its tokenizer.json"}


@dataclass(frozen=True)
class PretrainedCheckpoint:
    """A checkpoint of megatron-core's dist_checkpointing, saved in any layout.

    Attributes:
        path: the checkpoint's folder.
        run: the model, and the layout to load it in.
        vocab_size: number of tokens of the tokenizer.
        prefix: prefix of the run's keys in the configuration; errors name it.
    """

    path: Path
    run: RunConfig
    vocab_size: int
    prefix: str = "proxy."

    @functools.cached_property
    def identity(self) -> str:
        """A digest of the model and of its weights, to recognise the checkpoint by."""
        weights = weights_digest(self.path)
        if weights is None:
            return self.earlier_identity
        return digest({"weights": weights, "model": model_record(self.run.model)})

    @functools.cached_property
    def earlier_identity(self) -> str:
        """The digest that versions before 0.3 recorded; every file of the folder counts."""
        return digest({"files": digest_of_files(self.path), "model": model_record(self.run.model)})

    def fill(self, gpt: torch.nn.Module, *, whole: bool = False) -> None:
        """Load the weights into a model; every rank of the layout must call it.

        Args:
            gpt: this rank's part of the model.
            whole: whether the output layer counts too, which embedding does not need.

        Raises:
            UserError: the weights are another model's or are not finite, or a file is damaged.
        """
        if (fault := fault_of_contents(self.path)) is not None:
            raise UserError(f"{self.path} is damaged: {fault}; copy the checkpoint again")
        try:
            self._require_the_same(gpt, whole)
            checkpoint.load(self.path, gpt)
        except NotFiniteError as error:
            key = f"{self.prefix}load" if self.prefix else START
            raise UserError(
                f"{key}={self.path}: its weights are not finite, because its training diverged: "
                "set the key to an earlier checkpoint"
            ) from error
        except (CheckpointException, CheckpointingException, KeyError) as error:
            cause = " ".join(str(error).split())[-200:]
            raise UserError(
                f"{self.path} is not a checkpoint of {self.prefix}model: {cause}"
            ) from error

    def _require_the_same(self, gpt: torch.nn.Module, whole: bool) -> None:
        """Refuse what loading accepts: weights that the model lacks, and other vocabularies."""
        there = dist_checkpointing.load_tensors_metadata(str(self.path))
        wanted = {
            part.key
            for part in nested_values(unwrap(gpt).sharded_state_dict())
            if isinstance(part, ShardedTensor | ShardedTensorFactory)  # the latter for SwiGLU
        }
        parts = ("decoder.", "embedding.", *(["output_layer."] if whole else []))
        own = {key for key in there if key.startswith(parts)}
        if more := sorted(own - union_over_stages(wanted)):
            raise UserError(
                f"{self.path} is not a checkpoint of {self.prefix}model: it also has {more[0]}"
            )
        rows = there[_TABLE].global_shape[0] if _TABLE in there else self.vocab_size
        # This package or another has padded the table to a multiple for the tensor parallel ranks.
        if not self.vocab_size <= rows < self.vocab_size + _PADDING:
            raise UserError(
                f"{self.path} has {rows} tokens, but {self.vocab_size} are expected: tokenise the "
                f"domains with its tokenizer{_OR_SAY_WHICH.get(self.prefix + 'load', '')}"
            )


def tokenizer_beside(place: str) -> str | None:
    """Find the tokenizer of a checkpoint, in its folder or beside its tracker.

    Args:
        place: the checkpoint's folder, or the folder above it with a tracker.

    Returns:
        The path of a tokenizer.json, or None if there is none.
    """
    folders = [Path(place)]
    if (tracked := tracker.tracked(Path(place))[1]) is not None:
        folders.append(tracked)
    elif tracker.tracked(Path(place).parent)[0] is not None:
        folders.append(Path(place).parent)
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return str(folder / "tokenizer.json")
    return None


def find_checkpoint(
    key: str, place: str, run: RunConfig, data: DataConfig, prefix: str = "proxy."
) -> PretrainedCheckpoint:
    """Find the checkpoint that a key of the configuration names; every rank must call it.

    Args:
        key: the key, which errors name.
        place: the key's value: the checkpoint's folder, or the folder above it with a tracker.
        run: the layout, and the model unless the checkpoint records its own.
        data: the data configuration, whose tokenizer must be the checkpoint's own.
        prefix: prefix of the run's keys in the configuration; errors name it.

    Returns:
        The checkpoint.

    Raises:
        UserError: there is no such checkpoint, it is damaged or would run code, or it has another
            vocabulary.
    """
    folder = Path(place)
    # Another run may be writing checkpoints into the folder, so the first rank decides for all.
    path = on_first_rank(lambda: tracker.tracked(folder)[1]) or folder
    if not path.is_dir():
        raise UserError(f"{key}={place}: there is no such checkpoint")
    if not dist_checkpointing.check_is_distributed_checkpoint(str(path)):
        raise UserError(
            f"{key}={path} does not hold a checkpoint of megatron-core's dist_checkpointing"
        )
    if (fault := on_first_rank(lambda: fault_of(path))) is not None:
        raise UserError(f"{key}={path} is damaged: {fault}; copy the checkpoint again")
    run, vocab_size = replace(run), Vocabulary.of(data).vocab_size
    if (path / "state.json").is_file():
        identity = tracker.read_state(path)["identity"]
        run.model = model_of_identity(identity) or run.model
        own: dict[str, Any] = {"vocabulary size": vocab_size}
        if data.tokenizer is not None:
            own["vocabulary"] = vocabulary_digest(data.tokenizer)
        elif "vocabulary" in identity:
            raise UserError(
                f"{key} needs data.tokenizer, to check that the domains have the checkpoint's "
                "vocabulary"
            )
        for fact, value in own.items():
            if identity.get(fact, value) != value:
                raise UserError(
                    f"{key}={path} has another {fact} than {data.tokenizer or 'the domains'}: "
                    f"tokenise the domains with its tokenizer{_OR_SAY_WHICH.get(key, '')}"
                )
    return PretrainedCheckpoint(path, run, vocab_size, prefix)
