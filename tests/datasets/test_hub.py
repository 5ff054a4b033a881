"""Without a network: one attempt, and one message that says how to do without."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from replora.backbones.language import build_language_backbone, load_tokenizer
from replora.backbones.video import build_video_backbone
from replora.backbones.vision import build_vision_backbone
from replora.backbones.vl_bart import build_vl_bart
from replora.datasets.common.hub import HubUnreachableError, check_hub, timm_repository
from replora.datasets.vision_language.clip_encoder import load_encoder
from replora.errors import RepLoRAError
from tests.cli.helpers import DIGITS, refused
from tests.fake_hub import without_network

WANTED = {
    "image": (lambda: build_vision_backbone("resnet18.a1_in1k", num_classes=2), "timm/resnet18.a1_in1k"),
    "language": (lambda: build_language_backbone("owner/model"), "owner/model"),
    "tokenizer": (lambda: load_tokenizer("owner/model"), "owner/model"),
    "video": (lambda: build_video_backbone("owner/model", num_classes=2, num_frames=4), "owner/model"),
    "vl_bart": (lambda: build_vl_bart("facebook/bart-base"), "facebook/bart-base"),
    "features": (lambda: load_encoder("rn101"), "timm/resnet101_clip.openai"),
}


@pytest.mark.parametrize("kind", WANTED)
def test_one_attempt(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = without_network(monkeypatch, tmp_path)
    build, repository = WANTED[kind]
    started = time.monotonic()
    with pytest.raises(RepLoRAError) as error:
        build()
    assert time.monotonic() - started < 30
    assert len(asked) == 1
    message = str(error.value)
    assert f"is out of reach (it does not answer: Name or service not known), and {repository} is not in" in message
    assert str(tmp_path / "hub") in message
    assert f"hf download {repository} --local-dir FOLDER" in message
    assert "HF_HUB_OFFLINE=1" in message


def test_the_command_line_says_it_once(monkeypatch, tmp_path, capsys) -> None:
    asked = without_network(monkeypatch, tmp_path)
    error = refused(capsys, "fit", *DIGITS, "--model.backbone=resnet18.a1_in1k", "--model.pretrained=true")
    assert len(asked) == 1
    assert error.count("is out of reach") == 1
    assert "--model.checkpoint FILE" in error
    assert "Retrying" not in error


def test_what_is_at_hand_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = without_network(monkeypatch, tmp_path)
    check_hub(None)
    check_hub(str(tmp_path))
    check_hub("no/name/of a repository")
    (tmp_path / "hub" / "models--owner--model" / "snapshots" / "abc").mkdir(parents=True)
    check_hub("owner/model")
    assert not asked


def test_offline_by_wish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = without_network(monkeypatch, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        check_hub("owner/model")
    assert not asked


def test_a_refusal_is_left_to_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_network(monkeypatch, tmp_path)

    class Refusal(Exception):  # noqa: N818
        response = "404"

    def refuse(*_: object, **__: object) -> None:
        raise Refusal

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    check_hub("owner/model")


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("vit_base_patch16_224.orig_in21k", "timm/vit_base_patch16_224.orig_in21k"),
        ("hf-hub:owner/model", "owner/model"),
        ("no_such_model", None),
    ],
)
def test_where_timm_looks(name: str, repository: str | None) -> None:
    assert timm_repository(name) == repository
