"""What holds of every backbone that is made out of a package's file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from replora.backbones.backbone import BackboneError, file_sha256
from replora.backbones.packaged_file import PackagedFile


def stand_in(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, file: Path, cache: Path) -> None:
    """Let `file` be what the package of `module.name` carries."""
    monkeypatch.setattr(PackagedFile, "find", lambda _: file)
    monkeypatch.setattr(module, name, replace(getattr(module, name), sha256=file_sha256(file)))
    monkeypatch.setenv("REPLORA_CACHE", str(cache))


def check_made_once(make: Callable[[], Path], source: Path, cache: Path) -> Path:
    """What is made, by several at once and then without reading the source again."""
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: make(), range(4)))
    assert len(made) == 1
    assert [path.name for path in cache.iterdir()] == [made.pop().name]
    source.write_bytes(b"")
    return make()


def check_what_is_missing(
    make: Callable[[], Path], reader: str, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader, room in the cache, or the right file."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == reader else find(name))
    with pytest.raises(BackboneError, match=rf"the package {reader}, .* is not installed. pip install {reader}"):
        make()
    monkeypatch.setattr(importlib.util, "find_spec", find)
    (folder / "file").write_text("")
    monkeypatch.setenv("REPLORA_CACHE", str(folder / "file" / "cache"))
    with pytest.raises(BackboneError, match=r"cannot be written .*REPLORA_CACHE"):
        make()
    source.write_bytes(b"other")
    with pytest.raises(BackboneError, match="damaged or of another release"):
        make()
