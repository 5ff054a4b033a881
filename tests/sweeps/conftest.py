"""What the small sweep measures when nothing disturbs it."""

from __future__ import annotations

from typing import Any

import pytest

from replora.cli.main import main
from tests.sweeps.small_sweep import measurements, write_sweep


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Directory of each trial -> its measurements, in one process without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = write_sweep(folder / "s.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        main(["sweep", f"--config={file}", f"--out={folder / 'out'}", "--shard=1/1", "--make_report=false"])
    return measurements(folder / "out")
