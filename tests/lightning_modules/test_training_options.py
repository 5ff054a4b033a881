"""Options of training beside the method: class weights, mixup, policies of augmentation."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from lightning_modules import ImageClassification
from replora.datasets.common.augment import RandomCropFlip, generator_of
from replora.datasets.common.policy import WithPolicy
from replora.errors import RepLoRAError


class Steps:
    """What a module asks of its Trainer in a training step, outside of one."""

    def __init__(self, counts: list[int] | None = None) -> None:
        self.datamodule = type("Data", (), {"training_counts": staticmethod(lambda: counts)} if counts else {})()
        self.optimizers = [torch.optim.SGD([torch.zeros(1)], 0.1)]
        self.current_epoch, self.global_rank = 3, 0


def module(monkeypatch, counts: list[int] | None = None, **options) -> ImageClassification:
    torch.manual_seed(0)
    made = ImageClassification(num_classes=3, backbone="vit_nano", pretrained=False, image_size=32, **options)
    monkeypatch.setattr(ImageClassification, "trainer", Steps(counts))
    monkeypatch.setattr(made, "log", lambda *_args, **_options: None)
    monkeypatch.setattr(made, "log_dict", lambda *_args, **_options: None)
    return made.eval()


def batch() -> dict[str, Any]:
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"image": images, "label": torch.tensor([0, 0, 0, 1, 2, -1]), "index": torch.arange(6), "counted": 5}


def test_balanced_class_weights_are_those_of_scikit_learn(monkeypatch) -> None:
    counts = [6, 2, 4]
    made = module(monkeypatch, counts, class_weights="balanced", label_smoothing=0.1)
    made._balance()
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    expected = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=labels), dtype=torch.float32)
    torch.testing.assert_close(made.weight_of_class, expected)
    logits = made(batch()["image"])
    loss = F.cross_entropy(logits, batch()["label"], expected, ignore_index=-1, label_smoothing=0.1)
    torch.testing.assert_close(made.training_step(batch(), 0), loss)


def test_class_weights_need_the_counts(monkeypatch) -> None:
    with pytest.raises(RepLoRAError, match="training_counts"):
        module(monkeypatch, class_weights="balanced")._balance()


def test_mixup_mixes_images_and_targets_alike_and_follows_from_the_step(monkeypatch) -> None:
    made = module(monkeypatch, mixup=0.4)
    mixed, target = made._mixed(batch(), 5)
    assert mixed["image"].shape == (5, 3, 32, 32)  # the image without a label is left out
    assert target.shape == (5, 3)
    torch.testing.assert_close(target.sum(1), torch.ones(5))
    state = torch.get_rng_state()
    assert torch.equal(made._mixed(batch(), 5)[0]["image"], mixed["image"])
    assert not torch.equal(made._mixed(batch(), 6)[0]["image"], mixed["image"])
    assert torch.equal(torch.get_rng_state(), state)
    loss = -(target * made(mixed["image"]).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(made.training_step(batch(), 5), loss)


@pytest.mark.parametrize("option", [{"mixup": -1.0}, {"mixup": float("nan")}, {"class_weights": "balancd"}])
def test_wrong_options_are_refused(monkeypatch, option) -> None:
    with pytest.raises(RepLoRAError, match=next(iter(option))):
        module(monkeypatch, **option)


@pytest.mark.parametrize("policy", ["rand_augment", "trivial_augment"])
def test_a_policy_follows_from_its_generator_alone(policy) -> None:
    image = torch.randint(256, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augmentation = WithPolicy(RandomCropFlip(32, flip=0.0), policy)
    state = torch.get_rng_state()
    views = [augmentation(image, generator_of(0, epoch, 7)) for epoch in (0, 0, 1, 2, 3)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(views[0], views[1])
    assert len({view.numpy().tobytes() for view in views}) > 2
    assert all(view.shape == (3, 32, 32) and view.dtype == torch.uint8 for view in views)
