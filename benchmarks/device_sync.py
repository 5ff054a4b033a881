"""Does a training step wait for the GPU?

    python benchmarks/device_sync.py --device cuda

Short fits of images, videos, and images with text, of the packaged configurations. From the third batch on, every
forward and backward pass is watched: on a GPU by CUDA's own warnings of a synchronization, on a CPU by the operators
that read a value, which would wait on a GPU. The result is the number per step, and where they come from.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import measure
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

from replora.launch import launch

RUNS = {"images": "quickstart.yaml", "videos": "video_demo.yaml", "images with text": "vl_demo.yaml"}
FOUND = "synchronizations.json"
# Operators whose result, or its shape, the host must know before it goes on.
READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique_dim", "_unique2", "equal", "bincount"}


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=8)
    measure.device_option(parser)
    options = parser.parse_args(arguments)
    runs = {"images": RUNS["images"]} if options.quick else RUNS
    results = {name: watched(config, options) for name, config in runs.items()}
    measure.show(
        "Synchronizations in training steps",
        ["run", "steps", "per step", "where"],
        [[n, str(f["steps"]), f"{f['count'] / f['steps']:.2f}", ", ".join(f["where"])] for n, f in results.items()],
    )
    settings = measure.settings(options)
    print(measure.write(options.out, f"device_sync-{options.device}", settings, results, options.device))


def watched(config: str, options: Any) -> dict[str, Any]:
    """Fit a few steps; return the number of steps and of synchronizations, and their places."""
    with tempfile.TemporaryDirectory() as home:
        given = [f"--config={config}", f"--run_dir={home}", f"--trainer.max_steps={options.rounds + 2}"]
        given += ["--trainer.accelerator=" + ("gpu" if options.device == "cuda" else "cpu"), "--trainer.devices=1"]
        given += ["--trainer.limit_val_batches=0", "--trainer.limit_test_batches=1", "--trainer.logger=false"]
        given += [
            "--trainer.enable_progress_bar=false",
            "--model.pretrained=false",
            "--trainer.callbacks+=device_sync.Watch",
        ]
        launch(["fit", *given])
        found: dict[str, Any] = json.loads(Path(home, FOUND).read_text(encoding="utf-8"))
        return found


class Reads(TorchDispatchMode):
    """Collects what asks the device for a value, with its places in the code, the innermost first.

    Args:
        allowed: Ends of file names; what is called from these files does not count.
    """

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.allowed = allowed
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS or (name.startswith("index") and _by_mask(args)):
            calls = [call for call in traceback.extract_stack()[:-1] if "/torch/_" not in call.filename]
            if not any(call.filename.endswith(self.allowed) for call in calls):
                places = " < ".join(f"{Path(call.filename).name}:{call.lineno}" for call in calls[:-4:-1])
                self.found.append(f"{name} at {places}")
        return func(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    """Whether the second argument has a mask among its indices: the shape of the result is that of its values."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)


class Watch(Callback):
    """Writes the synchronizations of forward and backward passes into the run's directory."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self.steps = 0
        self.stack = contextlib.ExitStack()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, _batch: Any, _index: int) -> None:
        if trainer.global_step < 2:  # the first steps fill caches
            return
        self.steps += 1
        if module.device.type == "cuda":
            caught = self.stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            self.stack.callback(lambda: self.places.update(f"{Path(w.filename).name}:{w.lineno}" for w in caught))
            self.stack.callback(torch.cuda.set_sync_debug_mode, "default")
        else:
            reads = self.stack.enter_context(Reads())
            self.stack.callback(lambda: self.places.update(reads.found))

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.stack.close()

    def on_train_end(self, trainer: Trainer, _module: LightningModule) -> None:
        found = {"steps": self.steps, "count": self.places.total(), "where": dict(self.places.most_common(10))}
        Path(trainer.default_root_dir, FOUND).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
