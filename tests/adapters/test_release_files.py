"""Files of every release so far load and give the outputs that they had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import replora
from tests.adapters.release_files import FILES, METHODS, Model, adapted, inputs, write

ALL = sorted(file for file in FILES.glob("*/*.safetensors") if file.stem != "outputs")


def check(model: torch.nn.Module, file: Path) -> None:
    want = load_file(file.parent / "outputs.safetensors")[file.stem]
    torch.testing.assert_close(model(inputs()), want, rtol=1e-5, atol=1e-6)


def test_there_are_files_of_each_method_and_the_untrained_model_differs() -> None:
    assert {file.stem for file in ALL} == {*METHODS, "replora_deployed"}
    for folder in FILES.iterdir():
        for want in load_file(folder / "outputs.safetensors").values():
            assert not torch.allclose(Model()(inputs()), want, atol=0.05)


@pytest.mark.parametrize("file", ALL, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_into_the_method_it_was_trained_with(file: Path) -> None:
    model = Model().eval() if "deployed" in file.stem else adapted(file.stem)
    replora.load_adapter(model, file)
    check(model, file)


@pytest.mark.parametrize("file", ALL, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_into_a_plain_model(file: Path) -> None:
    model = Model().eval()
    if "also_train" not in replora.read_adapter(file)[0]:  # the first files do not say what trained as a whole
        with pytest.raises(replora.RepLoRAError, match=r"First call replora\.inject"):
            replora.load_adapter(model, file)
        return
    replora.load_adapter(model, file)
    check(model, file)


def test_entries_that_are_not_known_yet_are_passed_over(tmp_path: Path) -> None:
    file = FILES / "0.1.0" / "replora.safetensors"
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    description = json.loads(header["description"]) | {"of_the_future": [1, 2]}
    newer = header | {"description": json.dumps(description), "another": "entry"}
    save_file(load_file(file), tmp_path / "replora.safetensors", metadata=newer)
    save_file(load_file(FILES / "0.1.0" / "outputs.safetensors"), tmp_path / "outputs.safetensors")
    model = Model().eval()
    replora.load_adapter(model, tmp_path / "replora.safetensors")
    check(model, tmp_path / "replora.safetensors")


def test_an_option_of_the_future_is_named(tmp_path: Path) -> None:
    file = FILES / "0.1.0" / "replora.safetensors"
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    description = json.loads(header["description"])
    description["options"]["warp"] = 9
    save_file(load_file(file), tmp_path / "a.safetensors", metadata=header | {"description": json.dumps(description)})
    with pytest.raises(replora.RepLoRAError, match=r"option that this release does not know .*warp"):
        replora.load_adapter(Model(), tmp_path / "a.safetensors")


def test_this_release_still_writes_what_is_in_its_files(tmp_path: Path) -> None:
    write(tmp_path / "now")
    for file in ALL:
        if file.parent.name == "0.1.0":
            before, now = load_file(file), load_file(tmp_path / "now" / file.name)
            assert before.keys() == now.keys()
            assert all(before[name].shape == now[name].shape for name in before)
