"""A sweep: weights of the losses, or other numbers of a run, under Ray Tune.

`space.py` knows what is looked for, `trial.py` one trial, `sweep.py` all of them, `listening.py`
and `leaving.py` when they end, `records.py` what they leave, `keeping.py` when that is all,
`ranking.py` who is best, `picture.py` how it looks.
"""
