"""Every benchmark runs and writes what its table needs; no time is asserted. Measures are checked on known cases."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import replora
from tests.benchmarks.holder import hold
from tests.published import ROOT, text_of
from tests.tiny_llama import write_tiny_llama

# The benchmarks that have the common options.
SCRIPTS = sorted(
    file.stem
    for file in (ROOT / "benchmarks").glob("*.py")
    if "measure.common_options(" in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize(
    "name",
    [
        "training_step",
        "evaluation",
        "loading",
        "image_decoding",
        "video_decoding",
        "startup",
        "scaling",
        "step_profile",
        "sweep_throughput",
        "whole_run",
    ],
)
def test_runs_and_its_results_make_tables(name: str, benchmark, tmp_path: Path, capsys) -> None:
    benchmark(name).main(["--quick", "--out", str(tmp_path), "--threads", "1"])
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["benchmark"] == file.stem
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert str(file) in capsys.readouterr().out.replace("\n", "")
    tables = benchmark("tables")
    page = tables.rendered(f"Text.\n{tables.MARKER}old", tmp_path)
    assert page.startswith(f"Text.\n{tables.MARKER}\n### {file.stem}\n")
    assert "--out" not in page
    assert page.count("| --- |") == len(found["results"] if name == "scaling" else [name])
    assert (name == "scaling") == (".png" in page) == bool(list(tmp_path.glob("*.png")))


def test_a_quick_run_leaves_the_committed_results_alone(benchmark, tmp_path: Path) -> None:
    measure = benchmark("measure")

    def out(*arguments: str) -> Path:
        return measure.common_options("A benchmark.", rounds=1).parse_args(arguments).out

    assert out() == measure.RESULTS
    assert out("--quick") == measure.QUICK_RESULTS
    assert out("--quick", f"--out={tmp_path}") == out(f"--out={tmp_path}", "--quick") == tmp_path
    scripts = [file for file in (ROOT / "benchmarks").glob("*.py") if "options.quick" in file.read_text("utf-8")]
    assert len(scripts) > 8
    without = [file.name for file in scripts if "measure.common_options(" not in file.read_text("utf-8")]
    assert without == ["gpu.py"]
    assert not benchmark("gpu").QUICK_RESULTS.is_relative_to("results")


def test_one_command_measures_all_that_the_page_shows(benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    script = benchmark("all")
    for name, command in script.COMMANDS.items():
        found = json.loads((ROOT / "results" / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
        assert found["command"] == command
    named = {command.split()[0] for command in script.COMMANDS.values()}
    shown = {
        json.loads(file.read_text("utf-8"))["command"] for file in (ROOT / "results" / "benchmarks").glob("*.json")
    }
    assert {command.split()[0] for command in shown} - named == {"record_memory.py"}
    script.main(["--list"])
    assert len(capsys.readouterr().out.splitlines()) == len(script.COMMANDS)


def test_a_result_of_this_commit_is_not_measured_again(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = benchmark("all")
    ran: list[list[str]] = []

    def run(command: list[Any], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append([str(part) for part in command[1:]])
        return subprocess.CompletedProcess(command, 3 if "startup" in str(command[1]) else 0)

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script, "git_commit", lambda: "abc-dirty")
    (tmp_path / "loading.json").write_text(json.dumps({"git": "abc"}))
    (tmp_path / "startup.json").write_text(json.dumps({"git": "before"}))
    with pytest.raises(SystemExit, match=r"failed: startup\. The same command measures them again"):
        script.main(["--out", str(tmp_path), "--only", "loading", "startup"])
    assert ran == [[str(ROOT / "benchmarks" / "startup.py"), "--threads", "1", "--rounds", "3", "--out", str(tmp_path)]]


def test_the_useful_time_of_a_trial_is_that_of_its_fit_and_its_test(benchmark, tmp_path: Path) -> None:
    measured = {"metrics": {}, "partial": [], "seed": 0, "command": "", "versions": {}, "git": None}
    weights = {"source": "last epoch", "sha256": "a"}
    content = {"format": 2, "data": {}, "fit": measured | {"seconds": 4.5, "weights_sha256": "a"}}
    content["evaluations"] = [measured | {"verb": "test", "data": {}, "weights": weights, "seconds": 1.75}]
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    assert benchmark("sweep_throughput").useful_seconds(tmp_path / "results.json") == 6.25


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_records_are_not_copied_into_loader_processes(benchmark, tmp_path: Path) -> None:
    script = benchmark("record_memory")
    script.main(["--quick", "--workers", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "record_memory.json").read_text())["results"]
    assert set(found) == {"questions, now", "videos, now"}
    assert all(one["training_process"] > one["grown"] for one in found.values())
    committed = json.loads((ROOT / "results" / "benchmarks" / "record_memory.json").read_text())["results"]
    for kind in script.RECORDS:
        assert committed[f"{kind}, now"]["grown"] < committed[f"{kind}, before"]["grown"] / 5


def test_memory_of_every_part(benchmark, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    benchmark("memory").main(["--quick", "--out", str(tmp_path), "--threads", "1"])
    found = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))["results"]
    bytes_of = {kind: weights["frozen_bytes"] for kind, weights in found["weights"].items()}
    # Of a model this small the codes of double quantization take more than they save.
    assert bytes_of["nf4"] < bytes_of["nf4, double quantization"] < bytes_of["bf16"] < bytes_of["fp32"]
    for generated, tied, lora, peft, narrow in zip(*(found["adapters"][i::5] for i in range(5)), strict=True):
        assert (
            lora["trained_bytes"] == peft["trained_bytes"] == 2 * narrow["trained_bytes"] < generated["trained_bytes"]
        )
        assert generated["file_bytes"] == lora["file_bytes"] == peft["file_bytes"] > tied["file_bytes"]
        assert generated["kept_bytes"] >= generated["file_bytes"]  # A and B in float32
        for one in (generated, tied, lora, peft, narrow):
            assert one["gradient_bytes"] == one["trained_bytes"]
            assert one["peak_bytes"]["nf4"] < one["peak_bytes"]["bf16"]
    for model, ways in found["evaluation"].items():
        assert ways["replora, in the Trainer"]["restored"]
        assert not ways["peft_lora, merge_adapter"]["restored"]
        assert (ways["replora, in the Trainer"]["copy_bytes"] > 0) == model.endswith("fp32")
    assert len(found["loaders"]) == 4 * (sys.platform == "linux")
    assert len(benchmark("tables").memory(found)) == 2 * (4 + (sys.platform == "linux"))


def test_loader_processes_do_not_copy_the_images() -> None:
    found = json.loads((ROOT / "results" / "benchmarks" / "memory.json").read_text(encoding="utf-8"))["results"]
    forked = [run for run in found["loaders"] if run["cache_bytes"] and "spawn" not in run["options"]]
    assert [len(run["loader_bytes"]) for run in forked] == [0, 2, 4]
    assert all(own < run["cache_bytes"] / 5 for run in forked for own in run["loader_bytes"])


@pytest.mark.parametrize("method", ["replora", "replora_tied", "lora", "peft_lora"])
def test_a_step_on_the_meta_device_takes_the_memory_of_a_real_one(method: str, benchmark, tmp_path: Path) -> None:
    """As the profiler counts it on the CPU, whose attention keeps no probabilities either."""
    memory, measure, contenders = benchmark("memory"), benchmark("measure"), benchmark("contenders")
    meta = memory.on_meta(memory.TINY, "bf16")
    real = contenders.build(memory.TINY, None, "cpu", "bf16")
    counted = []
    for model in (meta, real):
        adapted = memory.ADAPTERS[method](model, memory.TINY, 8, memory.TARGETS["all seven"])
        inputs = contenders.batch_for(memory.TINY, 2, next(model.parameters()).device.type, "bf16")
        step = contenders.TrainingStep(adapted, *inputs, "bf16")
        counted.append(memory.counted_step(step))
    on_meta, here = counted
    assert on_meta == here
    assert here["peak_bytes"] == pytest.approx(here["held_bytes"] + measure.peak_bytes(step), rel=0.01)
    if method == "peft_lora":
        adapted.save_pretrained(tmp_path)
        file = tmp_path / "adapter_model.safetensors"
    else:
        file = replora.save_adapter(adapted, tmp_path / "adapter.safetensors", deploy=True)
    assert sum(tensor.nbytes for tensor in load_file(file).values()) == memory.file_bytes(adapted)


@pytest.mark.parametrize("double", [False, True])
def test_four_bits_take_the_memory_of_real_ones(double: bool, benchmark) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    memory, measure = benchmark("memory"), benchmark("measure")
    model = memory.on_meta(memory.TINY, "nf4, double quantization" if double else "nf4")
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    options = {"bias": False, "compute_dtype": torch.bfloat16, "quant_type": "nf4", "compress_statistics": double}
    real = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, **options).to("cpu")
    counted = [measure.bytes_held(memory.frozen_tensors(module)) for module in (layer, real)]
    assert counted[0] == counted[1]
    count = layer.in_features * layer.out_features
    assert counted[0] > count / 2 + count / 64 * (1 if double else 4)  # values of 4 bits, and a scale for every 64
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_a_whole_run_does_the_same_in_every_way(benchmark, tmp_path: Path) -> None:
    """Of questions. That of the digits is among the benchmarks above, and that of photos in test_gpu.py."""
    language = write_tiny_llama(tmp_path / "llama")
    given = ["--task=questions", f"--language_model={language}", f"--out={tmp_path}", "--threads=1"]
    benchmark("whole_run").main(["--quick", *given])
    results = json.loads((tmp_path / "whole_run-questions.json").read_text(encoding="utf-8"))["results"]
    assert set(results) == set(benchmark("whole_run").WAYS)
    assert all(0 <= found["accuracy"] <= 1 and found["cpu_seconds"] > 0 for found in results.values())


def test_memory_is_that_of_all_processes(benchmark) -> None:
    peak = benchmark("measure").peak_of_processes
    assert peak(hold, 200, 100) - peak(hold, 10, 0) > 280e6


def test_training_step_compares_all_methods_with_the_floor(benchmark, tmp_path: Path) -> None:
    benchmark("training_step").main(["--quick", "--out", str(tmp_path), "--threads", "1"])
    (file,) = tmp_path.glob("*.json")
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert set(results) == {
        "floor",
        "replora",
        "replora_wide",
        "lora",
        "peft_lora",
        "peft_dora",
        "replora_over_peft",
        "naive_replora",
        "full",
    }
    assert results["floor"]["ratio"] == 1
    assert results["floor"]["peak_bytes"] < results["lora"]["peak_bytes"] < results["full"]["peak_bytes"]
    # The wider the generators, the more trains; the same number of parameters in two libraries.
    assert results["lora"]["trained"] < results["replora"]["trained"] < results["replora_wide"]["trained"]
    assert results["lora"]["trained"] == results["peft_lora"]["trained"]


def test_training_step_leaves_out_methods_without_effect(benchmark, tmp_path: Path, monkeypatch) -> None:
    contenders, step = benchmark("contenders"), benchmark("training_step")
    monkeypatch.setitem(contenders.WORKLOADS, "tiny", dataclasses.replace(contenders.WORKLOADS["tiny"], called=False))
    step.main(["--quick", "--out", str(tmp_path), "--threads", "1", "--methods", "peft_lora", "lora"])
    (file,) = tmp_path.glob("*.json")
    assert list(json.loads(file.read_text(encoding="utf-8"))["results"]) == ["floor", "lora"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-mixed"])
@pytest.mark.parametrize("model", ["llama", "swin", "swin3d"])
def test_every_method_trains_every_kind_of_model_in_every_precision(model: str, precision: str, benchmark) -> None:
    contenders = benchmark("contenders")
    options = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    workload = {
        "llama": contenders.llama(16, 24, 2, 2, vocabulary=20, length=6),
        "swin3d": contenders.swin3d("swin3d_nano", 4, 16),
        "swin": contenders.timm_model("swin_tiny_patch4_window7_224", 32, **options),
    }[model]
    built = contenders.build(workload, None, "cpu", precision)
    batch = contenders.batch_for(workload, 2, "cpu", precision)
    for method, adapted in contenders.contenders(built, workload, list(contenders.METHODS)).items():
        step = contenders.TrainingStep(adapted, *batch, precision)
        step()
        trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
        assert trained, method
        assert len(step.optimizer.state) == len(trained), method  # each had a gradient


@pytest.mark.parametrize("rank", [2, 8])
def test_naive_replora_is_replora(rank: int, benchmark) -> None:
    contenders = benchmark("contenders")
    workload = contenders.WORKLOADS["tiny"]
    model = contenders.build(workload, None, "cpu", "fp32")
    inputs, _ = contenders.batch_for(workload, 2, "cpu", "fp32")
    models = contenders.contenders(model, workload, ["replora", "naive_replora"], rank)
    torch.testing.assert_close(models["replora"](inputs), models["naive_replora"](inputs))
    (bank,) = models["replora"].replora.banks
    with torch.no_grad():
        for block, (fused, naive) in enumerate(
            zip(models["replora"].blocks, models["naive_replora"].blocks, strict=True)
        ):
            alone = naive.attn.qkv.factors
            assert [p.shape[1:] for p in bank.parameters()] == [p.shape[1:] for p in alone.parameters()]
            for mine, its in zip(bank.parameters(), alone.parameters(), strict=True):
                mine[block].normal_()
                its[0].copy_(mine[block])
            assert fused.attn.qkv.linear.weight.data_ptr() == naive.attn.qkv.linear.weight.data_ptr()
    torch.testing.assert_close(models["replora"](inputs), models["naive_replora"](inputs), rtol=1e-4, atol=1e-4)


def test_peak_is_what_is_allocated_at_once(benchmark) -> None:
    measure = benchmark("measure")
    mebibyte = 2**18  # float32 numbers

    def step() -> None:
        a = torch.ones(4 * mebibyte)
        del a
        b, c = torch.ones(3 * mebibyte), torch.ones(2 * mebibyte)
        del b, c

    assert measure.peak_bytes(step) == pytest.approx(5 * 2**20, rel=0.01)
    shared = torch.ones(mebibyte)
    assert measure.bytes_held([shared, shared[:5], torch.ones(mebibyte)]) == 2 * 2**20


def test_peak_is_the_same_whatever_was_there_before(benchmark) -> None:
    """The first time the profiler has not seen what the step frees, and later it has."""
    kept = [torch.ones(2**20)]

    def step() -> None:
        kept.clear()
        kept.append(torch.ones(2**20))

    peaks = [benchmark("measure").peak_bytes(step) for _ in range(3)]
    assert peaks == [pytest.approx(2**22, rel=0.01)] * 3


def test_ratios_are_taken_round_by_round(benchmark) -> None:
    found = benchmark("measure").summarize({"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 4.0]}, "a")["b"]
    assert (found["ratio"], found["ratio_quartiles"]) == (2.0, [1.5, 2.0])
    assert found["seconds"] == 4.0


def point(*quartiles: float) -> dict[str, Any]:
    return {"floor": {"ratio": 1.0, "ratio_quartiles": [1, 1]}, "lora": {"ratio": 1.2, "ratio_quartiles": quartiles}}


@pytest.mark.parametrize(
    ("attempts", "measurements", "chosen"),
    [
        ([point(1.15, 1.25)], 1, 0),
        ([point(1.0, 2.0), point(1.15, 1.25)], 2, 1),
        ([point(1.0, 2.0), point(1.0, 1.4), point(1.0, 1.5), point(1.2, 1.2)], 3, 1),
    ],
)
def test_what_something_else_disturbed_is_measured_again(
    attempts: list[Any], measurements: int, chosen: int, benchmark, monkeypatch
) -> None:
    scaling, left = benchmark("scaling"), list(attempts)
    monkeypatch.setattr(scaling, "measured", lambda *_: left.pop(0))
    assert scaling.settled({}, SimpleNamespace(quick=False)) is attempts[chosen]
    assert len(attempts) - len(left) == measurements


def test_what_stays_disturbed_is_marked(benchmark) -> None:
    points = [{"value": 2, "methods": point(1.15, 1.25)}, {"value": 8, "methods": point(1.1, 1.3)}]
    tables = benchmark("tables")
    assert len(tables.scaling({"rank": points[:1]})) == 1
    table, remark = tables.scaling({"rank": points})
    assert "| 2 | 1.200 (1.150 to 1.250) |" in table
    assert "| 8 | 1.200 (1.100 to 1.300) * |" in table
    assert "something else" in remark


def test_the_networks_of_rank_128_are_five_percent_of_the_step_of_lora(benchmark) -> None:
    contenders = benchmark("contenders")
    workload = contenders.WORKLOADS["vit_small"]
    model = contenders.build(workload, 6, "cpu", "fp32")
    products = {}
    for name, adapted in contenders.contenders(model, workload, ["lora", "replora"], rank=128).items():
        step = contenders.TrainingStep(adapted, *contenders.batch_for(workload, 4, "cpu", "fp32"), "fp32")
        with FlopCounterMode(display=False) as counted:
            step()
        products[name] = counted.get_total_flops()
    assert round(products["replora"] / products["lora"] - 1, 2) == 0.05
    assert "themselves 5 % of the multiplications of LoRA's step" in text_of("docs/benchmarks.md")


def test_page_shows_the_results_files(benchmark) -> None:
    tables = benchmark("tables")
    page = tables.PAGE.read_text(encoding="utf-8")
    assert page == tables.rendered(page, tables.RESULTS), "run: python benchmarks/tables.py"


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_every_option(name: str, benchmark, capsys) -> None:
    with pytest.raises(SystemExit):
        benchmark(name).main(["--help"])
    text = capsys.readouterr().out
    for option in ("--rounds", "--threads", "--out", "--quick"):
        assert option in text
    assert (ROOT / "benchmarks" / f"{name}.py").name in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
