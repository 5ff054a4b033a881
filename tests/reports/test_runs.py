"""The files that a report reads: runs, one to a line or one to a file, compressed, damaged, or none at all."""

from __future__ import annotations

import gzip
import os

import pytest

from replora.reports.report import write_report
from replora.reports.runs import ReportError, read_runs
from replora.results import ResultsError
from tests.reports.fake_results import result, write


def test_no_results(tmp_path):
    with pytest.raises(ReportError, match="holds no results"):
        read_runs([tmp_path])
    with pytest.raises(ResultsError, match="There is no"):
        read_runs([tmp_path / "absent"])
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(ReportError, match="cannot be read"):
        read_runs([tmp_path / "bad.jsonl"])
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(ReportError, match=r"line 1 .* has no 'format'"):
        read_runs([tmp_path / "bad.jsonl"])


def test_compressed_runs_are_read(tmp_path):
    write_report([write(tmp_path / "runs", [result(seed=seed) for seed in range(20)])], tmp_path / "report")
    content = (tmp_path / "report" / "runs.jsonl").read_bytes()
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "runs.jsonl.gz").write_bytes(gzip.compress(content))
    write_report([tmp_path / "small"], tmp_path / "again")
    assert (tmp_path / "again" / "runs.jsonl").read_bytes() == content
    (part := tmp_path / "part.jsonl.gz").write_bytes(gzip.compress(content)[:1000])
    with pytest.raises(ReportError, match=r"part\.jsonl\.gz cannot be read: .* no text compressed by gzip"):
        read_runs([part])
    part.write_bytes(content)
    with pytest.raises(ReportError, match="no text compressed by gzip"):
        read_runs([part])


def test_a_pipe_named_like_compressed_runs_is_not_waited_for(tmp_path):
    os.mkfifo(file := tmp_path / "runs.jsonl.gz")
    with pytest.raises(ReportError, match="is no regular file but a pipe"):
        read_runs([file])


def test_a_compressed_file_cannot_fill_the_memory(tmp_path, monkeypatch):
    (file := tmp_path / "runs.jsonl.gz").write_bytes(gzip.compress(bytes(2000)))
    monkeypatch.setattr("replora.reports.runs.LARGEST", 1000)
    with pytest.raises(ReportError, match="its text has more than 1,000 bytes"):
        read_runs([file])
