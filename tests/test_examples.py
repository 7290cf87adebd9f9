"""The examples run, and show what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sk_otreweight import BASELINES

ROOT = Path(__file__).parent.parent
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def run(*command):
    """Run an example in a process of its own and return what it printed."""
    environment = os.environ | {"MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(title, text):
    """Return the numbers of the line that begins with a title."""
    (line,) = re.findall(rf"^{re.escape(title)}(.*)$", text, flags=re.MULTILINE)
    return [float(number) for number in re.findall(r"-?\d+\.\d+", line)]


@pytest.mark.slow
def test_quickstart_helps_the_rare_classes_and_readme_shows_it():
    text = run("examples/plot_quickstart.py")
    plain, weights, default = numbers("three rarest classes", text)
    assert weights >= plain + 0.10
    assert default >= plain + 0.10
    plain, weights, default = numbers("all ten classes", text)
    assert min(weights, default) > plain
    figure = re.search(r"Figure: (.*)", text).group(1)
    assert Path(figure).stat().st_size > 10_000
    # Machines differ in how they round, and training makes more of it.
    readme = (ROOT / "README.md").read_text()
    for title in ("all ten classes", "three rarest classes"):
        assert numbers(title, readme) == pytest.approx(numbers(title, text), abs=0.02)


@pytest.mark.slow
def test_own_loop_helps_the_rare_classes():
    text = run("examples/plot_own_loop.py")
    before, after = numbers("Stage 1        :", text), numbers("Stage 1 and 2", text)
    assert after[1] > before[1]


@pytest.mark.slow
def test_short_form_of_the_defaults():
    text = run("examples/benchmarks/defaults.py", "--short")
    assert "| semirelaxed |" in text


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Fashion-MNIST not installed")
def test_fashion_error_falls_by_a_fifth():
    text = run("examples/plot_fashion.py", "--seeds", "1")
    (reduction,) = numbers("relative reduction", text)
    assert reduction >= 20


@pytest.mark.slow
def test_course_of_a_training():
    text = run("examples/plot_training_course.py")
    (plain,), (ours,) = numbers("plain ", text), numbers("re-weighted ", text)
    assert ours > plain


@pytest.mark.slow
def test_all_methods_are_compared():
    text = run("examples/plot_compare.py")
    assert "methods that failed: 0" in text
    for name in (*BASELINES, "ot", "ot_adjusted"):
        accuracy, *_ = numbers(f"{name}  ", text)
        assert 0.5 < accuracy < 1
