"""Sweeps that start at once: each line on stdin, arguments of `benchmarks.compare`, is run in a fork of this process.

Prints a fork's process id, which is also its group. Its workers are forks, too; nothing is imported again.
"""

import multiprocessing
import os
import signal
import sys

import benchmarks.compare.plan
import benchmarks.compare.run
import benchmarks.records.plots
import benchmarks.records.store
import benchmarks.records.tables  # noqa: F401
from benchmarks.compare.__main__ import app

get_context = multiprocessing.get_context
multiprocessing.get_context = lambda method: get_context("fork")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that are killed
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        try:
            app(line.split(), standalone_mode=False)
        finally:
            os._exit(0)
    print(pid, flush=True)
