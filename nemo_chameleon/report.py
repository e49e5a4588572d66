"""Tables for people: runs side by side, and mixtures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nemo_chameleon.errors import UserError
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.weights import effective_domains

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
        columns["answer_tokens"] = _amount
    columns["epochs"] = "{:.2f}".format
    for what in (*columns, "perplexity"):
        title = what.replace("_", " ")
        header += [title if len(results) == 1 else f"{title} {_short(run)}" for run in results]
    rows = []
    for name, domain in first["domains"].items():
        row = [name, _amount(domain["tokens"])]
        for what, text in columns.items():
            row += [text(run["domains"][name][what]) for run in results]
        row += [_number(run["domains"][name].get("perplexity")) for run in results]
        rows.append(row)
    blank = [""] * (len(header) - 1 - len(results))

    def means(key: str) -> None:
        for title, what, digits in (
            ("macro perplexity", "perplexity", 2),
            ("mean loss, nats", "loss", 4),
        ):
            figures = [_number(run.get(key, {}).get(what), digits) for run in results]
            rows.append([title, *blank, *figures])

    means("macro")
    # Only what every run was evaluated on can be compared.
    apart = [run.get("validation", {}) for run in results]
    if common := [name for name in apart[0] if all(name in scores for scores in apart)]:
        rows.append(["not drawn from:", *blank, *[""] * len(results)])
        for name in common:
            rows.append([name, *blank, *(_number(scores[name]["perplexity"]) for scores in apart)])
        if all(len(scores) == len(common) for scores in apart):
            means("validation macro")
    summary = [_run_line(run) for run in results]
    if len(results) == 2 and all(run["macro"] for run in results):
        summary.append(_verdict(*results))
    return "\n".join([table(header, rows, rule_before=len(first["domains"])), *summary])


def show_mixture(mixture: Mixture) -> str:
    """A mixture's weights, heaviest first, and where they came from."""
    rows = []
    for name in sorted(mixture.weights, key=lambda name: -mixture.weights[name]):
        facts = mixture.domains.get(name, {})
        tokens = facts.get("tokens")
        interval = mixture.uncertainty.get(name)
        rows.append(
            [
                name,
                f"{mixture.weights[name]:.4f}",
                "-" if interval is None else f"{interval[0]:.4f}-{interval[1]:.4f}",
                _number(facts.get("score"), 4),
                "-" if tokens is None else _amount(tokens),
            ]
        )
    spread = effective_domains(list(mixture.weights.values()))
    lines = [
        table(["domain", "weight", "95 % interval", "score", "tokens"], rows),
        f"{len(rows)} domains, as spread out as {spread:.1f} equal ones",
    ]
    described = [("method", mixture.method)]
    described += [("proxy", proxy) for proxy in mixture.proxy.get("averaged", [mixture.proxy])]
    for title, facts in described:
        apart = ("caveats", "layers")
        known = [f"{key} {value}" for key, value in facts.items() if key not in apart]
        if known:
            lines.append(f"{title}: " + ", ".join(known))
    lines += [f"note: {caveat}" for caveat in mixture.method.get("caveats", [])]
    if "layers" in mixture.method:
        lines.append(layers_table(mixture))
    return "\n".join(lines)


def layers_table(mixture: Mixture) -> str:
    """What the weights would be after each layer of the proxy, for chameleon.layer=all."""
    layers, chosen = mixture.method["layers"], mixture.method["layer"]
    header = ["domain", *(f"layer {layer}" for layer in layers)]
    rows = [
        [name, *(f"{weights[name]:.4f}" for weights in layers.values())] for name in mixture.weights
    ]
    moved = [
        sum(abs(weights[name] - mixture.weights[name]) for name in mixture.weights) / 2
        for weights in layers.values()
    ]
    rows.append([f"moved from layer {chosen}", *(f"{share:.4f}" for share in moved)])
    return table(header, rows, rule_before=len(mixture.weights))


def diff_mixtures(before: Mixture, after: Mixture) -> str:
    """Weights before and after by domain, the largest change first, and the share that moved."""
    old, new = before.weights, after.weights
    change = {name: new.get(name, 0.0) - old.get(name, 0.0) for name in [*old, *new]}
    rows = [
        [name, _number(old.get(name), 4), _number(new.get(name), 4), f"{change[name]:+.4f}"]
        for name in sorted(change, key=lambda name: -abs(change[name]))
    ]
    lines = [
        table(["domain", "before", "after", "change"], rows),
        f"{sum(map(abs, change.values())) / 2:.4f} of the samples go to another domain",
    ]
    for title, one, other in (
        ("method", before.method, after.method),
        ("proxy", before.proxy, after.proxy),
    ):
        apart = ("caveats", "averaged", "layers")
        told = [key for key in {**one, **other} if key not in apart]
        for key in [key for key in told if one.get(key) != other.get(key)]:
            lines.append(f"{title} {key}: {one.get(key)} -> {other.get(key)}")
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], rule_before: int = -1) -> str:
    """Text in columns: the first to the left, the others to the right."""
    # Two-line headings keep a comparison within a terminal's width.
    heads = [cell.rpartition(" ")[::2] for cell in header]
    lines = [[head[0] for head in heads], [head[1] for head in heads]]
    lines = [line for line in lines if any(line)]
    widths = [max(len(row[i]) for row in [*lines, *rows]) for i in range(len(header))]

    def text(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [text(row) for row in rows]
    if rule_before >= 0:
        body.insert(rule_before, rule)
    return "\n".join([*map(text, lines), rule, *body])


def _run_line(run: Result) -> str:
    return (
        f"{run['run']}: {run['parameters'] / 1e6:.1f}M parameters, {_amount(run['tokens'])} tokens "
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


def _amount(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(round(number))


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
