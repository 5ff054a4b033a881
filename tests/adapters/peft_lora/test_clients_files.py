"""Folders that were edited, mixed up or damaged, adapters with odd names, and names of the hub."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import replora
from replora.adapters.peft_lora.file import find_file
from tests.adapters.peft_lora.test_clients import FILE, assert_equal
from tests.adapters.peft_lora.test_reparameterize import build, output, train, wrapped


def again(folder: Path, **options: Any) -> nn.Module:
    model = peft.PeftModel.from_pretrained(build(), folder, is_trainable=True)
    return replora.reparameterize(model, generators=folder, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model, folder = train(replora.reparameterize(wrapped())), tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def folder(trained: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[1], tmp_path / "adapter"))


CORRUPT = {
    "an empty file": b"",
    "a text": b"hello",
    "a part": 0.5,
    "another format": {"format": "x"},
    "a newer version": {"version": "2"},
    "a version that is no number": {"version": "x"},
    "no version": {"version": None},
    "no description": {"description": None},
    "a list": {"description": "[]"},
    "options in a list": {"description": '{"options": [], "banks": []}'},
    "no options": {"description": "{}"},
    "few options": {"description": '{"options": {"hidden": null}, "banks": []}'},
    "an option out of range": {
        "description": '{"options": {"hidden": 0, "activation": "tanh", "sharing": "group", "scale_exponent": 0.5}}'
    },
}


@pytest.mark.parametrize("what", CORRUPT)
def test_a_corrupt_file_is_named(what: str, folder: Path) -> None:
    change, file = CORRUPT[what], folder / FILE
    if isinstance(change, dict):
        with safe_open(file, "pt") as opened:
            header = opened.metadata() | change
        save_file(load_file(file), file, {key: text for key, text in header.items() if text is not None})
    else:
        file.write_bytes(file.read_bytes()[:400] if isinstance(change, float) else change)  # type: ignore[arg-type]
    with pytest.raises(replora.RepLoRAError, match=r"out of range" if "range" in what else FILE):
        again(folder)


@pytest.mark.parametrize("what", ["another adapter", "other layers", "not a number", "fewer", "edited A"])
def test_generators_of_something_else_are_solved_for(what: str, trained: Any, folder: Path, tmp_path: Path) -> None:
    file, tensors = folder / FILE, load_file(folder / FILE)
    if what == "another adapter" or what == "other layers":
        targets = ("q_proj", "v_proj") if what == "another adapter" else ("q_proj",)
        train(replora.reparameterize(wrapped(targets)), steps=2).save_pretrained(tmp_path / "other")
        shutil.copy(tmp_path / "other" / FILE, file)
    elif what == "edited A":
        weights = load_file(folder / "adapter_model.safetensors")
        save_file({key: 2 * t for key, t in weights.items()}, folder / "adapter_model.safetensors")
    else:
        with safe_open(file, "pt") as opened:
            header = opened.metadata()
        changed = (
            {key: t * float("nan") for key, t in tensors.items()}
            if what == "not a number"
            else dict(list(tensors.items())[1:])
        )
        save_file(changed, file, header)
    stock = output(peft.PeftModel.from_pretrained(build(), folder).eval())
    with pytest.warns(UserWarning, match=r"does not belong to the A and B of this adapter"):
        model = again(folder)
    torch.testing.assert_close(output(model.eval()), stock, rtol=0, atol=1e-5)
    running: Any = again(trained[1])
    with pytest.warns(UserWarning, match=r"does not belong"):
        running.load_adapter(folder, "default")
    torch.testing.assert_close(output(running.eval()), stock, rtol=0, atol=1e-5)


def test_a_file_in_a_format_of_pickle_and_a_second_saving(trained: Any, tmp_path: Path) -> None:
    for _ in range(2):
        trained[0].save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = again(tmp_path)
    assert_equal(model, trained[0])


def test_other_options_than_those_of_the_file_are_refused(trained: Any) -> None:
    for options in ({"hidden": 5}, {"activation": "gelu"}, {"sharing": "none"}, {"scale_exponent": 0.25}):
        with pytest.raises(replora.RepLoRAError, match=rf"{next(iter(options))}: .* asked for, but .*{FILE}"):
            again(trained[1], **options)


@pytest.mark.parametrize("name", ["a b", "äö", "1", "lora", "bias", "ref", "replora", "generators", "hooks", "host"])
def test_every_name_that_peft_takes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(build(), peft.LoraConfig(r=4, target_modules=["q_proj"]), adapter_name=name)
    train(replora.reparameterize(model, name), steps=1).save_pretrained(tmp_path)
    own = tmp_path / name
    stock = peft.PeftModel.from_pretrained(build(), own, adapter_name=name, is_trainable=True)
    assert torch.equal(output(stock.eval()), output(model))
    assert_equal(replora.reparameterize(stock, name, generators=own), model)


def test_names_of_the_hub(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(name: str, file: str) -> str:
        if name == "us/er":
            return str(trained[1] / file)
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_file("us/er") == trained[1] / FILE
    with pytest.raises(replora.RepLoRAError, match=r"o/ther is neither a folder .* no network"):
        find_file("o/ther")
    with pytest.raises(replora.RepLoRAError, match=r"a/b/c does not exist"):
        find_file("a/b/c")
