"""Batches of one task each, in a shuffled order of the tasks that every process shares."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import DistributedSampler

from replora.datasets.samples import PADDING_INDEX

Key = tuple[str, int, int]  # task, epoch, position; PADDING_INDEX stands for padding


class TaskBatches(DistributedSampler[Any]):
    """The batches of one process in one epoch: each task's examples once, each batch of a single task.

    The order is VL-Adapter's "roundrobin": a list that names each task as often as it has batches, shuffled by Python's
    generator with the number of the epoch, and consumed from its end. The k-th global batch of a task does not depend
    on the number of processes.

    It is a `DistributedSampler` so that Lightning keeps it and sets its epoch. It yields batches, as lists of keys,
    for a loader with `batch_size=None`.

    Args:
        sizes: Number of examples of each task.
        batch_sizes: Examples per batch and process of each task.
        world: Number of processes (>= 1).
        rank: Rank of this process, 0 to `world` - 1.
        seed: Random seed (>= 0) of the order of examples and tasks.
        drop_last: Whether to drop the last, incomplete batch of a task; otherwise padding makes the shares equal.
        seen: Function that returns, when an epoch begins, how many of its batches this process has trained on.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_sizes: Mapping[str, int],
        world: int,
        rank: int,
        seed: int,
        drop_last: bool,
        seen: Callable[[], int],
    ) -> None:
        super().__init__(range(sum(sizes.values())), world, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.sizes = dict(sizes)
        self.batch_sizes = dict(batch_sizes)
        self.world = world
        self.incomplete = not drop_last
        self.seen = seen

    def counts(self) -> dict[str, int]:
        """Task -> its batches in an epoch."""
        return {task: self._count(size, self.batch_sizes[task] * self.world) for task, size in self.sizes.items()}

    def __len__(self) -> int:
        return sum(self.counts().values())

    def __iter__(self) -> Iterator[list[Key]]:
        batches = {task: self._batches(number, task) for number, task in enumerate(self.sizes)}
        yield from [next(batches[task]) for task in self.order()][self.seen() :]

    def order(self) -> list[str]:
        """The task of each batch of the epoch."""
        tasks = [task for task, count in self.counts().items() for _ in range(count)]
        random.Random(self.seed + self.epoch).shuffle(tasks)
        return tasks[::-1]

    def _batches(self, number: int, task: str) -> Iterator[list[Key]]:
        """This process's share of the batches of a task."""
        order = np.random.default_rng((self.seed, self.epoch, number)).permutation(self.sizes[task]).tolist()
        step = self.batch_sizes[task] * self.world
        for start in range(0, self.counts()[task] * step, step):
            together = order[start : start + step]
            together += [PADDING_INDEX] * (-len(together) % self.world)
            yield [(task, self.epoch, position) for position in together[self.rank :: self.world]]

    def _count(self, size: int, step: int) -> int:
        full, rest = divmod(size, step)
        return full + (1 if rest and (self.incomplete or full == 0) else 0)
