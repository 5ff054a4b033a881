"""Many runs of `replora-cli` that together answer a question: which are planned, run, and chosen from.

`plan.py` reads a sweep's file, `trial.py` runs one trial, `selection.py` chooses options on validation images,
`lock.py` keeps a second process out, `on_ray.py` shares trials out among machines, `sweep.py` puts them in order,
`estimate.py` says what they will cost.
"""
