"""Tokenizes captions before they are compared, with Stanford's tokenizer in Java or with an approximation in Python.

Published scores use the PTBTokenizer of Stanford CoreNLP 3.4.1 with `-lowerCase`, and remove punctuation. The
approximation lower-cases, splits off punctuation and English clitics (`man's` -> `man 's`, `don't` -> `do n't`) and
removes the same marks. Results name the tokenizer that was used. The two differ at least on

    contracted words        can not, gon na, lem me, 't was     cannot, gonna, lemme, twas
    abbreviations           p.m., u.s., e.g., mr., etc.         p.m, u.s, e.g, mr, etc
    numbers                 10am, 50 's, 1990s, 3-4, 1/2        10 am, 50 s, 1990 s, 3 4, 1 / 2
    words with symbols      a/b, x_y, #tag, @name, 'n'          a / b, x _ y, # tag, @ name, n
    one sign for a half     1/2                                 the sign
    a backquote in a word   do n`t                              don t

with Stanford's tokens on the left and the approximation's on the right.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from replora.errors import RepLoRAError, nearest

log = logging.getLogger(__name__)

TokenizerName = Literal["auto", "ptb_java", "approximate"]
JAR = "stanford-corenlp-3.4.1.jar"  # in the package pycocoevalcap
# Tokens that coco-caption drops. It also lists brackets, but in capitals (-LRB-), which do not occur with -lowerCase.
# So it keeps them, and so does this file.
_DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W_]+(?:['.-][^\W_]+)*|[^\w\s]|_")
_CLITIC = re.compile(r"(n't|'(?:s|re|ve|ll|d|m))$")


class CaptionTokenizerError(RepLoRAError):
    """The requested tokenizer is not installed, or Java fails."""


@dataclass(frozen=True)
class CaptionTokenizer:
    """A tokenizer of captions and its name in results."""

    name: str  # `ptb_java` or `approximate`
    tokenize: Callable[[Sequence[str]], list[str]]  # sentences -> their tokens, joined by spaces


def caption_tokenizer(name: TokenizerName = "auto") -> CaptionTokenizer:
    """The tokenizer of this name; `auto` is Stanford's if Java runs it and pycocoevalcap is installed.

    Raises:
        CaptionTokenizerError: `ptb_java` was requested, and Java or the package is missing, or Java does not run.
    """
    if name not in ("auto", "ptb_java", "approximate"):
        known = ("auto", "ptb_java", "approximate")
        raise CaptionTokenizerError(f"caption_tokenizer: {name!r} is not known. {nearest(name, known)}")
    lacking = [what for what, there in (("Java", shutil.which("java")), ("pycocoevalcap", _jar())) if not there]
    if name == "approximate" or (name == "auto" and lacking):
        return CaptionTokenizer("approximate", tokenize_approximately)
    if lacking:
        raise CaptionTokenizerError(
            f"caption_tokenizer: ptb_java needs {' and '.join(lacking)}, which are not installed. Install a Java "
            'runtime and pip install "replora[vl]", or set --model.caption_tokenizer approximate.'
        )
    try:
        _check_java(shutil.which("java"))
    except CaptionTokenizerError as error:
        if name == "ptb_java":
            raise
        log.warning("Captions are tokenized approximately: %s", error)
        return CaptionTokenizer("approximate", tokenize_approximately)
    return CaptionTokenizer("ptb_java", _tokenize_by_java)


@cache
def _check_java(java: str | None) -> None:  # noqa: ARG001
    """Run the tokenizer once for each `java`: macOS has one that only says that there is no Java.

    Raises:
        CaptionTokenizerError: It fails.
    """
    _tokenize_by_java(["a"])


def tokenize_approximately(sentences: Sequence[str]) -> list[str]:
    """Tokenize sentences without Java; the tokens of each are joined by spaces."""
    return [" ".join(_approximate_tokens(sentence)) for sentence in sentences]


def _approximate_tokens(sentence: str) -> list[str]:
    tokens: list[str] = []
    for token in _TOKEN.findall(sentence.lower().replace("\u2019", "'")):
        clitic = _CLITIC.search(token)
        tokens += [token[: clitic.start()], clitic[0]] if clitic and clitic.start() else [token]
    return [_BRACKETS.get(token, token) for token in tokens if token not in _DROPPED and token != '"']


def _tokenize_by_java(sentences: Sequence[str]) -> list[str]:
    """Tokenize all sentences, one per line, in one call of Java."""
    jar = _jar()
    assert jar is not None
    lines = [" ".join(sentence.split()) or "." for sentence in sentences]  # an empty line would be dropped
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
        command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except OSError as error:
            raise CaptionTokenizerError(_java_failed(len(lines), str(error))) from error
    found = done.stdout.decode("utf-8", errors="replace").split("\n")[: len(lines)]
    if done.returncode or len(found) < len(lines):
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise CaptionTokenizerError(_java_failed(len(lines), reason))
    return [" ".join(token for token in line.split(" ") if token and token not in _DROPPED) for line in found]


def _java_failed(captions: int, reason: str) -> str:
    remedy = "--model.caption_tokenizer approximate needs no Java."
    return f"Java could not tokenize {captions:,} captions ({reason}). {remedy}"


def _jar() -> Path | None:
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        return None
    jar = Path(spec.submodule_search_locations[0]) / "tokenizer" / JAR
    return jar if jar.is_file() else None
