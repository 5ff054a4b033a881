"""Tables of the benchmarks: their columns and averages, what is blank, and what never shares a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replora.cli.main import main
from replora.datasets.vtab.dataset import VTAB_TASKS
from replora.reports.grouping import MixedTracksError, group_runs
from replora.reports.report import write_report
from replora.reports.sections.benchmarks import benchmark_section
from tests.reports.fake_results import result, row, table, write

VIT_B = "vit_base_patch16_224.orig_in21k"


def with_backbone(content: dict[str, Any], name: str = VIT_B) -> dict[str, Any]:
    return {**content, "backbone": {**content["backbone"], "name": name}}


def vtab(method: str, scores: dict[str, float], track: str = "archive") -> list[dict[str, Any]]:
    return [
        with_backbone(
            result(method, score, data={"dataset": "VTAB", "task": task, "track": track, "protocol": "final"})
        )
        for task, score in scores.items()
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"backbone": {"name": "vit_nano"}}, "ViT-B/16 at 224 pixels, these runs of vit_nano"),
        ({"data": {"image_size": 32}}, "at 32"),
        ({"data": {"train_fraction": 0.3}}, "these runs of parts of it"),
    ],
)
def test_published_rows_stand_only_beside_their_setting(change: dict[str, Any], reason: str) -> None:
    (run,) = vtab("LoRA", {"cifar": 0.5})
    run = {**run, **{key: {**run[key], **value} for key, value in change.items()}}
    (group,) = group_runs([run])
    blocks = benchmark_section(group, "")
    assert "vtab_published" not in {getattr(block, "name", "") for block in blocks}
    assert any(reason in getattr(block, "text", "") for block in blocks)


def test_a_custom_task_has_no_blank_table_of_the_benchmark() -> None:
    (group,) = group_runs(vtab("LoRA", {"my_task": 0.5}))
    assert benchmark_section(group, "") == []


def benchmark(contents: list[dict[str, Any]]) -> dict[str, Any]:
    (group,) = group_runs(contents)
    return {block.name: block for block in benchmark_section(group, "") if hasattr(block, "rows")}


def test_vtab_has_nineteen_columns_and_both_averages():
    """Natural 0.7, specialised 0.8, structured 0.5: groups 66.67, tasks (7 * 70 + 4 * 80 + 8 * 50) / 19 = 63.68."""
    by_group = {"natural": 0.7, "specialized": 0.8, "structured": 0.5}
    whole = vtab("LoRA", {task.name: by_group[str(task.group)] for task in VTAB_TASKS.values()})
    missing = vtab("RepLoRA", {"cifar": 0.9})
    tables = benchmark([*whole, *missing])
    ours = tables["vtab_part_1"]
    assert list(ours.columns[1:20]) == list(VTAB_TASKS)
    assert ours.columns[-2:] == ["mean of group means", "mean of 19 tasks"]
    assert ours.rows[0][-5:] == ["70.00", "80.00", "50.00", "66.67", "63.68"]
    assert ours.rows[1] == ["RepLoRA", "90.0", *[""] * 23], "missing runs are blanks"


def test_seeds_that_are_missing_from_a_benchmark_show():
    """Two seeds of every task, but one of DTD: n = 1 there, in its group and in both averages."""
    scores = {task.name: 0.5 for task in VTAB_TASKS.values()}
    second = [content for content in vtab("LoRA", scores) if content["data"]["task"] != "dtd"]
    for content in second:
        content["sweep"]["seed"] = 1
    row = benchmark([*vtab("LoRA", scores), *second])["vtab_part_1"].rows[0]
    assert row[1 + list(VTAB_TASKS).index("dtd")] == "50.0 (n=1)"
    assert row[1] == "50.0"
    assert row[-5:] == ["50.00 (n=1)", "50.00", "50.00", "50.00 (n=1)", "50.00 (n=1)"]


def test_published_rows_stand_apart_with_their_source():
    tables = benchmark(vtab("LoRA", {"cifar": 0.5}))
    published = {line[0]: line for line in tables["vtab_published"].rows}
    # The two averages that are in use for NOAH's LoRA row.
    assert published["LoRA-8"][-4:-2] == ["74.60", "72.25"]
    assert "VPT-Deep" not in published, "that is of the other track"
    assert all(line[-1] for line in published.values())
    assert [line[0] for line in tables["vtab_part_1"].rows] == ["LoRA"]
    clean = benchmark(vtab("LoRA", {"cifar": 0.5}, track="clean"))["vtab_published"].rows
    assert {line[0]: line[-4] for line in clean}["full fine-tuning"] == "68.97"


def test_tracks_are_never_mixed(tmp_path, capsys):
    contents = [*vtab("LoRA", {"cifar": 0.5}), *vtab("RepLoRA", {"cifar": 0.6}, track="clean")]
    with pytest.raises(MixedTracksError, match="cannot be in one table"):
        group_runs(contents)
    write(tmp_path / "runs", contents)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "runs"), f"--out={tmp_path / 'out'}"])
    assert "Make a table for each track" in capsys.readouterr().err


def test_fgvc_has_five_columns():
    tasks = ("cub_200_2011", "nabirds", "oxford_flowers", "stanford_dogs", "stanford_cars")
    contents = [
        with_backbone(result("LoRA", score, data={"dataset": "FGVC", "task": task}))
        for task, score in zip(tasks, (0.8, 0.7, 0.9, 0.8, 0.6), strict=True)
    ]
    tables = benchmark(contents)
    assert tables["fgvc_part_1"].rows == [["LoRA", "80.0", "70.0", "90.0", "80.0", "60.0", "76.00"]]
    assert {line[0]: line[6] for line in tables["fgvc_published"].rows}["full fine-tuning"] == "88.54"


def test_one_run_tested_on_several_tasks(tmp_path):
    content = result("LoRA", None, data={"dataset": "Commonsense", "preset": "cloze", "task": "commonsense"})
    content["test"]["metrics"] = {"test/acc": 0.3, "test/acc_norm": 0.55, "test/acc_norm/boolq": 0.5}
    content["test"]["metrics"] |= {"test/acc_norm/piqa": 0.6, "test/acc/boolq": 0.1}
    rows = benchmark([content])["commonsense_part_1"].rows
    assert rows == [["LoRA", "50.0", "60.0", *[""] * 7]]
    write_report([write(tmp_path / "runs", [content])], tmp_path / "out")
    assert row(tmp_path / "out", "size", method="LoRA")["100 % (800)"] == "55.0"


def multimodal(dataset: str, tasks: dict[str, float], **data: Any) -> dict[str, Any]:
    """A run on several tasks of vision and language with metrics of their own, each score in `tasks`."""
    from replora.datasets.vision_language.tasks import VL_TASKS

    described = {"dataset": dataset, "task": "-".join(tasks), "tasks": list(tasks), "train_indices": None, **data}
    content = result("RepLoRA", None, data=described, sweep=None)
    stage, verb = ("val", "fit") if dataset == "VideoText" else ("test", "test")
    metrics = {f"{stage}/{VL_TASKS[task].metric}/{task}": score for task, score in tasks.items()}
    metrics |= {f"{stage}/score": sum(tasks.values()) / len(tasks), f"{stage}/label_score/vqa": 0.9}
    content[verb]["metrics"] = metrics
    if dataset == "VideoText":
        del content["test"]
    return content


def test_captions_count_in_the_mean_of_all_tasks(tmp_path):
    """(70 + 60 + 110) / 3 = 80: the run's own `score`, not the mean of the accuracies, 65."""
    content = multimodal("ImageText", {"vqa": 0.7, "nlvr2": 0.6, "coco": 1.1})
    assert content["test"]["metrics"]["test/score"] == pytest.approx(0.8)
    write_report([write(tmp_path / "runs", [content])], tmp_path / "out")
    out = tmp_path / "out"
    assert row(out, "size", method="RepLoRA")["100 %"] == "80.0"
    by_task = {line["task"]: line["100 %"] for line in table(out, "size_tasks")}
    assert by_task == {"coco": "110.0", "nlvr2": "60.0", "vqa": "70.0"}
    assert "Test score in %" in (out / "report.md").read_text()
    line = row(out, "runs", method="RepLoRA")
    assert (line["metric"], float(line["test"])) == ("score", pytest.approx(0.8))


def test_videos_have_a_table_of_validation_scores(tmp_path):
    tasks = {"tvqa": 0.5, "yc2c": 0.9}
    contents = [multimodal("VideoText", tasks, protocol="tune"), multimodal("VideoText", tasks, protocol="tune")]
    contents[1]["fit"] |= {"seed": 1, "metrics": {**contents[1]["fit"]["metrics"], "val/cider/yc2c": 1.1}}
    write_report([write(tmp_path / "runs", contents)], tmp_path / "out")
    out = tmp_path / "out"
    found = row(out, "validation", method="RepLoRA")
    assert found == {
        "method": "RepLoRA",
        "size": "100 %",
        "tvqa": "50.0 ± 0.0 (n=2)",
        "yc2c": "100.0 ± 127.1 (n=2)",
        "mean of all tasks": "75.0 ± 63.5 (n=2)",
    }
    assert not (out / "size.csv").exists(), "nothing is called a test"
    assert "Validation scores, not test scores" in (out / "report.md").read_text()


CLIPS = {"num_frames": 8, "sampling": "dense"}


def hmdb51(split: int, score: float, skipped: float = 0.0, method: str = "LoRA", **options) -> dict[str, Any]:
    data = {"dataset": "HMDB51", "task": "hmdb51", "protocol": "final", "official_split": split, "recipe": "v_petl"}
    content = result(method, score, sweep=None, data=data | {"clips": CLIPS} | options.pop("data", {}), **options)
    content["test"]["metrics"]["test/skipped"] = skipped
    return content


def test_splits_of_hmdb51_are_no_seeds(tmp_path):
    contents = [hmdb51(split, 0.5 + split / 10, seed=seed) for split in (1, 2, 3) for seed in (0, 1)]
    contents += [hmdb51(1, 0.2, data={"recipe": "tuned"}), hmdb51(2, 0.1, data={"recipe": "tuned"})]
    assert len(group_runs(contents)) == 5
    own_rate = hmdb51(1, 0.5, method="DoRA", data={"recipe": "v_petl, changed: optimizer.lr"})
    assert len(group_runs([*contents, own_rate])) == 5  # the rate is a choice for each method
    contents = [with_backbone(content, "swin3d_b") for content in contents]
    write_report([write(tmp_path / "runs", contents)], tmp_path / "out")
    ours = row(tmp_path / "out", "hmdb51", recipe="v_petl")
    assert (ours["seeds"], ours["split 1"], ours["mean of three splits"]) == ("2", "60.00", "70.00")
    other = row(tmp_path / "out", "hmdb51", recipe="tuned")
    assert (other["split 1"], other["mean of three splits"]) == ("", "")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "tuned, seed 0: There are results of the splits 1, 2." in text
    assert "## HMDB51, swin3d_b, split 3" in text
    assert "clips (num_frames 8, sampling dense)" in text
    published = row(tmp_path / "out", "videos_published_1", method="LoRA")
    assert (published["parameters"], published["HMDB51"]) == ("0.75M", "62.12")


def test_skipped_videos_are_told_and_never_pooled(tmp_path):
    contents = [hmdb51(1, 0.5, seed=0), hmdb51(1, 0.6, seed=1, skipped=2.0)]
    assert [len(group.runs) for group in group_runs(contents)] == [1, 1]
    write_report([write(tmp_path / "runs", contents)], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert text.count("Left out because they cannot be decoded: 0 of train, 2 of test. They are in no accuracy.") == 1
    found = {(run["official_split"], run["test_skipped"]) for run in table(tmp_path / "out", "runs")}
    assert found == {("1", "0.0"), ("1", "2.0")}


def test_every_published_row_has_its_source():
    file = Path(__file__).parents[2] / "replora" / "reports" / "sections" / "published.json"
    tables = json.loads(file.read_text("utf-8"))
    columns = {"vtab": 19, "fgvc": 5, "commonsense": 8, "videos": 2}
    for name, count in columns.items():
        for published in tables[name]["tables"]:
            for line in published["rows"]:
                values = list(line["averages"].values()) if "averages" in line else line["accuracies"]
                assert len(values) == (1 if "averages" in line else count)
                assert line["source"]
                assert all(0 < value < 100 for value in values)


def test_captions_of_two_tokenizers_share_no_table():
    contents = [multimodal("ImageText", {"coco": 1.1}) for _ in range(2)]
    for content, name in zip(contents, ("ptb_java", "approximate"), strict=True):
        content["test"]["caption_tokenizer"] = name
    assert len(group_runs(contents)) == 2
