"""The import table of the package, enforced by reading the source."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import SimpleNamespace

import pytest

import sk_otreweight

PACKAGE = "sk_otreweight"
FOLDER = Path(sk_otreweight.__file__).parent

# What the pure torch core may take from scikit-learn: get_params and clone, the
# warning classes, the checks of a fitted state and of a random state.
CORE = {"torch", "sklearn.base", "sklearn.exceptions", "sklearn.utils.validation"}
SHELL = {"numpy", "torch", "sklearn"}

# module: (modules of the package, third-party modules) that it may import. An
# entry covers its submodules; the standard library is always allowed.
TABLE = {
    "_validation": (set(), SHELL),
    "randomness": (set(), SHELL),
    "class_weights": ({"_validation"}, CORE),
    "losses": ({"class_weights", "_validation"}, CORE),
    "costs": ({"_validation"}, CORE),
    "transport": ({"_validation"}, CORE | {"numpy", "scipy", "ot"}),
    "meta_sets": ({"_validation"}, CORE),
    "weights": ({"class_weights", "transport", "randomness", "_validation"}, CORE),
    "statistics": ({"weights"}, CORE),
    "batches": ({"transport"}, CORE),
    "reweighter": (
        {
            "batches",
            "costs",
            "transport",
            "meta_sets",
            "statistics",
            "weights",
            "_validation",
        },
        CORE,
    ),
    "features": ({"_validation"}, CORE),
    "wrappers": (set(), {"torch", "skorch"}),
    "processes": ({"_validation"}, {"torch"}),
    "loaders": ({"_validation", "wrappers"}, SHELL | {"skorch"}),
    "restore": (set(), {"sklearn"}),
    "copies": (set(), SHELL | {"skorch"}),
    "nets": ({"copies", "loaders", "_validation"}, SHELL | {"skorch"}),
    "inputs": ({"_validation"}, SHELL | {"skorch"}),
    "progress": (set(), {"skorch", "tqdm"}),
    "display": (set(), SHELL | {"skorch"}),
    "rows": ({"inputs", "_validation"}, SHELL),
    "priors": (set(), {"numpy"}),
    "scores": ({"features", "wrappers"}, {"torch", "skorch"}),
    "meta_rows": (
        {"extraction", "inputs", "meta_sets", "processes", "stage2"},
        {"torch", "skorch"},
    ),
    "prediction": ({"inputs", "loaders", "wrappers", "randomness"}, SHELL | {"skorch"}),
    "extraction": (
        {"features", "inputs", "processes", "wrappers"},
        {"torch", "skorch"},
    ),
    "stage2": ({"extraction", "features", "_validation"}, {"torch", "skorch"}),
    "prepare": (
        {
            "_validation",
            "features",
            "inputs",
            "nets",
            "processes",
            "wrappers",
        },
        {"torch", "skorch"},
    ),
    "training": (
        {
            "_validation",
            "extraction",
            "features",
            "inputs",
            "loaders",
            "persistence",
            "processes",
            "progress",
            "stage2",
            "wrappers",
        },
        {"torch", "skorch"},
    ),
    "virtual_step": ({"features", "processes", "wrappers"}, {"torch", "skorch"}),
    "persistence": (
        {
            "_validation",
            "features",
            "fingerprint",
            "processes",
            "wrappers",
        },
        SHELL | {"skorch", "safetensors"},
    ),
    "base": (
        {
            "_validation",
            "audit",
            "copies",
            "display",
            "extraction",
            "features",
            "fingerprint",
            "inputs",
            "nets",
            "persistence",
            "prediction",
            "prepare",
            "priors",
            "processes",
            "progress",
            "randomness",
            "restore",
            "rows",
            "stage2",
            "training",
        },
        SHELL | {"skorch"},
    ),
    "recipes": ({"costs", "meta_sets", "weights"}, {"torch"}),
    "sampling": (set(), {"torch"}),
    "transport_step": (
        {
            "batches",
            "extraction",
            "inputs",
            "meta_rows",
            "processes",
            "reweighter",
            "sampling",
            "scores",
            "stage2",
            "virtual_step",
        },
        {"torch", "skorch"},
    ),
    "classifier": (
        {
            "_validation",
            "base",
            "costs",
            "extraction",
            "inputs",
            "losses",
            "meta_rows",
            "processes",
            "randomness",
            "recipes",
            "reweighter",
            "rows",
            "scores",
            "stage2",
            "transport_step",
            "weights",
        },
        SHELL | {"skorch"},
    ),
    "sample_weight": (
        {
            "costs",
            "reweighter",
            "meta_sets",
            "display",
            "randomness",
            "restore",
            "_validation",
        },
        SHELL,
    ),
    "baselines": (
        {
            "_validation",
            "base",
            "class_weights",
            "extraction",
            "features",
            "inputs",
            "losses",
            "meta_rows",
            "prediction",
            "priors",
            "processes",
            "sampling",
            "scores",
            "stage2",
            "transport",
            "weights",
            "wrappers",
        },
        SHELL | {"skorch", "scipy"},
    ),
    "metrics": ({"_validation"}, {"numpy", "sklearn"}),
    "fingerprint": (set(), {"numpy", "scipy", "torch"}),
    "comparison": (
        {"base", "baselines", "fingerprint", "metrics", "_validation"},
        {"numpy", "torch", "sklearn", "pandas", "tqdm"},
    ),
    "audit": ({"costs", "meta_sets", "_validation"}, SHELL | {"pandas"}),
    "plotting": (
        {"metrics", "transport", "_validation"},
        {"numpy", "torch", "sklearn", "matplotlib"},
    ),
    "datasets": ({"randomness", "_validation"}, {"numpy", "sklearn"}),
}
# The root only re-exports.
TABLE["__init__"] = ({name for name in TABLE if not name.startswith("_")}, set())


def module_names() -> list[str]:
    return sorted(
        ".".join(path.relative_to(FOLDER).with_suffix("").parts)
        for path in FOLDER.rglob("*.py")
    )


def source_of(module: str) -> str:
    path = FOLDER.joinpath(*module.split(".")).with_suffix(".py")
    return path.read_text(encoding="utf-8")


def imports(source: str, module: str) -> Iterator[tuple[str, str]]:
    """Yield (absolute module, name) of every import; the name may be empty.

    Imports inside functions and under ``TYPE_CHECKING`` count as well.
    """
    package = [PACKAGE, *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from ((origin, alias.name) for alias in node.names)


def covered(name: str, entries: set[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in entries)


def internal_imports(source: str, module: str) -> Iterator[str]:
    """Yield the modules of the package that are imported; "" is its root."""
    for origin, name in imports(source, module):
        if covered(origin, {PACKAGE}):
            if module == "__init__" and origin == PACKAGE:
                origin = f"{origin}.{name}"
            yield origin.removeprefix(PACKAGE).removeprefix(".")


def third_party_imports(source: str, module: str) -> Iterator[str]:
    ours = {PACKAGE} | sys.stdlib_module_names
    for origin, name in imports(source, module):
        if not covered(origin, ours):
            yield f"{origin}.{name}".removesuffix(".")


def is_private(part: str) -> bool:
    return part.startswith("_") and not part.endswith("__")


def entry_of(module: str) -> str:
    """Return the row of the table that a module, or one of a folder, falls under."""
    return module.split(".")[0]


def faults(source: str, module: str) -> list[str]:
    entry = entry_of(module)
    internal, third_party = TABLE[entry]
    if entry != module:
        internal = internal | {entry}  # files of a folder may import each other
    found = []
    for target in internal_imports(source, module):
        if not target:
            found.append("imports from the package root")
        elif not covered(target, internal):
            found.append(f"imports {target}")
    for name in third_party_imports(source, module):
        if any(is_private(part) for part in name.split(".")):
            found.append(f"imports the private {name}")
        elif not covered(name, third_party):
            found.append(f"imports {name}")
    return found


def find_cycle(sources: dict[str, str]) -> list[str]:
    graph = {
        module.removesuffix(".__init__"): set(internal_imports(source, module))
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_module_is_in_the_table_and_every_entry_has_a_file():
    assert {entry_of(module) for module in module_names()} == set(TABLE)


@pytest.mark.parametrize("module", module_names())
def test_a_module_imports_only_what_the_table_allows(module):
    assert faults(source_of(module), module) == []


def test_no_cycles():
    assert find_cycle({module: source_of(module) for module in module_names()}) == []


def test_the_table_itself_has_no_cycles():
    TopologicalSorter(
        {name: internal for name, (internal, _) in TABLE.items()}
    ).prepare()


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("costs", "import numpy as np", "imports numpy"),
        ("costs", "from numpy.linalg import norm", "imports numpy.linalg.norm"),
        ("costs", "def f():\n    import skorch", "imports skorch"),
        ("costs", "from sklearn.metrics import f1_score", "imports sklearn.metrics."),
        ("costs", "import scipy.sparse", "imports scipy.sparse"),
        ("costs", "import ot", "imports ot"),
        ("costs", "from .transport import sinkhorn", "imports transport"),
        ("costs", "import sk_otreweight.transport", "imports transport"),
        ("costs", "from sk_otreweight.base import Base", "imports base"),
        ("costs", "from sk_otreweight import LabelCost", "imports from the package ro"),
        ("costs", "import sk_otreweight", "imports from the package root"),
        ("costs", "from . import transport", "imports from the package root"),
        ("transport.pot", "from sk_otreweight.costs import Cost", "imports costs"),
        ("nets", "if TYPE_CHECKING:\n    from .base import B", "imports base"),
        ("datasets", "import torch", "imports torch"),
        ("__init__", "from ._validation import check_name", "imports _validation"),
        ("__init__", "import torch", "imports torch"),
        ("base", "from sklearn.utils._tags import Tags", "imports the private sklea"),
        ("base", "from sklearn.utils import _safe_indexing", "imports the private sk"),
        ("base", "import torch._C", "imports the private torch._C"),
        ("base", "from skorch._doctor import X", "imports the private skorch._doctor"),
    ],
)
def test_a_wrong_import_is_found(module, source, fault):
    (found,) = faults(source, module)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("costs", "from __future__ import annotations\nimport math, os.path"),
        ("costs", "import torch.nn.functional as F\nfrom torch import Tensor, nn"),
        ("costs", "from sklearn.base import BaseEstimator, clone"),
        ("costs", "from sk_otreweight._validation import check_reg, _check_name"),
        ("costs", "import torch\ntorch.__version__\nfrom torch import __version__"),
        ("transport.pot", "def f():\n    import ot.bregman"),
        ("transport.pot", "from sk_otreweight.transport.plan import TransportPlan"),
        ("weights", "from .transport import sinkhorn"),
        ("__init__", "from . import datasets\nfrom .costs import LabelCost"),
        ("__init__", "from sk_otreweight import datasets"),
    ],
)
def test_a_right_import_is_not(module, source):
    assert faults(source, module) == []


def test_a_relative_import_in_a_folder_is_resolved():
    source = "from .one import x\nfrom ..two import y\nfrom .. import z"
    found = list(internal_imports(source, "folder.module"))
    assert found == ["folder.one", "two", ""]


def test_a_cycle_is_found():
    sources = {"one": "from .two import x", "two": "from .three import y"}
    assert find_cycle(sources | {"three": ""}) == []
    cycle = find_cycle(sources | {"three": "def f():\n    from .one import z"})
    assert set(cycle) == {"one", "two", "three"}


# The scripts, and what has to be installed for them

ROOT = Path(__file__).parent.parent
# Where a package has another name than its module, or comes with another package.
PACKAGES = {
    "joblib": "scikit-learn",
    "ot": "POT",
    "sklearn": "scikit-learn",
    "threadpoolctl": "scikit-learn",
}


def extras(monkeypatch) -> dict[str, set[str]]:
    """Return the packages of each extra, with those that are always installed."""
    given = {}
    setuptools = SimpleNamespace(find_packages=lambda **_: [], setup=given.update)
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    runpy.run_path(str(ROOT / "setup.py"))
    required, groups = given["install_requires"], {"": [], **given["extras_require"]}
    return {
        extra: {re.split(r"[\[><=]", entry)[0] for entry in [*required, *entries]}
        for extra, entries in groups.items()
    }


def needed_by(scripts: list[Path]) -> set[str]:
    """Return the packages that scripts import, and the scripts beside them do."""
    needed, names = set(), {path.stem for path in scripts}
    for script in scripts:
        for origin, name in imports(script.read_text(encoding="utf-8"), script.stem):
            top = origin.split(".")[0]
            beside = script.with_name(f"{top}.py")
            if beside.exists():
                needed |= set() if top in names else needed_by([beside])
            elif top == PACKAGE:
                needed |= {"pandas"} if name == "compare" else set()
            elif top not in sys.stdlib_module_names:
                needed.add(PACKAGES.get(top, top))
    return needed


@pytest.mark.parametrize(
    ("extra", "pattern", "among"),
    [
        ("examples", "examples/*.py", "accelerate"),
        ("bench", "examples/benchmarks/*.py", "geomloss"),
        ("text", "examples/benchmarks/text.py", "pandas"),
    ],
)
def test_scripts_import_what_their_extra_installs(extra, pattern, among, monkeypatch):
    needed = needed_by(sorted(ROOT.glob(pattern)))
    assert among in needed
    assert needed - extras(monkeypatch)[extra] == set()
    assert among not in extras(monkeypatch)[""]
