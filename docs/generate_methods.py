"""Write the table of the methods to compare with, from their classes.

``python docs/generate_methods.py`` writes it into ``docs/comparison.md``, between its
two markers. With ``--check`` it only fails if the table there is stale.
"""

from __future__ import annotations

from pathlib import Path

from _page import write_or_check

from sk_otreweight import BASELINES

PAGES = [Path(__file__).resolve().parent / "comparison.md"]
BEGIN = "<!-- table of methods: python docs/generate_methods.py -->"
END = "<!-- end of the table -->"
ORDER = ("counts", "meta", "features")


def table() -> str:
    """Return the table, a line for each method."""
    lines = [
        "| method | class | paper | needs | stages |",
        "|---|---|---|---|---|",
    ]
    for name, kind in BASELINES.items():
        needs = ", ".join(need for need in ORDER if need in kind.needs) or "–"
        lines.append(
            f"| `{name}` | `{kind.__name__}` | {kind.paper} | {needs} | {kind.stages} |"
        )
    return "\n".join(lines)


def written(text: str) -> str:
    """Return the page with the table as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    write_or_check(PAGES, written, __doc__.splitlines()[0])
