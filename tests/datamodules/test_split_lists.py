"""What identifies the questions of a split, and what happens where two splits share some."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from datamodules import CommonsenseDataModule, ImageTextDataModule
from tests.fake_data import write_commonsense
from tests.fake_vl import write_image_text
from tests.tiny_bart import write_tiny_bart
from tests.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("tiny_llama")))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_commonsense(tmp_path / "data", {"boolq": (20, 6), "openbookqa": (10, 4)})


def commonsense(root: Path, tokenizer: str, **options: object) -> CommonsenseDataModule:
    given = {"tasks": ["boolq", "openbookqa"], "check_sizes": False, "cutoff": 1000, "protocol": "holdout"}
    data = CommonsenseDataModule(root=root, tokenizer=tokenizer, **given | options)  # type: ignore[arg-type]
    data.setup("fit")
    return data


def change(file: Path, position: int, **fields: str) -> None:
    records = json.loads(file.read_text())
    records[position] |= fields
    file.write_text(json.dumps(records))


def test_each_split_has_the_hash_of_its_own_questions(root: Path, tokenizer: str) -> None:
    before = {split: commonsense(root, tokenizer).lists.sha256(split) for split in ("train", "val", "test")}
    assert len(set(before.values())) == 3
    # The files lie elsewhere, other options say what is trained on: the test is the same one.
    moved = root.parent / "moved"
    shutil.copytree(root, moved)
    other = commonsense(moved, tokenizer, train_fraction=0.5, val_fraction=0.3, preset="cloze")
    assert other.lists.sha256("test") == before["test"]
    assert other.lists.sha256("train") != before["train"]
    # A changed question or answer changes the hash of its split alone.
    file = next(root.rglob("boolq/test.json"))
    answer = json.loads(file.read_text())[2]["answer"]
    changed = {"true": "false", "false": "true"}[answer]
    change(file, 2, answer=changed, output=f"the correct answer is {changed}")
    after = commonsense(root, tokenizer)
    assert after.lists.sha256("test") != before["test"]
    assert {s: after.lists.sha256(s) for s in ("train", "val")} == {s: before[s] for s in ("train", "val")}


def test_test_questions_that_were_trained_on_are_counted(root: Path, tokenizer: str) -> None:
    data = commonsense(root, tokenizer)
    assert data.lists.seen("test", data.lists.examples("train")) == 0
    trained = data._read_union()[data.train_indices[0]]  # type: ignore[index]
    change(next(root.rglob("boolq/test.json")), 1, instruction=trained.instruction)
    data = commonsense(root, tokenizer)
    assert data.lists.seen("test", data.lists.examples("train")) == 1


def test_vision_language_questions_that_were_trained_on_are_counted(tmp_path: Path) -> None:
    root, bart = write_image_text(tmp_path / "data"), tmp_path / "bart"
    write_tiny_bart(bart)
    given = {"root": root, "tokenizer": str(bart), "tasks": ["nlvr2"], "protocol": "holdout", "feature_size": 6}
    data = ImageTextDataModule(**given)  # type: ignore[arg-type]
    data.setup("fit")
    before = data.lists.sha256("test")
    assert before is not None
    assert data.lists.seen("test", data.lists.examples("train")) == 0
    train, test = root / "nlvr" / "train.json", root / "nlvr" / "test.json"
    records = json.loads(test.read_text())
    test.write_text(json.dumps([json.loads(train.read_text())[0], *records[1:]]))
    data = ImageTextDataModule(**given)  # type: ignore[arg-type]
    data.setup("fit")
    assert data.lists.sha256("test") != before
    assert data.lists.seen("test", data.lists.examples("train")) == 1
