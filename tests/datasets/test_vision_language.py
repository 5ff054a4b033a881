from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from replora.datasets.errors import DatasetNotFoundError, RecordError, UnknownTaskError
from replora.datasets.vision_language import image_text, video_text
from replora.datasets.vision_language.demo import SCENES, WORDS, DemoFeatures, demo_records, demo_scenes
from replora.datasets.vision_language.features import FeatureError, FeatureFolder, resized, write_h5, write_npz
from replora.datasets.vision_language.image_text import image_text_records
from replora.datasets.vision_language.tasks import VL_TASKS, VLDataset, VLRecord, vl_task, with_prompt
from replora.datasets.vision_language.video_text import video_text_records
from replora.metrics import caption_tokenizer, score_answers
from tests.fake_vl import write_image_text, write_video_text


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_video_text(write_image_text(tmp_path_factory.mktemp("vl")))


def text_of(task, record):
    return with_prompt(VL_TASKS[task], record.text, "vl_adapter")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("vqa", "vqa: What color is bus 0?"),
        ("gqa", "gpa: Is it red?"),
        ("nlvr2", "nlvr: One image shows 0 dogs."),
        ("coco", "caption: "),
    ],
)
def test_prompts_of_image_tasks(root, task, expected):
    """Byte for byte VL-Adapter's, its spelling `gpa` included."""
    record = image_text_records(root, task, "train")[0]
    assert text_of(task, record) == expected
    assert with_prompt(VL_TASKS[task], record.text, "none") == expected.partition(": ")[2]


CHOICES = "a0: Person 0. a1: Person 1. a2: Person 2. a3: Person 3."


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("tvqa", f"[Subs] Hello there. Bye. [Q] Who speaks? [TS] (1.5-3) [Choices] {CHOICES} a4: Person 4. tvqa: "),
        ("how2qa", f"[Subs] Hello there. Bye. [Q] Who speaks? [TS] (1.5-3) [Choices] {CHOICES} how2qa: "),
        ("tvc", "[Subs] Hello there. Bye. [TS] ([5.8, 8.24]) tvc: "),
        ("yc2c", "[Subs] Hello there. Bye. yc2c: "),
    ],
)
def test_texts_of_video_tasks(root, task, expected):
    assert text_of(task, video_text_records(root, task, "train")[0]) == expected


def test_records_of_each_split(root):
    sizes = {
        task: [len(image_text_records(root, task, split)) for split in ("train", "val", "test")]
        for task in ("vqa", "gqa", "nlvr2", "coco")
    }
    # GQA trains on train and valid; COCO has five captions an image in training, restval among it.
    assert sizes == {"vqa": [8, 3, 3], "gqa": [8, 3, 3], "nlvr2": [8, 4, 4], "coco": [40, 3, 3]}
    sizes = {
        task: [len(video_text_records(root, task, split)) for split in ("train", "val", "test")]
        for task in ("tvqa", "how2qa", "tvc", "yc2c")
    }
    assert sizes == {"tvqa": [8, 3, 3], "how2qa": [8, 3, 3], "tvc": [16, 3, 3], "yc2c": [8, 3, 3]}


def test_what_is_compared_with(root):
    vqa = image_text_records(root, "vqa", "val")[0]
    assert vqa.truth["answers"] == ["red"] * 9 + ["dark"]
    assert vqa.truth["scores"] == {"red": 1.0, "dark red": 0.3}
    coco = image_text_records(root, "coco", "val")[0]
    assert coco.truth == [f"A red bus number {k}." for k in range(5)]
    assert image_text_records(root, "coco", "train")[1].answers == ("A red bus number 1.",)
    nlvr2 = image_text_records(root, "nlvr2", "val")[1]
    assert (nlvr2.truth, nlvr2.answers, nlvr2.images) == (True, ("true",), ("valid-1-img0", "valid-1-img1"))
    tvc = video_text_records(root, "tvc", "val")[0]
    assert (len(tvc.truth), tvc.id, tvc.about) == (4, 500, {"vid_name": "tv_short", "ts": [5.8, 8.24]})
    assert video_text_records(root, "how2qa", "val")[1].answers == ("a1",)
    for task in ("tvqa", "tvc"):
        hidden = video_text_records(root, task, "test")[0]
        assert (hidden.truth, hidden.answers) == (None, ())


def test_folders_of_features(root):
    assert image_text.feature_folder(root, "gqa", "train").parts[-3] == "VG"
    assert image_text.feature_folder(root, "gqa", "val").parts[-3] == "GQA"
    assert image_text.feature_folder(root, "vqa", "test") == image_text.feature_folder(root, "coco", "train")
    assert video_text.feature_folder(root, "tvc") == video_text.feature_folder(root, "tvqa")


def test_answers_are_drawn_in_proportion(root):
    record = VLRecord(0, 1, "q", ("COCO_train2014_000000000000",), ("a", "b", "c"), (0.9, 0.3, 0.0))
    features = FeatureFolder(image_text.feature_folder(root, "vqa", "train"), 6)
    data = VLDataset(vl_task("vqa"), [record], features, "vl_adapter", seed=3)
    drawn = [data.sample(0, epoch) for epoch in range(400)]
    counts = {answer: sum(sample["target"] == answer for sample in drawn) for answer in "abc"}
    assert counts["a"] / 400 == pytest.approx(0.75, abs=0.07)
    assert counts["c"] == 0
    assert {sample["weight"] for sample in drawn if sample["target"] == "b"} == {0.3}
    again = VLDataset(vl_task("vqa"), [record], features, "vl_adapter", seed=3)
    assert [again.sample(0, epoch)["target"] for epoch in range(20)] == [sample["target"] for sample in drawn[:20]]
    none = VLDataset(vl_task("vqa"), [VLRecord(0, 1, "q", record.images, (), ())], features, "vl_adapter", 0).sample(0)
    assert (none["target"], none["weight"]) == ("", 0.0)


def test_two_images_a_sample(root):
    features = FeatureFolder(image_text.feature_folder(root, "nlvr2", "train"), 6)
    data = VLDataset(vl_task("nlvr2"), image_text_records(root, "nlvr2", "train"), features, "vl_adapter", 0)
    sample = data[2]
    assert sample["features"].shape == (2, 49, 6)
    assert torch.equal(sample["features"][1], features.read("train-2-img1"))


def test_videos_get_64_vectors():
    video = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized(video[:5], 64), torch.cat([video[:5], torch.zeros(59, 3)]))
    assert torch.equal(resized(video[:64], 64), video[:64])
    long = resized(video, 64)
    assert long.shape == (64, 3)
    assert torch.equal(long[0], video[:2].amax(0)), "cell i covers floor(100 i / 64) to ceil(100 (i + 1) / 64)"


def test_features_that_are_missing_or_wrong(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="prepare clip-features"):
        FeatureFolder(tmp_path / "none", 4)
    write_npz(tmp_path / "a.npz", np.ones((3, 4), np.float32))
    write_h5(tmp_path / "b.h5", "b", np.ones((3, 5), np.float32))
    write_h5(tmp_path / "c.h5", "other", np.ones((3, 4), np.float32))
    (tmp_path / "d.npz").write_bytes(b"PK damaged")
    np.savez(tmp_path / "e.npz", features=np.array([{}], dtype=object))
    folder = FeatureFolder(tmp_path, 4)
    assert folder.read("a").shape == (3, 4)
    with pytest.raises(FeatureError, match=r"1 files of features are missing .*: z"):
        folder.check_names(["a", "z"])
    with pytest.raises(FeatureError, match=r"shape \(3, 5\), but \(n, 4\) was expected"):
        folder.read("b")
    for name in "cde":
        with pytest.raises(FeatureError, match=f"{name}\\.(h5|npz) is corrupt"):
            folder.read(name)


def test_errors_name_file_and_record(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"karpathy_train\.json"):
        image_text_records(tmp_path, "vqa", "train")
    file = tmp_path / "nlvr" / "train.json"
    file.parent.mkdir()
    row = {"identifier": "train-0-0-0", "img0": "a", "img1": "b", "label": 2, "sent": "s"}
    file.write_text(json.dumps([row]))
    with pytest.raises(RecordError, match=r"train\.json, record 0: the label 2"):
        image_text_records(tmp_path, "nlvr2", "train")
    del row["img1"]
    file.write_text(json.dumps([row]))
    with pytest.raises(RecordError, match=r"record 0: 'img1' is missing"):
        image_text_records(tmp_path, "nlvr2", "train")
    file.write_text("[")
    with pytest.raises(RecordError, match="corrupt"):
        image_text_records(tmp_path, "nlvr2", "train")
    with pytest.raises(UnknownTaskError, match="Did you mean 'vqa'"):
        vl_task("vqav2")


def test_the_first_file_is_read_before_the_training_and_sets_the_shape(tmp_path):
    for name, shape in (("a", (3, 4)), ("b", (2, 4))):
        write_npz(tmp_path / f"{name}.npz", np.ones(shape, np.float32))
    with pytest.raises(FeatureError, match=r"a\.npz holds features of shape \(3, 4\), but \(n, 5\)"):
        FeatureFolder(tmp_path, 5).check_names("ba")
    with pytest.raises(FeatureError, match=r"a\.npz holds features of shape \(3, 4\), but \(49, 4\)"):
        FeatureFolder(tmp_path, 4, count=49).check_names("ab")
    images = FeatureFolder(tmp_path, 4)
    images.check_names("ab")
    with pytest.raises(FeatureError, match=r"b\.npz holds features of shape \(2, 4\), but \(3, 4\)"):
        images.read("b")
    videos = FeatureFolder(tmp_path, 4, frames=8)
    videos.check_names("ab")
    assert videos.read("b").shape == (8, 4)


def broken(root, tmp_path, name, change, number=0, of=None):
    """A copy of the annotations in which `change` has been made to a record of a file."""
    copy = tmp_path / "data"
    ignored = shutil.ignore_patterns("clip_features", "vis_features")
    shutil.copytree(root, copy, ignore=ignored)
    file = copy / name
    text = file.read_text()
    content = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    change((content[of] if of else content)[number])
    dumped = json.dumps(content) if file.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in content)
    file.write_text(dumped)
    return copy


TVQA, TVC, SUBTITLES = "video/ann/tvqa/tvqa_train.jsonl", "video/ann/tvc/tvc_train_release.jsonl", "tv_subtitles.jsonl"
COCO, HUMAN = "COCO/dataset_coco.json", "vqa/v2_mscoco_val2014_annotations.json"


@pytest.mark.parametrize(
    ("task", "split", "name", "change", "message"),
    [
        ("tvqa", "train", TVQA, lambda row: row.update(answer_idx=9), "'answer_idx' is 9, but the choices are 0 to 4"),
        ("tvqa", "train", TVQA, lambda row: row.update(answer_idx=-1), "'answer_idx' is -1"),
        ("tvqa", "train", TVQA, lambda row: row.update(answer_idx="x"), "invalid literal"),
        ("tvqa", "train", TVQA, lambda row: row.pop("answer_idx"), "'answer_idx' is missing"),
        ("tvqa", "train", TVQA, lambda row: row.update(a0=None), "'a0' is None, not a string"),
        ("tvqa", "train", TVQA, lambda row: row.pop("a3"), "'a3' is missing"),
        ("tvqa", "train", TVQA, lambda row: row.update(q=3), "'q' is 3, not a string"),
        ("tvqa", "train", f"video/ann/{SUBTITLES}", lambda row: row["sub"][0].pop("text"), "'text' is missing"),
        ("tvc", "train", TVC, lambda row: row["descs"][0].pop("desc"), "'desc' is missing"),
        ("tvc", "train", TVC, lambda row: row.update(descs=[]), "no description"),
        ("tvc", "train", TVC, lambda row: row.pop("ts"), "'ts' is missing"),
        ("vqa", "train", "vqa/karpathy_train.json", lambda row: row.update(label=["red"]), "no attribute 'items'"),
        ("vqa", "train", "vqa/karpathy_train.json", lambda row: row.update(label={"red": -2}), r"score -2.0"),
        ("vqa", "train", "vqa/karpathy_train.json", lambda row: row.update(question_id="q1"), "invalid literal"),
        ("gqa", "train", "GQA/train.json", lambda row: row.update(label={"yes": None}), "NoneType"),
        ("nlvr2", "train", "nlvr/train.json", lambda row: row.update(sent=None), "'sent' is None"),
        ("coco", "train", COCO, lambda row: row.update(sentences=[]), "'sentences' is empty"),
        ("coco", "train", COCO, lambda row: row["sentences"][0].pop("raw"), "'raw' is missing"),
        ("vqa", "val", HUMAN, lambda row: row["answers"][0].pop("answer"), "'answer' is missing"),
    ],
)
def test_what_a_record_lacks_is_said_with_file_and_record(root, tmp_path, task, split, name, change, message):
    of = {COCO: "images", HUMAN: "annotations"}.get(name)
    copy = broken(root, tmp_path, name, change, of=of)
    records = video_text_records if VL_TASKS[task].video else image_text_records
    with pytest.raises(RecordError, match=rf"{Path(name).name}, record 0: .*{message}"):
        records(copy, task, split)


def test_files_that_are_damaged_or_of_another_form(root, tmp_path):
    copy = broken(root, tmp_path, f"video/ann/{SUBTITLES}", dict.copy)
    file = copy / "video" / "ann" / SUBTITLES
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:-4]]))
    with pytest.raises(RecordError, match=r"tv_subtitles\.jsonl, line 2 is corrupt"):
        video_text_records(copy, "tvqa", "train")
    file.write_bytes(b'{"vid_name": "\xff\xfe"}\n')
    with pytest.raises(RecordError, match=r"tv_subtitles\.jsonl is not UTF-8 text \('utf-8' codec"):
        video_text_records(copy, "tvqa", "train")
    (copy / COCO).write_text("[]")
    with pytest.raises(RecordError, match=r"dataset_coco\.json has no list 'images'"):
        image_text_records(copy, "coco", "train")


def test_line_breaks_of_unicode_inside_a_string_are_text(root, tmp_path):
    copy = broken(root, tmp_path, f"video/ann/{SUBTITLES}", dict.copy)
    file = copy / "video" / "ann" / SUBTITLES
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["sub"][0]["text"] = "Hello\u2028there\x85 all"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert "Hello\u2028there\x85 all" in video_text_records(copy, "tvqa", "train")[0].text


def test_human_answers_are_needed_for_the_metric(root, tmp_path):
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa" / "karpathy_val.json").write_bytes((root / "vqa" / "karpathy_val.json").read_bytes())
    with pytest.raises(DatasetNotFoundError, match="v2_mscoco_val2014_annotations"):
        image_text_records(tmp_path, "vqa", "val")


def test_demo_scenes(monkeypatch):
    monkeypatch.setitem(SCENES, "train", 200)
    monkeypatch.setitem(SCENES, "val", 40)
    train, val = (demo_scenes.__wrapped__(split) for split in ("train", "val"))
    assert not set(train.values()) & set(val.values())
    assert demo_scenes.__wrapped__("val") == val
    questions = demo_records("vqa", "train", train)
    answers = {record.answers[0] for record in questions}
    assert {"yes", "no", "red", "circle"} <= answers
    words = {word for r in questions for word in f"{r.text} {r.answers[0]}".split() if word != "?"}
    captions = demo_records("coco", "train", train)
    words |= {word for record in captions for sentence in record.truth for word in sentence.split()}
    assert words <= set(WORDS)
    name, scene = next(iter(train.items()))
    features = DemoFeatures(train).read(name)
    assert features.shape == (16, 192)
    empty = [i for i in range(16) if divmod(i, 4) not in scene.cells]
    assert len(empty) == 14
    assert (features[empty] == -0.5).all()
    first, second = scene.cells
    assert ("left of" in scene.relations()) == (first[1] < second[1])
    assert ("above" in scene.relations()) == (first[0] < second[0])


def test_what_the_demo_scores_without_a_look():
    """The baselines of docs/vision_language.md: the most frequent answer to the same words, and one caption for all."""
    page = (Path(__file__).parents[2] / "docs" / "vision_language.md").read_text(encoding="utf-8")
    scenes = {split: demo_scenes(split) for split in ("train", "test")}
    questions, asked = (demo_records("vqa", split, scenes[split]) for split in ("train", "test"))
    by_words: dict[str, Counter[str]] = {}
    for record in questions:
        by_words.setdefault(record.text, Counter())[record.answers[0]] += 1
    assert {record.text for record in asked} <= set(by_words)
    answers = {record.index: by_words[record.text].most_common(1)[0][0] for record in asked}
    tokenizer = caption_tokenizer("approximate")
    accuracy = score_answers(VL_TASKS["vqa"], asked, answers, tokenizer)["accuracy"]
    captions, described = (demo_records("coco", split, scenes[split]) for split in ("train", "test"))
    common = Counter(record.answers[0] for record in captions).most_common(1)[0][0]
    said = {record.index: common for record in described}
    cider = score_answers(VL_TASKS["coco"], described, said, tokenizer)["cider"]
    assert f"without a look at the scene | {accuracy:.3f} | |" in page
    assert f"caption for every scene | | {cider:.2f} |" in page
