"""How much memory do the records of a training set take in each loader process?

    python benchmarks/record_memory.py --before ../replora-47ed0c2

`--before` is a checkout of an earlier commit, which is measured beside this one (git worktree add ../replora-47ed0c2
47ed0c2). Each is measured in a process of its own: it makes the records, then loader processes read all of them in a
random order, twice. `questions` are samples of VQAv2, whose features are a single number here; `videos` are the paths
of Something-Something-V2, which are not opened.

A loader process is forked and shares the memory of the training process until it writes to it. Its own memory is that
which it shares with no other process (Private_Clean and Private_Dirty of Linux); its growth is the difference between
the first batch and the end of the second epoch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

RECORDS = {"questions": 443_757, "videos": 168_913}  # training sets of VQAv2 and Something-Something-V2
HERE = Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> None:
    import measure  # not in the measured process, which may be of another commit

    parser = measure.common_options(__doc__.splitlines()[0], rounds=1)
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit to measure as well")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    options = parser.parse_args(arguments)
    sources = {"now": HERE, **({"before": options.before.resolve()} if options.before else {})}
    results: dict[str, Any] = {}
    for kind, full in RECORDS.items():
        count = 2_000 if options.quick else full
        for name, source in sources.items():
            commit = _output(["git", "-C", str(source), "describe", "--always", "--dirty"])
            found = json.loads(_output([sys.executable, __file__, kind, str(count), str(options.workers)], source))
            results[f"{kind}, {name}"] = {"commit": commit, "records": count, **found}
    measure.show(
        f"{options.workers} loader processes",
        ["records", "number", "grown per process, MB", "bytes per record", "training process, MB"],
        [
            [
                name,
                f"{found['records']:,}",
                f"{found['grown'] / 1e6:,.1f}",
                f"{found['grown'] / found['records']:,.0f}",
                f"{found['training_process'] / 1e6:,.0f}",
            ]
            for name, found in results.items()
        ],
    )
    print(measure.write(options.out, "record_memory", measure.settings(options, "before"), results))


def _output(command: list[str], source: Path | None = None) -> str:
    environment = os.environ | ({"PYTHONPATH": str(source)} if source else {})
    return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout.strip()


class Items(Dataset[Any]):
    """A data set whose items are what a loader process reads of its records."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count = kind, count
        self.data = questions(count) if kind == "questions" else videos(count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.data[index] if self.kind == "questions" else str(self.data.home / self.data.paths[index])


class OneNumber:
    """Features of one number."""

    extraction: dict[str, Any]

    def read(self, name: str) -> torch.Tensor:  # noqa: ARG002
        return torch.zeros(1, 1)


def questions(count: int) -> Any:
    """Records as VQAv2 has them in training."""
    from replora.datasets.vision_language.tasks import VLDataset, VLRecord, vl_task

    random = np.random.default_rng(0)
    words = ["what", "color", "is", "the", "dog", "beside", "a", "table", "how", "many", "people", "are", "there"]
    records = []
    for index in range(count):
        text = " ".join(random.choice(words, 6)) + "?"
        answers = tuple(f"{words[i]} {i}" for i in random.integers(0, len(words), 1 + index % 4))
        image = f"COCO_train2014_{int(random.integers(0, 600_000)):012}"
        weights = tuple(random.choice([0.3, 0.6, 0.9, 1.0], len(answers)).tolist())
        records.append(VLRecord(index, 1_000 * index, text, (image,), answers, weights))
    return VLDataset(vl_task("vqa"), records, OneNumber(), "vl_adapter", 0)  # type: ignore[arg-type]


def videos(count: int) -> Any:
    """The table of Something-Something-V2."""
    from replora.datasets.common.labeled_files import FileTable
    from replora.datasets.video.dataset import VideoClips
    from replora.datasets.video.sampling import ClipOptions

    paths = [PurePosixPath(f"{number}.webm") for number in range(1, count + 1)]
    labels = [number % 174 for number in range(count)]
    table = FileTable(Path("videos"), paths, labels, [f"class {i}" for i in range(174)], ["train"] * count)
    return VideoClips(table, range(count), ClipOptions())


def measured(kind: str, count: int, workers: int) -> dict[str, int]:
    """Bytes by which the loader processes grow, the mean over them, and the bytes of the training process."""
    from datamodules.loader import start_worker

    data = Items(kind, count)
    loader = DataLoader(
        data,
        batch_size=250,
        shuffle=True,
        num_workers=workers,
        collate_fn=len,
        worker_init_fn=start_worker,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    first = 0.0
    for _ in range(2):
        for _ in loader:
            pids = [process.pid for process in loader._iterator._workers]  # type: ignore[union-attr]
            last = sum(map(own_memory, pids)) / workers if first == 0 else 0
            first = first or last
    grown = sum(map(own_memory, pids)) / workers - first
    return {"grown": int(grown), "training_process": own_memory(os.getpid(), "Pss:")}


def own_memory(pid: int, *kinds: str) -> int:
    """Bytes of a process that it shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(kinds or ("Private_",)))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in RECORDS:
        print(json.dumps(measured(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
