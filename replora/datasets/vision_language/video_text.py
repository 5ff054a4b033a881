"""TVQA, How2QA, TVC and YC2C (YouCook2 captions) in the folder of the VALUE benchmark, as VL-Adapter reads it.

    video/ann/{tv,how2,yc2}_subtitles.jsonl
    video/ann/tvqa/tvqa_{train,val,test_public}.jsonl
    video/ann/how2qa/how2qa_{train,val,test_public}_release.jsonl
    video/ann/{tvc,yc2c}/{tvc,yc2c}_{train,val,test}_release.jsonl
    video/vis_features/{tv,how2,yc2}/clip-vit/{video}.npz

The answers of the test splits were never published, and the server that scored them is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from replora.datasets.common.packed import Packed
from replora.datasets.vision_language.annotations import build, read_records, reading, words
from replora.datasets.vision_language.tasks import VLRecord

VideoTextSplit = Literal["train", "val", "test"]
FRAMES = 64  # vectors per video
FRAME_SECONDS = 1.5  # between two vectors of VALUE's features
CLIP_VIT = "clip-vit"
LAYOUT = "video/ann/ and video/vis_features/ as docs/vision_language.md lists them."
CHANNELS = {"tvqa": "tv", "how2qa": "how2", "tvc": "tv", "yc2c": "yc2"}
CHOICES = {"tvqa": 5, "how2qa": 4}
FILES = {
    "tvqa": {"train": "tvqa_train", "val": "tvqa_val", "test": "tvqa_test_public"},
    "how2qa": {"train": "how2qa_train_release", "val": "how2qa_val_release", "test": "how2qa_test_public_release"},
    "tvc": {"train": "tvc_train_release", "val": "tvc_val_release", "test": "tvc_test_release"},
    "yc2c": {"train": "yc2c_train_release", "val": "yc2c_val_release", "test": "yc2c_test_release"},
}


def video_text_records(root: Path, task: str, split: VideoTextSplit) -> Packed[VLRecord]:
    """The records of a task and split, in the order of the files.

    Captions: one record per description in training, one per clip with all its descriptions otherwise.

    Raises:
        DatasetNotFoundError: A file is missing.
        RecordError: A file is corrupt, a record is incomplete, or a video has no subtitles.
    """
    annotations = root / "video" / "ann"
    file = annotations / task / f"{FILES[task][split]}.jsonl"
    is_choice = task in CHOICES
    needed = ("qid", "q", "ts", "vid_name") if is_choice else ("vid_name", "clip_id")
    subtitles = _subtitles(annotations / f"{CHANNELS[task]}_subtitles.jsonl")

    def make(index: int, item: Any) -> list[VLRecord]:
        if words(item, "vid_name") not in subtitles:
            raise ValueError(f"the video {item['vid_name']!r} has no subtitles; it is")
        spoken = subtitles[item["vid_name"]]
        if is_choice:
            return [_choice(task, index, item, spoken, split)]
        return _clip(task, index, item, spoken, split)

    return build(((file, number, item) for number, item in enumerate(read_records(file, LAYOUT, needed))), make)


def feature_folder(root: Path, task: str, features: str = CLIP_VIT) -> Path:
    """The folder with the features of a task's videos."""
    return root / "video" / "vis_features" / CHANNELS[task] / features


def choice_text(spoken: str, question: str, times: Any, choices: Sequence[str]) -> str:
    """What the model reads of a question about a video, in the words and spaces of VL-Adapter."""
    listed = " ".join(f"a{i}: {choice.strip('. ')}." for i, choice in enumerate(choices))  # only the ends lose dots
    return f"[Subs] {spoken} [Q] {question.strip()} [TS] ({times}) [Choices] {listed}"


def clip_text(task: str, spoken: str, times: Any) -> str:
    """What the model reads of a clip to describe. The times are a list in Python's own spelling: ([5.8, 8.24])."""
    return f"[Subs] {spoken} [TS] ({times})" if task == "tvc" else f"[Subs] {spoken}"


def _choice(task: str, index: int, item: dict[str, Any], spoken: str, split: VideoTextSplit) -> VLRecord:
    count = CHOICES[task]
    text = choice_text(spoken, words(item, "q"), item["ts"], [words(item, f"a{i}") for i in range(count)])
    images = (item["vid_name"],)
    if split == "test" and item.get("answer_idx") is None:
        return VLRecord(index, str(item["qid"]), text, images)
    answer = int(item["answer_idx"])
    if not 0 <= answer < count:
        raise ValueError(f"'answer_idx' is {answer}, but the choices are 0 to {count - 1}")
    return VLRecord(index, str(item["qid"]), text, images, (f"a{answer}",), (1.0,), answer, answer)


def _clip(task: str, index: int, item: dict[str, Any], spoken: str, split: VideoTextSplit) -> list[VLRecord]:
    text = clip_text(task, spoken, item["ts"] if task == "tvc" else "")
    sentences = [words(one, "desc") for one in item.get("descs") or []]
    if not sentences and split != "test":
        raise ValueError("there is no description ('descs')")
    images = (item["vid_name"],)
    about: dict[str, Any] = {key: item[key] for key in ("vid_name", "ts") if key in item}
    if split == "train":
        return [
            VLRecord(index + i, item["clip_id"], text, images, (sentence,), (1.0,), [sentence], about=about)
            for i, sentence in enumerate(sentences)
        ]
    shown, weights = tuple(sentences[:1]), (1.0,) if sentences else ()
    return [VLRecord(index, item["clip_id"], text, images, shown, weights, sentences or None, about=about)]


def _subtitles(file: Path) -> dict[str, str]:
    """Video -> its subtitles in one line."""
    said: dict[str, str] = {}
    for number, item in enumerate(read_records(file, LAYOUT, ("vid_name", "sub"))):
        with reading(file, number, item):
            said[words(item, "vid_name")] = " ".join(words(line, "text").strip() for line in item["sub"])
    return said
