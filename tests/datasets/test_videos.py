from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from replora.datasets import videos
from replora.datasets.errors import CorruptVideoError
from replora.datasets.videos import MissingDecoderError, clip_files, count_frames, read_clip, resize
from tests.fake_videos import write_avi, write_frames, write_webm


def brightness(clip: torch.Tensor) -> list[float]:
    """Of the green channel, which tells a frame's number: 20 + 15 t."""
    return ((clip[:, 1].float().mean(dim=(1, 2)) - 20) / 15).tolist()


@pytest.fixture(scope="module", params=["webm", "avi", "frames"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames of 24 x 32 pixels."""
    home = tmp_path_factory.mktemp("clips")
    if request.param == "frames":
        return write_frames(home / "clip", first=5)  # img_5 to img_16: by number, not by name
    write = {"webm": write_webm, "avi": write_avi}[request.param]
    return write(home / f"clip.{request.param}")


def test_frames_are_picked_by_number(clip: Path) -> None:
    frames = read_clip(clip, lambda count: [0, 3, count - 1, 3, 7])
    assert frames.shape == (5, 3, 24, 32)
    assert frames.dtype == torch.uint8
    assert brightness(frames) == pytest.approx([0, 3, 11, 3, 7], abs=0.3)
    assert count_frames(clip) == 12


def test_long_clips_are_decoded_twice_and_not_held(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_clip(clip, range)
    monkeypatch.setattr(videos, "HELD_BYTES", 4 * 24 * 32)
    assert torch.equal(read_clip(clip, range), whole)
    assert torch.equal(read_clip(clip, lambda _: [11, 2]), whole[[11, 2]])


def test_a_frame_does_not_depend_on_the_others_wanted(clip: Path) -> None:
    assert torch.equal(read_clip(clip, lambda _: [4], 16)[0], read_clip(clip, range, 16)[4])


def test_webm_reports_no_count(tmp_path: Path) -> None:
    import av

    with av.open(str(write_webm(tmp_path / "a.webm"))) as container:
        assert container.streams.video[0].frames == 0
        assert container.streams.video[0].codec_context.name.startswith(("vp9", "libvpx-vp9"))


@pytest.mark.parametrize(("shape", "expected"), [((24, 32), (12, 16)), ((32, 24), (16, 12)), ((12, 30), (12, 30))])
def test_the_shorter_side_is_resized(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    frames = torch.randint(256, (2, 3, *shape), dtype=torch.uint8)
    resized = resize(frames, 12)
    assert resized.shape[-2:] == expected
    assert resized.float().mean() == pytest.approx(frames.float().mean().item(), abs=2)


@pytest.mark.parametrize("ending", ["webm", "avi"])
def test_damaged_files_are_named(ending: str, tmp_path: Path) -> None:
    write = {"webm": write_webm, "avi": write_avi}[ending]
    whole = write(tmp_path / f"whole.{ending}", count=40, size=(64, 64)).read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptVideoError, match=rf"cut\.{ending} (ends after|cannot be decoded)"):
        read_clip(cut, range)
    noise = tmp_path / f"noise.{ending}"
    noise.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(CorruptVideoError, match=rf"noise\.{ending} cannot be decoded"):
        count_frames(noise)
    empty = tmp_path / f"empty.{ending}"
    empty.touch()
    with pytest.raises(CorruptVideoError, match=r"the file is empty \(0 bytes\)"):
        read_clip(empty, range)
    with pytest.raises(CorruptVideoError, match="there is no such file"):
        read_clip(tmp_path / f"nowhere.{ending}", range)


def test_damaged_folders_of_frames_are_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip")
    (folder / "img_4.jpg").unlink()
    with pytest.raises(CorruptVideoError, match=r"holds images 1 to 12, but number 4 is missing \(11 are there\)"):
        read_clip(folder, range)
    (folder / "img_4.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptVideoError, match=r"The frame .*img_4\.jpg cannot be read"):
        read_clip(folder, range)
    (folder / "img_4.jpg").rename(folder / "four.jpg")
    with pytest.raises(CorruptVideoError, match=r"four\.jpg has no number"):
        read_clip(folder, range)
    (tmp_path / "none").mkdir()
    with pytest.raises(CorruptVideoError, match="holds no images"):
        count_frames(tmp_path / "none")


def test_clips_are_files_and_folders_of_images(tmp_path: Path) -> None:
    write_avi(tmp_path / "a" / "1.AVI".lower())
    write_frames(tmp_path / "a" / "deeper" / "2")
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / ".hidden.avi").touch()
    found = [path.relative_to(tmp_path).as_posix() for path in clip_files(tmp_path)]
    assert found == ["a/1.avi", "a/deeper/2"]


def test_a_missing_decoder_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_avi(tmp_path / "a.avi")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDecoderError, match=r'pip install "replora\[video\]"'):
        read_clip(file, range)
    assert len(read_clip(write_frames(tmp_path / "clip"), range)) == 12
