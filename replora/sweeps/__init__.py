"""Many runs of `replora-cli` that together answer a question: they are planned, run, and compared.

`sweep_file.py` reads and checks a sweep's file, and `plan.py` makes the list of trials from it. `trial.py` runs one
trial, and `executor.py` distributes trials over cores, GPUs and machines. `select.py` selects options on validation
images, `sweep.py` runs the two stages, and `progress.py` shows the state of a sweep and estimates its cost.
"""
