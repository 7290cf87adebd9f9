"""The code of the pages runs, from top to bottom."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_checkpoint_faults
import test_fuzz
import test_numerics
import test_soak

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    *(
        f"docs/{page}.md"
        for page in ("index", "data_and_nets", "pipelines", "callbacks", "comparison")
    ),
    *(
        f"docs/guide/{page}.md"
        for page in (
            "costs",
            "label_noise",
            "long_fits",
            "own_parts",
            "probabilities",
            "search",
            "streaming",
            "transport",
            "two_stages",
            "weights",
        )
    ),
]


def code_blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for pages that write files
    names = {"net": None}  # "your net" of the README
    for block in code_blocks(page):
        exec(compile(block, page, "exec"), names)
    if page == "README.md":
        clf = names["clf"]
        assert clf.sample_weight_.std() > 0.1  # they tell rows apart
        assert len(names["suspects"].index) == len(names["data"].y)
        assert (tmp_path / "digits.safetensors").stat().st_size > 0


def test_every_page_with_code_is_run():
    pages = [
        "README.md",
        *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
        *(str(path.relative_to(ROOT)) for path in (ROOT / "docs/guide").glob("*.md")),
    ]
    assert {page for page in pages if code_blocks(page)} == set(PAGES)


def test_links_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", *PAGES):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_promises_name_tests_that_exist_and_what_they_count():
    page = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+\.py)`", page))
    assert len(named) >= 15
    assert all((ROOT / "tests" / name).exists() for name in named)
    counts = {
        "fits killed and resumed": test_checkpoint_faults.N_KILLS,
        "random transport problems solved": test_numerics.N_PLANS
        + test_numerics.N_CLOSED,
        "training sets weighed": 12 * test_numerics.few.max_examples,
        "inputs fuzzed": test_fuzz.N_CASES,
        "chunks streamed": len(test_soak.STREAMS) * test_soak.N_CHUNKS,
    }
    for what, count in counts.items():
        assert f"| {count:,} {what} |" in page


@pytest.mark.parametrize("script", ["generate_methods", "generate_results"])
def test_tables_are_up_to_date(script):
    command = [sys.executable, f"docs/{script}.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("script", "row"),
    [("generate_methods", r"(\n\| )`ldam`"), ("generate_results", r"(\| )\S+ ±")],
)
def test_stale_tables_are_found(script, row, monkeypatch):
    generate = imported(script, monkeypatch)
    for page in generate.PAGES:
        text = page.read_text("utf-8")
        stale = re.sub(row, r"\1old", text)
        assert stale != text
        assert generate.written(stale) == text


def test_a_heading_that_is_not_recorded(monkeypatch):
    with pytest.raises(SystemExit, match="no heading 'Error'; it has .*'Lines'"):
        imported("generate_results", monkeypatch).section("tabular", "Error")


def imported(script, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module(script)
