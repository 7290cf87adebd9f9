"""How Sphinx builds the pages: `make docs`."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import torch
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

import sk_otreweight

os.environ["MPLBACKEND"] = "Agg"
torch.set_num_threads(1)  # the nets of the gallery are faster on one thread

project = "sk_otreweight"
copyright = "sk_otreweight developers"
version = release = sk_otreweight.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
smartquotes_action = "qe"  # the dashes of a command are no punctuation
templates_path = ["_templates"]
# Whatever a page refers to has to be there.
nitpicky = True
nitpick_ignore_regex = []
suppress_warnings = ["config.cache"]  # a class in sphinx_gallery_conf

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc says what the types are
numpydoc_show_class_members = False  # the templates list them
numpydoc_xref_param_type = False
copybutton_exclude = ".linenos, .gp, .go"

html_math_renderer = "mathml"  # browsers know it, without a script from elsewhere
html_theme = "pydata_sphinx_theme"
html_title = "sk_otreweight"
html_static_path = ["_static"]
html_css_files = ["phone.css"]
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("index", "choose", "api")}  # no sections
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": [],
    # Wide tables get the room of the contents.
    "secondary_sidebar_items": {
        "**": ["page-toc"],
        **dict.fromkeys(("results", "experiments"), []),
    },
}


def has_images() -> bool:
    """Return whether the images of an example are at hand."""
    try:
        sk_otreweight.load_fashion_mnist()
    except OSError:
        return False
    return True


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": rf"/plot_{'' if has_images() else '(?!fashion)'}",
    "ignore_pattern": r"/(benchmarks|output)/|several_gpus",
    "min_reported_time": 5,
    "show_memory": False,
    "plot_gallery": "True",
    "parallel": 2,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "doc_module": ("sk_otreweight",),
    "backreferences_dir": "generated/backreferences",
    "reference_url": {"sk_otreweight": None},
}

_MAPPING = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "sklearn": ("https://scikit-learn.org/stable", None),
    "skorch": ("https://skorch.readthedocs.io/en/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}


def is_online() -> bool:
    """Return whether other projects' pages can be reached, which a build needs not."""
    try:
        socket.create_connection(("docs.python.org", 443), timeout=3).close()
    except OSError:
        return False
    return True


DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RECORDS = "examples/benchmarks/results"


def copy_pages() -> None:
    """Copy the pages that live elsewhere in the repository."""
    names = ("changelog", "contributing", "security")
    pages = {f"{name}.md": f"{name.upper()}.md" for name in names}
    for record in (ROOT / RECORDS).glob("*.md"):
        pages[f"records/{record.name}"] = f"{RECORDS}/{record.name}"
    for target, source in pages.items():
        path = DOCS / target
        path.parent.mkdir(exist_ok=True)
        text = (ROOT / source).read_text("utf-8").replace("](docs/", "](")
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")  # what is the same is not built again


def adapt(app: Any, page: str, source: list[str]) -> None:
    """Let links to files lead to pages, and keep means and deviations together."""
    text = re.sub(rf"\]\((\.\./)+{RECORDS}/", "](/records/", source[0])
    source[0] = text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def resolve_by_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Find what a docstring calls by its bare name, if that is unique."""
    if node.get("refdomain") != "py":
        return None
    domain, name = env.get_domain("py"), node["reftarget"].rsplit(".", 1)[-1]
    found = [
        full
        for full, entry in domain.objects.items()
        if full.endswith(f".{name}") and not entry.aliased
    ]
    if len(found) != 1:
        return None
    place, role = node.get("refdoc", env.docname), node["reftype"]
    return domain.resolve_xref(env, place, app.builder, role, found[0], node, content)


def write_math(translator: Any, node: Any, display: str = "inline") -> None:
    """Write a formula as MathML."""
    text = convert(node.astext(), display=display)
    if "\\" in text:
        raise ValueError(f"A command in {node.astext()!r} is not known.")
    if display == "block":
        text = f'<div style="margin: 1rem 0; overflow-x: auto">{text}</div>'
    translator.body.append(text)
    raise SkipNode


def write_math_block(translator: Any, node: Any) -> None:
    """Write a formula on lines of its own."""
    write_math(translator, node, "block")


def setup(app: Any) -> None:
    """Connect the above."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_math_block, None))
    copy_pages()
    app.connect("source-read", adapt)
    app.connect("missing-reference", resolve_by_name)


if is_online():
    intersphinx_mapping = _MAPPING
else:
    # Names of other projects stay plain text.
    nitpick_ignore_regex += [
        (r"py:.*", rf"({'|'.join(_MAPPING)}|array|DataFrame).*"),
    ]
