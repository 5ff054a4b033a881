"""JSON and list files that are damaged, huge, or in other encodings."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replora.datasets.common.text_files import parse_json
from replora.datasets.image.fgvc import FGVC
from replora.datasets.text.commonsense import load_entries
from replora.datasets.video.hmdb51 import read_hmdb51
from replora.datasets.video.ssv2 import read_ssv2
from replora.datasets.vision_language.annotations import read_json
from replora.datasets.vtab.dataset import VTAB
from replora.errors import RepLoRAError
from tests.fuzz import fuzz


def fgvc(file: Path) -> Any:
    folder = file.parent / "cub_200_2011"
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_bytes(file.read_bytes())
    return FGVC(file.parent, "cub_200_2011", "train")


def vtab(file: Path) -> Any:
    folder = file.parent / "mine"
    folder.mkdir(exist_ok=True)
    (folder / "test.txt").write_bytes(file.read_bytes())
    return VTAB(file.parent, "mine", "test", 5)


def ssv2(file: Path) -> Any:
    (file.parent / "labels").mkdir(exist_ok=True)
    (file.parent / "labels" / "labels.json").write_bytes(file.read_bytes())
    return read_ssv2(file.parent)


def hmdb51(file: Path) -> Any:
    (file.parent / "splits").mkdir(exist_ok=True)
    (file.parent / "splits" / "brush_test_split1.txt").write_bytes(file.read_bytes())
    return read_hmdb51(file.parent, check_sizes=False)


READERS: dict[str, Callable[[Path], Any]] = {
    "fgvc": fgvc,
    "vtab": vtab,
    "ssv2": ssv2,
    "hmdb51": hmdb51,
    "commonsense": load_entries,
    "annotations": lambda file: read_json(file, ""),
}
DAMAGED = {
    "nested": b"[" * 200_000,
    "nested and closed": b"[" * 200_000 + b"]" * 200_000,
    "long number": b'{"a.jpg": ' + b"9" * 5_000 + b"}",
    "long label": b"a.jpg " + b"9" * 5_000,
    "half a character": rb'[{"instruction": "\ud800"}]',
    "half a key": rb'{"\udc00.jpg": 1}',
    "other encoding": '["é"]'.encode("latin-1"),
    "nothing": b"",
    "zeros": bytes(100),
    "long name": b"x" * 5_000 + b".jpg 1",
    "zero in a name": b"x\0.jpg 1",
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, reader: Callable[[Path], Any], content: bytes) -> None:
    (tmp_path / "list.json").write_bytes(content)
    with pytest.raises(RepLoRAError) as raised:
        reader(tmp_path / "list.json")
    str(raised.value).encode()


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@fuzz(150)
@given(draw=st.randoms(use_true_random=False))
def test_any_bytes_are_read_or_refused(tmp_path: Path, reader: Callable[[Path], Any], draw: random.Random) -> None:
    pieces = [b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\u", b"d800", b" 1", b"\n", b"\r", b"\xe9", b"a.jpg", b"\0"]
    content = b"".join(draw.choices(pieces, k=draw.randrange(30)))
    (tmp_path / "list.json").write_bytes(draw.choice([b"", b"\xff\xfe", b"\xef\xbb\xbf"]) + content)
    with suppress(RepLoRAError):
        reader(tmp_path / "list.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("reader", ["commonsense", "annotations"])
def test_encodings_and_json_lines_are_recognized(tmp_path: Path, encoding: str, lines: bool, reader: str) -> None:
    entries = [{"text": "é\u2028\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")}, {"text": "b"}]
    text = "\r\n".join(map(json.dumps, entries)) if lines else json.dumps(entries, indent=1)
    (tmp_path / "list.json").write_bytes(text.encode(encoding))
    assert READERS[reader](tmp_path / "list.json") == entries


def test_whole_characters_in_two_halves_are_kept() -> None:
    assert parse_json(r'"\ud83d\ude00"') == "😀"
