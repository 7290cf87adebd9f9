"""Scripts that the tests run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(*command, **variables):
    """Run Python with some arguments and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def left_behind(*texts):
    """Return the commands of running processes that have all of some texts in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone by now
            continue
        if all(text in command for text in texts):
            found.append(command)
    return found
