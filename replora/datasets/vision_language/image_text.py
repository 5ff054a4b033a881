"""VQAv2, GQA, NLVR2 and COCO captions in the folder that VL-T5 and VL-Adapter use.

vqa/karpathy_{train,val,test}.json, vqa/v2_mscoco_val2014_annotations.json        features: COCO
GQA/{train,valid,testdev,submit}.json                                              features: VG, of the last two GQA
nlvr/{train,valid,test}.json                                                       features: nlvr
COCO/dataset_coco.json                                                             features: COCO
{COCO,VG,GQA,nlvr}/clip_features/data_clip_RN101_att/{image}.h5
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from replora.datasets.common.packed import Packed
from replora.datasets.errors import DatasetNotFoundError, RecordError
from replora.datasets.vision_language.annotations import build, read_json, read_records, reading, scores, words
from replora.datasets.vision_language.tasks import VLRecord

ImageTextSplit = Literal["train", "val", "trainval", "test", "submit"]
TRAINING = ("train", "trainval")
CLIP_FEATURES = "data_clip_RN101_att"
GRID = 49  # vectors per image in a folder of that name
LAYOUT = "vqa/, GQA/, nlvr/, COCO/ and VG/ as docs/vision_language.md lists them."
# GQA has no validation of its own here: VL-Adapter trains on train + valid, and watches and reports testdev, which is
# never trained on.
FILES = {
    "vqa": {
        "train": ["karpathy_train"],
        "val": ["karpathy_val"],
        "trainval": ["karpathy_train", "karpathy_val"],
        "test": ["karpathy_test"],
    },
    "gqa": {
        "train": ["train", "valid"],
        "val": ["testdev"],
        "trainval": ["train", "valid"],
        "test": ["testdev"],
        "submit": ["submit"],  # what GQA's server scores; without answers
    },
    "nlvr2": {"train": ["train"], "val": ["valid"], "trainval": ["train", "valid"], "test": ["test"]},
}
COCO_SPLITS = {
    "train": ("train", "restval"),
    "val": ("val",),
    "trainval": ("train", "restval", "val"),
    "test": ("test",),
}


def image_text_records(root: Path, task: str, split: ImageTextSplit) -> Packed[VLRecord]:
    """The records of a task and split, in the order of the files.

    Raises:
        DatasetNotFoundError: A file is missing.
        RecordError: A file is corrupt, or a record is incomplete.
    """
    return _READERS[task](root, split)


def feature_folder(root: Path, task: str, split: ImageTextSplit, features: str = CLIP_FEATURES) -> Path:
    """The folder with the features of a task's images."""
    home = {"vqa": "COCO", "coco": "COCO", "nlvr2": "nlvr", "gqa": "VG" if split in TRAINING else "GQA"}[task]
    return root / home / "clip_features" / features


def _vqa(root: Path, split: ImageTextSplit) -> Packed[VLRecord]:
    human = {} if split in TRAINING else _human_answers(root / "vqa")

    def make(index: int, item: Any) -> list[VLRecord]:
        label, question = scores(item) if "label" in item else {}, int(item["question_id"])
        if human and question not in human:
            raise ValueError(
                f"question {question} is not in the annotations of val2014 and train2014, which hold the ten human "
                "answers of the metric; it is"
            )
        truth = {"answers": human[question], "scores": label} if human else None
        image, answers = (words(item, "img_id"),), tuple(label)
        return [VLRecord(index, question, words(item, "sent"), image, answers, tuple(label.values()), truth)]

    return build(_read(root / "vqa", "vqa", split, ("img_id", "question_id", "sent")), make)


def _human_answers(folder: Path) -> dict[int, list[str]]:
    """Question id -> its ten human answers. Karpathy's val and test are of COCO's val2014."""
    files = [folder / f"v2_mscoco_{part}2014_annotations.json" for part in ("val", "train")]
    present = [file for file in files if file.is_file()]
    if not present:
        raise DatasetNotFoundError(
            f"There is no {files[0]}. It contains ten human answers to each question, which the metric of VQAv2 needs, "
            "and is part of https://visualqa.org/download.html."
        )
    answers: dict[int, list[str]] = {}
    for file in present:
        for number, item in enumerate(_entries(file, "annotations")):
            with reading(file, number, item):
                answers[int(item["question_id"])] = [words(one, "answer") for one in item["answers"]]
    return answers


def _gqa(root: Path, split: ImageTextSplit) -> Packed[VLRecord]:
    def make(index: int, item: Any) -> list[VLRecord]:
        question, sentence, image = str(item["question_id"]), words(item, "sent"), (str(item["img_id"]),)
        if split == "submit":
            return [VLRecord(index, question, sentence, image)]
        label = scores(item)
        return [VLRecord(index, question, sentence, image, tuple(label), tuple(label.values()), label)]

    needed = ("img_id", "question_id", "sent", *(() if split == "submit" else ("label",)))
    return build(_read(root / "GQA", "gqa", split, needed), make)


def _nlvr2(root: Path, split: ImageTextSplit) -> Packed[VLRecord]:
    def make(index: int, item: Any) -> list[VLRecord]:
        label, images = item["label"], (words(item, "img0"), words(item, "img1"))
        if label not in (0, 1):
            raise ValueError(f"the label {label!r} is neither 0 nor 1")
        text, answer = words(item, "sent"), ("true" if label else "false",)
        return [VLRecord(index, words(item, "identifier"), text, images, answer, (1.0,), bool(label), int(label))]

    return build(_read(root / "nlvr", "nlvr2", split, ("identifier", "img0", "img1", "label", "sent")), make)


def _coco(root: Path, split: ImageTextSplit) -> Packed[VLRecord]:
    """One record per caption in training, one per image with all its captions otherwise."""

    def make(index: int, item: Any) -> list[VLRecord]:
        if item["split"] not in COCO_SPLITS[split]:
            return []
        image = (words(item, "filename").split(".")[0],)
        captions = [words(sentence, "raw").strip() for sentence in item["sentences"]]
        if not captions:
            raise ValueError("'sentences' is empty")
        image_id = int(item.get("cocoid", item.get("imgid", index)))
        if split not in TRAINING:
            return [VLRecord(index, image_id, "", image, tuple(captions[:1]), (1.0,), captions)]
        return [VLRecord(index + i, image_id, "", image, (c,), (1.0,), [c]) for i, c in enumerate(captions)]

    file = root / "COCO" / "dataset_coco.json"
    return build(((file, number, item) for number, item in enumerate(_entries(file, "images"))), make)


def _read(folder: Path, task: str, split: ImageTextSplit, fields: tuple[str, ...]) -> list[tuple[Path, int, Any]]:
    """(file, number in it, record) of all files of a split."""
    found: list[tuple[Path, int, Any]] = []
    for name in FILES[task][split]:
        file = folder / f"{name}.json"
        found += [(file, number, item) for number, item in enumerate(read_records(file, LAYOUT, fields))]
    return found


def _entries(file: Path, name: str) -> list[Any]:
    """The list `name` of a file that holds a JSON object."""
    content = read_json(file, LAYOUT)
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        raise RecordError(f"{file} has no list {name!r}, so it is not the file of that name that its authors released.")
    return list(content[name])


_READERS = {"vqa": _vqa, "gqa": _gqa, "nlvr2": _nlvr2, "coco": _coco}
