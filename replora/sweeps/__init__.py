"""Many runs of `replora-cli` that together answer a question: they are planned, run, and compared.

`sweep_file.py` reads and checks a sweep's file, and `plan.py` makes the list of trials from it. `trial.py` runs one
trial. `scheduler.py` hands trials out to the workers of a Ray cluster (`executor.py`) or of this machine alone
(`local_workers.py`); `local_queue.py` runs them in this process. `select.py` selects options on validation images,
`sweep.py` runs the two stages, and `progress.py` shows the state of a sweep and estimates its cost.
"""
