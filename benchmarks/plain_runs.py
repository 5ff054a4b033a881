"""The runs that `whole_run.py` compares with: a plain PyTorch loop and transformers' Trainer, both with PEFT's LoRA.

Each is what somebody writes who does not use this project. `whole_run.py` starts `python plain_runs.py SETTINGS.json`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

Batch = dict[str, Tensor]


class Images(Dataset[Batch]):
    """Decoded images in memory and their classes."""

    def __init__(self, images: list[np.ndarray], labels: list[int], limit: int | None) -> None:
        self.images = torch.from_numpy(np.stack(images[:limit])).permute(0, 3, 1, 2)
        self.labels = torch.tensor(labels[:limit])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return {"pixels": self.images[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """A model of timm that normalizes pixels and returns its loss, as the Trainer asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def normalize(self, pixels: Tensor) -> Tensor:
        return pixels.float().div_(127.5).sub_(1)

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(self.normalize(pixels))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class ImageTask:
    """Classification: decode once, train, validate after every epoch, test at the end."""

    def __init__(self, settings: dict[str, Any]) -> None:
        read = digits if settings["task"] == "digits" else photos
        count = settings["limit"] and settings["limit"] * settings["batch"]
        self.splits = {split: Images(*found, count) for split, found in read(settings).items()}
        self.train, self.val = self.splits["train"], self.splits["val"]
        self.settings, self.collate = settings, None

    def model(self) -> nn.Module:
        import timm

        settings = self.settings
        if settings["weights"]:
            from safetensors.torch import load_file

            model = timm.models.VisionTransformer(num_classes=10, **settings["architecture"])
            model.load_state_dict(load_file(settings["weights"]), strict=False)
        else:
            size = {} if settings["size"] == 224 else {"img_size": settings["size"]}
            model = timm.create_model(settings["backbone"], num_classes=settings["classes"], **size)
        config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])
        return peft.get_peft_model(Classifier(model), config)

    def right(self, model: nn.Module, split: str) -> float:
        """The accuracy on a split."""
        right = 0
        with torch.inference_mode():
            for batch in DataLoader(self.splits[split], self.settings["eval_batch"]):
                batch = moved(batch, self.settings)
                right += int((model(**batch)["logits"].argmax(1) == batch["labels"]).sum())
        return right / len(self.splits[split])


def digits(settings: dict[str, Any]) -> dict[str, Any]:
    from sklearn.datasets import load_digits

    found, size = load_digits(), settings["size"]
    pixels = np.rint(found.images * (255 / 16)).clip(0, 255).astype(np.uint8)
    frames = [
        np.asarray(Image.fromarray(p).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) for p in pixels
    ]
    order = np.random.default_rng(0).permutation(len(frames))
    places = {"train": order[:800], "val": order[800:1000], "test": order[1000:]}
    return {split: ([frames[i] for i in chosen], found.target[chosen].tolist()) for split, chosen in places.items()}


def photos(settings: dict[str, Any], splits: Sequence[str] = ("train", "val", "test")) -> dict[str, Any]:
    root, size = Path(settings["data"]), settings["size"]

    def decode(file: Path) -> np.ndarray:
        return np.asarray(Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    found = {}
    with ThreadPoolExecutor(settings["threads"]) as threads:
        for split in splits:
            files = sorted((root / split).glob("*/*.jpg"))
            classes = sorted({file.parent.name for file in files})
            found[split] = (list(threads.map(decode, files)), [classes.index(file.parent.name) for file in files])
    return found


class QuestionTask:
    """A language model that learns the right option after each question, and ranks the options of the test."""

    val = None  # the configuration that is compared has no validation

    def __init__(self, settings: dict[str, Any]) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(settings["backbone"])
        records = json.loads(Path(settings["data"], "plain.json").read_text(encoding="utf-8"))
        self.tokens = {
            split: [
                (tokenizer(record["prompt"])["input_ids"], tokenizer(record["options"])["input_ids"], record["answer"])
                for record in found
            ]
            for split, found in records.items()
        }
        self.train = [
            {"ids": prompt + options[answer], "start": len(prompt)} for prompt, options, answer in self.tokens["train"]
        ]
        self.settings, self.collate = settings, partial(padded, pad=tokenizer.pad_token_id)

    def model(self) -> nn.Module:
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if self.settings["limit"] else torch.bfloat16  # as saved
        model = AutoModelForCausalLM.from_pretrained(self.settings["backbone"], dtype=dtype)
        config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return peft.get_peft_model(model, config)

    def right(self, model: nn.Module, split: str) -> float:
        """The accuracy on a split."""
        right, size, pad = 0, self.settings["eval_batch"], self.collate.keywords["pad"]
        tokens = sorted(self.tokens[split], key=lambda one: -len(one[0]))
        for start in range(0, len(tokens), size):
            prompts, options, answers = zip(*tokens[start : start + size], strict=True)
            scores = option_scores(model, prompts, options, pad, self.settings["device"])
            right += sum(few.index(max(few)) == answer for few, answer in zip(scores, answers, strict=True))
        return right / len(tokens)


@torch.inference_mode()
def option_scores(
    model: nn.Module, prompts: Sequence[list[int]], options: Sequence[list[list[int]]], pad: int, device: str
) -> list[list[float]]:
    """The mean log-likelihood of the tokens of each option, from one row of a batch for every option."""
    pairs = zip(prompts, options, strict=True)
    batch = padded([{"ids": prompt + option, "start": len(prompt)} for prompt, few in pairs for option in few], pad)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    log_p = model(**batch).logits[:, :-1].float().log_softmax(-1)
    found = log_p.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels >= 0)
    scores = iter((found.sum(1) / (labels >= 0).sum(1)).tolist())
    return [[next(scores) for _ in few] for few in options]


def padded(rows: list[dict[str, Any]], pad: int) -> Batch:
    """Texts as a batch, padded on the left, with labels for the tokens from `start` on."""
    length = max(len(row["ids"]) for row in rows)
    ids = torch.full((len(rows), length), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        first = length - len(row["ids"])
        ids[i, first:] = torch.tensor(row["ids"])
        mask[i, first:] = 1
        labels[i, first + row["start"] :] = ids[i, first + row["start"] :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def moved(batch: Batch, settings: dict[str, Any]) -> Batch:
    return {name: tensor.to(settings["device"], non_blocking=True) for name, tensor in batch.items()}


def rate(settings: dict[str, Any], warmup: int, total: int) -> Callable[[int], float]:
    """The factor of the learning rate: a linear warm-up, then half a cosine or a line."""

    def factor(step: int) -> float:
        if step < warmup:
            return max(step, 1e-4) / warmup
        done = min(1.0, (step - warmup) / max(total - warmup, 1))
        return 1 - done if settings["schedule"] == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    return factor


def loop(task: Any, settings: dict[str, Any]) -> nn.Module:
    """A plain PyTorch loop."""
    model = task.model().to(settings["device"])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings["lr"], weight_decay=settings["weight_decay"])
    loader = DataLoader(task.train, settings["batch"], shuffle=True, collate_fn=task.collate)
    warmup, total = settings["warmup_epochs"] * len(loader), settings["epochs"] * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate(settings, settings["warmup_steps"] or warmup, total))
    for epoch in range(settings["epochs"]):
        model.train()
        losses = []
        for batch in loader:
            with torch.autocast(settings["device"], torch.bfloat16, enabled=settings["autocast"]):
                loss = model(**moved(batch, settings))["loss"]
            loss.backward()
            if settings["clip"]:
                nn.utils.clip_grad_norm_(trained, settings["clip"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        model.eval()
        validated = f", accuracy {right(task, model, 'val'):.3f}" if task.val else ""
        print(f"epoch {epoch + 1}: loss {torch.stack(losses).mean():.4f}{validated}")
    return model


def trainer(task: Any, settings: dict[str, Any]) -> nn.Module:
    """transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    steps = -(-len(task.train) // settings["batch"])
    arguments = TrainingArguments(
        output_dir=settings["out"],
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch"],
        per_device_eval_batch_size=settings["eval_batch"],
        learning_rate=settings["lr"],
        weight_decay=settings["weight_decay"],
        lr_scheduler_type=settings["schedule"],
        warmup_steps=settings["warmup_steps"] or settings["warmup_epochs"] * steps,
        max_grad_norm=settings["clip"],
        bf16=settings["autocast"],
        use_cpu=settings["device"] == "cpu",
        eval_strategy="epoch" if task.val else "no",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    model = task.model()
    Trainer(
        model,
        arguments,
        train_dataset=task.train,
        eval_dataset=task.val,
        data_collator=task.collate,
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()},
    ).train()
    return model


def right(task: Any, model: nn.Module, split: str) -> float:
    settings = task.settings
    with torch.autocast(settings["device"], torch.bfloat16, enabled=settings["autocast"]):
        return task.right(model.eval(), split)


def run(settings: dict[str, Any]) -> None:
    """Train, save the adapter, and measure it on the test data."""
    torch.manual_seed(0)
    torch.set_num_threads(settings["threads"])
    task = (QuestionTask if settings["task"] == "questions" else ImageTask)(settings)
    model = {"loop": loop, "trainer": trainer}[settings["way"]](task, settings)
    out = Path(settings["out"])
    model.save_pretrained(out)
    (out / "accuracy.json").write_text(json.dumps(right(task, model, "test")), encoding="utf-8")


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
