"""The text of the pages says what the results files say: every figure that is quoted outside the generated tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.published import ROOT, text_of


def results(name: str) -> Any:
    return json.loads((ROOT / "results" / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))["results"]


def test_all_rows_come_from_one_commit_and_one_machine() -> None:
    """But for the one that compares two commits."""
    files = (ROOT / "results" / "benchmarks").glob("*.json")
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.stem != "record_memory"]
    assert len(found) > 20
    assert len({one["git"].removesuffix("-dirty") for one in found}) == 1
    assert len({json.dumps(one["versions"], sort_keys=True) for one in found}) == 1
    assert len({one["machine"]["cpu"] for one in found}) == 1


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f}"


def training_step() -> list[str]:
    found = results("training_step-vit_base-batch16-cpu-fp32")
    peft, replora = found["peft_lora"], found["replora"]
    more = replora["peak_bytes"] - peft["peak_bytes"]
    products = results("step_profile-vit_base-batch16-cpu-fp32")["replora"]["seconds"]
    share = (products["matrix products"] + products["attention"]) / sum(products.values())
    return [
        f"The first is met ({replora['ratio']:.3f}).",
        f"the floor itself takes {found['floor']['ratio_to_peft_lora']:.3f} of PEFT's LoRA",
        f"RepLoRA takes {replora['ratio_to_peft_lora']:.3f}.",
        f"The third is missed by {mebibytes(more)} MiB ({percent(more / peft['peak_bytes'], 1)})",
        f"{percent(share)} of RepLoRA's step are matrix products and attention",
    ]


def compiled() -> list[str]:
    vit, llama = (
        results(f"training_step-{model}-batch4-cpu-fp32-compiled")["replora"]["ratio_to_peft_lora"]
        for model in ("vit_small", "llama_stack")
    )
    return [
        f"a step of RepLoRA takes {vit:.3f} of the time of PEFT's LoRA, compiled as well, for ViT-S, "
        f"and {llama:.3f} of it"
    ]


def whole_runs() -> list[str]:
    runs = [results(f"whole_run-{task}") for task in ("digits", "photos", "questions")]
    lora, replora = ([f"{run[method]['cpu_ratio']:.2f}" for run in runs] for method in ("lora", "replora"))
    return [
        f"`fit` with LoRA takes {lora[0]} of it on digits, {lora[1]} on photos and {lora[2]} on questions",
        f"which trains more parameters, {replora[0]}, {replora[1]} and {replora[2]}.",
    ]


def inference() -> list[str]:
    ratio = {name.split(",")[0]: found["ratio"] for name, found in results("inference-cpu-fp32").items()}
    return [
        f"{ratio['predict-files']:.2f} for `predict-files`, {ratio['test']:.2f} for a test, "
        f"{ratio['generation']:.2f} for generation, and {ratio['option likelihood']:.1f} for the likelihood"
    ]


def scaling() -> list[str]:
    found = results("scaling-vit_small-cpu-fp32")
    (wide,) = (point["methods"] for point in found["rank"] if point["value"] == 128)
    (all_six,) = (point["methods"] for point in found["targets"] if len(point["value"]) == 6)
    return [
        f"but for rank 128, with {wide['replora']['ratio']:.3f} and {wide['lora']['ratio']:.3f} of the floor, and "
        f"PEFT's LoRA with {wide['peft_lora']['ratio']:.3f}.",
        f"RepLoRA takes {all_six['replora']['ratio']:.3f} of the floor, and PEFT's LoRA "
        f"{all_six['peft_lora']['ratio']:.3f}.",
    ]


def loading() -> list[str]:
    ratio = {name: found["ratio"] for name, found in results("loading").items()}
    first, both = ratio["datamodule, first epoch"], ratio["datamodule, first epoch, with the test images"]
    image = results("image_decoding")
    other = image["torchvision, decoded and resized"]
    assert other["levels"] == 1
    return [
        f"It is missed: {first:.3f}, and {both:.3f} if the test images",
        f"{percent(1 - image['Pillow, decoded']['ratio'])} of the time goes to Pillow's",
        f"torchvision decodes and resizes in {other['ratio']:.2f} of the time.",
        f"in {percent(other['differing'], 2)} of the color values by one of 256 levels",
    ]


def startup() -> list[str]:
    ratio = {name: found["ratio"] for name, found in results("startup").items()}
    of_both = ratio["replora-cli fit --help"] / ratio["python -c 'import torch, lightning'"]
    return [f"`fit --help` takes {of_both:.2f} of it"]


def memory() -> list[str]:
    found = results("memory")

    def adapter(targets: str, rank: int, method: str) -> Any:
        wanted = {"targets": targets, "rank": rank, "method": method}
        (one,) = (one for one in found["adapters"] if wanted.items() <= one.items())
        return one

    def between_steps(targets: str, rank: int, method: str) -> str:
        one = adapter(targets, rank, method)
        return mebibytes(sum(one[f"{part}_bytes"] for part in ("trained", "optimizer", "kept")))

    def peak(method: str) -> str:
        return mebibytes(adapter("q, v", 8, method)["peak_bytes"]["bf16"])

    images, two, spawned = (
        next(one for one in found["loaders"] if one["options"] == f"--workers {options}")
        for options in ("0", "2", "2 --start spawn")
    )
    copies = found["weights"]["fp32"]["copy_bytes"]
    trainer = found["evaluation"]["vit_small, fp32"]["replora, in the Trainer"]
    return [
        f"that is {between_steps('q, v', 8, 'replora')} MiB instead of {between_steps('q, v', 8, 'peft_lora')}, ",
        f"it is {between_steps('all seven', 32, 'replora')} MiB instead of "
        f"{between_steps('all seven', 32, 'peft_lora')}, most of it moments",
        f"it takes less ({peak('replora')} MiB instead of {peak('peft_lora')})",
        f"PEFT's factors train in bf16 and take the least ({peak('peft_lora_bf16')} MiB)",
        f"{mebibytes(trainer['copy_bytes'])} MiB for ViT-S, and in float32 {mebibytes(copies['all seven'])} MiB",
        f"with {mebibytes(images['cache_bytes'])} MiB of images a loader process has "
        f"{mebibytes(max(two['loader_bytes']))} MiB of its own",
        f"loads Python and PyTorch again ({mebibytes(max(spawned['loader_bytes']))} MiB)",
    ]


@pytest.mark.parametrize("part", [training_step, compiled, whole_runs, inference, scaling, loading, startup, memory])
def test_the_text_quotes_the_results(part: Any) -> None:
    page = text_of("docs/benchmarks.md").partition("## Results")[0]
    assert [sentence for sentence in part() if sentence not in page] == []


def test_other_pages_quote_them_too() -> None:
    step = results("training_step-vit_base-batch16-cpu-fp32")["replora"]["ratio_to_peft_lora"]
    assert f"A training step of ViT-B/16 takes {step:.3f} of the time of PEFT's LoRA on a CPU" in text_of("README.md")
    fit, static = (results("compilation")[way] for way in ("fit", "static"))
    evaluation, training = (round(fit[batch]["seconds"]) for batch in ("validation, 32", "training, 16"))
    wanted = f"the evaluation's graph takes {evaluation} and the training's {training} seconds of one processor core"
    assert wanted in text_of("docs/video.md")
    assert f"cost another {static['validation, 4']['seconds']:.0f} seconds" in text_of("docs/video.md")
