"""A table as squeue, sinfo and sacct print it: a heading, and rows in columns of fixed width or with bars."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from clustertools.errors import Unparsable


def rows(text: str, what: str, forms: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows by the headings of their columns. A line with the date above (-l) is left out.

    `forms` has patterns for columns whose values tell a row from another line. Raises Unparsable where there
    is no heading, and for a row that does not fit it.
    """
    lines = [line for line in text.splitlines() if line.strip() and not _DATE.fullmatch(line)]
    if not lines:
        raise Unparsable(f"{what}: nothing", text)
    head, *body = lines
    if "|" in head:
        names = [name.strip() for name in head.removesuffix("|").split("|")]
        return [_by_bars(names, line, head.endswith("|"), what) for line in body]

    def fitting(line: str, row: dict[str, str]) -> dict[str, str]:
        if any(name in row and not re.match(form, row[name]) for name, form in forms.items()):
            raise Unparsable(f"{what}: a row that does not fit its heading", line)
        return row

    if body and re.fullmatch(r"[-\s]+", body[0]):
        # sacct underlines its headings: these are the columns
        spans = [match.span() for match in re.finditer(r"-+", body[0])]
        names = [head[start:end].strip() for start, end in spans]
        return [
            fitting(
                line, {name: line[start:end].strip() for name, (start, end) in zip(names, spans, strict=True)}
            )
            for line in body[1:]
        ]
    return [fitting(line, _by_place(head, line, what)) for line in body]


# Sat Nov 21 14:05:16 2026
_DATE = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ [\d:]{8} \d{4}\s*")


def _by_bars(names: list[str], line: str, closed: bool, what: str) -> dict[str, str]:
    cells = line.split("|")
    # `sinfo -o %all` closes its rows and not its heading
    if (closed or len(cells) == len(names) + 1) and not cells[-1]:
        cells.pop()
    # a bar inside a name is not told apart from one between columns
    if len(cells) != len(names):
        raise Unparsable(f"{what}: a row of {len(cells)} columns under {len(names)} headings", line)
    return dict(zip(names, (cell.strip() for cell in cells), strict=True))


def _by_place(head: str, line: str, what: str) -> dict[str, str]:
    """Columns by their words; where a value has blanks, by where the headings stand, or as the last one's."""
    names = head.split()
    words = line.split()
    if len(words) != len(names):
        words = _cut(head, line) or line.split(None, len(names) - 1)
    if len(words) != len(names):
        raise Unparsable(f"{what}: a row that does not fit its heading", line)
    return dict(zip(names, (word.strip() for word in words), strict=True))


def _cut(head: str, line: str) -> list[str]:
    """The cells of columns to the right (their headings end where they do) or to the left.

    Nothing when an edge would cut a word: the columns are of both kinds, or a value is wider than its column.
    """
    spans = [match.span() for match in re.finditer(r"\S+", head)]
    edges = [end for _, end in spans[:-1]] if head[:1].isspace() else [start for start, _ in spans[1:]]
    if any(line[max(edge - 1, 0) : edge + 1].strip() == line[max(edge - 1, 0) : edge + 1] for edge in edges):
        return []
    edges = [0, *edges, len(line)]
    cells = [line[start:end].strip() for start, end in itertools.pairwise(edges)]
    return cells if cells[0] and cells[-1] else []
