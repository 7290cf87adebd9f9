"""The page of all messages: complete, up to date, and reached by tests."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coverage import CoverageData

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docs" / "generate_messages.py"


def load_script(path):
    spec = importlib.util.spec_from_file_location("generate_messages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_script(SCRIPT)


def scan(source):
    """Return the messages of a module."""
    return generate.scan({"module": source})


def only(source):
    (message,) = scan(source)
    return message


def in_function(*lines, parameters=""):
    return "\n    ".join([f"def function({parameters}):", *lines])


# What is found


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ('"Plain text."', "Plain text."),
        ('"Over " "two."', "Over two."),
        ("'A \"quoted\" {word}.'", 'A "quoted" {word}.'),
        ('f"{n} rows of {{braces}}"', "‹n› rows of {braces}"),
        ('f"{value!r} to {low:.3g}"', "‹value› to ‹low›"),
        ('"One " + "two"', "One two"),
        ('f"{n} " + "rows" + "."', "‹n› rows."),
        ('"Got " + name', "Got ‹name›"),
        ("f\"{'a' if n else 'b'} row\"", "‹a | b› row"),
        ('"Rows" + (f" of {n}" if n else "") + "."', "Rows‹ of ‹n› | nothing›."),
        ("f\"{title or 'none'}\"", "‹‹title› | none›"),
        ('f"{type(x).__name__} of {tuple(x.shape)}"', "‹type of x› of ‹shape of x›"),
        ('f"{x.dtype}, {base.__name__}"', "‹dtype of x›, ‹name of base›"),
        ('f"{len(x)} of {x[:10].tolist()}"', "‹length of x› of ‹x›"),
        ("f\"{' and '.join(names)}, {x.max().item()}\"", "‹names›, ‹x.max()›"),
        ("f\"{', '.join(kind.__name__ for kind in kinds)}\"", "‹name of kind›"),
        ("text(3)", "‹text(3)›"),
        ("", ""),
    ],
)
def test_text_of_a_message(expression, text):
    message = only(in_function(f"raise ValueError({expression})"))
    assert message == (
        "ValueError", text, (), (("module", "module.function", 2, 2),)
    )  # fmt: skip


def test_text_in_a_variable():
    lines = ['hint = f"give {n} rows"', 'raise TypeError(f"Got {n}: {hint}.")']
    assert only(in_function(*lines)).text == "Got ‹n›: give ‹n› rows."


def test_variable_of_an_outer_function():
    source = in_function('hint = "Stop."', "def inner():", "    raise OSError(hint)")
    message = only(source)
    assert message.text == "Stop."
    assert message.places[0].function == "module.function.inner"


def test_texts_that_a_variable_may_be():
    message = only(
        in_function(
            'also = " or two" if n else ""',
            "if n:",
            '    hint = "Add rows."',
            "else:",
            '    hint = f"Remove {n}."',
            'hint += " Then fit."',
            'raise ValueError(f"Give one{also}. {hint}")',
        )
    )
    assert message.text == "Give one‹also›. ‹hint›"
    also, hint = message.options
    assert also == ("also", (" or two", ""))
    assert hint[0] == "hint"
    assert sorted(hint[1]) == ["Add rows.", "Remove ‹n›.", "… Then fit."]


def test_variable_that_is_made_longer():
    message = only(
        in_function('hint = "A"', 'hint = f"{hint} B"', "raise OSError(hint)")
    )
    assert message.options == (("hint", ("A", "… B")),)


def test_text_of_a_function_of_the_module():
    source = in_function('raise ValueError("No. " + _remedy(3))') + (
        "\ndef _remedy(n):\n"
        "    if n > 3:\n"
        '        return f"Lower {n}."\n'
        '    remedy = "Leave it out."\n'
        "    return remedy\n"
    )
    message = only(source)
    assert message.text == "No. ‹remedy›"
    ((name, texts),) = message.options
    assert name == "remedy"
    assert sorted(texts) == ["Leave it out.", "Lower ‹n›."]


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ('warn_user("Slow.")', "UserWarning"),
        ('warn_user("Slow.", FutureWarning)', "FutureWarning"),
        ('warnings.warn("Slow.", category=FutureWarning)', "FutureWarning"),
        ('warnings.warn("Slow.", stacklevel=2)', "UserWarning"),
        ('warnings.warn(category=OwnWarning, message="Slow.")', "OwnWarning"),
        ('raise errors.OwnError("Slow.") from error', "errors.OwnError"),
    ],
)
def test_class_of_a_message(statement, kind):
    assert only(in_function(statement))[:2] == (kind, "Slow.")


def test_class_in_a_variable():
    kind = "kind = KeyError if n else OSError"
    message = only(in_function(kind, 'raise kind("Lost.")'))
    assert message.kind == "KeyError or OSError"


def test_error_without_a_text():
    source = "class Base:\n    def step(self):\n        raise NotImplementedError"
    message = only(source)
    assert message[:2] == ("NotImplementedError", "")
    assert message.places[0].function == "module.Base.step"


def test_error_of_an_expression():
    assert only(in_function("raise errors[0]")).kind == "errors[0]"


@pytest.mark.parametrize(
    "lines",
    [
        ["try:", "    pass", "except ValueError:", "    raise"],
        ["raise error"],
        ["warnings.warn(message, category)"],
    ],
    ids=["bare", "again", "passed on"],
)
def test_what_is_no_message(lines):
    assert scan(in_function(*lines, parameters="message, category, error")) == []


def test_error_that_a_function_makes():
    maker = (
        "def not_stored(value) -> TypeError:\n"
        "    if callable(value):\n"
        '        return TypeError("No function.")\n'
        '    return TypeError(f"No {value}.")\n'
    )
    first = "def save():\n    raise not_stored(3)\n"
    second = "def add():\n\n    raise maker.not_stored(4)\n"
    messages = generate.scan({"first": first, "maker": maker, "second": second})
    assert [message.text for message in messages] == ["No function.", "No ‹value›."]
    for message, line in zip(messages, (3, 4), strict=True):
        assert message.places == (
            ("maker", "maker.not_stored", line, line),
            ("first", "first.save", 2, 2),
            ("second", "second.add", 3, 3),
        )


def test_equal_messages_are_one_entry():
    statement = "    raise ValueError(\n        'No.'\n    )\n"
    message = only(f"def one():\n{statement}def two():\n{statement}")
    assert [place[1:] for place in message.places] == [
        ("module.one", 2, 4),
        ("module.two", 6, 8),
    ]


def count(pattern):
    sources = (path.read_text() for path in generate.PACKAGE.rglob("*.py"))
    return sum(len(re.findall(pattern, source, flags=re.M)) for source in sources)


def test_no_message_is_missed():
    """Compared with a search for the words at the beginning of a line."""
    places = {
        place: message.kind
        for message in generate.scan(generate.read_package())
        for place in message.places
    }
    warnings = sum(kind.endswith("Warning") for kind in places.values())
    assert warnings == count(r"^ +warn_user\(") > 0
    made = count(r"^ +return \w+Error\(")
    bare = count(r"^ +raise$")
    assert len(places) - warnings - made == count(r"^ +raise\b(?! if)") - bare > 0


# The page


@pytest.fixture
def project(tmp_path):
    """A copy of the script beside a package of one module."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "sk_otreweight" / "_validation").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "docs")
    (tmp_path / "sk_otreweight" / "costs.py").write_text(
        '"""How far rows are."""\n' + in_function('raise ValueError("Too `far`.")')
    )
    (tmp_path / "sk_otreweight" / "_validation" / "labels.py").write_text(
        '"""Labels.\n\nOf rows.\n"""\n'
        + in_function("also = ' or b' if n else ''", 'warn_user(f"Give a{also}.")')
    )
    return tmp_path


def run(project, *arguments):
    """Run the copy; return what it fails with, or nothing."""
    try:
        load_script(project / "docs" / SCRIPT.name).main(arguments)
    except SystemExit as end:
        return end.code
    return ""


def test_the_page_is_up_to_date():
    assert generate.PAGE.read_text("utf-8") == generate.write_page(
        generate.read_package()
    ), "run python docs/generate_messages.py"


def test_page_of_a_package(project):
    assert run(project) == ""
    page = (project / "docs" / "messages.md").read_text("utf-8")
    assert page == generate.INTRODUCTION + (
        "\n## Labels\n\n"
        "- **UserWarning** in `_validation.labels.function`\n\n"
        "  `Give a‹also›.`\n\n"
        "  `‹also›` is one of:\n\n"
        "  - ` or b`\n"
        "  - nothing\n\n"
        "## How far rows are\n\n"
        "- **ValueError** in `costs.function`\n\n"
        "  `` Too `far`. ``\n"
    )


def test_a_stale_page_is_found(project):
    page = project / "docs" / "messages.md"
    stale = f"{page} is stale: run python docs/generate_messages.py."
    assert run(project, "--check") == stale
    run(project)
    assert run(project, "--check") == ""
    module = project / "sk_otreweight" / "costs.py"
    module.write_text(module.read_text().replace("far", "near"))
    before = page.read_text()
    assert run(project, "--check") == stale
    assert page.read_text() == before  # only checked
    run(project)
    assert run(project, "--check") == ""


def test_the_script_fails_as_a_command(project):
    command = [sys.executable, "docs/generate_messages.py", "--check"]
    done = subprocess.run(
        command, cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is stale" in done.stderr


# What tests reach


SOURCE = """\
def first(n):
    if n:
        raise ValueError(
            f"No {n}."
        )
    warn_user("Slow.")
def second():
    raise not_stored(3)
def not_stored(value):
    if value:
        return TypeError("No.")
    return TypeError("Never.")
"""


@pytest.mark.parametrize(
    ("executed", "missed"),
    [
        ([2, 3, 4, 6, 8, 10, 11, 12], []),
        ([4, 6, 8, 11, 12], []),
        ([1, 2, 6, 7, 8, 9, 10, 11, 12], ["costs.py:3: ValueError: No ‹n›."]),
        ([3, 8, 11, 12], ["costs.py:6: UserWarning: Slow."]),
        ([3, 6, 11, 12], ["costs.py:8: TypeError: No."]),
        ([3, 6, 8, 11], ["costs.py:12: TypeError: Never."]),
        (
            [],
            [f"costs.py:{line}: " for line in (3, 6, 11, 8, 12)],
        ),
    ],
    ids=["all", "another line", "error", "warning", "raise", "maker", "none"],
)
def test_a_message_that_was_not_reached_is_listed(executed, missed, project):
    module = project / "sk_otreweight" / "costs.py"
    module.write_text(SOURCE)
    (project / "sk_otreweight" / "_validation" / "labels.py").write_text('"""None."""')
    data = CoverageData(basename=str(project / "coverage"))
    data.add_lines({str(module): executed})
    data.write()
    listed = run(project, "--reached", str(project / "coverage")).splitlines()
    assert listed[:1] == ["No test reached these messages:"] * bool(missed)
    assert len(listed[1:]) == len(missed)
    for line, expected in zip(listed[1:], missed, strict=True):
        assert line.startswith(f"sk_otreweight/{expected}")


def test_a_file_that_was_not_measured_is_not_reached(project):
    data = CoverageData(basename=str(project / "coverage"))
    data.add_lines({str(project / "sk_otreweight" / "costs.py"): [3]})
    data.write()
    listed = run(project, "--reached", str(project / "coverage"))
    assert "labels.py:7: UserWarning: Give a‹also›." in listed
    assert "costs.py" not in listed


def test_no_coverage_data(project):
    listed = run(project, "--reached", str(project / "coverage"))
    assert listed.endswith("coverage: run pytest --cov first.")
