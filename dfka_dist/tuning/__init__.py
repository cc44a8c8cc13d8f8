"""A sweep: weights of the losses, or other numbers of a run, under Ray Tune.

`space.py` knows what is looked for, `pilots.py` what trials are compared on, `trial.py` one trial,
`sweep.py` all of them, `records.py` what they leave, `ranking.py` who is best, `picture.py` how it
looks.
"""
