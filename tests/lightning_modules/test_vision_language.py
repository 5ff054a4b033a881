from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

import replora
from datamodules import ImageTextDataModule, VideoTextDataModule, VLDemoDataModule
from datamodules.vision_language import demo as vl_demo
from lightning_modules import VisionLanguage
from lightning_modules.base import CheckpointMismatchError
from replora.backbones.vl_answers import answer, generation_options
from replora.datasets.errors import ProtocolError
from replora.datasets.vision_language.tasks import VLRecord
from replora.errors import RepLoRAError
from tests.fake_vl import write_image_text, write_video_text
from tests.tiny_bart import write_tiny_bart

torch.set_num_threads(1)


class OneProcess:
    """As much of a Trainer as a loss needs."""

    world_size = 1


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("vl")
    write_tiny_bart(home / "bart")
    write_video_text(write_image_text(home / "data"))
    return home


def module_of(home: Path, **options) -> VisionLanguage:
    seed_everything(0)
    adapter = options.pop("adapter", replora.RepLoRAConfig(rank=2, hidden=4))
    module = VisionLanguage(
        str(home / "bart"), feature_size=6, adapter=adapter, caption_tokenizer="approximate", **options
    ).eval()
    module.__dict__["_trainer"] = OneProcess()
    return module


def batch_of(home: Path, task: str, count: int = 3, split: str = "train", **options):
    kind = ImageTextDataModule if task in ImageTextDataModule.known_tasks else VideoTextDataModule
    data = kind(
        tokenizer=str(home / "bart"), root=home / "data", tasks=[task], feature_size=6, num_workers=0, **options
    )
    data._build(split)
    part = data.parts(split)[task]
    return data.collate([part.sample(i) for i in range(count)])


@torch.no_grad()
def log_p(module: VisionLanguage, batch, row: int) -> torch.Tensor:
    """Log-probabilities of a row's labeled tokens, from a batch without its padding."""
    kept = batch["attention_mask"][row].bool()
    labels = batch["labels"][row][batch["labels"][row] != -100]
    read = torch.tensor([[2, *labels.tolist()[:-1]]])
    logits = module.model(
        batch["input_ids"][row][kept][None], None, batch["features"][row][None], decoder_input_ids=read
    ).logits
    return logits[0].log_softmax(-1)[torch.arange(len(labels)), labels]


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "tvqa"])
def test_loss_is_the_weighted_mean_of_the_samples_means(home, task):
    module = module_of(home, pooled_side=6 if task != "tvqa" else 0)
    batch = batch_of(home, task)
    batch["weight"] = torch.tensor([1.0, 0.3, 0.6])
    loss, count = module._loss(batch)
    terms = [-log_p(module, batch, row).mean() * batch["weight"][row] for row in range(3)]
    assert count == 3
    assert loss.item() == pytest.approx(sum(terms).item() / 3, rel=1e-4)


def test_loss_of_captions_is_the_mean_of_the_tokens(home):
    module = module_of(home)
    batch = batch_of(home, "coco")
    loss, count = module._loss(batch)
    terms = torch.cat([-log_p(module, batch, row) for row in range(3)])
    assert count == len(terms)
    assert loss.item() == pytest.approx(terms.mean().item(), rel=1e-4)


@pytest.mark.parametrize("task", ["vqa", "coco"])
def test_the_mean_loss_of_two_processes_is_that_of_one(home, monkeypatch, task):
    """Shares of one sample and of three, the captions of unequal length."""
    module = module_of(home)
    batch = batch_of(home, task, 4)
    if task == "coco":
        batch["labels"][0, 3:] = -100
    whole, weight = module._loss(batch)
    shares = [{k: v if isinstance(v, str) else v[part] for k, v in batch.items()} for part in (slice(1), slice(1, 4))]
    monkeypatch.setattr(module.trainer, "world_size", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.fill_(weight.item()))
    (first, a), (second, b) = (module._loss(share) for share in shares)
    assert ((first + second) / 2).item() == pytest.approx(whole.item(), rel=1e-4)
    assert ((first * a + second * b) / (a + b)).item() == pytest.approx(whole.item(), rel=1e-4)
    assert (a + b).item() == weight.item(), "batches of other sizes weigh as they do in one process"


@pytest.mark.parametrize("task", ["vqa", "coco"])
def test_padding_does_not_count(home, task):
    module = module_of(home)
    batch = batch_of(home, task)
    padded = {**batch, "index": torch.tensor([0, 1, -1]), "weight": batch["weight"] * torch.tensor([1.0, 1.0, 0.0])}
    padded["labels"] = batch["labels"].clone()
    padded["labels"][2] = -100
    two = {key: value if isinstance(value, str) else value[:2] for key, value in batch.items()}
    assert module._loss(padded)[0].item() == pytest.approx(module._loss(two)[0].item(), rel=1e-4)


def test_lengths_and_the_side_that_is_cut(home):
    bart = str(home / "bart")
    batch = batch_of(home, "vqa")
    assert batch["input_ids"].shape == (3, 20)  # `vqa: What color is bus 0?` has more bytes
    assert batch["labels"].shape[1] <= 10
    assert batch["input_ids"][0, [0, -1]].tolist() == [0, 2]
    texts = {}
    for side in ("right", "left"):
        data = VideoTextDataModule(tokenizer=bart, root=home / "data", feature_size=6, truncation_side=side)
        sample = {"task": "tvc", "index": 0, "weight": 1.0, "features": torch.zeros(1, 64, 6)}
        batch = data.collate([{**sample, "text": "a" + "b" * 600 + "c", "target": "a" + "b" * 20 + "c"}])
        text, target = (batch[key][0].tolist() for key in ("input_ids", "labels"))
        texts[side] = [data.tokenizer.decode(ids, skip_special_tokens=True) for ids in (text, target)]
    answer = "a" + "b" * 17  # cut on the right in any case
    assert texts == {"right": ["a" + "b" * 597, answer], "left": ["b" * 597 + "c", answer]}


@torch.no_grad()
def test_nlvr2_takes_the_likelier_word(home):
    module = module_of(home)
    batch = batch_of(home, "nlvr2", count=4, split="val")
    said = answer(module.model, module.tokenizer, batch)
    true, false = (ord(word[0]) for word in ("true", "false"))
    for row, word in enumerate(said):
        kept = batch["attention_mask"][row].bool()
        logits = module.model(
            batch["input_ids"][row][kept][None],
            None,
            batch["features"][row][None],
            decoder_input_ids=torch.tensor([[2, 0]]),
        ).logits[0, 1]
        ids = {
            name: module.tokenizer.convert_tokens_to_ids(chr(letter))
            for name, letter in (("true", true), ("false", false))
        }
        assert word == max(ids, key=lambda name: logits[ids[name]].item())


def test_settings_of_the_generation_are_vl_adapters(home):
    from replora.datasets.vision_language.tasks import vl_task

    module = module_of(home)
    found = {
        task: generation_options(module.model.config, vl_task(task))
        for task in ("vqa", "gqa", "coco", "tvqa", "how2qa", "tvc", "yc2c")
    }
    assert {task: options["num_beams"] for task, options in found.items()} == {
        "vqa": 1, "gqa": 1, "coco": 5, "tvqa": 5, "how2qa": 5, "tvc": 5, "yc2c": 5,
    }  # fmt: skip
    for options in found.values():
        assert (options["max_length"], options["no_repeat_ngram_size"]) == (20, 3)
        assert (options["forced_bos_token_id"], options["forced_eos_token_id"], options["do_sample"]) == (0, 2, False)
    assert generation_options(module.model.config, vl_task("vqa"), num_beams=2)["num_beams"] == 2


def test_what_trains_is_counted_apart(home):
    module = module_of(home, also_train=["visual_embedding", "biases", "layer_norm_weights"])
    described = module.describe()
    extra, counts = described["extra_parameters"], described["parameters"]
    trained = sum(p.numel() for p in module.model.parameters() if p.requires_grad)
    assert set(extra) == {"visual_embedding", "biases", "layer_norm_weights"}
    assert sum(extra.values()) == counts["head"]
    assert counts["adapter_trained"] + counts["head"] == trained
    every = sum(p.numel() for p in module.model.parameters())
    assert described["trained_percent"] == pytest.approx(100 * trained / every, abs=1e-3)
    not_decayed = {
        id(p) for group in module.parameter_groups() if group.get("weight_decay") == 0 for p in group["params"]
    }
    names = {name for name, p in module.model.named_parameters() if id(p) in not_decayed}
    assert not any("layernorm" in name or "layer_norm" in name for name in names if name.endswith("weight"))
    assert all("bias" in name or name.startswith("replora.") for name in names)


@pytest.mark.parametrize("method", [replora.BitFitConfig(), replora.FullConfig(), replora.LinearProbeConfig()])
def test_shares_of_methods_that_train_the_backbone_itself(home, method):
    """BitFit's biases are parts of the backbone: they count once among all."""
    module = module_of(home, adapter=method, also_train=["visual_embedding"])
    described = module.describe()
    trained = sum(p.numel() for p in module.model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in module.model.parameters())
    assert described["trained_percent"] == round(100 * trained / every, 3)
    assert described["extra_parameters"] == {"visual_embedding": described["parameters"]["head"]}


def test_a_linear_probe_trains_no_biases(home):
    with pytest.raises(RepLoRAError, match="biases of the backbone would train, but a linear probe"):
        module_of(home, adapter=replora.LinearProbeConfig())


def test_a_checkpoint_knows_its_pooling(home):
    seen = {"epoch_progress": {"current": {"processed": 1, "started": 1}}}
    checkpoint = {"loops": {"fit_loop": seen}, "hyper_parameters": {}}
    module_of(home, pooled_side=6).on_save_checkpoint(checkpoint)
    with pytest.raises(CheckpointMismatchError, match="pooled_side: 6 in the checkpoint, 0 here"):
        module_of(home, pooled_side=0).on_load_checkpoint(checkpoint)
    module_of(home, pooled_side=6).on_load_checkpoint(checkpoint)


def test_without_the_visual_embedding_its_weights_are_part_of_the_backbone(home):
    with pytest.warns(UserWarning, match="random weights that stay"):
        module = module_of(home, also_train=["biases"])
    assert module.backbone.head_names == ()
    assert not any(p.requires_grad for p in module.model.model.encoder.visual_embedding.feature[0].parameters())
    assert module.backbone.fingerprint != module_of(home).backbone.fingerprint


def test_options_out_of_range(home):
    for options, message in (
        ({"also_train": ["bias"]}, "Did you mean 'biases'"),
        ({"num_beams": 0}, "num_beams: 0"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"pooled_side": -1}, "pooled_side: -1"),
        ({"pooled_side": 11}, "pooled_side: 11 is out of range. It must be at most 10"),
    ):
        with pytest.raises(RepLoRAError, match=message):
            module_of(home, **options)
    for kind, options, message in (
        (ImageTextDataModule, {"tasks": ["vqa2"]}, "Did you mean 'vqa'"),
        (
            ImageTextDataModule,
            {"tasks": ["vqa"], "task_fractions": {"coco": 0.5}},
            "task_fractions: there is no task 'coco'",
        ),
        (
            ImageTextDataModule,
            {"tasks": ["vqa"], "task_fractions": {"vqa": 1.5}},
            r"^task_fractions\.vqa=1\.5 is not in",
        ),
        (VideoTextDataModule, {"tasks": []}, "is empty or names a task twice"),
        (ImageTextDataModule, {"predict_split": "submit"}, "a split of GQA alone"),
        (ImageTextDataModule, {"truncation_side": "left"}, "which is the name of its task"),
        (ImageTextDataModule, {"task_batch_sizes": {"nlvr2": -4}}, "task_batch_sizes.nlvr2=-4 is too small"),
        (ImageTextDataModule, {"task_batch_sizes": {"vqa": 0}}, "task_batch_sizes.vqa=0 is too small"),
    ):
        with pytest.raises(RepLoRAError, match=message):
            kind(tokenizer=str(home / "bart"), root=home / "data", **options)
    with pytest.raises(ProtocolError, match="never published"):
        VideoTextDataModule(tokenizer=str(home / "bart"), root=home / "data", protocol="holdout")
    data = VideoTextDataModule(tokenizer=str(home / "bart"), root=home / "data", feature_size=6)
    with pytest.raises(ProtocolError, match="never published") as refusal:
        data.setup("test")
    assert "final" not in str(refusal.value), "which these tasks refuse"
    assert "`validate`" in str(refusal.value)


def test_batch_sizes_and_fractions(home):
    data = ImageTextDataModule(tokenizer=str(home / "bart"), root=home / "data")
    assert data.task_batch_sizes == {"vqa": 500, "gqa": 833, "nlvr2": 166, "coco": 416}
    assert ImageTextDataModule(batch_size=300).task_batch_sizes == {
        "vqa": 300,
        "gqa": 500,
        "nlvr2": 100,
        "coco": 250,
    }
    options = {"feature_size": 6, "train_fraction": 0.5, "task_fractions": {"vqa": 1.0, "coco": 0.1}}
    data = ImageTextDataModule(tokenizer=str(home / "bart"), root=home / "data", **options)
    data.setup("fit")
    sizes = data.describe()["split_sizes"]["train"]
    assert sizes == {"vqa": 8, "gqa": 4, "nlvr2": 4, "coco": 4}
    labels = [record.truth for record in data.parts("train")["nlvr2"].records]
    assert labels.count(True) == 2, "stratified"
    final = ImageTextDataModule(tokenizer=str(home / "bart"), root=home / "data", feature_size=6, protocol="final")
    final.setup("fit")
    sizes = final.describe()["split_sizes"]["trainval"]
    assert sizes == {"vqa": 11, "gqa": 8, "nlvr2": 12, "coco": 55}, "GQA's validation is its test"
    parts = final.parts("trainval")
    for task, part in parts.items():
        assert [record.index for record in part.records] == list(range(sizes[task]))
    captions = Counter(record.images for record in parts["coco"].records)
    assert set(captions.values()) == {5}, "validation images give all their captions too"


def test_the_demo_trains_on_both_splits_under_final(monkeypatch):
    monkeypatch.setattr(vl_demo, "demo_records", lambda task, split, *_: [VLRecord(0, split, task, ("x",))] * 2)
    data = VLDemoDataModule(protocol="final")
    records, _ = data.read_task("vqa", "trainval")
    assert [(record.index, record.id) for record in records] == [(0, "train"), (1, "train"), (2, "val"), (3, "val")]


def test_wrong_features_are_found_before_the_first_batch(home):
    for kind in (ImageTextDataModule, VideoTextDataModule):
        with pytest.raises(RepLoRAError, match=r"holds features of shape \(.*, 6\), but \(n, 7\) was expected"):
            kind(tokenizer=str(home / "bart"), root=home / "data", feature_size=7).setup("fit")
