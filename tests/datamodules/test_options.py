"""Options of the data are declared once; the help of every class shows its own and the inherited ones with a text."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import datamodules
from datamodules import ImageDataModule, VideoDataModule
from replora.cli.main import main
from replora.errors import RepLoRAError

FORMER = Path(__file__).parents[1] / "cli" / "former"


def former_options() -> dict[str, dict[str, Any]]:
    """Class -> its options, as runs recorded them when each class declared all of them itself."""
    data = [yaml.safe_load(file.read_text("utf-8"))["data"] for file in sorted(FORMER.glob("*.yaml"))]
    return {entry["class_path"].rpartition(".")[2]: entry["init_args"] for entry in data}


OPTIONS = former_options()
# Options that came later: of all classes below these.
LATER = {
    ImageDataModule: ("framing", "background", "skip_corrupt", "allowed_roots"),
    VideoDataModule: ("allowed_roots",),
}
for name, options in OPTIONS.items():
    for base, later in LATER.items():
        if issubclass(getattr(datamodules, name), base):
            options |= dict.fromkeys(later)


def test_every_class_is_tested() -> None:
    concrete = [name for name in datamodules.__all__ if not inspect.isabstract(getattr(datamodules, name))]
    assert sorted(OPTIONS) == sorted(concrete)


@pytest.mark.parametrize("name", OPTIONS)
def test_help_shows_every_option_with_a_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--data.help={name}"])
    assert not stopped.value.code
    shown = " ".join(capsys.readouterr().out.partition("Help for")[2].split())
    shown = re.sub(r", --data\.\w+\+ (?:\[ITEM,...\]|[A-Z_]+)", "", shown)  # the form that appends to a list
    texts = dict(re.findall(r"--data\.(\w+) (?:\{[^}]*\} |\[ITEM,...\] |[A-Z_]+ )(.*?) ?\((?:required, )?type:", shown))
    for option, value in OPTIONS[name].items():
        if isinstance(value, dict):  # a group of options, such as `clips`
            assert f"--data.{option}." in shown
            continue
        assert re.search(r"[A-Z`].*\.$", texts.get(option, "")), f"--data.{option}: {texts.get(option)!r}"


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_size_of_zero_is_an_error_in_every_class(name: str) -> None:
    made = getattr(datamodules, name)
    needed = [
        p.name for p in inspect.signature(made).parameters.values() if p.default is p.empty and p.kind < p.VAR_KEYWORD
    ]
    for option in ("batch_size", "eval_batch_size"):
        with pytest.raises(RepLoRAError, match=rf"^{option}=0 is too small"):
            made(**dict.fromkeys(needed, Path("absent")), **{option: 0})
