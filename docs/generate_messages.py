"""Write the page of all errors and warnings of the package, from its source.

``python docs/generate_messages.py`` writes ``docs/messages.md``. With ``--check`` it
only fails if the page is stale; with ``--reached .coverage`` it fails if the tests
whose coverage is in that file did not reach every message.
"""

from __future__ import annotations

import argparse
import ast
import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sk_otreweight"
PAGE = ROOT / "docs" / "messages.md"
WARNERS = {"warn_user", "warn"}
INTRODUCTION = """\
# Errors and warnings

Every message that the package can give, in its own words: search this page for a part
of the one you got. `‹...›` stands for what depends on your data; `‹a | b›` is one of
these texts, and a text that begins with `…` is added to the one above it. Messages of
scikit-learn, skorch and PyTorch are passed on as they are and are not listed.

This page is made from the source by `python docs/generate_messages.py`.
"""


class Place(NamedTuple):
    """Where a message is raised: the function, and the lines of the statement."""

    module: str
    function: str
    first: int
    last: int


class Message(NamedTuple):
    """A message: its class, its text, and the texts that placeholders stand for."""

    kind: str
    text: str
    options: tuple[tuple[str, tuple[str, ...]], ...]
    places: tuple[Place, ...]


class _Reader:
    """Turns the expression of a message into its text.

    Names are looked up among what is assigned to them in `scopes`, and functions in
    the same module; `options` collects those that may be several texts.
    """

    def __init__(self, tree: ast.Module, scopes: Sequence[ast.AST]):
        self.tree, self.scopes = tree, scopes
        self.options: dict[str, tuple[str, ...]] = {}

    def __call__(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(str(text)):
                return text
            case ast.JoinedStr(parts):
                return "".join(map(self, parts))
            case ast.FormattedValue(value):
                return self(value)
            case _ if not self._is_text(node):
                return f"‹{_short(node)}›"
            case ast.BinOp(left, ast.Add(), right):
                return self(left) + self(right)
        texts = tuple(dict.fromkeys(self._texts(node)))
        if len(texts) == 1:
            return texts[0]
        if len(_branches(node)) > 1:
            return f"‹{' | '.join(text or 'nothing' for text in texts)}›"
        self.options[_short(node)] = texts
        return f"‹{_short(node)}›"

    def class_name(self, node: ast.expr) -> str:
        """Return the name of an exception, or of those that a variable may be."""
        kinds = [kind for value in self._values(node) for kind in _branches(value)]
        return " or ".join(dict.fromkeys(map(ast.unparse, kinds or [node])))

    def _texts(self, node: ast.expr) -> Iterator[str]:
        for branch in _branches(node):
            values = self._values(branch)
            for value in values:
                yield from self._texts(value)
            if not values:
                yield self(branch)

    def _is_text(self, node: ast.expr) -> bool:
        match node:
            case ast.Constant(str()) | ast.JoinedStr():
                return True
            case ast.BinOp(left, ast.Add(), right):
                parts = [left, right]
            case ast.IfExp() | ast.BoolOp():
                parts = _branches(node)
            case _:
                parts = self._values(node)
        return any(map(self._is_text, parts))

    def _values(self, node: ast.expr) -> list[ast.expr]:
        """Return what is assigned to a name, or returned by a function."""
        match node:
            case ast.Name(name):
                found = (_assigned(name, scope) for scope in reversed(self.scopes))
                return next(filter(None, found), [])
            case ast.Call(ast.Name(name)):
                for function in self.tree.body:
                    if isinstance(function, ast.FunctionDef) and function.name == name:
                        return _returned(function)
        return []


class _Dots(ast.NodeTransformer):
    """Puts dots in the place of a name."""

    def __init__(self, name: str):
        self.name = name

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant("…") if node.id == self.name else node


def _assigned(name: str, scope: ast.AST) -> list[ast.expr]:
    """Return what is assigned to a name, with dots for what the name was before."""
    values = []
    for node in ast.walk(scope):
        match node:
            case ast.Assign([ast.Name(target)], value) if target == name:
                values.append(_Dots(name).visit(copy.deepcopy(value)))
            case ast.AugAssign(ast.Name(target), ast.Add(), value) if target == name:
                values.append(ast.BinOp(ast.Constant("…"), ast.Add(), value))
    return values


def _returned(function: ast.FunctionDef) -> list[ast.expr]:
    values = []
    for node in ast.walk(function):
        match node:
            case ast.Return(ast.Name(name) as value):
                values += _assigned(name, function) or [value]
            case ast.Return(ast.expr() as value):
                values.append(_Dots(function.name).visit(copy.deepcopy(value)))
    return values


def _branches(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.IfExp(_, first, second):
            return _branches(first) + _branches(second)
        case ast.BoolOp(_, values):
            return [branch for value in values for branch in _branches(value)]
    return [node]


def _last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def _short(node: ast.expr) -> str:
    """Return a short name of an expression, for a placeholder."""
    match node:
        case ast.Call(ast.Attribute(inner, "item" | "tolist"), []):
            return _short(inner)
        case ast.Call(ast.Attribute(ast.Constant(), "join"), [inner]):
            return _short(inner)
        case ast.Call(
            ast.Name("list" | "sorted" | "dict" | "int" | "str" | "tuple"), [inner]
        ):
            return _short(inner)
        case ast.GeneratorExp(inner) | ast.Subscript(inner, ast.Slice()):
            return _short(inner)
        case ast.Call(ast.Name("len"), [inner]):
            return f"length of {_short(inner)}"
        case ast.Attribute(ast.Call(ast.Name("type"), [inner]), "__name__"):
            return f"type of {_short(inner)}"
        case ast.Attribute(inner, "shape" | "dtype" | "__name__" as what):
            return f"{what.strip('_')} of {_short(inner)}"
        case ast.Call(ast.Name(function)) if function.startswith("_"):
            return function.strip("_")
    return ast.unparse(node)


class _Scanner(ast.NodeVisitor):
    """Collects the messages of a module.

    `makers` are functions of the package that return errors for others to raise.
    """

    def __init__(
        self, module: str, tree: ast.Module, makers: Mapping[str, list[Message]]
    ):
        self.module, self.tree, self.makers = module, tree, makers
        self.scopes: list[ast.AST] = []
        self.found: list[Message] = []
        self.made: dict[str, list[Message]] = {}
        self.visit(tree)

    def _visit_scope(self, node: ast.AST) -> None:
        self.scopes.append(node)
        self.generic_visit(node)
        self.scopes.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _visit_scope

    def visit_Raise(self, node: ast.Raise) -> None:
        """Add the message of an error; one that is raised again has none."""
        match node.exc:
            case ast.Call(func) if made := self.makers.get(_last_name(func)):
                place = self._place(node)
                self.found += [m._replace(places=(*m.places, place)) for m in made]
            case ast.Call(func, args):
                self._add(func, args, node)
            case ast.Name(name) if name[0].isupper():
                self._add(node.exc, [], node)
            case None | ast.Name():
                pass
            case error:
                self._add(error, [], node)

    def visit_Return(self, node: ast.Return) -> None:
        """Note an error that is returned."""
        match node.value:
            case ast.Call(ast.Name(name) as kind, args) if name.endswith("Error"):
                made = self.made.setdefault(self.scopes[-1].name, [])
                made.append(self._message(kind, args, node))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Add the message of a warning, unless the function was given it."""
        if _last_name(node.func) in WARNERS:
            given = dict(zip(("message", "category"), node.args, strict=False))
            given |= {word.arg: word.value for word in node.keywords}
            if not self._is_parameter(given["message"]):
                kind = given.get("category", ast.Name("UserWarning"))
                self._add(kind, [given["message"]], node)
        self.generic_visit(node)

    def _is_parameter(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and any(
            isinstance(child, ast.arg) and child.arg == node.id
            for scope in self.scopes
            for child in ast.walk(scope)
        )

    def _add(self, kind: ast.expr, args: Sequence[ast.expr], node: ast.AST) -> None:
        self.found.append(self._message(kind, args, node))

    def _message(
        self, kind: ast.expr, args: Sequence[ast.expr], node: ast.AST
    ) -> Message:
        read = _Reader(self.tree, self.scopes)
        text = read(args[0]) if args else ""
        options = tuple(read.options.items())
        return Message(read.class_name(kind), text, options, (self._place(node),))

    def _place(self, node: ast.AST) -> Place:
        function = ".".join((self.module, *(scope.name for scope in self.scopes)))
        return Place(self.module, function, node.lineno, node.end_lineno)


def scan(sources: Mapping[str, str]) -> list[Message]:
    """Return the messages of modules, given by name; those of one text are one."""
    trees = {module: ast.parse(source) for module, source in sources.items()}
    makers: dict[str, list[Message]] = {}
    for module, tree in trees.items():
        makers |= _Scanner(module, tree, {}).made
    found: dict[tuple, Message] = {}
    for module, tree in trees.items():
        for message in _Scanner(module, tree, makers).found:
            key = message.places[0].module, *message[:3]
            earlier = found[key].places if key in found else ()
            places = tuple(dict.fromkeys((*earlier, *message.places)))
            found[key] = message._replace(places=places)
    return list(found.values())


def read_package(folder: Path = PACKAGE) -> dict[str, str]:
    """Return the source of each module, the checks of input first."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):  # "_validation" comes first
        name = ".".join(path.relative_to(folder).with_suffix("").parts)
        modules[name] = path.read_text("utf-8")
    return modules


def write_page(sources: Mapping[str, str]) -> str:
    """Return the text of the page: a heading per module, an entry per message."""
    messages = scan(sources)
    lines = [INTRODUCTION]
    for module, source in sources.items():
        here = [m for m in messages if m.places[0].module == module]
        if here:
            title = ast.get_docstring(ast.parse(source)).splitlines()[0].rstrip(".")
            lines.append(f"## {title}\n")
            lines += [line for message in here for line in _entry(message)]
    return "\n".join(lines).rstrip() + "\n"


def _entry(message: Message) -> Iterator[str]:
    functions = dict.fromkeys(f"`{place.function}`" for place in message.places)
    yield f"- **{message.kind}** in {', '.join(functions)}\n"
    yield f"  {_code(message.text)}\n"
    for name, texts in message.options:
        yield f"  `‹{name}›` is one of:\n"
        yield from (f"  - {_code(text)}" for text in texts)
        yield ""


def _code(text: str) -> str:
    if not text:
        return "nothing"
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def unreached(
    messages: Sequence[Message], data_file: str, folder: Path = PACKAGE
) -> list[str]:
    """Return a line for each place of a message that was not executed.

    A statement over several lines was executed if any of them was.
    """
    from coverage import CoverageData

    data = CoverageData(basename=data_file)
    data.read()
    executed = {
        Path(file).resolve(): set(data.lines(file)) for file in data.measured_files()
    }
    lines = {}
    for kind, text, _, places in messages:
        for place in places:
            path = folder.joinpath(*place.module.split(".")).with_suffix(".py")
            statement = range(place.first, place.last + 1)
            if executed.get(path.resolve(), set()).isdisjoint(statement):
                file = path.relative_to(folder.parent)
                lines.setdefault(place, f"{file}:{place.first}: {kind}: {text}")
    return list(lines.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or check it, or check what was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if it is stale")
    parser.add_argument("--reached", metavar="DATA", help="a coverage data file")
    options = parser.parse_args(arguments)
    sources = read_package()
    if options.reached:
        if not Path(options.reached).is_file():
            sys.exit(f"There is no {options.reached}: run pytest --cov first.")
        if lines := unreached(scan(sources), options.reached):
            sys.exit("No test reached these messages:\n" + "\n".join(lines))
    elif options.check:
        if not PAGE.is_file() or PAGE.read_text("utf-8") != write_page(sources):
            sys.exit(f"{PAGE} is stale: run python docs/generate_messages.py.")
    else:
        PAGE.write_text(write_page(sources), "utf-8")


if __name__ == "__main__":
    main()
