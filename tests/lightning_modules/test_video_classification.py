"""Averaged views, skipped videos that do not count, and shapes that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, seed_everything
from torch.utils.data import DataLoader

import replora
from lightning_modules import VideoClassification, WarmupCosine
from replora.backbones.video import averaged
from replora.errors import RepLoRAError
from tests.lightning_modules.helpers import trainer

torch.set_num_threads(1)


def module(**options) -> VideoClassification:
    seed_everything(0)
    adapter = replora.RepLoRAConfig(rank=2, hidden=4)
    defaults = {"num_classes": 3, "backbone": "swin3d_nano", "pretrained": False, "schedule": WarmupCosine(1)}
    return VideoClassification(adapter=adapter, **(defaults | options))


class TinyVideos(LightningDataModule):
    """Random normalized clips, each with its views; some labels say that a video counts for nothing."""

    def __init__(self, labels: list[int], views: int = 1, padding: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.samples = [
            {"video": torch.randn(views, 3, 4, 16, 16, generator=generator), "label": label, "index": i}
            for i, label in enumerate(labels)
        ]
        self.samples += [{**self.samples[0], "label": -1, "index": -1}] * padding

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.samples, batch_size=2)

    test_dataloader = train_dataloader


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_views_are_averaged(average: str) -> None:
    model = module(average_views=average).eval()
    video = torch.randn(2, 5, 3, 4, 16, 16)
    answer = model.logits_of({"video": video, "label": torch.zeros(2), "index": torch.zeros(2)})
    views = torch.stack([model(video[:, v]) for v in range(5)])
    expected = views.mean(0) if average == "logits" else views.softmax(-1).mean(0).log()
    assert torch.allclose(answer, expected, atol=1e-6)
    assert not torch.allclose(answer.softmax(-1), model(video[:, 0]).softmax(-1), atol=1e-5)
    predicted = model.predict_step({"video": video, "label": torch.zeros(2), "index": torch.tensor([4, 7])}, 0)
    assert torch.allclose(predicted["probabilities"], expected.softmax(-1), atol=1e-6)
    assert torch.allclose(predicted["probabilities"].sum(-1), torch.ones(2))


def test_views_that_are_sure_have_a_finite_loss() -> None:
    """The softmax of the second class is 0 in float32, its logarithm would be minus infinity."""
    logits = torch.tensor([[[200.0, 0.0]], [[210.0, 0.0]]])
    answer = averaged(logits, "probabilities")
    assert torch.isfinite(torch.nn.functional.cross_entropy(answer, torch.tensor([1])))
    assert answer[0, 0] == pytest.approx(0)


def test_skipped_videos_are_counted_and_padding_is_not(tmp_path: Path) -> None:
    labels = [0, -1, 2, 1, -1, -1]
    run = trainer(tmp_path)
    model = module()
    run.test(model, TinyVideos(labels, views=2, padding=2), verbose=False)
    skipped = dict(run.callback_metrics)
    assert skipped["test/skipped"] == 3
    run.test(model, TinyVideos([label for label in labels if label >= 0], views=2), verbose=False)
    # Videos 0, 2 and 3 have other clips here, so that only the number of what was counted can be compared.
    assert run.callback_metrics["test/skipped"] == 0
    assert 0 <= skipped["test/accuracy"] <= 1
    assert round(float(skipped["test/accuracy"]) * 3) == pytest.approx(float(skipped["test/accuracy"]) * 3)


def test_a_batch_of_skipped_videos_alone_changes_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    model = module(optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    before = {name: p.clone() for name, p in model.named_parameters()}
    run.fit(model, TinyVideos([-1, -1, -1, -1]))
    assert run.callback_metrics["train/skipped"] == 4
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_wrong_options_and_shapes(tmp_path: Path) -> None:
    with pytest.raises(RepLoRAError, match=r"average_views: 'logit' is not an option\. Did you mean 'logits'"):
        module(average_views="logit")
    with pytest.raises(RepLoRAError, match="label_smoothing: 1"):
        module(label_smoothing=1.0)
    from tests.backbones.test_video import videomae_folder

    model = module(backbone=str(videomae_folder(tmp_path / "mae")), pretrained=True, num_frames=4)
    with pytest.raises(RepLoRAError, match=r"clips of 4 frames, but the data gives 6.*--data\.clips\.num_frames 4"):
        model(torch.randn(1, 3, 6, 16, 16))
    with pytest.raises(RepLoRAError, match=r"16 x 16 pixels, but the data gives 24 x 24"):
        model(torch.randn(1, 3, 4, 24, 24))


def test_gradient_checkpointing_trains_alike(tmp_path: Path) -> None:
    states = []
    for recompute in (False, True):
        model = module(gradient_checkpointing=recompute, drop_path_rate=0.3)
        trainer(tmp_path / str(recompute)).fit(model, TinyVideos([0, 1, 2, 0]))
        states.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5), name
