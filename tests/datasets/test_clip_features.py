from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from replora.cli import main as cli
from replora.datasets.errors import CorruptVideoError, DatasetNotFoundError
from replora.datasets.video import decode
from replora.datasets.vision_language import clip_encoder as clip_features
from replora.datasets.vision_language.clip_encoder import (
    FEATURE_SIZES,
    TIMM_NAMES,
    ClipEncoder,
    encoder_of,
    extract,
    find_sources,
    missing_features,
    video_frames,
)
from replora.datasets.vision_language.features import FeatureError, FeatureFolder, write_h5, write_npz
from replora.errors import RepLoRAError
from tests.fake_hub import without_network
from tests.fake_videos import write_frames


@pytest.mark.parametrize(("name", "shape"), [("rn101", (2, 49, 2048)), ("vit_b32", (2, 512))])
def test_shapes_of_clips_encoders(name, shape):
    with torch.device("meta"):
        model = timm.create_model(TIMM_NAMES[name], pretrained=False).eval()
        assert encoder_of(name, model)(torch.zeros(2, 3, 224, 224)).shape == shape


def test_the_grid_is_row_by_row():
    class Stem(torch.nn.Module):
        def forward_features(self, images):
            return torch.nn.functional.avg_pool2d(images, 32)  # (B, 3, 7, 7)

    image = torch.zeros(1, 3, 224, 224)
    image[:, :, 0:32, 32:64] = 1  # first row, second column
    grid = encoder_of("rn101", Stem())(image)
    assert grid.shape == (1, 49, 3)
    assert grid[0, :, 0].nonzero().flatten().tolist() == [1]


def means(name: str) -> ClipEncoder:
    """Channel means, repeated to the encoder's shape."""

    def encode(images):
        numbers = images.mean((2, 3)).repeat(1, FEATURE_SIZES[name] // 3 + 1)[:, : FEATURE_SIZES[name]]
        return numbers if name == "vit_b32" else numbers[:, None].repeat(1, 49, 1)

    return ClipEncoder(name, encode, torch.device("cpu"))


def write_images(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 20), (50 * i, 0, 255)).save(folder / name)
    return folder


def test_images(tmp_path):
    pytest.importorskip("h5py")
    folder = write_images(tmp_path / "images", ["train2014/a.png", "train2014/b.png", "val2014/c.jpg"])
    out = tmp_path / "features"
    sources = find_sources(folder, "rn101")
    assert list(sources) == ["a", "b", "c"]
    done: list[int] = []
    extract(missing_features(sources, out, "rn101"), out, means("rn101"), batch_size=2, advance=done.append)
    assert done == [2, 1]
    features = FeatureFolder(out, 2048).read("b")
    assert features.shape == (49, 2048)
    expected = [
        (value / 255 - mean) / std
        for value, mean, std in zip((50, 0, 255), clip_features.MEAN, clip_features.STD, strict=True)
    ]
    torch.testing.assert_close(features[7, :3], torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-5)

    (out / "b.h5").write_bytes(b"cut off")
    assert list(missing_features(sources, out, "rn101")) == ["b"], "whole files are not made again"


def test_what_cannot_be_extracted(tmp_path):
    folder = write_images(tmp_path / "images", ["x/a.png", "y/a.png"])
    with pytest.raises(FeatureError, match="have one name"):
        find_sources(folder, "rn101")
    with pytest.raises(DatasetNotFoundError, match="no videos"):
        find_sources(tmp_path / "none", "vit_b32")
    with pytest.raises(FeatureError, match="x is a folder of frames"):
        find_sources(folder, "vit_b32")
    (folder / "x" / "a.png").write_bytes(b"damaged")
    unread = extract({"a": folder / "x" / "a.png"}, tmp_path / "out", means("rn101"))
    assert list(unread) == ["a"]
    assert not list((tmp_path / "out").iterdir())
    wrong = ClipEncoder("rn101", lambda images: images.mean((2, 3)), torch.device("cpu"))
    with pytest.raises(FeatureError, match=r"shape \(1, 3\) instead of \(1, 49, 2048\)"):
        extract({"a": folder / "y" / "a.png"}, tmp_path / "out", wrong)
    with pytest.raises(RepLoRAError, match="resnet101_clip"):
        clip_features.load_encoder("rn101", tmp_path / "none.safetensors")


def write_video(file: Path, seconds: float, rate: int = 10) -> Path:
    """Frames whose red grows with time."""
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(round(seconds * rate)):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[..., 0] = 4 * i
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file


def test_videos(tmp_path):
    video = write_video(tmp_path / "clip.mp4", 5.0)
    frames = list(video_frames(video, 1.5))
    assert len(frames) == 4  # at 0, 1.5, 3 and 4.5 seconds
    assert frames[0].shape == (3, 224, 224)
    reds = [frame[0].float().mean().item() for frame in frames]
    assert reds == pytest.approx([0, 60, 120, 180], abs=12)
    out = tmp_path / "features"
    extract(find_sources(tmp_path, "vit_b32"), out, means("vit_b32"), batch_size=3)
    assert FeatureFolder(out, 512).read("clip").shape == (4, 512)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(CorruptVideoError, match=r"bad\.mp4 cannot be decoded"):
        list(video_frames(tmp_path / "bad.mp4", 1.5))
    sources = {"bad": tmp_path / "bad.mp4", "again": video}
    assert list(extract(sources, out, means("vit_b32"))) == ["bad"]
    assert (out / "again.npz").is_file(), "the others go on"


def test_an_image_that_cannot_be_read_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py")
    folder = write_images(tmp_path / "images", ["a.png", "b.png", "c.png"])
    (folder / "b.png").write_bytes(b"damaged")
    monkeypatch.setattr(clip_features, "load_encoder", lambda name, *_: means(name))
    command = ["prepare", "clip-features", str(folder), str(tmp_path / "out"), "--progress", "false"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(command)
    assert stopped.value.code
    printed = capsys.readouterr()
    assert "2 new files of features" in printed.out
    assert "1 of 3 files have no features" in printed.err
    assert "b.png" in printed.err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.h5", "c.h5", "extraction.json"]


def test_through_the_command_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py")
    folder = write_images(tmp_path / "images", ["a.png", "b.png"])
    monkeypatch.setattr(clip_features, "load_encoder", lambda name, *_: means(name))
    command = ["prepare", "clip-features", str(folder), str(tmp_path / "out"), "--progress", "false"]
    cli.main(command)
    assert "2 new files of features" in capsys.readouterr().out
    cli.main(command)
    assert "2 in" in (printed := capsys.readouterr().out)
    assert "2 of them are done" in printed
    with pytest.raises(SystemExit):
        cli.main([*command, "--batch_size", "0"])


def test_folders_of_frames_need_their_rate(tmp_path):
    for clip in ("s01/clip_00", "s01/clip_01"):
        write_frames(tmp_path / "frames" / clip, count=12)
    with pytest.raises(FeatureError, match=r"clip_00 is a folder of frames\. .*--fps 3"):
        find_sources(tmp_path / "frames", "vit_b32")
    sources = find_sources(tmp_path / "frames", "vit_b32", fps=3)
    assert list(sources) == ["clip_00", "clip_01"]
    out = tmp_path / "features"
    assert extract(sources, out, means("vit_b32"), seconds=1.5, fps=3) == {}
    folder = FeatureFolder(out, 512)
    found = folder.read("clip_01")
    assert len(found) == 3  # frames 0, 5 and 9 of 4 seconds
    with pytest.raises(RepLoRAError, match="fps: 0 is out of range"):
        clip_features.check_options(1.5, 1, 0)


def test_one_folder_holds_one_extraction(tmp_path):
    options = {"encoder": "vit_b32", "seconds": 1.5, "fps": None}
    clip_features.check_same_extraction(tmp_path / "out", options)
    clip_features.check_same_extraction(tmp_path / "out", options)
    for name, value in {"seconds": 2.0, "fps": 3.0, "encoder": "rn101"}.items():
        with pytest.raises(FeatureError, match=rf"{name} .* there, {value} here"):
            clip_features.check_same_extraction(tmp_path / "out", options | {name: value})


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_times_count_from_the_first_frame_and_a_pause_is_no_burst(tmp_path, monkeypatch, shift):
    times = [shift + i / 10 for i in range(50)] + [shift + 15 + i / 10 for i in range(20)]
    monkeypatch.setattr(decode, "_decode", lambda _: iter([SimpleNamespace(time=time) for time in times]))
    monkeypatch.setattr(decode, "_rgb", lambda _, frame: frame.time - shift)
    found = list(decode.frames_every(tmp_path / "a.mkv", 1.5))
    assert found == pytest.approx([0, 1.5, 3, 4.5, 15, 16.5])


def test_why_weights_do_not_load_is_said_at_once(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(RepLoRAError, match=r"Error\(s\) in loading state_dict for \w+: (Missing|Unexpected) key"):
        clip_features.load_encoder("vit_b32", tmp_path / "other.safetensors")
    without_network(monkeypatch, tmp_path)
    with pytest.raises(RepLoRAError, match=r"could not be loaded \(.* is out of reach .*\)\. Fetch its model"):
        clip_features.load_encoder("vit_b32")


@pytest.mark.parametrize("suffix", ["npz", "h5"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
def test_features_that_are_not_finite_are_named(tmp_path, suffix, number):
    array = np.zeros((49, 2048), np.float64)
    array[7, 3] = number
    if suffix == "h5":
        pytest.importorskip("h5py")
        write_h5(tmp_path / "a.h5", "a", array)
    else:
        write_npz(tmp_path / "a.npz", array)
    with pytest.raises(FeatureError, match=rf"a\.{suffix} holds numbers that are not finite, in 1 of its 49 .*: 7"):
        FeatureFolder(tmp_path, 2048).read("a")
    assert missing_features({"a": tmp_path / "a.png"}, tmp_path, "rn101"), "extracted again"
