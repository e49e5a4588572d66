"""CSV: a table with a row for each domain, and Olmix's ratios.csv with a column for each.

A cell that begins like a formula would be computed by a spreadsheet, so it gets an apostrophe in
front, and loses it when it is read. A domain of several datasets has JSON lists in its cells.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from nemo_chameleon.mixture.formats.blend import (
    ROUNDING,
    Blend,
    MixtureFormat,
    named_blend,
    number,
    total_of,
    with_sum,
)
from nemo_chameleon.mixture.formats.text import parse_table
from nemo_chameleon.mixture.mixture import Mixture
from nemo_chameleon.mixture.parsing import require_datasets
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.tables import listed

_DATASETS = ("path", "part_tokens")
_FACTS = ("tokens", "documents", "score", "low", "high")
# The columns of ratios.csv that are about the run; the one without a name is an index of pandas.
_OF_RUN = ("", "Unnamed: 0", "run", "run_id", "name", "index")
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def _cell(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) else text


def _text(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _listed(value: Any) -> str:
    """Write a path or a list as the text of a cell."""
    as_it_is = isinstance(value, str) and _unlisted(value) == value
    return value if as_it_is else json.dumps(value, ensure_ascii=False)


def _unlisted(text: str) -> Any:
    """Read a path or a list from the text of a cell; text that is no list in JSON is a path."""
    try:
        return json.loads(text) if text[:1] in ("[", '"') else text
    except (ValueError, RecursionError):
        return text


def _written(rows: Iterable[Iterable[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _write(mixture: Mixture) -> str:
    rows: list[Iterable[object]] = [("domain", "weight", *_DATASETS, *_FACTS)]
    for name, weight in mixture.weights.items():
        facts = mixture.domains.get(name, {})
        datasets = [_listed(facts.get(key, "")) for key in _DATASETS]
        ends = mixture.uncertainty.get(name, ["", ""])
        known = [facts.get(key, "") for key in ("tokens", "documents", "score")]
        rows.append([_cell(name), repr(weight), *map(_cell, datasets), *known, *ends])
    return _written(rows)


def _read(text: str) -> Blend:
    written, rows = parse_table(text)
    known = ("domain", "weight", *_DATASETS, "")
    folded = [cell.strip().lower() for cell in written]
    header = [one if one in known else cell for one, cell in zip(folded, written, strict=True)]
    if twice := [one for one in known if header.count(one) > 1]:
        raise UserError(f"the header has the column {twice[0]!r} twice")
    missing = [column for column in ("domain", "weight") if column not in header]
    if missing:
        raise UserError(
            f"it has no column {missing[0]!r}, but {', '.join(header[:8])}: the header must have "
            "domain and weight, separated by commas, semicolons or tabs; for a table with a column "
            "for each domain use --format ratios"
        )
    unknown = [column for column in header if column not in known]
    notes = [f"columns that are not read: {listed(unknown)}"] if unknown else []

    def entries() -> Iterator[tuple[str, str, float, dict[str, Any]]]:
        for line, cells in rows:
            row = {column: _text(cell) for column, cell in zip(header, cells, strict=True)}
            name = row["domain"]
            facts = {key: _unlisted(row[key]) for key in _DATASETS if row.get(key)}
            try:
                require_datasets(name, facts)
            except UserError as error:
                raise UserError(f"line {line}: {error}") from error
            yield f"line {line}", name, number(row["weight"], f"line {line}, {name!r}"), facts

    blend = named_blend(entries())
    return with_sum(Blend(blend.weights, blend.domains, [*notes, *blend.notes]))


def _write_ratios(mixture: Mixture) -> str:
    if taken := [name for name in mixture.weights if name in _OF_RUN]:
        raise UserError(f"this format needs the column {taken[0]!r} for the run: rename the domain")
    return _written(
        [
            ["run_id", *map(_cell, mixture.weights)],
            [_cell(mixture.name), *map(repr, mixture.weights.values())],
        ]
    )


def _read_ratios(text: str) -> Blend:
    header, table = parse_table(text)
    rows = list(table)
    if len(rows) != 1:
        raise UserError(
            f"it has {len(rows)} rows, one for each run: leave the header and the one row that is "
            "the mixture"
        )
    ((line, cells),) = rows
    blend = named_blend(
        (f"column {name!r}", _text(name), number(cell, f"line {line}, column {name!r}"), {})
        for name, cell in zip(header, cells, strict=True)
        if name not in _OF_RUN
    )
    if abs(total_of(blend.weights) - 1) > ROUNDING:
        raise UserError(
            f"line {line}: the ratios add up to {total_of(blend.weights):.4g}, not to 1: remove "
            f"the columns that are not domains; it has {listed(list(blend.weights))}"
        )
    return blend


CSV = MixtureFormat(
    "one row per domain: weight, the share of training samples and of their tokens; path, or a "
    "list of paths with the training tokens of each; number of tokens and of documents to train "
    "on; leverage score; low and high, the ends of the weight's 95 % interval. A run's epochs of a "
    "domain are the run's tokens x weight / tokens. A name that begins like a formula has an "
    "apostrophe in front.",
    _write,
    _read,
)
RATIOS = MixtureFormat(
    "one column per domain and one row, as in the ratios.csv of Olmix and other searches that "
    "train a proxy for each row. A ratio is the share of the tokens.",
    _write_ratios,
    _read_ratios,
)
