"""Benchmarks of Mega against its peers: named cases and peers, one runner, one worker process per measured thing.

Run them with `mega bench` from a clone of the repository. The path through the code: cases.py and peers.py (what is
measured against what), run.py (in which order), worker.py, build.py, subjects.py and generation.py (what one process
does, with the models.py and ops.py of each peer), results.py (the arithmetic and the JSON), report.py and plot.py
(tables and picture).
"""
