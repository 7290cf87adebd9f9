"""Copy the recorded tables of the benchmarks into the pages of results.

A page names them in comments, ``<!-- RECORD: HEADING -->``, a file of
``examples/benchmarks/results/`` and a heading of it; without a heading it is the
command that made the record, and with which versions. What stands between such a
comment and the next ``<!-- end -->`` is replaced. With ``--check`` the script only
fails if a page is stale.
"""

from __future__ import annotations

import re
from pathlib import Path

from _page import write_or_check

DOCS = Path(__file__).resolve().parent
PAGES = [DOCS / page for page in ("choose.md", "results.md", "experiments.md")]
RESULTS = DOCS.parent / "examples" / "benchmarks" / "results"
INCLUDE = re.compile(r"(<!-- (\w+)(?:: (.+?))? -->\n).*?(<!-- end -->)", re.DOTALL)


def written(text: str) -> str:
    """Return the page with the tables as they are recorded."""
    return INCLUDE.sub(_included, text)


def _included(match: re.Match[str]) -> str:
    begin, record, heading, end = match.groups()
    body = facts(record) if heading is None else section(record, heading)
    return f"{begin}\n{body}\n\n{end}"


def facts(record: str) -> str:
    """Return how a record was made, as its list says."""
    lines = _record(record).splitlines()
    return "\n".join(line for line in lines[: lines.index("", 2)] if line[:2] == "- ")


def section(record: str, heading: str) -> str:
    """Return what stands under a heading of a record."""
    parts = re.split(r"^## (.+)\n", _record(record), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    if heading not in sections:
        raise SystemExit(
            f"{record}.md has no heading {heading!r}; it has {list(sections)}."
        )
    return sections[heading].strip()


def _record(record: str) -> str:
    return (RESULTS / f"{record}.md").read_text("utf-8")


if __name__ == "__main__":
    write_or_check(PAGES, written, __doc__.splitlines()[0])
