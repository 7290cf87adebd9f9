"""What the scripts that write parts of a page share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def write_or_check(
    pages: Sequence[Path],
    written: Callable[[str], str],
    description: str,
) -> None:
    """Write pages as they should be, or with ``--check`` fail if one is stale.

    Parameters
    ----------
    pages : sequence of Path
    written : callable
        ``written(text)`` returns a page's text as it should be.
    description : str
        Of the script.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="fail if one is stale")
    options = parser.parse_args()
    for page in pages:
        text = page.read_text("utf-8")
        if not options.check:
            page.write_text(written(text), "utf-8")
        elif text != written(text):
            sys.exit(f"{page} is stale: run python docs/{Path(sys.argv[0]).name}.")
