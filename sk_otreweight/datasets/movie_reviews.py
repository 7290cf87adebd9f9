"""Sentences of movie reviews with a score."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import get_data_home
from sklearn.utils import Bunch

from sk_otreweight._validation import check_choice
from sk_otreweight.datasets.archives import read_nested

TEXT_FILE = "movieReviewSnippets_GroundTruth.txt"
INNER_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
TEXT_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
PACKAGE, VERSION = "vaderSentiment", "3.3.2"
PACKAGE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
COMMAND = f"pip download --no-deps --no-binary {PACKAGE} {PACKAGE}=={VERSION}"
CLASSES = {
    2: ["negative", "positive"],
    5: ["very negative", "negative", "neutral", "positive", "very positive"],
}


def load_movie_reviews(
    n_classes: Literal[2, 5] = 2,
    archive: str | os.PathLike[str] | None = None,
    *,
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
) -> Bunch:
    """Load sentences of movie reviews with the mean score that people gave them.

    10,605 sentences from rotten.tomatoes.com, each rated by at least 20 people from -4,
    extremely negative, to 4, extremely positive (Hutto and Gilbert, 2014). They are in
    the source archive of the Python package ``vaderSentiment``.

    Parameters
    ----------
    n_classes : {2, 5}, default=2
        With 2, the classes are the signs of the scores, and the 37 sentences with
        score 0 are left out; 5,326 negative and 5,242 positive ones stay. With 5, the
        classes lie between the quintiles of all scores; as scores repeat, they have
        2,117, 2,117, 2,126, 2,058 and 2,187 sentences.
    archive : str, path-like or None, default=None
        Your copy of ``vaderSentiment-3.3.2.tar.gz``, of the archive
        ``hutto_ICWSM_2014.tar.gz`` in it, or of the file
        ``movieReviewSnippets_GroundTruth.txt`` in that one. With `None`, the file is
        read from `data_home`; if it is not there, pip fetches the archive and the file
        is kept there.
    data_home : str, path-like or None, default=None
        Folder to keep the file in. With `None`, that of
        :func:`sklearn.datasets.get_data_home`.
    download_if_missing : bool, default=True
        Whether to fetch the archive if the file is not in `data_home`.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With these items:

        data : ndarray of shape (n_samples,), dtype object
            The sentences, as `str`.
        target : ndarray of shape (n_samples,), dtype int64
            Their classes, from 0 for the most negative one.
        scores : ndarray of shape (n_samples,), dtype float64
            Their mean scores, in [-4, 4].
        target_names : list of str
            Names of the classes.

    Raises
    ------
    FileNotFoundError
        If `archive` does not exist; or if the file is not in `data_home` and
        `download_if_missing` is false.
    OSError
        If pip cannot fetch the archive.
    ValueError
        If `n_classes` is neither 2 nor 5; if the archive or file is damaged or another
        one; or if the SHA-256 of what was fetched or kept is not the known one, which
        is not asked of your own `archive`.

    See Also
    --------
    make_long_tailed : Make the data imbalanced.

    Notes
    -----
    The package has the MIT licence. The reviews are those of Pang and Lee (2004); Hutto
    and Gilbert ask to be cited. Nothing is unpacked; before pip asks the archive for
    its metadata, which runs its ``setup.py``, it compares the SHA-256 of the archive.

    References
    ----------
    .. [1] C. J. Hutto, E. Gilbert, "VADER: a parsimonious rule-based model for
       sentiment analysis of social media text", ICWSM 2014.

    Examples
    --------
    >>> from sk_otreweight.datasets import load_movie_reviews
    >>> data = load_movie_reviews()  # doctest: +SKIP
    >>> data.target_names[data.target[0]], float(data.scores[0])  # doctest: +SKIP
    ('positive', 2.27)
    >>> data.data[0][:37]  # doctest: +SKIP
    'The Rock is destined to be the 21st C'
    """
    check_choice(n_classes, name="n_classes", choices=tuple(CLASSES))
    if archive is not None:
        source = Path(archive)
        content = _read_archive(source)
    else:
        source = Path(get_data_home(data_home)) / "sk_otreweight" / TEXT_FILE
        content = _read_kept(source, download_if_missing)
    sentences, scores = _parse(content, source)
    edges = np.quantile(scores, [0.2, 0.4, 0.6, 0.8])
    if n_classes == 2:
        edges, rated = np.zeros(1), scores != 0
        sentences, scores = sentences[rated], scores[rated]
    return Bunch(
        data=sentences,
        target=np.searchsorted(edges, scores, side="right").astype(np.int64),
        scores=scores,
        target_names=list(CLASSES[n_classes]),
    )


def _read_archive(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(
            f"archive={str(path)!r} is not a file; vaderSentiment-3.3.2.tar.gz, the "
            "hutto_ICWSM_2014.tar.gz in it or the movieReviewSnippets_GroundTruth.txt "
            f"in that one is expected. Get the first with `{COMMAND}`, or leave "
            "archive out to have it fetched."
        )
    return read_nested(path, [INNER_ARCHIVE, TEXT_FILE])


def _read_kept(path: Path, download_if_missing: bool) -> bytes:
    """Return what is kept in a file; without it, fetch and keep it."""
    if path.is_file():
        content = path.read_bytes()
        _check_hash(content, path)
        return content
    if not download_if_missing:
        raise FileNotFoundError(
            f"{path} is not there, and download_if_missing=False forbids to fetch it. "
            f"Leave that out, or run `{COMMAND}` where there is a network and pass the "
            "file that it saves as archive."
        )
    content = _fetch()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may read the file at this moment.
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return content


def _fetch() -> bytes:
    with TemporaryDirectory() as folder:
        path = _download(Path(folder))
        content = _read_archive(path)
        _check_hash(content, path)
    return content


def _download(folder: Path) -> Path:
    """Let pip put the source archive into a folder."""
    # pip compares hashes of a file of requirements only. Its build isolation stays on:
    # that gets the setuptools for the metadata, which many environments do not have.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{PACKAGE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--no-binary", PACKAGE]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise OSError(
            "pip could not fetch vaderSentiment 3.3.2, whose source archive has the "
            f"sentences. Run `{COMMAND}` where there is a network and pass the file "
            f"that it saves as archive. What pip says: {done.stderr.strip()[-1000:]}"
        )
    return next(folder.glob("*.tar.gz"))


def _check_hash(content: bytes, path: Path) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != TEXT_SHA256:
        raise ValueError(
            f"{path}: the SHA-256 of the sentences is {found}, {TEXT_SHA256} is "
            "expected. They were damaged or changed; remove the file if it is still "
            "there, and load again."
        )


def _parse(content: bytes, path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the sentences and their scores."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a text in UTF-8 ({error}). Check that this is "
            "movieReviewSnippets_GroundTruth.txt, or an archive with it, and get it "
            "again."
        ) from error
    # Not `splitlines`, which would break lines at rare characters in a sentence too.
    lines = text.replace("\r\n", "\n").strip("\n").split("\n")
    rows = [_parse_line(line) for line in lines]
    if None in rows:
        number = rows.index(None)
        raise ValueError(
            f"{path}: line {number + 1} is {lines[number][:60]!r}; a number, a score "
            "from -4 to 4 and a sentence, with tabs between them, are expected. Check "
            "that this is movieReviewSnippets_GroundTruth.txt, or an archive with it, "
            "and get it again."
        )
    scores, sentences = zip(*rows, strict=True)
    return np.array(sentences, dtype=object), np.array(scores)


def _parse_line(line: str) -> tuple[float, str] | None:
    """Return the score and the sentence, or nothing if these are not in the line."""
    try:
        _, score, sentence = line.split("\t")
        good = -4 <= float(score) <= 4 and sentence
    except ValueError:
        return None
    return (float(score), sentence) if good else None
