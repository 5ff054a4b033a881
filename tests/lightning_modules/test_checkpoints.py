from __future__ import annotations

import logging

import pytest
import torch

import replora
from lightning_modules import ImageClassification
from lightning_modules.base import CheckpointMismatchError
from replora import RepLoRAConfig
from tests.lightning_modules.helpers import TinyImages, module, trainer

ADAPTER = RepLoRAConfig(rank=2, hidden=8, blocks=[0, 5])
METHODS = [
    ADAPTER,
    RepLoRAConfig(rank=2, factors="none", blocks=[0]),
    RepLoRAConfig(rank=2, sharing="tied", blocks=[0]),
    replora.LinearProbeConfig(),
    replora.BitFitConfig(),
    replora.PeftMethodConfig(method="dora", rank=2, blocks=[0]),
    replora.PeftMethodConfig(method="dora", rank=2, blocks=[0], reparameterize=True),
    replora.FullConfig(),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fit")
    trainer(directory, limit_val_batches=0).fit(module(adapter=ADAPTER), TinyImages())
    return directory / "last.ckpt"


def test_holds_adapter_head_and_optimizer_alone(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    expected = {f"model.{name}" for name in replora.adapter_state(module(adapter=ADAPTER).model)}
    assert set(content["state_dict"]) == expected
    assert checkpoint.stat().st_size < 500_000, "the backbone alone is 4.8 MB"
    moments = content["optimizer_states"][0]["state"]
    assert len(moments) == len(expected)
    assert content["hyper_parameters"]["adapter"]["init_args"]["rank"] == 2


@pytest.mark.parametrize("adapter", METHODS, ids=lambda config: config.name)
def test_round_trip_of_every_method(tmp_path, adapter):
    fitted = module(adapter=adapter)
    fit = trainer(tmp_path, limit_val_batches=0)
    fit.fit(fitted, TinyImages(train=4))
    image = torch.randn(2, 3, 32, 32)
    fresh = module(adapter=adapter)
    fresh.on_load_checkpoint(content := torch.load(tmp_path / "last.ckpt", weights_only=True))
    fresh.load_state_dict(content["state_dict"])
    with torch.no_grad():
        assert torch.equal(fresh.eval()(image), fitted.eval()(image))


def test_trainer_reads_it_back_strictly_and_quietly(checkpoint, recwarn):
    model = module(adapter=ADAPTER)
    trainer(checkpoint.parent / "test").test(model, TinyImages(), ckpt_path=checkpoint, verbose=False)
    content = torch.load(checkpoint, weights_only=True)
    for name, tensor in replora.adapter_state(model.model).items():
        assert torch.equal(tensor, content["state_dict"][f"model.{name}"])
    assert not [w for w in recwarn if "not in the checkpoint" in str(w.message)]


def test_load_from_checkpoint_builds_the_same_module(checkpoint):
    from lightning.pytorch import seed_everything

    seed_everything(0)  # the backbone's weights are random here; published ones need no seed
    restored = ImageClassification.load_from_checkpoint(checkpoint, map_location="cpu")
    assert replora.describe(restored.model) == replora.describe(module(adapter=ADAPTER).model)
    content = torch.load(checkpoint, weights_only=True)
    assert torch.equal(restored.model.head.weight, content["state_dict"]["model.head.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": RepLoRAConfig(rank=4, hidden=8, blocks=[0, 5])}, r"adapter\.rank: 2 in the checkpoint, 4 here"),
        (
            {"adapter": RepLoRAConfig(rank=2, hidden=8, blocks=[0, 5], alpha=9.0)},
            r"adapter\.alpha: None in .*, 9\.0 here",
        ),
        (
            {"adapter": RepLoRAConfig(rank=2, hidden=8, blocks=[0, 5], factors="linear")},
            r"method: 'replora' in the checkpoint, 'linear' here\n\s*adapter\.factors: 'mlp' in",
        ),
        ({"adapter": replora.LinearProbeConfig()}, "method: 'replora' in the checkpoint, 'linear_probe' here"),
        ({"adapter": ADAPTER, "seed": 1}, r"backbone\.fingerprint: '\w+' in the checkpoint"),
        (
            {"adapter": ADAPTER, "backbone": "deit_tiny_patch16_224"},
            r"backbone\.name: 'vit_nano' in the checkpoint, 'deit",
        ),
    ],
)
def test_checkpoint_of_another_model_is_refused(checkpoint, options, message):
    other = module(**options)
    before = {name: tensor.clone() for name, tensor in replora.adapter_state(other.model).items()}
    with pytest.raises(CheckpointMismatchError, match=message):
        trainer(checkpoint.parent / "other").fit(other, Unsized(), ckpt_path=checkpoint)
    for name, tensor in replora.adapter_state(other.model).items():
        assert torch.equal(tensor, before[name])


class Unsized(TinyImages):
    image_size = None


def test_checkpoint_of_another_head_is_refused(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["model.head.weight"] = torch.zeros(7, 128)
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(replora.StateMismatchError, match=r"head\.weight: \(7, 128\) instead of \(3, 128\)"):
        trainer(tmp_path).fit(module(adapter=ADAPTER), TinyImages(), ckpt_path=tmp_path / "x.ckpt")


def test_foreign_checkpoint_is_refused(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["replora"]
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointMismatchError, match=r"not written by this program.*--model\.checkpoint"):
        trainer(tmp_path).fit(module(adapter=ADAPTER), TinyImages(), ckpt_path=tmp_path / "x.ckpt")


def test_options_of_training_alone_may_differ_and_are_told(checkpoint, caplog):
    model = module(adapter=RepLoRAConfig(rank=2, hidden=8, blocks=[0, 5], dropout=0.2), label_smoothing=0.1)
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        model.on_load_checkpoint(torch.load(checkpoint, weights_only=True))
    assert "label_smoothing: 0.0 -> 0.1" in caplog.text
    assert "adapter.init_args.dropout: 0.0 -> 0.2" in caplog.text


def test_compiled_backbone_writes_and_reads_the_same_names(checkpoint):
    model = module(adapter=ADAPTER)
    model.model = torch.compile(model.model, backend="eager")
    model.on_load_checkpoint(content := torch.load(checkpoint, weights_only=True))
    model.load_state_dict(content["state_dict"])
    saved: dict = {}
    model.on_save_checkpoint(saved)
    assert set(saved["state_dict"]) == set(torch.load(checkpoint, weights_only=True)["state_dict"])
