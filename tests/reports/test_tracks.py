from __future__ import annotations

import pytest

from replora.reports.grouping import MixedTracksError, common_track


def result(track: str | None) -> dict[str, object]:
    return {"format": 1, "data": {"dataset": "VTAB"} | ({"track": track} if track else {})}


def test_one_track() -> None:
    assert common_track({"a": result("clean"), "b": result("clean")}) == "clean"
    assert common_track({"digits": result(None), "more": {"format": 1}}) is None
    assert common_track({}) is None


def test_tracks_are_not_mixed() -> None:
    with pytest.raises(MixedTracksError, match=r"archive: a, c\n  clean: b\nMake a table for each"):
        common_track({"a": result("archive"), "b": result("clean"), "c": result("archive")})


def test_a_result_without_a_track_is_not_taken_for_one_with() -> None:
    with pytest.raises(MixedTracksError, match="none recorded: old"):
        common_track({"a": result("archive"), "old": result(None)})
