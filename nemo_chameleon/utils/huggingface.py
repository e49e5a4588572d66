"""Loads models, configurations and tokenizers with transformers, if it is installed."""

import pickle
from pathlib import Path
from typing import Any

from nemo_chameleon.utils.errors import UserError


def from_pretrained(kind: str, name: str, **settings: Any) -> Any:
    """Load something by the name of its model; code that lies beside the model never runs.

    Args:
        kind: a class of transformers, for instance "AutoConfig".
        name: the name of the model, or its folder.
        settings: arguments of the class's `from_pretrained`.

    Returns:
        What `from_pretrained` of the class returns.

    Raises:
        UserError: transformers is not installed, there is no such model, or it needs code of its
            own.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"the Hugging Face model {name} needs transformers: pip install nemo_chameleon[hf]"
        ) from error
    try:
        # Unless this is False, transformers asks on a terminal whether to run the code.
        return getattr(transformers, kind).from_pretrained(
            name, **settings, trust_remote_code=False
        )
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        cause = " ".join(str(error).split())[:200]
        if isinstance(error, pickle.UnpicklingError):
            cause = (
                "its weights are a pickle that is damaged or names more than tensors, which is "
                "never run; take the model with weights in safetensors"
            )
        elif "trust_remote_code" in str(error):
            cause = (
                "it brings its own code (auto_map in its configuration), which is never run; name "
                "a model of a type that transformers has"
            )
        raise UserError(f"cannot load the Hugging Face model {name}: {cause}") from error


def cached_folder(name: str) -> Path | None:
    """Return the folder of a model in the local Hugging Face cache; nothing is downloaded.

    Args:
        name: the name of the model, for instance "HuggingFaceTB/SmolLM2-135M".

    Returns:
        The folder of its newest files; None if the cache does not have the model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
