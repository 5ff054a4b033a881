"""The job array of docs/cluster.md, run by a shell against simulated variables of SLURM."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from replora.results import read_results
from replora.sweeps.sweep_file import read_sweep
from tests.sweeps.small_sweep import SMALL, measurements, write_sweep
from tests.sweeps.test_shards import SLURM

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
SRUN = """#!/bin/bash
# Starts the tasks of a job, each with its own number.
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks+=($!)
done
worst=0
for task in "${tasks[@]}"; do wait "$task" || worst=$?; done
exit $worst
"""


def template() -> str:
    """The script of the page, for the small sweep."""
    (script,) = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) if "--array" in block]
    assert "shards=8" in script
    assert re.search(r"^#SBATCH --array=1-8$", script, flags=re.MULTILINE)
    script = script.replace("shards=8", "shards=2")
    return re.sub(r"^sweep=\(.*$", "sweep=(--config s.yaml)", script, flags=re.MULTILINE)


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def job(folder: Path, script: str, stage: str, tasks: int, shard: int) -> subprocess.CompletedProcess[str]:
    """One task of a job array, as SLURM starts its script."""
    (folder / "sweep.sh").write_text(script)
    environment = (
        os.environ
        | SLURM
        | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "SLURM_NTASKS": str(tasks),
            "SLURM_ARRAY_TASK_ID": str(shard),
            "SLURM_ARRAY_JOB_ID": "4710",
        }
    )
    return subprocess.run(
        ["bash", "sweep.sh", stage], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )


def test_the_job_array_runs_both_stages(tmp_path, undisturbed):
    """One shard has two tasks, which share its trials."""
    final = SMALL["final"] | {"seeds": [0]}
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", methods={"LoRA": SMALL["methods"]["LoRA"]}, final=final))
    program(tmp_path / "bin", "srun", SRUN)
    program(tmp_path / "bin", "replora-cli", f'#!/bin/bash\nexec {sys.executable} -W ignore -m replora "$@"\n')
    for stage, tasks, shard in (("select", 1, 2), ("select", 2, 1), ("final", 1, 1)):
        ended = job(tmp_path, template(), stage, tasks, shard)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    home = tmp_path / "runs" / "s"
    found = measurements(home)
    assert found == {name: undisturbed[name] for name in found}
    assert len(found) == 3
    for trial in sweep.selection_trials():
        assert read_results(home / trial.folder)["fit"]["batch"]["processes"] == 1
    assert (home / "report" / "report.html").is_file()


def test_a_job_at_its_time_limit_is_requeued(tmp_path):
    program(tmp_path / "bin", "replora-cli", "#!/bin/bash\nexit 143\n")
    program(tmp_path / "bin", "srun", SRUN)
    program(tmp_path / "bin", "scontrol", '#!/bin/bash\necho scontrol "$@"\n')
    ended = job(tmp_path, template(), "select", 1, 2)
    assert ended.returncode == 143
    assert ended.stdout == "scontrol requeue 4710_2\n"
