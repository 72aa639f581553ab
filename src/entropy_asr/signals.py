"""Signals that ask a stage to stop: Slurm's warning, Ctrl-C, a terminal that is closed; and the end of the snakemake behind it.

Slurm and a terminal signal every process of a job, not the stage alone.  A stage that has something to lose notes the signal,
finishes its step, saves and ends with EXIT_INTERRUPTED.  The processes that load its data must not answer at all, because the
stage needs them until its step is done.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: run me again
WATCH_SECONDS = 2.0
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def leave_when_asked() -> None:
    """From now on end at once when asked to stop: for the time before a stage has anything to save."""

    def leave(number: int, _frame: Any) -> None:
        print(f"asked to stop ({signal.Signals(number).name}) before training began; exit {EXIT_INTERRUPTED}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)

    handle_stop(leave)


def stop_with_coordinator() -> None:
    """Ask this process to stop when the snakemake that started it is gone: its job would go on unseen, beside the next one.

    ENTROPY_ASR_COORDINATOR, of the rule's shell, says its host and process; on another host nothing is watched.
    """
    host, _, process = os.environ.get("ENTROPY_ASR_COORDINATOR", "").partition(" ")
    if host != os.uname().nodename or not process.isdigit() or not _alive(int(process)):
        return

    def watch() -> None:
        while _alive(int(process)):
            time.sleep(WATCH_SECONDS)
        print(f"snakemake (process {process}) is gone: asked to stop", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def handle_stop(handler: Callable[[int, Any], None]) -> None:
    """Call `handler` when asked to stop. A closed terminal is passed by where the stage was started with nohup."""
    for number in STOP:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_stop(_worker: int = 0) -> None:
    """What each data-loading process calls first."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Around the start of data-loading processes: no request to stop reaches one before it has called :func:`ignore_stop`.

    PyTorch's handler of SIGCHLD is not left behind. It raises wherever the main process is when a worker dies, in the middle of
    a save for instance. Without it the death is noticed when the next batch is asked for.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    child_died = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, child_died)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
