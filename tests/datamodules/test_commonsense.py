from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from datamodules import CommonsenseDataModule
from datamodules.text.commonsense import Questions, TrainingTexts
from replora.datasets.errors import DatasetNotFoundError, ProtocolError, RecordError, SubsetError, UnknownTaskError
from replora.datasets.samples import NO_LOSS
from replora.datasets.text.commonsense import COMMONSENSE_TASKS
from replora.datasets.text.items import ChoiceItem, TextBatch
from replora.errors import RepLoRAError
from tests.fake_data import write_commonsense
from tests.tiny_llama import write_tiny_llama

SIZES = {"boolq": (60, 11), "winogrande": (30, 8), "ARC-Easy": (20, 7), "openbookqa": (10, 5)}
TASKS = list(SIZES)
TOTAL = 120


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_commonsense(tmp_path_factory.mktemp("data"), SIZES)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A token a byte, so texts have some hundred tokens."""
    return str(write_tiny_llama(tmp_path_factory.mktemp("tiny_llama")))


@pytest.fixture
def make(root: Path, tokenizer: str) -> Any:
    def make(stage: str = "fit", world: int | None = None, rank: int = 0, **options: Any) -> CommonsenseDataModule:
        """A datamodule after setup; with `world`, as process `rank` of so many."""
        given: dict[str, Any] = {
            "root": root, "tokenizer": tokenizer, "tasks": TASKS, "check_sizes": False, "cutoff": 1000,
            "preset": "cloze", "batch_size": 8,
        }  # fmt: skip
        data = CommonsenseDataModule(**given | options)
        if world is not None:
            data.trainer = SimpleNamespace(  # type: ignore[assignment]
                world_size=world,
                global_rank=rank,
                num_devices=world,
                strategy=SimpleNamespace(root_device=torch.device("cpu")),
            )
        data.setup(stage)
        return data

    return make


def epochs(data: CommonsenseDataModule, count: int = 2) -> Iterator[list[TextBatch]]:
    loader = data.train_dataloader()
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield list(loader)


def indices(batches: list[TextBatch]) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


def flat(batches: list[TextBatch]) -> list[int]:
    return [index for batch in indices(batches) for index in batch]


# --- splits and subsets


def test_the_union_is_the_tasks_one_after_another(make: Any) -> None:
    data = make(tasks=["openbookqa", "boolq"])  # in the table's order all the same
    assert data.train_tasks == ["boolq", "openbookqa"]
    (epoch,) = epochs(data, 1)
    assert sorted(flat(epoch)) == list(range(70))
    texts = {int(i): row for batch in epoch for i, row in zip(batch["index"], batch["input_ids"], strict=True)}
    decoded = data.tokenizer.decode(texts[60], skip_special_tokens=True)
    assert decoded.startswith("Question: What is 0 and")  # the first of openbookqa
    assert data.tokenizer.decode(texts[0], skip_special_tokens=True).startswith("Question: is 0 and")


def test_final_tests_every_task_and_has_no_validation(make: Any) -> None:
    data = make()
    assert data.val_dataloader() == []
    items = [item for batch in data.test_dataloader() for item in batch]
    assert all(isinstance(item, ChoiceItem) for item in items)
    assert Counter(item.task for item in items) == {task: test for task, (_, test) in SIZES.items()}
    assert {(item.task, item.index) for item in items} == {(t, i) for t, (_, n) in SIZES.items() for i in range(n)}
    # A question and all its options share a row.
    lengths = [len(item.prompt_ids) + sum(map(len, item.option_ids)) for item in items]
    assert lengths == sorted(lengths, reverse=True)
    with pytest.raises(ProtocolError, match="protocol 'final'"):
        data.setup("validate")


def test_tune_holds_out_a_part_of_every_task_and_refuses_the_test(make: Any) -> None:
    data = make(protocol="tune", val_fraction=0.2)
    held_out = [item for batch in data.val_dataloader() for item in batch]
    assert Counter(item.task for item in held_out) == {"boolq": 12, "winogrande": 6, "ARC-Easy": 4, "openbookqa": 2}
    first = dict(zip(TASKS, (0, 60, 90, 110), strict=True))
    validated = {first[item.task] + item.index for item in held_out}
    (epoch,) = epochs(data, 1)
    assert validated.isdisjoint(flat(epoch))
    assert validated | set(flat(epoch)) == set(range(TOTAL))
    assert [
        i.index for b in make(protocol="tune", val_fraction=0.2, train_fraction=0.5).val_dataloader() for i in b
    ] == [item.index for item in held_out]
    with pytest.raises(ProtocolError, match="protocol 'tune'"):
        data.setup("test")


def test_copies_of_validation_records_are_not_trained_on(make: Any, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "winogrande", tmp_path / "winogrande")
    file = tmp_path / "winogrande" / "train.json"
    file.write_text(json.dumps(3 * json.loads(file.read_text())))
    options = {"root": tmp_path, "tasks": ["winogrande"], "protocol": "holdout"}
    data = make(**options)
    held_out = {item.index % 30 for batch in data.val_dataloader() for item in batch}
    assert held_out.isdisjoint(index % 30 for index in data.train_indices)
    assert len(data.train_indices) == 3 * (30 - len(held_out))
    assert data.describe()["train_texts"]["duplicates"] == 2 * (30 - len(held_out))


def test_the_validation_of_llm_adapters(make: Any) -> None:
    with pytest.raises(RepLoRAError, match="holds out 120 of 120 training records: none would be left"):
        make(protocol="tune", validation="llm_adapters")
    data = make(protocol="holdout", validation="llm_adapters", tasks=[*TASKS, "boolq"], root=_larger(make))
    validated = [index for batch in data.val_dataloader() for index in batch["index"].tolist()]
    # datasets' train_test_split takes the first of numpy's permutation.
    assert validated == sorted(np.random.default_rng(42).permutation(200)[:120].tolist())
    (epoch,) = epochs(data, 1)
    assert sorted([*validated, *flat(epoch)]) == list(range(200))
    tuned = make(protocol="tune", validation="llm_adapters", root=data.root)
    with pytest.raises(ProtocolError, match="Predictions are answers to questions"):
        tuned.predict_dataloader()


def _larger(make: Any) -> Path:
    root = make().root.parent / "larger"
    return write_commonsense(
        root, {"boolq": (100, 4), "winogrande": (50, 4), "ARC-Easy": (30, 4), "openbookqa": (20, 4)}
    )


def test_fractions_are_stratified_by_task_nested_and_seeded(make: Any) -> None:
    def chosen(**options: Any) -> set[int]:
        return set(make(**options).train_indices)

    tenth, half = chosen(train_fraction=0.1), chosen(train_fraction=0.5)
    assert tenth < half
    assert chosen(train_fraction=0.1, subset_seed=1) != tenth
    assert by_task(half) == [30, 15, 10, 5]
    assert by_task(tenth) == [6, 3, 2, 1]
    assert by_task(chosen(shots=4)) == [4] * 4


def by_task(positions: set[int]) -> list[int]:
    edges = [0, *accumulate(train for train, _ in SIZES.values())]
    return [sum(start <= position < end for position in positions) for start, end in pairwise(edges)]


def test_shots_that_a_task_lacks(make: Any) -> None:
    with pytest.raises(SubsetError, match=r"shots=11 .*of every task, but openbookqa has 10"):
        make(shots=11)


def test_test_items_are_the_same_few_always(make: Any) -> None:
    def asked(**options: Any) -> set[tuple[str, int]]:
        return {(item.task, item.index) for batch in make(**options).test_dataloader() for item in batch}

    three, five = asked(test_items=3), asked(test_items=5, preset="clean", subset_seed=3, shuffle_seed=4)
    assert three < five
    assert Counter(task for task, _ in three) == dict.fromkeys(TASKS, 3)
    assert asked(test_items=1000) == asked()
    assert {index for _, index in three} != {0, 1, 2}


def test_other_tasks_can_be_tested(make: Any) -> None:
    data = make(tasks=["boolq"], test_tasks=["ARC-Easy", "openbookqa"])
    assert {item.task for batch in data.test_dataloader() for item in batch} == {"ARC-Easy", "openbookqa"}
    assert data.tasks == ["boolq", "ARC-Easy", "openbookqa"]


# --- the union file


@pytest.fixture
def union(tmp_path: Path) -> Path:
    write_commonsense(tmp_path / "tasks", dict.fromkeys(COMMONSENSE_TASKS, (5, 0)))
    records = [
        e for task in COMMONSENSE_TASKS for e in json.loads((tmp_path / "tasks" / task / "train.json").read_text())
    ]
    (tmp_path / "union.json").write_text(json.dumps(records))
    return tmp_path / "union.json"


def test_a_union_file_trains_and_the_folders_test(make: Any, union: Path) -> None:
    data = make(union_file=union, tasks=None, test_tasks=TASKS)
    assert sorted(flat(next(epochs(data)))) == list(range(40))
    assert data.describe()["task"] == "commonsense"
    assert data.describe()["union_file"] == "union.json"
    chosen = make(union_file=union, tasks=["boolq", "winogrande"])
    assert len(flat(next(epochs(chosen)))) == 10
    half = make(union_file=union, tasks=None, test_tasks=TASKS, train_fraction=0.5)
    assert len(half.train_indices) == 20


def test_what_a_union_file_does_not_tell_is_refused(make: Any, union: Path) -> None:
    with pytest.raises(UnknownTaskError, match="ARC-Easy of a union file: it does not say which"):
        make(union_file=union, tasks=["ARC-Easy", "boolq"])
    with pytest.raises(RepLoRAError, match=r"per task, but .*--data.validation llm_adapters"):
        make(union_file=union, tasks=None, test_tasks=TASKS, protocol="tune", val_fraction=0.5)
    with pytest.raises(RecordError, match="40 records, but 170,420 are expected"):
        make(union_file=union, tasks=None, test_tasks=TASKS, check_sizes=True)


# --- training batches


def test_batches_hold_like_lengths_and_change_by_epoch(make: Any) -> None:
    def padding(batches: list[TextBatch]) -> float:
        return 1 - sum(int(b["attention_mask"].sum()) for b in batches) / sum(b["input_ids"].numel() for b in batches)

    first, second = epochs(make())
    (mixed,) = epochs(make(group_by_length=False), 1)
    assert sorted(flat(first)) == sorted(flat(second)) == sorted(flat(mixed)) == list(range(TOTAL))
    assert padding(first) < padding(mixed) / 2
    assert indices(first) != indices(second)
    assert indices(first) == indices(next(epochs(make())))
    assert indices(first) != indices(next(epochs(make(shuffle_seed=1))))
    lengths = [batch["input_ids"].shape[1] for batch in first]
    assert lengths != sorted(lengths)


@pytest.mark.parametrize("preset", ["llm_adapters", "clean", "cloze"])
def test_padding_and_labels_of_the_presets(make: Any, preset: str) -> None:
    data = make(preset=preset)
    for batch in next(epochs(data)):
        mask, labels, ids = batch["attention_mask"], batch["labels"], batch["input_ids"]
        assert bool((mask.diff(dim=1) >= 0).all())  # on the left
        assert bool(mask.any(dim=0).all()) or preset == "llm_adapters"  # to the longest
        assert bool((labels[mask == 0] == NO_LOSS).all())
        assert torch.equal(labels[labels != NO_LOSS], ids[labels != NO_LOSS])
        assert bool((labels[:, -1] == ids[:, -1]).all())
        if preset == "llm_adapters":
            assert ids.shape[1] % 8 == 0
            assert torch.equal(labels != NO_LOSS, mask == 1)
            assert bool((ids[mask == 0] == 0).all())
        else:
            assert bool(((labels != NO_LOSS).sum(1) < mask.sum(1) / 2).all())
        assert bool((ids[:, -1] == data.tokenizer.eos_token_id).all()) == (preset != "cloze")


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("fraction", [1.0, 0.63, 0.03])
@pytest.mark.parametrize("drop_last", [False, True])
def test_several_processes_see_the_batches_of_one(make: Any, world: int, fraction: float, drop_last: bool) -> None:
    options = {"train_fraction": fraction, "drop_last": drop_last}
    one = list(epochs(make(batch_size=4 * world, **options)))
    ranks = [list(epochs(make(world=world, rank=rank, batch_size=4, **options))) for rank in range(world)]
    for epoch, batches in enumerate(one):
        shares = [indices(ranks[rank][epoch]) for rank in range(world)]
        assert {len(share) for share in shares} == {len(batches)}
        joined = [sorted(i for part in parts for i in part if i >= 0) for parts in zip(*shares, strict=True)]
        assert joined == [sorted(batch) for batch in indices(batches)]


def test_padding_rows_have_a_token_and_no_label(make: Any) -> None:
    # Four texts for three processes of one batch each.
    options = {"shots": 2, "tasks": ["boolq", "ARC-Easy"]}
    ranks = [next(epochs(make(world=3, rank=rank, **options))) for rank in range(3)]
    assert [len(flat(batches)) for batches in ranks] == [2] * 3
    (last,) = ranks[2]
    assert last["index"].tolist()[1] == -1
    assert bool((last["labels"][1] == NO_LOSS).all())
    assert int(last["attention_mask"][1].sum()) == 1
    assert bool((last["labels"][0] != NO_LOSS).any())


def test_texts_that_are_too_long(make: Any) -> None:
    data = make(preset="clean", cutoff=350)
    texts = data._splits["trainval"]
    assert isinstance(texts, TrainingTexts)
    described = data.describe()["train_texts"]
    assert 0 < described["left_out"] == described["over_length"] < TOTAL
    assert len(texts) == TOTAL - described["left_out"] == len(flat(next(epochs(data))))
    assert described["longest"] <= 350
    cut = make(preset="llm_adapters", cutoff=350).describe()["train_texts"]
    assert (cut["left_out"], cut["longest"]) == (0, 350)
    assert cut["over_length"] > described["over_length"]
    with pytest.raises(RepLoRAError, match=r"All 120 training texts are longer than cutoff=30.*--data.cutoff"):
        make(preset="clean", cutoff=30)


def test_tokens_are_counted(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("datamodules.text.texts.rank_zero_info", said.append)
    data = make()
    batches = next(epochs(data))
    described = data.describe()["train_texts"]
    assert described["tokens"] == sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert described["labelled_tokens"] == sum(int((batch["labels"] != NO_LOSS).sum()) for batch in batches)
    assert said[0].startswith(f"120 training texts, {described['tokens']:,} tokens ({described['labelled_tokens']:,}")


# --- evaluation under several processes


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_question_is_asked_once(make: Any, world: int) -> None:
    ranks = [make("test", world=world, rank=rank, eval_batch_size=3).test_dataloader() for rank in range(world)]
    batches = [list(loader) for loader in ranks]
    assert len({len(share) for share in batches}) == 1
    items = [item for share in batches for batch in share for item in batch]
    asked = [(item.task, item.index) for item in items if item.index >= 0]
    assert sorted(asked) == sorted((t, i) for t, (_, n) in SIZES.items() for i in range(n))
    assert len(items) == -(-31 // world) * world


def test_validation_texts_are_padded_for_several_processes(make: Any) -> None:
    options = {"protocol": "holdout", "validation": "llm_adapters", "root": _larger(make)}
    ranks = [make("validate", world=7, rank=rank, **options).val_dataloader() for rank in range(7)]
    found = [i for loader in ranks for batch in loader for i in batch["index"].tolist()]
    assert len(found) == 126
    assert len({i for i in found if i >= 0}) == 120


# --- with Lightning


class Recorder(pl.LightningModule):
    """Counts what it sees, and stops in the middle of an epoch when told."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.stop_at, self.trained, self.tested = stop_at, [], []

    def training_step(self, batch: TextBatch) -> torch.Tensor:
        self.trained.append((self.current_epoch, batch["index"].tolist()))
        if self.stop_at == len(self.trained):
            self.trainer.save_checkpoint(self.trainer.default_root_dir + "/middle.ckpt")
            self.trainer.should_stop = True
        return self.layer(torch.ones_like(self.layer.weight)).sum()

    def test_step(self, batch: list[ChoiceItem]) -> None:
        self.tested += [(item.task, item.index) for item in batch]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(folder),
    }  # fmt: skip
    return pl.Trainer(**quiet | options)


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_lightning_trains_in_our_order_and_hands_questions_over_whole(
    make: Any, tmp_path: Path, precision: str
) -> None:
    module, data = Recorder(), make()
    runner = trainer(tmp_path, precision=precision)
    runner.fit(module, data)
    expected = [(epoch, batch) for epoch, batches in enumerate(epochs(make())) for batch in indices(batches)]
    assert module.trained == expected
    runner.test(module, data, verbose=False)
    assert len(set(module.tested)) == len(module.tested) == 31


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*ended before the epoch ended")
def test_a_run_resumed_inside_an_epoch_sees_what_it_would_have_seen(make: Any, tmp_path: Path) -> None:
    whole = Recorder()
    trainer(tmp_path).fit(whole, make())
    # The checkpoint is written inside step 20, the fifth of the second epoch: that step is done again.
    trainer(tmp_path).fit(Recorder(stop_at=20), make())
    resumed = Recorder()
    trainer(tmp_path).fit(resumed, make(), ckpt_path=str(tmp_path / "middle.ckpt"), weights_only=True)
    assert len(whole.trained) == 30
    assert resumed.trained == whole.trained[-len(resumed.trained) :]
    assert 8 <= len(resumed.trained) <= 11


# --- options


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": ["arc"]}, UnknownTaskError, "'arc' is not one of the eight"),
        ({"tasks": []}, UnknownTaskError, "tasks: no task was named"),
        ({"test_tasks": ["x"]}, UnknownTaskError, "'x' is not one"),
        ({"preset": "clozed"}, RepLoRAError, "preset='clozed'.*Did you mean 'cloze'"),
        ({"validation": "random"}, RepLoRAError, "validation='random' is not an option"),
        ({"val_fraction": 1.0}, RepLoRAError, "val_fraction=1.0 is not in"),
        ({"test_items": 0}, RepLoRAError, "test_items=0 is too small"),
        ({"cutoff": 1}, RepLoRAError, "cutoff=1 is too small: it must be at least 2"),
        ({"train_fraction": 0.5, "shots": 2}, SubsetError, "Both"),
    ],
)
def test_bad_options_fail_when_they_are_given(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CommonsenseDataModule(**options)


def test_missing_data_are_named_before_training(make: Any, root: Path) -> None:
    named = "boolq, winogrande, ARC-Easy, openbookqa"
    with pytest.raises(DatasetNotFoundError, match=rf"no piqa/train.json.*{named}"):
        make(tasks=["piqa", "boolq"], test_tasks=["boolq"])
    with pytest.raises(DatasetNotFoundError, match=rf"no piqa/test.json.*{named}"):
        CommonsenseDataModule(root, test_tasks=["piqa"])  # before `setup`, which comes after the model is loaded
    CommonsenseDataModule(root, test_tasks=["piqa"], protocol="tune")
    with pytest.raises(RepLoRAError, match=r"--data\.shots 5 --data\.train_fraction 1\.0"):
        make(shots=5, train_fraction=0.1)
    assert len(make(shots=5, train_fraction=1.0).train_indices) == 5 * len(TASKS)
    with pytest.raises(RecordError, match="60 records, but 9,427 are expected"):
        make(check_sizes=True)


def test_description_is_json_and_tells_what_a_result_depends_on(make: Any, root: Path) -> None:
    data = make(train_fraction=0.5, test_items=3)
    described = json.loads(json.dumps(data.describe()))
    assert described["train_indices"] == data.train_indices
    assert described["split_sizes"] == {"trainval": 60, "test": 12}
    assert (described["preset"], described["task"]) == ("cloze", "boolq+winogrande+ARC-Easy+openbookqa")
    assert (described["test_items"], described["cutoff"], described["root"]) == (3, 1000, str(root))
    assert described["files_sha256"] == make("test").describe()["files_sha256"]
    assert described["files_sha256"] != make(tasks=["boolq"]).describe()["files_sha256"]


def test_every_option_is_documented() -> None:
    import inspect

    own = inspect.signature(CommonsenseDataModule.__init__).parameters
    assert all(f"        {name}: " in (CommonsenseDataModule.__doc__ or "") for name in own if name != "self")


def test_questions_are_sorted_without_losing_any() -> None:
    items = [ChoiceItem(i, "boolq", "", [0] * (i % 3), ["true"], [[1]], [4], 0) for i in range(7)]
    assert sorted(item.index for item in Questions(items)) == list(range(7))  # type: ignore[attr-defined]
    assert [item.index for item in Questions(items)] == [2, 5, 1, 4, 0, 3, 6]  # type: ignore[attr-defined]
