from __future__ import annotations

import random
from collections import Counter

import pytest

from datamodules.vision_language.task_batches import TaskBatches
from replora.datasets.samples import PADDING_INDEX

SIZES = {"vqa": 23, "coco": 7}


def batches(world=1, rank=0, epoch=0, drop_last=False, seen=0, size=4, sizes=SIZES):
    each = {"vqa": size // world, "coco": 2 // world}
    sampler = TaskBatches(sizes, each, world, rank, 0, drop_last, lambda: seen)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler) - seen
    return found


def test_each_example_once_an_epoch_in_batches_of_one_task():
    found = batches()
    for batch in found:
        assert len({task for task, _, _ in batch}) == 1
    assert Counter(batch[0][0] for batch in found) == {"vqa": 6, "coco": 4}
    keys = [(task, position) for batch in found for task, _, position in batch]
    assert sorted(keys) == sorted((task, i) for task, size in SIZES.items() for i in range(size))
    assert {len(batch) for batch in found if batch[0][0] == "vqa"} == {4, 3}


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_the_order_of_tasks_is_vl_adapters(epoch):
    listed = ["vqa"] * 6 + ["coco"] * 4
    random.Random(epoch).shuffle(listed)
    expected = [listed.pop() for _ in range(10)]  # it consumes the list from its end
    assert [batch[0][0] for batch in batches(epoch=epoch)] == expected


def test_epochs_differ():
    assert batches(epoch=0) != batches(epoch=1)
    assert {epoch for batch in batches(epoch=3) for _, epoch, _ in batch} == {3}


def test_two_processes_share_the_batches_of_one():
    alone = batches()
    ranks = [batches(world=2, rank=rank) for rank in (0, 1)]
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert len({len(share) for share in shares}) == 1, "equally many, by padding"
        together = [key for share in shares for key in share if key[2] != PADDING_INDEX]
        assert sorted(together) == sorted(whole)
    assert sum(key[2] == PADDING_INDEX for rank in ranks for batch in rank for key in batch) == 2


def test_a_resumed_epoch_goes_on():
    assert batches(seen=3) == batches()[3:]


def test_incomplete_batches_are_left_out_on_demand():
    found = batches(drop_last=True)
    assert Counter(batch[0][0] for batch in found) == {"vqa": 5, "coco": 3}
    assert {len(batch) for batch in found} == {4, 2}
    assert len(batches(drop_last=True, sizes={"vqa": 3, "coco": 1})) == 2, "a task smaller than a batch stays"
