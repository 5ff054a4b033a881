"""The eight vision-and-language tasks in the layouts of VL-Adapter and VALUE, with few records and random features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from replora.datasets.vision_language.features import write_h5, write_npz

SIZES = {"train": 8, "val": 3, "test": 3}
COLORS = ["red", "blue", "green", "black"]


def write_image_text(root: Path, size: int = 6, tokens: int = 49) -> Path:
    """VQAv2, GQA, NLVR2 and COCO."""
    random = np.random.default_rng(0)

    def images(home: str, names: list[str]) -> None:
        for name in names:
            file = root / home / "clip_features" / "data_clip_RN101_att" / f"{name}.h5"
            if not file.exists():
                write_h5(file, name, random.normal(size=(tokens, size)).astype(np.float32))

    coco: list[dict[str, Any]] = []
    annotations = []
    for split, name in (("train", "train"), ("val", "val"), ("test", "test")):
        questions = []
        for i in range(SIZES[split]):
            home = "train2014" if split == "train" else "val2014"
            image = f"COCO_{home}_{len(coco):012}"
            number = 1000 * len(coco) + i
            color = COLORS[i % 4]
            scores = {color: 1.0, "dark " + color: 0.3}
            questions.append(
                {"img_id": image, "question_id": number, "sent": f"What color is bus {i}?", "label": scores}
                | {"answer_type": "other", "question_type": "what color"}
            )
            answers = [{"answer": color, "answer_id": k} for k in range(9)] + [{"answer": "dark", "answer_id": 9}]
            annotations.append({"question_id": number, "answers": answers})
            sentences = [{"raw": f" A {color} bus number {k}. "} for k in range(5)]
            kept = "restval" if split == "train" and i % 2 else split
            coco.append({"filename": f"{image}.jpg", "cocoid": len(coco), "split": kept, "sentences": sentences})
        _json(root / "vqa" / f"karpathy_{name}.json", questions)
    _json(root / "vqa" / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    _json(root / "COCO" / "dataset_coco.json", {"images": coco})
    images("COCO", [item["filename"].removesuffix(".jpg") for item in coco])

    for name, count in (("train", 5), ("valid", 3), ("testdev", 3), ("submit", 2)):
        names = [f"{name}{i}" for i in range(count)]
        rows = [
            {"img_id": image, "question_id": f"0{i}", "sent": f"Is it {COLORS[i % 4]}?", "label": {"yes": 1.0}}
            for i, image in enumerate(names)
        ]
        if name == "submit":
            rows = [{key: value for key, value in row.items() if key != "label"} for row in rows]
        _json(root / "GQA" / f"{name}.json", rows)
        images("GQA" if name in ("testdev", "submit") else "VG", names)

    for name, count in (("train", 8), ("valid", 4), ("test", 4)):
        rows = [
            {
                "identifier": f"{name}-{i // 2}-{i % 2}-0",
                "img0": f"{name}-{i}-img0",
                "img1": f"{name}-{i}-img1",
                "label": i % 2,
                "sent": f"One image shows {i} dogs.",
                "uid": f"nlvr2_{name}_{i}",
            }
            for i in range(count)
        ]
        _json(root / "nlvr" / f"{name}.json", rows)
        images("nlvr", [row[key] for row in rows for key in ("img0", "img1")])
    return root


def write_video_text(root: Path, size: int = 6) -> Path:
    """TVQA, How2QA, TVC and YC2C; the test splits have no answers."""
    random = np.random.default_rng(1)
    annotations = root / "video" / "ann"
    lengths = {"short": 5, "exact": 64, "long": 100}
    for channel in ("tv", "how2", "yc2"):
        subtitles = []
        for name, length in lengths.items():
            video = f"{channel}_{name}"
            file = root / "video" / "vis_features" / channel / "clip-vit" / f"{video}.npz"
            write_npz(file, random.normal(size=(length, size)).astype(np.float32))
            lines = [{"text": " Hello there. ", "start": 0.0, "end": 1.5}, {"text": "Bye.", "start": 2.0, "end": 3.0}]
            subtitles.append({"vid_name": video, "sub": lines})
        _lines(annotations / f"{channel}_subtitles.jsonl", subtitles)

    def video_of(channel: str, i: int) -> str:
        return f"{channel}_{list(lengths)[i % 3]}"

    for task, channel, choices, names in (
        ("tvqa", "tv", 5, ("tvqa_train", "tvqa_val", "tvqa_test_public")),
        ("how2qa", "how2", 4, ("how2qa_train_release", "how2qa_val_release", "how2qa_test_public_release")),
    ):
        for name, split in zip(names, SIZES, strict=True):
            rows = []
            for i in range(SIZES[split]):
                row: dict[str, Any] = {
                    "qid": 100 + i,
                    "q": " Who speaks? ",
                    "ts": "1.5-3",
                    "vid_name": video_of(channel, i),
                }
                row |= {f"a{k}": f"Person {k}." for k in range(choices)} | {"show_name": "Friends"}
                rows.append(row if split == "test" else row | {"answer_idx": i % choices})
            _lines(annotations / task / f"{name}.jsonl", rows)
    for task, channel, count in (("tvc", "tv", {"train": 2, "val": 4}), ("yc2c", "yc2", {"train": 1, "val": 1})):
        for split in SIZES:
            rows = []
            for i in range(SIZES[split]):
                row = {"vid_name": video_of(channel, i), "duration": 60.0, "clip_id": 500 + i}
                row |= {"ts": [5.8, 8.24]} if task == "tvc" else {}
                sentences = [f"A {COLORS[i % 4]} cook {k} stirs." for k in range(count.get(split, 0))]
                descs = [{"desc": text, "desc_id": 10 * i + k, "type": "v"} for k, text in enumerate(sentences)]
                rows.append(row | ({"descs": descs} if descs else {}))
            _lines(annotations / task / f"{task}_{split}_release.jsonl", rows)
    return root


def _json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def _lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
