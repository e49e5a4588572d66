"""Parse JSON, YAML and CSV; an error says in words where the text is wrong.

YAML's unquoted words stay text, so that a path such as 2019_30 or no is not taken for a number or
for false. `blend.as_number` says which texts are numbers.
"""

import csv
import io
import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from nemo_chameleon.mixture.parsing import without_duplicates
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.yaml_text import SafeDumper, YamlReader, not_yaml

_SEPARATOR = re.compile(r"\s*\"?sep=(.)\"?[ \t]*\r?\n", re.IGNORECASE)


def parse_yaml(text: str) -> Any:
    """Parse YAML into dicts, lists, texts and None.

    Args:
        text: one YAML document.

    Returns:
        What it holds; every number is text.

    Raises:
        UserError: it is not YAML, or a key stands twice; the error names the line.
    """
    try:
        return YamlReader(text).document()
    except yaml.YAMLError as error:
        raise UserError(not_yaml(error)) from error


def parse_json(text: str) -> Any:
    """Parse JSON.

    Args:
        text: one JSON document.

    Returns:
        What it holds; every number is text.

    Raises:
        UserError: it is not JSON, or a key stands twice.
    """
    try:
        return json.loads(
            text,
            parse_int=str,
            parse_float=str,
            parse_constant=str,
            object_pairs_hook=without_duplicates,
        )
    except json.JSONDecodeError as error:
        raise UserError(
            f"it is not JSON at line {error.lineno}, column {error.colno}: correct the file there"
        ) from error


def found(body: Any, keys: Sequence[str], above: str = "") -> dict[str, Any]:
    """Find the keys of a blend at any depth of a configuration.

    Args:
        body: of the configuration.
        keys: names of the keys.
        above: the keys above `body`, with a dot at the end.

    Returns:
        What stands there, by dotted key; a key with null counts as absent.
    """
    there: dict[str, Any] = {}
    if isinstance(body, list):
        for i, item in enumerate(body):
            there |= found(item, keys, f"{above}{i}.")
    for key, value in body.items() if isinstance(body, dict) else ():
        if key in keys and value is not None:
            there[above + key] = value
        else:
            there |= found(value, keys, f"{above}{key}.")
    return there


def found_blend(body: Any, keys: Sequence[str]) -> tuple[str, Any] | None:
    """Find the only blend of a configuration.

    Args:
        body: of the configuration.
        keys: names of the keys that hold a blend.

    Returns:
        The dotted key and what stands there; None if there is no blend.

    Raises:
        UserError: there are several.
    """
    blends = found(body, keys)
    if len(blends) > 1:
        raise UserError(f"it has several blends, {', '.join(blends)}: leave only one in the file")
    return next(iter(blends.items()), None)


def commented_yaml(body: dict[str, Any], comment: str) -> str:
    """Write YAML with a comment above it.

    Args:
        body: what to write.
        comment: one or more sentences.

    Returns:
        The text.
    """
    lines = textwrap.wrap(comment, 97, initial_indent="# ", subsequent_indent="# ")
    dumped = yaml.dump(body, Dumper=SafeDumper, sort_keys=False, allow_unicode=True)
    return "\n".join([*lines, dumped])


def parse_table(text: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Parse CSV with a header.

    Where spreadsheets write decimal commas, they separate cells by semicolons; text that is copied
    from them has tabs. Such a separator is taken if the header has no comma, or if the first line
    is one of Excel that names it, such as sep=;.

    Args:
        text: of the file.

    Returns:
        The header's cells, and the rows that are not empty: the line where each ends, and its
        cells, as many as the header has.

    Raises:
        UserError: there is no header, or two columns have the same name. Reading a row raises it
            if the row has another number of cells.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = next((mark for mark in ",;\t" if mark in first), ",")
    above = 0
    if named := _SEPARATOR.match(text):
        separator, text, above = named[1], text[named.end() :], named[0].count("\n")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)

    def lines() -> Iterator[tuple[int, list[str]]]:
        try:
            for cells in reader:
                if any(cells):
                    yield above + reader.line_num, cells
        except csv.Error as error:
            line = above + reader.line_num
            raise UserError(f"line {line}: it is not CSV; check its quotes") from error

    rows = lines()
    _, header = next(rows, (0, []))
    if not header:
        raise UserError("it is empty: the first line must be a header")
    if twice := [cell for cell, count in Counter(header).items() if count > 1]:
        raise UserError(f"the header has the column {twice[0]!r} twice")

    def checked() -> Iterator[tuple[int, list[str]]]:
        for line, cells in rows:
            if len(cells) != len(header):
                raise UserError(
                    f"line {line}: it has {len(cells)} cells, but the header has {len(header)}"
                )
            yield line, cells

    return header, checked()
