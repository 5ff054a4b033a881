"""The plan of the house: small files, small rooms, and a map that names what is there."""

from __future__ import annotations

import ast
import re
import tomllib
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


def test_the_wheel_holds_every_room() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    rooms = {".".join(room.relative_to(ROOT).parts) for room in ROOMS}
    assert rooms <= set(packages), f"pyproject.toml lacks {sorted(rooms - set(packages))}"


def test_the_map_names_every_room_and_nothing_else() -> None:
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    named = re.findall(r"`((?:replora|datamodules|lightning_modules)/[\w/]*?(?:\.py|/))`", page)
    assert named
    missing = [name for name in named if not (ROOT / name).exists() and "mine" not in name]
    assert not missing, f"the map names what is not there: {missing}"
    rooms = {f"{room.relative_to(ROOT)}/" for room in ROOMS if room.parent == ROOT / "replora" or room.parent == ROOT}
    listed = set(re.findall(r"`([\w]+(?:/[\w]+)?/)`", page))
    assert rooms - {"replora/"} <= listed, f"the map lacks {sorted(rooms - listed)}"


# Packages that are slow to import or that an extra brings: imported by the function that uses them.
IMPORTED_WHERE_USED = {
    "av",
    "gguf",
    "h5py",
    "lightning",
    "matplotlib",
    "peft",
    "rich",
    "scipy",
    "sklearn",
    "timm",
    "tokenizers",
    "torchvision",
    "transformers",
}
FILES = [file for room in ROOMS for file in room.glob("*.py") if "cli" not in file.parts]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_an_import_inside_a_function_says_why(file: Path) -> None:
    """The verbs of the command line (`replora/cli`) import what they call, so that `--help` does not wait for it."""
    source = file.read_text("utf-8")
    lines = source.splitlines()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    silent = []
    for node in {inner for function in functions for inner in ast.walk(function)}:
        if isinstance(node, ast.ImportFrom | ast.Import):
            package = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            above = lines[: node.lineno - 1]
            while above and re.match(r"\s+(from|import) ", above[-1]):  # one comment is enough for a block of imports
                above.pop()
            commented = "# " in lines[node.lineno - 1].replace("# type: ", "").replace("# noqa", "")
            if not (str(package).split(".")[0] in IMPORTED_WHERE_USED or commented or above[-1].strip()[:1] == "#"):
                silent.append(f"line {node.lineno}: {lines[node.lineno - 1].strip()}")
    assert not silent, "move it to the top of the file, or say in a comment why it stands here: " + "; ".join(silent)
