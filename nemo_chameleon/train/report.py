"""Finished runs side by side, as a table for people."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.tables import amount, decimal, table

Result = dict[str, Any]


def read_result(directory: str | Path) -> Result:
    """What a finished run left in its folder.

    Raises:
        UserError: there is none, or it is not whole.
    """
    path = Path(directory) / "result.json"
    try:
        result: Result = json.loads(path.read_text())
        compare([result])  # what a table of it needs is all there
    except OSError as error:
        raise UserError(f"{path}: no finished run there") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the result of a run: {error}") from error
    return result


def compare(results: Sequence[Result]) -> str:
    """A table of one or more runs over the same domains, and what it says in words.

    Raises:
        UserError: the runs are over other domains.
    """
    first = results[0]
    for result in results[1:]:
        if set(result["domains"]) != set(first["domains"]):
            raise UserError(f"{result['run']} and {first['run']} are runs over other domains")
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
    # Only what every run was evaluated on can be compared.
    apart = [run.get("validation", {}) for run in results]
    if common := [name for name in apart[0] if all(name in scores for scores in apart)]:
        rows.append(["not drawn from:", *blank, *[""] * len(results)])
        for name in common:
            rows.append([name, *blank, *(decimal(scores[name]["perplexity"]) for scores in apart)])
        if all(len(scores) == len(common) for scores in apart):
            means("validation macro")
    summary = [_run_line(run) for run in results]
    if len(results) == 2 and all(run["macro"] for run in results):
        summary.append(_verdict(*results))
    return "\n".join([table(header, rows, rule_before=len(first["domains"])), *summary])


def _run_line(run: Result) -> str:
    return (
        f"{run['run']}: {run['parameters'] / 1e6:.1f}M parameters, {amount(run['tokens'])} tokens "
        f"in {run['iterations']:,} iterations, {run['seconds']:,.0f} s, "
        f"last training loss {run['loss']:.3f}"
    )


def _verdict(before: Result, after: Result) -> str:
    """What two runs show, whichever way it goes."""
    names = list(after["domains"])
    better = [
        name for name in names if after["domains"][name]["loss"] < before["domains"][name]["loss"]
    ]
    change = after["macro"]["perplexity"] / before["macro"]["perplexity"] - 1
    difference = after["macro"]["loss"] - before["macro"]["loss"]
    return (
        f"Against {before['run']}, {after['run']} has the lower perplexity in {len(better)} of "
        f"{len(names)} domains; macro perplexity {change:+.1%}, mean loss {difference:+.4f} nats.\n"
        "One seed: what another seed would change is not in these figures."
    )


def _short(run: Result) -> str:
    return str(run["run"])
