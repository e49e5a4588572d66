"""The commands that prepare data and models: prepare, index and import-hf."""

import argparse

from nemo_chameleon.cli.parsing import Parsers, add_command, add_configuration, show
from nemo_chameleon.utils.tables import table


def add_data_commands(commands: Parsers) -> None:
    """Add prepare, index and import-hf.

    Args:
        commands: the parsers of all commands.
    """
    example = "prepare --tokenizer tokenizer.json --output data/wiki wiki.jsonl"
    text = "tokenise files of text into a Megatron dataset"
    prepare = add_command(commands, "prepare", _prepare, text, example)
    text = (
        "JSONL, a JSON array, plain text (one document), parquet or Arrow, also .gz and .zst; or a "
        "folder of such files; or - for JSONL from the standard input"
    )
    prepare.add_argument("files", nargs="+", metavar="FILE", help=text)
    text = "tokenizer.json, or the folder or the name of a Hugging Face model"
    prepare.add_argument("--tokenizer", required=True, metavar="PLACE", help=text)
    text = "write PREFIX.bin, PREFIX.idx and PREFIX.info.json"
    prepare.add_argument("--output", required=True, metavar="PREFIX", help=text)
    text = "key of the document in each line; a.b is the key b within a (default: %(default)s)"
    prepare.add_argument("--key", default="text", help=text)
    text = "processes that tokenise (default: as many as there are cores)"
    prepare.add_argument("--workers", type=int, metavar="N", help=text)

    text = "tokenise the files of a finetuning run before the run, and count what there is"
    index = add_command(commands, "index", _index, text, "index --config sft.yaml")
    add_configuration(index)

    text = "convert a Hugging Face model like Llama into a checkpoint, and print its settings"
    take = add_command(commands, "import-hf", _import_hf, text, "import-hf SmolLM2-135M imported")
    take.add_argument("folder", metavar="FOLDER", help="folder of the Hugging Face model")
    take.add_argument("output", metavar="OUTPUT", help="folder to write, which must not exist")


def _prepare(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.data.prepare import prepare

    documents, tokens = prepare(
        arguments.files, arguments.tokenizer, arguments.output, arguments.key, arguments.workers
    )
    show(f"{arguments.output}: {tokens:,} tokens in {documents:,} documents")


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
