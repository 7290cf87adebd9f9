"""Write the table of the methods to compare with, from their classes.

``python docs/generate_methods.py`` writes it into ``docs/comparison.md``, between its
two markers. With ``--check`` it only fails if the table there is stale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sk_otreweight import BASELINES

PAGE = Path(__file__).resolve().parent / "comparison.md"
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if it is stale")
    options = parser.parse_args(arguments)
    text = PAGE.read_text("utf-8")
    if not options.check:
        PAGE.write_text(written(text), "utf-8")
    elif text != written(text):
        sys.exit(f"{PAGE} is stale: run python docs/generate_methods.py.")


if __name__ == "__main__":
    main()
