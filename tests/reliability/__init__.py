"""Faults, hostile input, load and time: what the program promises, with figures, in one table at the end of a run.

Some minutes by default. ``GEODL_LONG=1 pytest -o timeout=0`` takes hours: more cases, 200 runs in one session, a soak
of half an hour.
"""
