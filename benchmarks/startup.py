"""How long does the command line take to start?

    python benchmarks/startup.py

The benchmark times complete processes: `--help`, `--version`, the verbs that work on files, and the help of `fit`. The
reference is a Python process that imports torch; no verb that computes can be faster.
"""

from __future__ import annotations

import subprocess
import sys

import measure

REFERENCE = "python -c 'import torch'"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    REFERENCE: ["-c", "import torch"],
    "python -c 'import torch, lightning'": ["-c", "import torch, lightning"],
    "python -c 'import replora'": ["-c", "import replora"],
    "replora-cli --help": ["-m", "replora", "--help"],
    "replora-cli --version": ["-m", "replora", "--version"],
    "replora-cli configs": ["-m", "replora", "configs"],
    "replora-cli plot --help": ["-m", "replora", "plot", "--help"],
    "replora-cli predict-files --help": ["-m", "replora", "predict-files", "--help"],
    "replora-cli prepare vtab --help": ["-m", "replora", "prepare", "vtab", "--help"],
    "replora-cli fit --help": ["-m", "replora", "fit", "--help"],
}


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=5)
    options = parser.parse_args(arguments)
    names = list(COMMANDS)
    if options.quick:
        names, options.rounds = ["python -c pass", REFERENCE, "replora-cli --version"], 1
    environment = measure.environment(OMP_NUM_THREADS=str(options.threads))

    def run(name: str) -> None:
        subprocess.run([sys.executable, *COMMANDS[name]], check=True, capture_output=True, env=environment)

    results = measure.summarize(
        measure.interleaved({name: lambda name=name: run(name) for name in names}, options.rounds), REFERENCE
    )
    measure.show(
        "Start-up time of complete processes",
        ["command", "seconds", "x import torch (quartiles)"],
        [[name, f"{found['seconds']:.2f}", measure.ratio_text(found)] for name, found in results.items()],
    )
    print(measure.write(options.out, "startup", measure.settings(options), results))


if __name__ == "__main__":
    main()
