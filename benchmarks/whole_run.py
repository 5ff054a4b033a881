"""How long does a complete run take, from the start of the process to the tested adapter, beside a plain loop?

    python benchmarks/whole_run.py
    python benchmarks/whole_run.py --task photos --backbone vit_base_patch16_224 --images 1000 --epochs 10 \\
        --device cuda --autocast

Three runs, each of them by `replora-cli fit` with LoRA and with RepLoRA, by a plain PyTorch loop with PEFT, and by
transformers' Trainer with PEFT (`plain_runs.py`). All read the same data once, train with the same optimizer, schedule
and batch size, validate after every epoch where there are validation data, save the adapter and test it.

- `digits`: the quickstart, `vit_nano` on 800 digits, 8 epochs.
- `photos`: ViT-S with random weights on 64 JPEG files of 256 x 256 pixels, 2 epochs.
- `questions`: SmolLM2-135M on 225 questions with four options, one epoch, tested on 50.

Photos and questions are random, so that nothing is downloaded. Whole processes take turns. Their processor seconds
count child processes too; unlike the wall time, they hardly depend on what else the machine does.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
import plain_runs
from PIL import Image

from replora.backbones.smollm2 import smollm2_folder
from replora.backbones.vit_nano import VIT_NANO_ARCHITECTURE, VIT_NANO_WEIGHTS
from replora.datasets.text.commonsense import COMMONSENSE_TASKS
from replora.launch import launch
from replora.results import read_results

CLASSES = 4
REFERENCE = "loop"
WAYS = {
    "lora": "replora-cli fit, LoRA",
    "replora": "replora-cli fit, RepLoRA",
    "loop": "plain loop, PEFT's LoRA",
    "trainer": "transformers' Trainer, PEFT's LoRA",
}


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=list(TASKS), help="runs to measure")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="ways to measure")
    measure.device_option(parser)
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast for photos (bf16-mixed)")
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="model of timm for photos")
    parser.add_argument("--images", type=int, default=64, help="training photos; half as many for validation and test")
    parser.add_argument("--epochs", type=int, default=2, help="epochs on photos")
    parser.add_argument("--image_batch", type=int, default=16, help="photos per step")
    parser.add_argument("--language_model", default="smollm2", help="folder of a causal language model for questions")
    options = parser.parse_args(arguments)
    options.size, options.ways = 224, [*{REFERENCE: None, **dict.fromkeys(options.ways)}]
    if options.quick:  # in this process, which has imported everything
        options.task = options.task if len(options.task) < len(TASKS) else ["digits"]
        options.rounds, options.backbone, options.images, options.size = 1, "vit_tiny_patch16_224", 8, 32
    for name in options.task:
        with tempfile.TemporaryDirectory() as folder:
            results = compare(name, Path(folder), options)
        measure.show(
            f"A complete run of {name}",
            ["run", "seconds", "x plain loop (quartiles)", "processor, s", "x plain loop", "accuracy"],
            [
                [
                    WAYS[way],
                    f"{found['seconds']:.1f}",
                    measure.ratio_text(found),
                    f"{found['cpu_seconds']:.1f}",
                    f"{found['cpu_ratio']:.3f}",
                    f"{found['accuracy']:.1%}",
                ]
                for way, found in results.items()
            ],
        )
        settings = measure.settings(options, "task", "ways")
        suffix = "" if options.device == "cpu" else f"-{options.device}"
        print(
            measure.write(options.out, f"whole_run-{name}{suffix}", {"task": name, **settings}, results, options.device)
        )


def compare(name: str, home: Path, options: Any) -> dict[str, Any]:
    """Measure each way of one run."""
    given, settings = TASKS[name](home / "data", options)
    settings |= {"task": name, "threads": options.threads, "device": options.device, "limit": 2 * options.quick or None}
    settings = {"weights": None, "clip": 0.0, "warmup_epochs": 1, "warmup_steps": 0, "schedule": "cosine"} | settings
    settings["autocast"] = options.autocast and name == "photos"
    given += ["--trainer.accelerator=" + ("gpu" if options.device == "cuda" else "cpu"), "--trainer.devices=1"]
    given += ["--trainer.enable_progress_bar=false", f"--trainer.max_epochs={settings['epochs']}"]
    given += ["--trainer.precision=bf16-mixed"] * settings["autocast"]
    given += [f"--trainer.limit_{part}_batches=2" for part in ("train", "val", "test")] * options.quick
    cpu: dict[str, list[float]] = {way: [] for way in options.ways}

    def step(way: str) -> None:
        out = home / f"{way}-{len(cpu[way])}"
        before = sum(os.times()[:4])
        if way in ("lora", "replora"):
            arguments = ["fit", *given, f"--config=adapter/{way}.yaml", f"--run_dir={out}"]
            process(["-m", "replora", *arguments], options, lambda: launch(arguments))
        else:
            file = home / "settings.json"
            file.write_text(json.dumps(settings | {"way": way, "out": str(out)}), encoding="utf-8")
            script = [plain_runs.__file__, str(file)]
            process(script, options, lambda: plain_runs.run(json.loads(file.read_text(encoding="utf-8"))))
        cpu[way].append(sum(os.times()[:4]) - before)  # also of child processes

    steps = {way: partial(step, way) for way in options.ways}
    results = measure.summarize(measure.interleaved(steps, options.rounds, warm_up=False), REFERENCE)
    for way, found in results.items():
        found["accuracy"] = accuracy(home / f"{way}-0")
        found["cpu_seconds"] = median(cpu[way])
        found["cpu_ratio"] = median(a / b for a, b in zip(cpu[way], cpu[REFERENCE], strict=True))
    return results


def process(arguments: list[str], options: Any, here: Callable[[], None]) -> None:
    """Run a Python process, or call `here` instead with `--quick`."""
    if options.quick:
        here()
        return
    own = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = measure.environment(**own)
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with status {done.returncode}:\n{done.stderr[-3000:]}")


def accuracy(out: Path) -> float:
    """The accuracy on the test data that a run has written."""
    if (out / "accuracy.json").is_file():
        return float(json.loads((out / "accuracy.json").read_text(encoding="utf-8")))
    metrics = read_results(out)["test"]["metrics"]
    return float(metrics["test/accuracy" if "test/accuracy" in metrics else "test/acc_norm"])


# --- the three runs: options of `replora-cli fit`, and the same as settings of the plain ones


def digits(data: Path, options: Any) -> tuple[list[str], dict[str, Any]]:  # noqa: ARG001
    batch, epochs = (4, 1) if options.quick else (32, 8)
    settings = {"size": 32, "epochs": epochs, "batch": batch, "eval_batch": batch, "lr": 0.01, "weight_decay": 1e-4}
    settings |= {"weights": str(VIT_NANO_WEIGHTS), "architecture": VIT_NANO_ARCHITECTURE}
    return ["--config=quickstart.yaml", f"--data.batch_size={batch}", f"--data.eval_batch_size={batch}"], settings


def photos(data: Path, options: Any) -> tuple[list[str], dict[str, Any]]:
    half = max(options.images // 2, CLASSES)
    write_photos(data, {"train": options.images, "val": half, "test": half}, options.size + 32)
    batch, epochs = (4, 1) if options.quick else (options.image_batch, options.epochs)
    given = ["--config=image_folder.yaml", f"--data.root={data}", f"--data.image_size={options.size}"]
    given += ["--data.augmentation=none", f"--data.batch_size={batch}", f"--data.eval_batch_size={batch}"]
    given += [f"--model.backbone={options.backbone}", "--model.pretrained=false", "--model.drop_path_rate=0"]
    given += ["--model.schedule.warmup_epochs=1"]
    settings = {"data": str(data), "size": options.size, "epochs": epochs, "batch": batch, "eval_batch": batch}
    settings |= {"lr": 1e-3, "weight_decay": 1e-4, "backbone": options.backbone, "classes": CLASSES}
    return given, settings


def questions(data: Path, options: Any) -> tuple[list[str], dict[str, Any]]:
    sizes = {"train": 16, "test": 6} if options.quick else {"train": 225, "test": 50}
    write_questions(data, sizes)
    given = ["--config=commonsense_smollm2.yaml", f"--data.root={data}", "--data.check_sizes=false"]
    given += ["--data.train_fraction=1.0", "--data.group_by_length=false", f"--model.backbone={options.language_model}"]
    given += ["--model.dtype=fp32"] * options.quick
    folder = smollm2_folder() if options.language_model == "smollm2" else options.language_model
    settings = {"data": str(data), "backbone": str(folder), "epochs": 1, "batch": 8, "eval_batch": 16, "lr": 0.0015}
    settings |= {"weight_decay": 0.0, "clip": 1.0, "schedule": "linear", "warmup_steps": 5}
    return given, settings


TASKS = {"digits": digits, "photos": photos, "questions": questions}


def write_photos(root: Path, counts: dict[str, int], size: int) -> None:
    """Random JPEG files of `size` x `size` pixels, in a folder for each split and class."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(count):
            label = number % CLASSES
            coarse = generator.integers(0, 160, (8, 8, 3)) + np.array([20 * label, 60 - 15 * label, 0])
            file = root / split / f"class {label}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
            image.resize((size, size), Image.Resampling.BICUBIC).save(file, quality=90)


WORDS = [
    "water",
    "light",
    "plant",
    "energy",
    "animal",
    "rock",
    "heat",
    "cell",
    "force",
    "moon",
    "air",
    "metal",
    "soil",
    "wave",
    "river",
    "cloud",
    "seed",
    "bone",
    "magnet",
    "sound",
    "which",
    "causes",
    "during",
    "between",
    "stronger",
    "because",
    "most",
    "likely",
    "changes",
    "moves",
]


def write_questions(root: Path, sizes: dict[str, int]) -> None:
    """Random questions in the form of ARC-Easy, and for the plain runs as prompts with options."""
    task, drawn, plain = COMMONSENSE_TASKS["ARC-Easy"], random.Random(0), {}
    (root / task.name).mkdir(parents=True)
    for split, count in sizes.items():
        records, plain[split] = [], []
        for number in range(count):
            text = " ".join(drawn.choices(WORDS, k=drawn.randint(12, 30))) + f" {split} {number}?"
            choices = [" ".join(drawn.choices(WORDS, k=drawn.randint(2, 6))) for _ in range(4)]
            answer = drawn.randrange(4)
            label = task.labels(4)[answer]
            said = f"the correct answer is {label}"
            records.append(
                {"instruction": task.instruction(text, choices), "input": "", "output": said, "answer": label}
            )
            asked = {"prompt": f"Question: {text}\nAnswer:", "options": [f" {choice}" for choice in choices]}
            plain[split].append(asked | {"answer": answer})
        (root / task.name / f"{split}.json").write_text(json.dumps(records), encoding="utf-8")
    (root / "plain.json").write_text(json.dumps(plain), encoding="utf-8")


if __name__ == "__main__":
    main()
