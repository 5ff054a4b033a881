"""Files of predictions in the formats of the benchmarks' scorers and servers.

vqa      [{"question_id": 1, "answer": "yes"}]                      visualqa.org, EvalAI
gqa      [{"questionId": "1", "prediction": "yes"}]                 the GQA challenge
nlvr2    test1-0-1-0,True                                           nlvr2/eval/metrics.py
coco     [{"image_id": 1, "caption": "a dog"}]                      COCO
tvqa, how2qa     {"<question id>": 3}                               VALUE; an answer without a choice becomes 0
tvc, yc2c        {"vid_name": ..., "clip_id": 1, "ts": [0, 1], "descs": [{"desc": "..."}]}, one line per clip
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from replora.datasets.vision_language.tasks import VLRecord, VLTask
from replora.io import replace_text
from replora.metrics.vision_language import chosen


def write_submission(
    folder: Path, task: VLTask, split: str, records: Sequence[VLRecord], answers: Mapping[int, str]
) -> Path:
    """Write the answers of a task, one for each record that has one, in the records' order.

    Args:
        folder: Directory of the file; it is created if it does not exist.
        task: The task.
        split: Part of the file's name, as VALUE calls its files: `tvc_val_predictions.jsonl`.
        records: The records of the split.
        answers: Index of a record -> answer of the model.

    Raises:
        OSError: The file cannot be written; an earlier file is unchanged.
    """
    pairs = [(record, answers[record.index]) for record in records if record.index in answers]
    name = f"{task.name}_{split}_predictions"
    if task.kind == "nlvr2":
        lines = [f"{record.id},{'True' if text == 'true' else 'False'}" for record, text in pairs]
        return _write(folder / f"{name}.csv", "\n".join(lines) + "\n")
    if task.kind == "caption" and task.video:
        clips = [{**record.about, "clip_id": record.id, "descs": [{"desc": text}]} for record, text in pairs]
        return _write(folder / f"{name}.jsonl", "".join(json.dumps(clip, ensure_ascii=False) + "\n" for clip in clips))
    content: object
    if task.kind == "vqa":
        content = [{"question_id": record.id, "answer": text} for record, text in pairs]
    elif task.kind == "gqa":
        content = [{"questionId": record.id, "prediction": text} for record, text in pairs]
    elif task.kind == "choice":
        content = {str(record.id): chosen(text) or 0 for record, text in pairs}
    else:
        content = [{"image_id": record.id, "caption": text} for record, text in pairs]
    return _write(folder / f"{name}.json", json.dumps(content, ensure_ascii=False))


def _write(file: Path, text: str) -> Path:
    replace_text(file, text)
    return file
