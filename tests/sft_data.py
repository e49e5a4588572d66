"""Three small finetuning domains, `pairs`, `chats` and `text`, made of a licence and of sums."""

import json
from pathlib import Path
from typing import Any

import yaml

from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.sft.domain import SFTDomain, open_sft_domain
from nemo_chameleon.data.sft.tokenize import ExampleTokenizer
from project import ROOT, write_config

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_jsonl(path: Path, examples: list[dict[str, Any]]) -> Path:
    """Write one example per line and return the path."""
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return path


def write_sft_config(corpus: Path, folder: Path) -> Path:
    """Write a configuration that finetunes on three domains of different lengths and answers."""
    path = write_config(corpus, folder)
    lines = [line for line in (ROOT / "LICENSE").read_text().splitlines() if len(line) > 20]
    sums = [(a, b) for a in range(12) for b in range(12)]
    chats = [
        [
            {"role": "user", "content": f"{a}+{b}"},
            {"role": "assistant", "content": str(a + b)},
            {"role": "user", "content": "one more"},
            {"role": "assistant", "content": str(a + b + 1)},
        ]
        for a, b in sums
    ]
    examples: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"prompt": line[:12], "completion": line[12:40]} for line in lines],
        "chats": [{"messages": messages} for messages in chats],
        "text": [{"text": line} for line in lines[:90]],
    }
    for name, of_domain in examples.items():
        write_jsonl(folder / f"{name}.jsonl", of_domain)
    (folder / "template.jinja").write_text(TEMPLATE)
    config = yaml.safe_load(path.read_text())
    config["data"] |= {
        "dataset": "sft",
        "chat_template": str(folder / "template.jinja"),
        "domains": {name: {"path": str(folder / f"{name}.jsonl")} for name in examples},
    }
    config["model"]["seq_length"] = 64
    config["chameleon"]["source"] = "proxy"
    config["proxy"]["model"]["seq_length"] = 64
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def opened(
    sft: Config, *examples: dict[str, Any], name: str = "mine", **settings: str
) -> SFTDomain:
    """Return a domain of these examples."""
    for key, value in settings.items():
        setattr(sft.data, key, value)
    path = write_jsonl(Path(sft.output).parent / f"{name}.jsonl", list(examples))
    return open_sft_domain(
        name, str(path), sft.data, ExampleTokenizer(sft.data), seq_length=sft.model.seq_length
    )
