"""The plan of the house: small files, small rooms, and a map that names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [
    folder
    for top in ("replora", "datamodules", "lightning_modules")
    for folder in [ROOT / top, *(ROOT / top).rglob("*")]
    if (folder / "__init__.py").is_file()
]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_is_seen_at_a_glance(room: Path) -> None:
    files = [file for file in room.glob("*.py") if file.name != "__init__.py"]
    assert len(files) <= 16, f"{len(files)} files: give some of them a room of their own"
    long = {file.name: count for file in files if (count := len(file.read_text("utf-8").splitlines())) > 420}
    assert not long, f"one idea per file: {long}"


def test_the_map_names_every_room_and_nothing_else() -> None:
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    named = re.findall(r"`((?:replora|datamodules|lightning_modules)/[\w/]*?(?:\.py|/))`", page)
    assert named
    missing = [name for name in named if not (ROOT / name).exists() and "mine" not in name]
    assert not missing, f"the map names what is not there: {missing}"
    rooms = {f"{room.relative_to(ROOT)}/" for room in ROOMS if room.parent == ROOT / "replora" or room.parent == ROOT}
    listed = set(re.findall(r"`([\w]+(?:/[\w]+)?/)`", page))
    assert rooms - {"replora/"} <= listed, f"the map lacks {sorted(rooms - listed)}"
