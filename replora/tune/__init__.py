"""Chooses the learning rate, and more if asked, for the data at hand: `replora-cli tune`.

`probe.py` looks at the data and measures a step. `plan.py` makes the candidates and their measurements, each of which
is a trial as in a sweep; `race.py` runs them by successive halving within a budget (`budget.py`). `outcome.py` chooses,
says how surely, and draws the curve. `tune.py` does all of it, and fits the choice.
"""
