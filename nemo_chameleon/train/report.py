"""A table of finished runs side by side, read from the result.json that each run leaves."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.tables import amount, decimal, table

Result = dict[str, Any]


def read_result(directory: str | Path) -> Result:
    """Read the result.json of a finished run.

    Args:
        directory: the folder of the run.

    Returns:
        The contents of the file; `compare` finds in it everything that a table needs.

    Raises:
        UserError: the file cannot be read, or it lacks something.
    """
    path = Path(directory) / "result.json"
    try:
        result: Result = json.loads(path.read_text())
        compare([result, result])  # this fails if it lacks what a table or a verdict needs
    except OSError as error:
        raise UserError(f"{directory} holds no finished run: {path.name} cannot be read") from error
    except KeyError as error:
        raise UserError(f"{path} is not the result of a run: it has no {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not the result of a run: it is nested too deeply") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} is not the result of a run: {error}") from error
    return result


def compare(results: Sequence[Result]) -> str:
    """Compare one or more runs over the same domains, in a table and in words.

    Args:
        results: results of runs, as `read_result` gives them.

    Returns:
        A table with a row for each domain and for each mean; a line about each run; and for two
        runs a comparison in words.

    Raises:
        UserError: the runs are over different domains.
    """
    first = results[0]
    for result in results[1:]:
        if set(result["domains"]) != set(first["domains"]):
            raise UserError(
                f"the runs {first['run']} and {result['run']} are over different domains: compare "
                "runs over the same domains"
            )
    header = ["domain", "tokens"]
    columns: dict[str, Callable[..., str]] = {"weight": "{:.3f}".format, "samples": "{:,d}".format}
    if all("answer_tokens" in facts for run in results for facts in run["domains"].values()):
        columns["answer_tokens"] = amount
    columns["epochs"] = "{:.2f}".format
    for what in (*columns, "perplexity"):
        title = what.replace("_", " ")
        header += [title if len(results) == 1 else f"{title} {run['run']}" for run in results]
    rows = []
    for name, domain in first["domains"].items():
        row = [name, amount(domain["tokens"])]
        for what, text in columns.items():
            row += [text(run["domains"][name][what]) for run in results]
        row += [decimal(run["domains"][name].get("perplexity")) for run in results]
        rows.append(row)
    blank = [""] * (len(header) - 1 - len(results))

    def means(key: str) -> None:
        for title, what, digits in (
            ("macro perplexity", "perplexity", 2),
            ("mean loss, nats", "loss", 4),
        ):
            figures = [decimal(run.get(key, {}).get(what), digits) for run in results]
            rows.append([title, *blank, *figures])

    means("macro")
    # Only sets that every run was evaluated on can be compared.
    apart = [run.get("validation", {}) for run in results]
    if common := [name for name in apart[0] if all(name in scores for scores in apart)]:
        rows.append(["not drawn from:", *blank, *[""] * len(results)])
        for name in common:
            rows.append([name, *blank, *(decimal(scores[name]["perplexity"]) for scores in apart)])
        if all(len(scores) == len(common) for scores in apart):
            means("validation macro")
    summary = [_run_line(run) for run in results]
    if len(results) == 2 and all(run["macro"] for run in results):
        summary.append(_verdict(results[0], results[1], common))
    return "\n".join([table(header, rows, rule_before=len(first["domains"])), *summary])


def _run_line(run: Result) -> str:
    return (
        f"{run['run']}: {run['parameters'] / 1e6:.1f}M parameters, {amount(run['tokens'])} tokens "
        f"in {run['iterations']:,} iterations, {run['seconds']:,.0f} s, "
        f"last training loss {run['loss']:.3f}"
    )


def _verdict(before: Result, after: Result, apart: Sequence[str]) -> str:
    """Say which of two runs has the lower perplexity, and by how much."""

    def better(names: Sequence[str], kind: str) -> str:
        lower = [name for name in names if after[kind][name]["loss"] < before[kind][name]["loss"]]
        return f"{len(lower)} of {len(names)}"

    change = after["macro"]["perplexity"] / before["macro"]["perplexity"] - 1
    difference = after["macro"]["loss"] - before["macro"]["loss"]
    lines = [
        f"Against {before['run']}, {after['run']} has the lower perplexity in "
        f"{better(list(after['domains']), 'domains')} domains; macro perplexity {change:+.1%}, "
        f"mean loss {difference:+.4f} nats."
    ]
    if apart:
        count = better(apart, "validation")
        lines.append(f"It has the lower perplexity in {count} sets that are not drawn from.")
    lines.append(
        "Each run has one seed, so the figures do not show how much another seed would change; "
        "`nemo-chameleon compare` compares several seeds."
    )
    return "\n".join(lines)
