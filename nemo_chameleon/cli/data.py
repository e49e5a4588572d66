"""The commands that prepare data and models: prepare, index and import-hf."""

import argparse

from nemo_chameleon.cli.parsing import CONFIG, OVERRIDES, Parsers, add_command, show
from nemo_chameleon.utils.tables import table


def add_data_commands(commands: Parsers) -> None:
    """Add prepare, index and import-hf.

    Args:
        commands: the parsers of all commands.
    """
    example = "prepare --tokenizer tokenizer.json --output data/wiki wiki.jsonl"
    text = "tokenise JSONL files into a Megatron dataset"
    prepare = add_command(commands, "prepare", _prepare, text, example)
    prepare.add_argument("files", nargs="+", metavar="FILE", help="JSONL, one document per line")
    prepare.add_argument("--tokenizer", required=True, metavar="FILE", help="tokenizer.json")
    text = "write PREFIX.bin and PREFIX.idx"
    prepare.add_argument("--output", required=True, metavar="PREFIX", help=text)
    text = "key of the document in each line (default: %(default)s)"
    prepare.add_argument("--key", default="text", help=text)

    text = "tokenise the JSONL of a finetuning run before the run, and count what there is"
    index = add_command(commands, "index", _index, text, "index --config sft.yaml")
    index.add_argument("--config", metavar="FILE", help=CONFIG)
    index.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)

    text = "convert a Hugging Face model like Llama into a checkpoint, and print its settings"
    take = add_command(commands, "import-hf", _import_hf, text, "import-hf SmolLM2-135M imported")
    take.add_argument("folder", metavar="FOLDER", help="folder of the Hugging Face model")
    take.add_argument("output", metavar="OUTPUT", help="folder to write, which must not exist")


def _prepare(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.data.readers import read_jsonl
    from nemo_chameleon.data.tokenize import write_dataset
    from nemo_chameleon.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(arguments.tokenizer)
    documents = read_jsonl(arguments.files, arguments.key)
    tokens = write_dataset(documents, tokenizer, arguments.output)
    show(f"{arguments.output}: {tokens:,} tokens")


def _index(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.config import load_sft_config
    from nemo_chameleon.config.validation import check_mixture
    from nemo_chameleon.data.kinds import kind_of

    config = load_sft_config(arguments.config, arguments.overrides)
    check_mixture(config)
    data, length, evaluated = config.data, config.model.seq_length, bool(config.train.eval_iters)
    domains = kind_of(data).open_domains(data, length)
    kind_of(data).require_samples(data, domains, length, "model.", evaluated)
    header = ["domain", "examples", "tokens", "answer tokens", "samples per pass"]
    rows = [
        [
            name,
            f"{domain.documents:,}",
            f"{domain.tokens:,}",
            f"{domain.tokens_in('tokens'):,}",
            f"{domain.pass_tokens(length) // length:,}",
        ]
        for name, domain in domains.items()
    ]
    show(table(header, rows))


def _import_hf(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.models.import_hf import import_huggingface

    show(import_huggingface(arguments.folder, arguments.output).summary())
