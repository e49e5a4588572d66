"""Converts a Hugging Face causal LM of Llama's architecture into a megatron-core checkpoint.

The checkpoint is like one that a run of this package writes: a tracker, and a folder such as
`iter_0000000/` that loads in any layout and whose state.json records the model and its vocabulary.
The weights keep their type: bf16 stays bf16, and all other types become fp32. One process without
CUDA converts a model, and needs memory for little more than its weights.
"""

import shutil
from dataclasses import asdict, dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

import torch
import yaml
from megatron.core.models.gpt import GPTModel

from nemo_chameleon.config.schema import ModelConfig, RunConfig
from nemo_chameleon.config.validation import check_model
from nemo_chameleon.data.tokenizer import load_tokenizer, vocabulary_digest, vocabulary_size
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.distributed.processes import process_group, world_size
from nemo_chameleon.models import checkpoint
from nemo_chameleon.models.gpt import model_record, padded_vocab_size, transformer_config
from nemo_chameleon.models.layers import torch_layer_spec
from nemo_chameleon.models.llama import llama_to_megatron, model_of_llama
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.huggingface import from_pretrained

# data/sft/templates.py looks for the last two beside the first.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class ImportedModel:
    """A model that `import_huggingface` has converted.

    Attributes:
        path: the folder that holds the checkpoint, its tracker and the tokenizer.
        model: the model's settings.
        architecture: the model's type as transformers names it, such as "llama".
        precision: the type of the weights in the checkpoint.
        parameters: number of weights.
        vocab_size: number of tokens of the tokenizer, or of the model if it has no tokenizer.json.
        tokenizer: the tokenizer.json beside the checkpoint; None if there is none.
    """

    path: Path
    model: ModelConfig
    architecture: str
    precision: torch.dtype
    parameters: int
    vocab_size: int
    tokenizer: Path | None

    def settings(self) -> dict[str, Any]:
        """Return the settings of a run that starts from the model, by section."""
        of_the_machine = ("init_method_std", "use_cpu_initialization")
        model = {key: v for key, v in asdict(self.model).items() if key not in of_the_machine}
        data: dict[str, Any] = {"vocab_size": self.vocab_size}
        if self.tokenizer is not None:
            data = {"tokenizer": str(self.tokenizer)}
        pretrained = {"pretrained_checkpoint": str(self.path)}
        return {"model": model, "data": data, "checkpoint": pretrained}

    def summary(self) -> str:
        """Describe the model, and how runs use it, for a person."""
        vocabulary = "tokenizer.json" if self.tokenizer else "no tokenizer.json in the folder"
        return (
            f"{self.path}: {self.architecture} with {self.model.num_layers} layers, "
            f"{self.parameters:,} weights in {str(self.precision).removeprefix('torch.')}, "
            f"{self.vocab_size:,} tokens ({vocabulary})\n\n"
            f"To embed domains with it, set proxy.load={self.path}. A run that starts from it\n"
            "needs these settings; model.seq_length may be lower:\n\n"
            f"{yaml.safe_dump(self.settings(), sort_keys=False)}"
        ).rstrip()


def import_huggingface(folder: str | Path, output: str | Path) -> ImportedModel:
    """Convert a Hugging Face model into a checkpoint for proxy.load and pretrained_checkpoint.

    The output appears under its name only when it is complete.

    Args:
        folder: the model's folder, with config.json, its weights and perhaps tokenizer.json.
        output: the folder to write, which must not exist.

    Returns:
        A description of the imported model.

    Raises:
        UserError: there is no such model, this package's models cannot represent it, the output
            exists or cannot be written, or there are several processes.
    """
    folder, output = Path(folder), Path(output)
    if world_size() > 1:
        raise UserError("one process imports a model: start the command without torchrun")
    if output.exists():
        raise UserError(f"{output} exists already: remove it, or name another folder")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no Hugging Face model, for it has no config.json: name the folder of "
            "a model, which `hf download NAME --local-dir FOLDER` can make"
        )
    settings = from_pretrained("AutoConfig", str(folder))
    model = model_of_llama(settings, folder)
    identity, tokens = _vocabulary(folder, settings.vocab_size)
    model = replace(model, make_vocab_size_divisible_by=_multiple(settings.vocab_size, tokens))
    check_model(RunConfig(model=model), 1, f"{folder}: ")
    weights, precision = _weights(folder)
    parameters = sum(value.numel() for value in weights.values())
    beside = output.with_name(f"{output.name}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, beside)
        of_model = {f"model.{key}": value for key, value in model_record(model).items()}
        del of_model["model.use_cpu_initialization"]
        state = {
            "identity": {**of_model, **identity},
            "imported": {"folder": str(folder), "architecture": settings.model_type},
        }
        _save(beside, state, weights, model, tokens, precision)
        beside.rename(output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    tokenizer = output / "tokenizer.json"
    return ImportedModel(
        output,
        model,
        settings.model_type,
        precision,
        parameters,
        tokens,
        tokenizer if tokenizer.is_file() else None,
    )


def _vocabulary(folder: Path, rows: int) -> tuple[dict[str, Any], int]:
    """Return the facts by which a run recognises the vocabulary, and the number of tokens."""
    file, tokens = folder / "tokenizer.json", rows
    facts: dict[str, Any] = {}
    if file.is_file():
        tokens = vocabulary_size(load_tokenizer(str(file)))
        if tokens > rows:
            raise UserError(
                f"{file} has {tokens:,} tokens, but vocab_size={rows} in config.json: the model "
                "has no embeddings of the others; put its own tokenizer there"
            )
        facts["vocabulary"] = vocabulary_digest(str(file))
    return {**facts, "vocabulary size": tokens}, tokens


def _multiple(rows: int, tokens: int) -> int:
    """Return the multiple that pads a number of tokens to the rows that the table has.

    Rows of padding would take part in the softmax, so that the loss would not be the model's own.
    """
    usual = gcd(rows, 128)
    if usual > rows - tokens:
        return usual
    return next(n for n in range(rows - tokens + 1, rows + 1) if rows % n == 0)


def _weights(folder: Path) -> tuple[dict[str, torch.Tensor], torch.dtype]:
    """Load the weights by name, without a copy of tied ones, and return the type to write."""
    # Without the last setting a shape that does not fit ends in an error that names no weight.
    lm, loading = from_pretrained(
        "AutoModelForCausalLM",
        str(folder),
        dtype="auto",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    for what, says in (
        ("missing_keys", "has no weights for"),
        ("mismatched_keys", "has weights of another shape for"),
        ("unexpected_keys", "has weights that its config.json does not describe:"),
    ):
        names = [key if isinstance(key, str) else key[0] for key in loading[what]]
        if names:
            raise UserError(f"{folder} {says} {min(names)}: download it again")
    weights = dict(lm.state_dict())
    if lm.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    precision = torch.bfloat16 if lm.dtype == torch.bfloat16 else torch.float32
    return weights, precision


def _save(
    directory: Path,
    state: dict[str, Any],
    weights: dict[str, torch.Tensor],
    model: ModelConfig,
    tokens: int,
    precision: torch.dtype,
) -> None:
    """Write a checkpoint of a GPT whose weights are those of a Llama; `weights` is emptied."""
    run = RunConfig(model=replace(model, use_cpu_initialization=True))
    run.train.precision = "fp32"
    with process_group(), model_parallel(run.parallel, 0):
        config = transformer_config(run)
        # The GPT only names the weights and says how layouts divide them, so it needs no memory.
        with torch.device("meta"):
            gpt = GPTModel(
                config,
                torch_layer_spec(config),
                vocab_size=padded_vocab_size(tokens, run),
                max_sequence_length=model.seq_length,
                position_embedding_type="rope",
                share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
            )
        converted = {name: value.to(precision) for name, value in llama_to_megatron(weights, model)}
        missing, unexpected = gpt.load_state_dict(converted, strict=False, assign=True)
        missing = [name for name in missing if not name.endswith("_extra_state")]
        assert not [*missing, *unexpected, *weights], "transformers has checked the names"
        checkpoint.save(directory, 0, state, gpt, None, None)
