"""The commonsense benchmark through the command line, on a tiny LLaMA and generated questions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from replora.backbones.language import build_language_backbone, load_tokenizer
from replora.cli.main import main
from replora.datasets.text.commonsense import read_task
from replora.datasets.text.prompts import choice_items
from replora.evaluation import option_log_likelihoods
from replora.reports.sections.commonsense import commonsense_table
from replora.results import read_results, weights_source
from replora.runs import open_run
from tests.cli.test_distributed import run_process
from tests.cli.test_trainer_cli import refused
from tests.fake_data import write_commonsense
from tests.test_failures import TerminateAt, assert_equal_runs, callback, last
from tests.tiny_llama import write_tiny_llama

torch.set_num_threads(1)
# Odd numbers: of test questions, and of training texts, where the last batch of the second of two processes is padding.
SIZES = {"boolq": (13, 5), "ARC-Easy": (12, 6), "openbookqa": (12, 4)}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the data, and a LLaMA in `llama`."""
    home = tmp_path_factory.mktemp("commonsense")
    write_commonsense(home, SIZES)
    write_tiny_llama(home / "llama")
    return home


def options(home: Path, *more: str) -> list[str]:
    return [
        "--config=commonsense_smollm2.yaml",
        f"--model.backbone={home / 'llama'}",
        f"--data.root={home}",
        "--data.tasks=[boolq, ARC-Easy, openbookqa]",
        "--data.check_sizes=false",
        "--data.train_fraction=1.0",
        "--data.batch_size=4",
        "--data.eval_batch_size=4",
        "--model.dtype=fp32",
        "--model.adapter.rank=2",
        "--model.adapter.hidden=8",
        "--trainer.enable_progress_bar=false",
        *more,
    ]


@pytest.fixture(scope="module")
def finished(home):
    """A finished run of two epochs with its test."""
    main(["fit", *options(home), f"--run_dir={home / 'run'}"])
    return home / "run"


def test_export_and_merge_are_opened_by_stock_tools(finished, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    main(["export", str(finished), f"--out={tmp_path / 'peft'}"])
    main(["merge", str(finished), f"--out={tmp_path / 'merged'}"])
    ids = torch.tensor([[256, 40, 50, 60]])
    want = open_run(finished).model(ids).logits
    base = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"]
    base_model = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.allclose(base_model(ids).logits, want, atol=1e-3)
    adapted = PeftModel.from_pretrained(base_model, tmp_path / "peft").eval()
    torch.testing.assert_close(adapted(ids).logits, want, rtol=1e-5, atol=1e-5)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids).logits, want, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token == "<pad>"


def answers(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_fit_and_its_test(finished, home):
    content = read_results(finished)
    assert content["method"] == "replora"
    assert content["data"]["tokenizer"] == str(home / "llama")  # the data follow the model
    assert content["fit"]["steps"] == 2 * 10  # 37 texts
    test = content["test"]
    assert (weights_source(test), test["evaluation"]) == ("last epoch", "likelihood")
    assert {task: found["items"] for task, found in test["tasks"].items()} == {t: n for t, (_, n) in SIZES.items()}
    given = answers(finished)
    assert len(given) == 15
    for task, found in test["tasks"].items():
        right = [answer["right"] for answer in given if answer["task"] == task]
        assert found["acc"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    table = commonsense_table([finished])
    assert "Test questions: BoolQ 5, ARC-e 6, OBQA 4." in table


def llama_with(folder: Path, model: dict[str, int], tokenizer: dict[str, str | None]) -> str:
    """A LLaMA of other sizes, whose tokenizer's file has other entries; None removes one."""
    write_tiny_llama(folder, **model)
    file = folder / "tokenizer_config.json"
    given = json.loads(file.read_text()) | tokenizer
    file.write_text(json.dumps({name: value for name, value in given.items() if value is not None}))
    return f"--model.backbone={folder}"


FEWER = {"vocab_size": 200, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
MISFITS = [
    (FEWER, {}, "but {folder} has 200 embeddings"),
    ({"max_position_embeddings": 100}, {}, "but {folder} has 100 positions. Lower --data.cutoff"),
    ({}, {"eos_token": None, "pad_token": None}, "neither a padding nor an end token"),
]
MISFITS_OF_TRAINING = [
    ({}, {"pad_token": "[PADDING]"}, "token ids up to 260, but {folder} has 260 embeddings"),
    ({}, {"eos_token": None}, "The preset 'clean' ends a text with the tokenizer's end token"),
]


@pytest.mark.parametrize(
    ("verb", "model", "tokenizer", "message"),
    [
        *(("fit", *misfit) for misfit in MISFITS + MISFITS_OF_TRAINING),
        *((verb, *misfit) for verb in ("validate", "test") for misfit in MISFITS),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_named_before_training(
    tmp_path, home, capsys, verb, model, tokenizer, message
):
    backbone = llama_with(tmp_path / "llama", model, tokenizer)
    given = [*options(home, backbone, "--data.preset=clean", "--data.cutoff=1000", "--data.protocol=holdout")]
    given += [f"--run_dir={tmp_path / 'run'}", *([] if verb == "fit" else ["--ckpt_path=untrained"])]
    error = refused(capsys, verb, *given)
    assert message.format(folder=tmp_path / "llama") in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_test_of_the_run_gives_the_same(finished, home, tmp_path):
    main(
        [
            "test",
            f"--config={finished / 'fit.yaml'}",
            f"--run_dir={tmp_path}",
            f"--ckpt_path={finished}/checkpoints/last.ckpt",
        ]
    )
    assert answers(tmp_path) == answers(finished)
    main(["predict", f"--config={finished / 'fit.yaml'}"])
    assert answers(finished) == answers(tmp_path)
    opened = open_run(finished)
    assert opened.module.__name__ == "CausalLanguageModel"
    item = next(
        i for i in choice_items(load_tokenizer(str(home / "llama")), read_task(home, "boolq", "test", False), "cloze")
    )
    (scores,) = option_log_likelihoods(opened.model, [item.prompt_ids], [item.option_ids])
    (answer,) = [a for a in answers(finished) if (a["task"], a["index"]) == ("boolq", item.index)]
    assert answer["log_likelihoods"] == pytest.approx(scores, abs=1e-3)


def test_untrained_is_the_backbone(home, tmp_path):
    main(["test", *options(home), "--ckpt_path=untrained", f"--run_dir={tmp_path}"])
    content = read_results(tmp_path)
    assert weights_source(content["test"]) == "untrained"
    assert commonsense_table([tmp_path]).splitlines()[2].startswith("| untuned | 0 | 0 |")
    backbone = build_language_backbone(str(home / "llama")).model.eval()
    items = choice_items(load_tokenizer(str(home / "llama")), read_task(home, "openbookqa", "test", False), "cloze")
    for item in items:
        (scores,) = option_log_likelihoods(backbone, [item.prompt_ids], [item.option_ids])
        (answer,) = [a for a in answers(tmp_path) if (a["task"], a["index"]) == (item.task, item.index)]
        assert answer["log_likelihoods"] == pytest.approx(scores, abs=1e-3)


def test_untrained_weights_are_never_measured_by_accident(home, capsys):
    assert "--ckpt_path untrained" in refused(capsys, "test", *options(home))
    quickstart = ["test", "--config=quickstart.yaml", "--model.pretrained=false", "--ckpt_path=untrained"]
    assert "a new head of random weights" in refused(capsys, *quickstart)


def test_several_test_questions_at_most(home, tmp_path):
    main(["test", *options(home), "--ckpt_path=untrained", "--data.test_items=3", f"--run_dir={tmp_path}"])
    content = read_results(tmp_path)
    assert content["data"]["test_items"] == 3
    assert {found["items"] for found in content["test"]["tasks"].values()} == {3}


def test_options_are_chosen_on_held_out_training_records(home, tmp_path):
    tune = ["--data.protocol=tune", "--data.val_fraction=0.25", "--trainer.max_epochs=1"]
    main(["fit", *options(home, *tune), f"--run_dir={tmp_path}"])
    content = read_results(tmp_path)
    assert 0 <= content["fit"]["metrics"]["val/acc"] <= 1
    assert content["data"]["split_sizes"] == {"train": 28, "val": 9}
    assert "test" not in content


def test_the_lowest_validation_loss_is_kept_where_it_is_asked_for(home, tmp_path):
    """The lines of docs/commonsense.md: LLM-Adapters' choice among weights, by the loss of 120 held-out records."""
    write_commonsense(tmp_path, {"boolq": (136, 5)})
    run = tmp_path / "run"
    given = ["--data.protocol=holdout", "--data.validation=llm_adapters", "--trainer.val_check_interval=2"]
    given += ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss"]
    given += [f"--trainer.callbacks.dirpath={run / 'checkpoints'}", "--trainer.callbacks.filename=best"]
    given += ["--trainer.callbacks.save_on_train_epoch_end=false", "--data.tasks=[boolq]"]
    # A rate at which the last weights are not the best ones.
    main(["fit", *options(home, *given), f"--data.root={tmp_path}", "--model.optimizer.lr=0.3", f"--run_dir={run}"])
    losses = [row["val/loss"] for row in csv.DictReader((run / "logs/fit/metrics.csv").open()) if row["val/loss"]]
    lowest = min(map(float, losses))
    assert len(losses) == 4
    assert lowest < float(losses[-1])
    best = run / "checkpoints" / "best.ckpt"
    assert all(".replora." in name for name in torch.load(best, weights_only=True)["state_dict"])
    main(["validate", f"--config={run / 'fit.yaml'}", f"--ckpt_path={best}", f"--run_dir={tmp_path / 'val'}"])
    assert read_results(tmp_path / "val")["validate"]["metrics"]["val/loss"] == pytest.approx(lowest, abs=1e-5)
    main(["test", f"--config={run / 'fit.yaml'}", f"--ckpt_path={best}", f"--run_dir={tmp_path / 'test'}"])
    assert weights_source(read_results(tmp_path / "test")["test"]).startswith(str(best))


@pytest.mark.parametrize(("strategy", "preset"), [("ddp_cpu", "cloze"), ("fsdp", "llm_adapters")])
def test_two_processes_answer_like_one(home, tmp_path, strategy, preset):
    """Sharded, every process must call the model equally often, also while texts of different lengths are written."""
    common = options(home, f"--data.preset={preset}", "--trainer.max_epochs=1", "--model.max_new_tokens=6")
    main(["fit", *common, f"--run_dir={tmp_path / 'one'}"])
    cpu = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.precision=32-true"]
    two = [f"--config=trainer/{strategy}.yaml", *cpu, "--data.batch_size=2", f"--run_dir={tmp_path / 'two'}"]
    done = run_process(tmp_path, "fit", *common, *two)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Loading weights" not in done.stderr  # a log file has no progress bars of libraries
    assert "sync_dist" not in done.stderr  # what is logged is a metric over all processes
    one, both = read_results(tmp_path / "one"), read_results(tmp_path / "two")
    assert both["fit"]["devices"] == 2
    assert both["fit"]["steps"] == one["fit"]["steps"]
    assert both["fit"]["metrics"]["train/tokens"] == one["fit"]["metrics"]["train/tokens"]
    items = {task: found["items"] for task, found in both["test"]["tasks"].items()}
    assert items == {task: n for task, (_, n) in SIZES.items()}  # padding of the odd number is not counted
    given = answers(tmp_path / "two")
    assert [(a["task"], a["index"]) for a in given] == [(a["task"], a["index"]) for a in answers(tmp_path / "one")]
    if preset == "llm_adapters":
        assert both["test"]["evaluation"] == "generate"
        assert all(isinstance(answer["text"], str) for answer in given)


def test_13b_with_its_weights_shared_out(home, tmp_path):
    """As docs/commonsense.md gives it, on a LLaMA whose blocks are smaller than RepLoRA's MLPs of rank 32."""
    arguments = ["--config=commonsense_13b.yaml", "--config=trainer/fsdp.yaml", f"--model.backbone={home / 'llama'}"]
    arguments += [f"--data.root={home}", "--data.tasks=[boolq]", "--data.check_sizes=false", "--trainer.max_epochs=1"]
    arguments += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.enable_progress_bar=false"]
    done = run_process(tmp_path, "fit", *arguments, "--model.max_new_tokens=4", f"--run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr[-3000:]
    content = read_results(tmp_path / "run")
    assert content["fit"]["devices"] == 2
    assert content["parameters"]["adapter_trained"] > content["parameters"]["backbone"]
    assert content["test"]["tasks"]["boolq"]["items"] == SIZES["boolq"][1]


def test_a_run_that_is_stopped_inside_an_epoch_goes_on_exactly(home, finished, tmp_path):
    with pytest.raises(SystemExit):
        main(["fit", *options(home, *callback(TerminateAt, epoch=1, batch=2)), f"--run_dir={tmp_path}"])
    assert last(tmp_path)["global_step"] == 13
    main(["fit", *options(home), f"--run_dir={tmp_path}", "--ckpt_path=last"])
    assert_equal_runs(finished, tmp_path)
    assert answers(finished) == answers(tmp_path)


def test_the_report_compares_runs_with_the_untuned_model(home, finished, tmp_path):
    main(["test", *options(home), "--ckpt_path=untrained", f"--run_dir={tmp_path / 'untuned'}"])
    main(["report", str(finished), str(tmp_path / "untuned"), f"--out={tmp_path / 'report'}"])
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| untuned |  | 0 | 0 | 0 | 1 + 0 |  |" in page  # nothing of the adapter that it was not trained with
    methods = {line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")}
    assert {"| untuned", "| RepLoRA"} <= methods
    assert not [name for name in methods if "model." in name or "data." in name]
    with (tmp_path / "report" / "untuned.csv").open(newline="") as stream:
        rows = {row["task"]: row for row in csv.DictReader(stream)}
    before, after = (
        {(a["task"], a["index"]): a["right_norm"] for a in answers(run)} for run in (tmp_path / "untuned", finished)
    )
    for task, name in {"boolq": "BoolQ", "ARC-Easy": "ARC-e", "openbookqa": "OBQA"}.items():
        of_task = [key for key in before if key[0] == task]
        assert int(rows[name]["gained"]) == sum(after[key] and not before[key] for key in of_task)
        assert int(rows[name]["lost"]) == sum(before[key] and not after[key] for key in of_task)
    assert "Left out of the tables" not in page  # each test is in the tables, with its answers
    main(["report", str(tmp_path / "report" / "runs.jsonl"), f"--out={tmp_path / 'kept'}"])  # which the lines keep
    assert (tmp_path / "kept" / "untuned.csv").read_text() == (tmp_path / "report" / "untuned.csv").read_text()
    # The answers of another test that lie beside the results are not taken for those of this one.
    file = tmp_path / "untuned" / "predictions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    main(["report", str(finished), str(tmp_path / "untuned"), f"--out={tmp_path / 'again'}"])
    assert not (tmp_path / "again" / "untuned.csv").exists()
