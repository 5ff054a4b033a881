"""Two epochs of images with loader processes, whose memory is measured; `memory.py` starts it as a process of its own.

A process's own memory is that which it shares with no other (Private_Clean and Private_Dirty of Linux). What several
processes share counts once in the memory of all of them together (Pss).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

from loading import CLASSES
from record_memory import own_memory

from datamodules import VTABDataModule
from replora.datasets.common.in_memory import InMemory


def measured(root: Path, workers: int, cached: bool) -> dict[str, Any]:
    """Bytes after two epochs: of the images in memory, of each loader process and its growth, and of all processes."""
    memory = {} if cached else {"cache_bytes": 0}
    module = VTABDataModule(
        root=root.parent, task=root.name, num_classes=CLASSES, batch_size=16, num_workers=workers, **memory
    )
    module.setup("fit")
    loader = module.train_dataloader()
    first: list[int] = []
    pids: list[int] = []
    for _ in range(2):
        for _ in loader:
            pids = [process.pid for process in loader._iterator._workers] if workers else []  # type: ignore[union-attr]
            first = first or [own_memory(pid) for pid in pids]
    last = [own_memory(pid) for pid in pids]
    return {
        "cache_bytes": sum(held.images.nbytes for held in module._splits.values() if isinstance(held, InMemory)),
        "loader_bytes": last,
        "grown_bytes": [after - before for before, after in zip(first, last, strict=True)],
        "training_process": own_memory(os.getpid()),
        "together": sum(own_memory(pid, "Pss:") for pid in (os.getpid(), *pids)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of a task in the layout of VTAB-1K")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--start", default="fork", choices=["fork", "spawn"], help="how they start")
    parser.add_argument("--no-cache", action="store_true", help="read the images from disk in every epoch")
    options = parser.parse_args()
    multiprocessing.set_start_method(options.start)
    print(json.dumps(measured(options.root, options.workers, not options.no_cache)))
