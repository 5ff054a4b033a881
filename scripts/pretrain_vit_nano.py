"""Pre-train `vit_nano`, the small backbone that ships with RepLoRA, on labeled 32x32 images.

    python scripts/pretrain_vit_nano.py --data cifar10_train.npz --test vtab-1k/cifar10

`--data` is either a folder of class folders of images, or an `.npz` with the arrays `jpeg` (all files' bytes,
concatenated), `offsets` (N + 1), `labels` (N) and `classes`. `--test` is a folder with `test.txt` in the VTAB-1K
archive layout, or a folder of class folders with the same class names. 2,000 training images are held out for the log's
validation curve. The test images are evaluated once, after the last epoch, and select nothing.

The script writes `vit_nano.safetensors` (without the classification head) and `vit_nano.json` (recipe, log, accuracy)
to `--out`. On two CPU cores with bfloat16 instructions an epoch takes about a minute; `--resume` continues after an
interruption.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from replora.backbones.vit_nano import VIT_NANO_ARCHITECTURE, VIT_NANO_WEIGHTS, build_vit_nano

SIZE = 32


def read_image(source: Path | io.BytesIO) -> np.ndarray:
    """Read one image as (32, 32, 3) uint8."""
    with Image.open(source) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def load_npz(path: Path) -> tuple[Tensor, Tensor, list[str]]:
    with np.load(path, allow_pickle=False) as archive:
        blob, offsets = archive["jpeg"].tobytes(), archive["offsets"]
        labels, classes = archive["labels"], [str(name) for name in archive["classes"]]
    images = np.stack([read_image(io.BytesIO(blob[a:b])) for a, b in itertools.pairwise(offsets)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long(), classes


def load_folder(root: Path) -> tuple[Tensor, Tensor, list[str]]:
    if (root / "test.txt").is_file():
        rows = [line.rsplit(" ", 1) for line in (root / "test.txt").read_text().splitlines() if line]
        files, labels, classes = [root / name for name, _ in rows], [int(label) for _, label in rows], []
    else:
        classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
        pairs = [(f, i) for i, name in enumerate(classes) for f in sorted((root / name).rglob("*")) if f.is_file()]
        files, labels = [f for f, _ in pairs], [i for _, i in pairs]
    if not files:
        raise SystemExit(f"No images found in {root}. It must contain class folders with images, or a test.txt.")
    images = np.stack([read_image(file) for file in files])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels), classes


def normalize(images: Tensor) -> Tensor:
    """Convert uint8 in [0, 255] to float in [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply 4-pixel shifts (reflected border), left-right flips and an 8x8 hole, all random. (B, 3, 32, 32) uint8."""
    count = len(images)
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    top, left = torch.randint(0, 9, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(SIZE)).view(count, 1, SIZE, 1)
    columns = (left[:, None] + torch.arange(SIZE)).view(count, 1, 1, SIZE)
    flip = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(flip.view(-1, 1, 1, 1), columns.flip(-1), columns)
    out = padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1), rows, columns]
    centre = torch.randint(0, SIZE, (2, count, 1), generator=generator)
    inside = (torch.arange(SIZE) - centre).abs() < 4  # (2, B, 32)
    hole = inside[0].view(count, 1, SIZE, 1) & inside[1].view(count, 1, 1, SIZE)
    return out.masked_fill(hole, 127)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy in percent, computed in float32."""
    model.eval()
    chunks = zip(images.split(250), labels.split(250), strict=True)
    hits = sum(int((model(normalize(x)).argmax(1) == y).sum()) for x, y in chunks)
    return 100.0 * hits / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=VIT_NANO_WEIGHTS.parent)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="state file, written after every epoch and read if it exists")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels, classes = load_npz(args.data) if args.data.suffix == ".npz" else load_folder(args.data)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))
    held_out, train = order[:2000], order[2000:]

    model = build_vit_nano(num_classes=len(classes))
    for block in model.blocks:
        block.attn.fused_attn = False  # for 64 tokens the plain product compiles to faster CPU code than the fused one
    compiled = torch.compile(model)
    decay = [p for p in model.parameters() if p.ndim > 1]
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": args.weight_decay}, {"params": no_decay, "weight_decay": 0.0}], lr=args.lr
    )
    steps_per_epoch = len(train) // args.batch_size
    total, warmup = args.epochs * steps_per_epoch, steps_per_epoch * min(3, args.epochs) // 2
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: (
            (t + 1) / warmup if t < warmup else 0.5 * (1 + math.cos(math.pi * (t - warmup) / max(1, total - warmup)))
        ),
    )

    log: list[dict[str, float]] = []
    plan = [{"from_epoch": 1, "cosine_epochs": args.epochs}]
    if args.resume and args.resume.is_file():
        state = torch.load(args.resume, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        log, plan = state["log"], state["plan"]
        if plan[-1]["cosine_epochs"] != args.epochs:  # the rest of the run follows a different cosine; record that
            plan.append({"from_epoch": len(log) + 1, "cosine_epochs": args.epochs})

    for epoch in range(len(log), args.epochs):
        started, losses = time.perf_counter(), 0.0
        model.train()
        shuffled = train[torch.randperm(len(train), generator=generator)]
        for step in range(steps_per_epoch):
            batch = shuffled[step * args.batch_size : (step + 1) * args.batch_size]
            x = normalize(augment(images[batch], generator))
            with torch.autocast("cpu", torch.bfloat16):
                logits = compiled(x)
            loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=args.label_smoothing)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses += loss.item()
        log.append(
            {
                "epoch": epoch + 1,
                "train_loss": round(losses / steps_per_epoch, 4),
                "held_out_accuracy": round(accuracy(model, images[held_out], labels[held_out]), 2),
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
        print(log[-1], flush=True)
        if args.resume:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log, "plan": plan}
            state |= {"schedule": schedule.state_dict(), "generator": generator.get_state()}
            torch.save(state, args.resume.with_suffix(".tmp"))
            args.resume.with_suffix(".tmp").replace(args.resume)

    test_images, test_labels, test_classes = load_folder(args.test)
    if test_classes and test_classes != classes:
        raise SystemExit(f"The class folders of {args.test} ({test_classes}) differ from those of the training data.")
    result = {
        "test_accuracy_percent": round(accuracy(model, test_images, test_labels), 2),
        "test_images": len(test_images),
        "selection": "last epoch; the test images are evaluated once and choose nothing",
        "training_images": len(train),
        "held_out_images": len(held_out),
        "classes": classes,
        "architecture": VIT_NANO_ARCHITECTURE,
        "recipe": {k: v for k, v in vars(args).items() if isinstance(v, int | float)},
        "learning_rate_plan": plan,
        "precision": "bfloat16 autocast, accuracy in float32",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "log": log,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("head.")}
    save_file(weights, args.out / "vit_nano.safetensors", metadata={"format": "pt"})
    (args.out / "vit_nano.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"test accuracy {result['test_accuracy_percent']} % -> {args.out / 'vit_nano.safetensors'}")


if __name__ == "__main__":
    main()
