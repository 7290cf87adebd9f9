"""What the scripts that write parts of a page share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def write_or_check(
    page: Path,
    written: Callable[[str], str],
    description: str,
) -> None:
    """Write a page as it should be, or with ``--check`` fail if it is stale.

    Parameters
    ----------
    page : Path
    written : callable
        ``written(text)`` returns the page's text as it should be.
    description : str
        Of the script.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="fail if it is stale")
    options = parser.parse_args()
    text = page.read_text("utf-8")
    if not options.check:
        page.write_text(written(text), "utf-8")
    elif text != written(text):
        sys.exit(f"{page} is stale: run python docs/{Path(sys.argv[0]).name}.")
