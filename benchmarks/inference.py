"""How fast are predictions, tests and answers, compared with a plain loop of timm or transformers?

    python benchmarks/inference.py
    python benchmarks/inference.py --device cuda --precision bf16 --shape 7b --images 2048 --batch 64

- `predict-files`: JPEG files through `Predictor.predict`, beside a DataLoader with the same timm model.
- `test`: the Trainer's test of a folder of images, beside reading them once and the same loop.
- `option likelihood`: questions with four options, beside transformers with one row for each option.
- `generation`: 32 new tokens for each prompt, greedily, beside transformers' `generate`.

Ours has a RepLoRA adapter, which is merged as in any evaluation; the plain loop runs the backbone alone. Weights are
random. The ratios compare speeds, so above 1 is faster.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import plain_runs
import timm
import torch
from contenders import build, llama
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from whole_run import CLASSES, write_photos

import replora
from datamodules import ImageFolderDataModule
from lightning_modules import ImageClassification
from lightning_modules.predictors import ImagePredictor
from replora.backbones.language import LLAMA_SHAPES
from replora.evaluation import generate, option_log_likelihoods
from replora.memory import usable_cpus

SHAPES: dict[str, tuple[int, int, int, int]] = {  # width, inner width of the MLP, blocks, heads
    "tiny": (32, 64, 2, 4),
    "135m": (576, 1536, 30, 9),  # SmolLM2's, but for its heads
    **{name: tuple(shape.values()) for name, shape in LLAMA_SHAPES.items()},  # type: ignore[misc]
}
VOCABULARY, NEW_TOKENS = 32_000, 32
Steps = tuple[int, dict[str, Callable[[], Any]]]  # units of one step, and the step in both ways


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=5)
    measure.device_options(parser)
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="model of timm")
    parser.add_argument("--images", type=int, default=32, help="image files")
    parser.add_argument("--batch", type=int, default=8, help="images or questions per batch")
    parser.add_argument("--shape", default="135m", choices=list(SHAPES), help="shape of the language model")
    parser.add_argument("--questions", type=int, default=8, help="questions and prompts")
    options = parser.parse_args(arguments)
    options.size = 224
    if options.quick:
        options.backbone, options.size, options.shape = "vit_tiny_patch16_224", 32, "tiny"
        options.images, options.batch, options.questions, options.rounds = 8, 4, 4, 2
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as home:
        results = {
            name: compared(units, measure.interleaved(steps, options.rounds, options.device))
            for part in (of_images(Path(home), options), of_texts(options))
            for name, (units, steps) in part.items()
        }
    measure.show(
        f"Inference on {options.device}",
        ["", "per second", "plain loop", "speed / plain loop (quartiles)"],
        [
            [name, f"{one['per_second']:,.2f}", f"{one['plain_per_second']:,.2f}", measure.ratio_text(one)]
            for name, one in results.items()
        ],
    )
    settings = measure.settings(options)
    name = f"inference-{options.device}-{options.precision}"
    print(measure.write(options.out, name, settings, results, options.device))


def compared(units: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Median speeds, and the ratio of ours to that of the plain loop."""
    speeds = {way: [units / second for second in times] for way, times in seconds.items()}
    found = measure.summarize(speeds, "plain")
    ratios = {name: found["replora"][name] for name in ("ratio", "ratio_quartiles", "rounds")}
    return {"per_second": found["replora"]["seconds"], "plain_per_second": found["plain"]["seconds"], **ratios}


# --- images


class Files(Dataset[Tensor]):
    """Image files, decoded and resized when they are asked for."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(self.files[index]).convert("RGB")
        pixels = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def of_images(home: Path, options: Any) -> dict[str, Steps]:
    """Steps over the files in a folder."""
    write_photos(home, dict.fromkeys(("train", "val", "test"), options.images), options.size + 32)
    device, batch, mixed = options.device, options.batch, options.precision != "fp32"
    files = sorted((home / "test").glob("*/*.jpg"))
    module = ImageClassification(CLASSES, options.backbone, pretrained=False, image_size=options.size)
    data_options = {"image_size": options.size, "augmentation": "none", "eval_batch_size": batch}
    data = ImageFolderDataModule(root=home, **data_options)
    merged = replora.merge_and_unload(copy.deepcopy(module.model)).eval()
    described = data.preprocessing() | {"class_names": [str(label) for label in range(CLASSES)]}
    predictor = ImagePredictor.from_run(merged, "head", described, {}, torch.device(device))
    size = {} if options.size == 224 else {"img_size": options.size}
    plain = plain_runs.Classifier(timm.create_model(options.backbone, num_classes=CLASSES, **size)).to(device).eval()
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if mixed else "32-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    settings = {"data": str(home), "size": options.size, "threads": usable_cpus()}

    def autocast() -> torch.autocast:
        return torch.autocast(device, torch.bfloat16, enabled=mixed)

    @torch.inference_mode()
    def plain_predictions() -> Tensor:
        # On a CPU the cores belong to the model, whose threads would wait for those of loader processes.
        loader = DataLoader(Files(files, options.size), batch, num_workers=usable_cpus() if device == "cuda" else 0)
        with autocast():
            found = [plain.model(plain.normalize(pixels.to(device))).float().softmax(1).cpu() for pixels in loader]
        return torch.cat(found)

    @torch.inference_mode()
    def plain_test() -> float:
        images, right = plain_runs.Images(*plain_runs.photos(settings, ["test"])["test"], None), 0
        with autocast():
            for found in DataLoader(images, batch):
                labels = found["labels"].to(device)
                right += int((plain(found["pixels"].to(device), labels)["logits"].argmax(1) == labels).sum())
        return right / len(images)

    def predictions() -> None:
        with autocast():
            predictor.predict(files, batch)

    def test() -> None:
        trainer.test(module, datamodule=ImageFolderDataModule(root=home, **data_options), verbose=False)

    return {
        "predict-files, images": (len(files), {"replora": predictions, "plain": plain_predictions}),
        "test, images": (len(files), {"replora": test, "plain": plain_test}),
    }


# --- texts


def of_texts(options: Any) -> dict[str, Steps]:
    """Steps over random questions."""
    width, inner, blocks, heads = SHAPES[options.shape]
    workload = llama(width, inner, blocks, heads, VOCABULARY, length=0)
    plain = build(workload, None, options.device, options.precision).eval()
    plain.generation_config.pad_token_id = 0
    ours = copy.deepcopy(plain)
    replora.merge(replora.inject(ours, replora.RepLoRAConfig(rank=8, targets=("q", "v")), check=False).eval())
    drawn = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [drawn.randrange(1, VOCABULARY) for _ in range(drawn.randint(low, high))]

    prompts = [ids(20, 60) for _ in range(options.questions)]
    choices = [[ids(2, 8) for _ in range(4)] for _ in prompts]
    prompts.sort(key=len, reverse=True)
    parts = [slice(start, start + options.batch) for start in range(0, len(prompts), options.batch)]

    def likelihood() -> None:
        for part in parts:
            option_log_likelihoods(ours, prompts[part], choices[part])

    def plain_likelihood() -> None:
        for part in parts:
            plain_runs.option_scores(plain, prompts[part], choices[part], 0, options.device)

    def written() -> None:
        for part in parts:
            generate(ours, prompts[part], end_ids=[], pad_id=0, max_new_tokens=NEW_TOKENS)

    @torch.inference_mode()
    def plain_written() -> None:
        for part in parts:
            batch = plain_runs.padded([{"ids": prompt, "start": 0} for prompt in prompts[part]], 0)
            del batch["labels"]
            batch = {name: tensor.to(options.device) for name, tensor in batch.items()}
            plain.generate(
                **batch, do_sample=False, use_cache=True, max_new_tokens=NEW_TOKENS, eos_token_id=None
            ).tolist()

    return {
        "option likelihood, questions": (len(prompts), {"replora": likelihood, "plain": plain_likelihood}),
        "generation, tokens": (len(prompts) * NEW_TOKENS, {"replora": written, "plain": plain_written}),
    }


if __name__ == "__main__":
    measure.with_steady_malloc()
    main()
