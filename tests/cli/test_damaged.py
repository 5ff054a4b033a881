"""Damaged and foreign files of a run: each verb that reads them says which file, what is wrong and what to do."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pickle
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import replora
from replora.backbones.language import build_language_backbone, load_tokenizer
from replora.cli.main import main
from replora.config_files import read_config
from replora.errors import RepLoRAError
from replora.export import load_transformers
from replora.io import read_csv
from tests.cli.helpers import fit, refused
from tests.cli.unchanged import unchanged


@pytest.fixture(scope="module")
def finished() -> Iterator[Path]:
    """A folder that every user of the machine may enter, with a run of fit and predict, and an image."""
    home = Path(tempfile.mkdtemp(prefix="replora-damaged-"))
    home.chmod(0o755)
    fit(home / "run")
    main(["predict", f"--config={home / 'run' / 'fit.yaml'}", "--trainer.enable_progress_bar=false"])
    Image.new("RGB", (32, 32)).save(home / "image.png")
    yield home
    shutil.rmtree(home)


@pytest.fixture
def home(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="replora-damaged-"))
    shutil.copytree(finished, home, dirs_exist_ok=True)
    home.chmod(0o755)
    monkeypatch.chdir(home)
    yield home
    shutil.rmtree(home)


VERBS = {
    "predict-files": ["predict-files", "run", "image.png", "--out=new.csv", "--progress=false"],
    "export": ["export", "run", "--out=new"],
    "merge": ["merge", "run", "--out=new"],
    "serve": ["serve", "run", "--port=0"],
    "plot": ["plot", "run"],
    "report": ["report", "run", "--out=new"],
    "validate": ["validate", "--config=run/fit.yaml"],
    "test": ["test", "--config=run/fit.yaml"],
    "resume": ["fit", "--config=run/fit.yaml", "--ckpt_path=run/checkpoints/last.ckpt"],
}
READERS = {
    "fit.yaml": ["predict-files", "export", "merge", "plot", "validate", "test", "resume"],
    "results.json": ["export", "merge", "plot", "report", "validate", "test", "resume"],
    "adapter.safetensors": ["predict-files", "export", "merge"],
    "checkpoints/last.ckpt": ["validate", "test", "resume"],
    "predictions.csv": ["plot"],
    "logs/fit/metrics.csv": ["plot"],
}
DAMAGE: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)) * 40,
    "zeros": bytes(1000),
    "invalid UTF-8": b'{"format": 2, "a": "\xff\xfe"}',
    "huge nesting": b"[" * 100_000,
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "of another program": b'{"results": [{"score": 1}], "version": "3.1"}',
    "HTML": b"<!doctype html><p>404 Not Found",
    "a shell script": b"#!/bin/sh\nrm -rf nothing\n",
}


UNNOTICED = {
    ("fit.yaml", "truncated"),  # half of the options are options
    *(("fit.yaml", "of another program", verb) for verb in ("validate", "test", "resume")),  # the parser's own message
    ("predictions.csv", "truncated"),  # half of the lines are lines
    ("predictions.csv", "a folder"),  # as if there were none
    *(("results.json", "a folder", verb) for verb in ("export", "merge")),
}


@pytest.mark.parametrize("damage", [*DAMAGE, "truncated", "a folder"])
@pytest.mark.parametrize("file", READERS)
def test_each_verb_names_the_damaged_file(
    file: str, damage: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "run" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else DAMAGE[damage])
    for verb in READERS[file]:
        if (file, damage) in UNNOTICED or (file, damage, verb) in UNNOTICED:
            continue
        with unchanged(home):
            error = refused(capsys, *VERBS[verb])
        last = error[error.rindex("replora-cli: error: ") :]
        assert "Traceback" not in error, (verb, error)
        assert f"run/{file}" in last or (file == "fit.yaml" and "run" in last), (verb, last)
        assert "weights_only" not in error, (verb, error)
        assert len(last) < 700, (verb, last)


def edited(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return edit


RESULTS: dict[str, Callable[[Any], object]] = {
    "no data": lambda r: r.pop("data"),
    "data of another type": lambda r: r.update(data="digits"),
    "no backbone": lambda r: r.pop("backbone"),
    "a backbone without a name": lambda r: r["backbone"].pop("name"),
    "a name that is a number": lambda r: r["backbone"].update(name=7),
    "no method": lambda r: r.pop("method"),
    "a method that is a list": lambda r: r.update(method=["lora"]),
    "no number of classes": lambda r: r["data"].pop("num_classes"),
    "a number of classes in words": lambda r: r["data"].update(num_classes="ten"),
    "a fit that is a list": lambda r: r.update(fit=[]),
    "metrics that are a list": lambda r: r["fit"].update(metrics=[1, 2]),
    "a metric in words": lambda r: r["fit"]["metrics"].update({"val/accuracy": "high"}),
    "NaN": lambda r: r["fit"]["metrics"].update({"val/accuracy": float("nan")}),
    "infinity": lambda r: r["fit"]["metrics"].update({"val/accuracy": float("inf")}),
    "evaluations that are a mapping": lambda r: r.update(evaluations={}),
    "an evaluation that is a number": lambda r: r.update(evaluations=[7]),
    "an evaluation without weights": lambda r: r["evaluations"][0].pop("weights"),
    "an evaluation without a verb": lambda r: r["evaluations"][0].pop("verb"),
    "parameters in words": lambda r: r["parameters"].update(head="many"),
    "options that are a list": lambda r: r.update(options=[1]),
    "a number of 5,000 digits": lambda r: r["fit"].update(seconds=0),
    "half a surrogate pair": lambda r: r.update(method="\ud800"),
    "a history in words": lambda r: r["fit"].update(history={"val/accuracy": [["one", {}]]}),
    "an optimizer in words": lambda r: r["fit"].update(optimizer="adam"),
    "shots that are a list": lambda r: r["data"].update(shots=[1]),
    "a later format": lambda r: r.update(format=99),
    "a format in words": lambda r: r.update(format="two"),
}


@pytest.mark.parametrize("verb", ["report", "plot", "test"])
def test_a_pipe_is_not_waited_for(verb: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "run" / "results.json"
    file.unlink()
    os.mkfifo(file)
    assert "run/results.json is no regular file but a pipe" in refused(capsys, *VERBS[verb])


@pytest.mark.parametrize("case", RESULTS)
def test_results_that_are_not_whole(case: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(RESULTS[case])(file := home / "run" / "results.json")
    if "digits" in case:
        file.write_text(file.read_text().replace('"seconds": 0', f'"seconds": {"9" * 5000}'))
    for verb in ("plot", "report"):
        capsys.readouterr()
        with contextlib.suppress(SystemExit):  # any other error fails the test
            main(VERBS[verb])
            continue
        error = capsys.readouterr().err
        assert "results.json" in error, (verb, error)
        assert "Traceback" not in error, (verb, error)


def with_header(file: Path, **entries: Any) -> None:
    """Write an adapter file again with other entries in its header."""
    with safe_open(file, "pt") as content:
        header = content.metadata() | {name: json.dumps(value) for name, value in entries.items()}
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (not a dict)
    save_file(tensors, file, {name: value for name, value in header.items() if value != "null"})


def described(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as content:
        description: dict[str, Any] = json.loads(content.metadata()["description"])
    return description


HEADERS: dict[str, Callable[[Path], None]] = {
    "a rank for all memory": lambda f: with_header(
        f, description=(d := described(f)) | {"options": d["options"] | {"rank": 10**9}}
    ),
    "a width for all memory": lambda f: with_header(
        f, description=(d := described(f)) | {"options": d["options"] | {"hidden": 10**9}}
    ),
    "a rank in words": lambda f: with_header(
        f, description=(d := described(f)) | {"options": d["options"] | {"rank": "two"}}
    ),
    "options that are a list": lambda f: with_header(f, description=described(f) | {"options": [1]}),
    "an option of another program": lambda f: with_header(
        f, description=(d := described(f)) | {"options": d["options"] | {"quantum": 1}}
    ),
    "a description that is a list": lambda f: with_header(f, description=[1]),
    "a backbone that is a list": lambda f: with_header(f, backbone=[1]),
    "data that is a number": lambda f: with_header(f, data=7),
    "no data": lambda f: with_header(f, data=None),
    "classes that are numbers": lambda f: with_header(f, data={"class_names": [1, 2]}),
    "an image size in words": lambda f: with_header(f, data={"class_names": ["a"], "image_size": "32"}),
    "no image size": lambda f: with_header(f, data={"class_names": ["a"] * 10}),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_are_not_whole(case: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    HEADERS[case](home / "run" / "adapter.safetensors")
    for verb in ("predict-files", "export", "merge"):
        with unchanged(home):
            error = refused(capsys, *VERBS[verb])
        assert "Traceback" not in error, (verb, error)
        assert "adapter.safetensors" in error or "The adapter file" in error, (verb, error)


@pytest.mark.parametrize("name", ["rank", "hidden"])
def test_sizes_are_compared_before_memory_is_asked_for(name: str, home: Path) -> None:
    file = home / "run" / "adapter.safetensors"
    description = described(file)
    with_header(file, description=description | {"options": description["options"] | {name: 10**9}})
    with pytest.raises(RepLoRAError, match=f"option {name} is 1000000000"):
        replora.read_adapter(file)


class Code:
    """What runs when it is loaded from a pickle."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("verb", ["validate", "test", "resume"])
@pytest.mark.parametrize("form", ["pickle", "checkpoint", "callbacks"])
def test_a_pickle_is_never_executed(verb: str, form: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "run" / "checkpoints" / "last.ckpt"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Code()))
    else:
        content = torch.load(file, weights_only=True) if form == "callbacks" else {"state_dict": {}}
        torch.save(content | {"callbacks": {"mine": Code()}}, file)
    with unchanged(home):
        error = refused(capsys, *VERBS[verb])
    assert not (home / "executed").exists()
    assert "weights_only" not in error
    assert "last.ckpt" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".npz", ".safetensors"])
def test_weights_are_never_executed(suffix: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Code()}, home / f"weights{suffix}")
    arguments = ["fit", "--config=quickstart.yaml", f"--model.checkpoint=weights{suffix}", "--model.pretrained=true"]
    with unchanged(home):
        error = refused(capsys, *arguments, "--model.backbone=vit_tiny_patch16_224")
    assert not (home / "executed").exists()
    assert "weights_only" not in error
    assert f"weights{suffix}" in error


@pytest.mark.parametrize("verb", ["predict-files", "serve", "export", "merge", "plot"])
def test_a_foreign_run_cannot_name_code_to_run(
    verb: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fit.yaml` names classes; these verbs take none but those of this package and of modules that are imported."""
    (home / "evil.py").write_text("import os\n\nos.mkdir('executed')\n")
    monkeypatch.syspath_prepend(home)
    file = home / "run" / "fit.yaml"
    content = yaml.safe_load(file.read_text())
    for name in ("model", "data"):
        content[name]["class_path"] = "evil.Code"
    file.write_text(yaml.safe_dump(content))
    assert "--import_module evil" in refused(capsys, *VERBS[verb])
    assert not (home / "executed").exists()


def test_code_in_the_folder_of_a_model_is_never_executed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "model").mkdir()
    (home / "model" / "evil.py").write_text("import os\n\nos.mkdir('executed')\n")
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
    (home / "model" / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": classes}))
    (home / "model" / "tokenizer_config.json").write_text(json.dumps({"auto_map": classes}))
    for load in (load_transformers, build_language_backbone, load_tokenizer):
        with pytest.raises(RepLoRAError, match="model"):
            load(str(home / "model"))
    assert not (home / "executed").exists()
    assert capsys.readouterr().out == ""  # and nobody is asked whether it may run


@contextlib.contextmanager
def forbidden(file: Path) -> Iterator[None]:
    """A file that this process may not read, also where the tests run as root."""
    mode, user = file.stat().st_mode, os.geteuid()
    file.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        file.chmod(stat.S_IMODE(mode))


# As root the test becomes another user, who has to be able to import packages.
PRIVATE = [place for place in (Path(sys.prefix), *Path(sys.prefix).parents) if not place.stat().st_mode & stat.S_IXOTH]


@pytest.mark.skipif(os.geteuid() == 0 and bool(PRIVATE), reason=f"other users may not enter {PRIVATE}")
@pytest.mark.parametrize("file", READERS)
def test_a_lack_of_permission_is_not_called_damage(file: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in home.rglob("*"):
        path.chmod(0o777)
    home.chmod(0o777)
    for verb in READERS[file] if file != "checkpoints/last.ckpt" else []:
        with forbidden(home / "run" / file):
            error = refused(capsys, *VERBS[verb])
        last = error[error.rindex("replora-cli: error: ") :]
        assert file.rpartition("/")[2] in last, (verb, last)
        assert "may not read" in last, (verb, last)
        assert "damaged" not in last, (verb, last)
        assert "corrupt" not in last, (verb, last)


def test_yaml_whose_aliases_grow_without_bound(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (home / "bomb.yaml").write_text("\n".join(lines))
    assert "its aliases expand to more than 100,000 entries" in refused(capsys, "fit", "--config=bomb.yaml")
    (home / "loop.yaml").write_text("a: &a [*a]")
    with pytest.raises(RepLoRAError, match="its aliases expand"):
        read_config(home / "loop.yaml")
    secret = Path("/etc/passwd").read_text().splitlines()[0]
    assert secret not in refused(capsys, "fit", "--config=/etc/passwd")


def test_lines_of_another_length_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(RepLoRAError, match=r"line 3 has 1 cells under 2 headings"):
        read_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open("w") as stream:
        csv.writer(stream).writerow(["x" * 200_000])
    with pytest.raises(RepLoRAError, match=r"a\.csv is corrupt"):
        read_csv(tmp_path / "a.csv")
