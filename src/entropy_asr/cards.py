"""GPUs (cards) of one machine without a scheduler: a command waits until enough of them are free, and then has them alone.

    python -m entropy_asr.cards 2 -- torchrun --nproc-per-node=2 -m entropy_asr.stages.align ...

The command finds its cards in CUDA_VISIBLE_DEVICES.  A card is taken by a lock on a file of its own, in a folder of the user's
under the temporary folder.  The kernel drops the lock when the last process that holds it has ended, however it ended.

torchrun starts its ranks without its own open files, so it cannot hand a lock on to them.  The locks are therefore shared
ones, and every command of ours takes those that ENTROPY_ASR_CARDS names (:func:`hold`): ranks that outlive a killed torchrun
keep their cards.
"""

import fcntl
import itertools
import os
import stat
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.signals import leave_when_asked

VISIBLE, HELD = "CUDA_VISIBLE_DEVICES", "ENTROPY_ASR_CARDS"
POLL_SECONDS = 1.0


def cards_here() -> list[str]:
    """The cards that may be given away: those of CUDA_VISIBLE_DEVICES if it is set, else the indices of all."""
    if VISIBLE not in os.environ:
        return list(_uuids())
    names = (name.strip() for name in os.environ[VISIBLE].split(","))
    # CUDA ends the list at the first name of no card; -1 and NoDevFiles are the usual ones.
    return list(dict.fromkeys(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names)))


def require(count: int, who: str) -> list[str]:
    """The cards of this machine.

    Args:
        count: how many one job needs.
        who: names the job in the message.

    Raises:
        InputError: there are fewer, or this process runs on cards that were given to it already.
    """
    if HELD in os.environ:
        raise InputError(f"{HELD} is set: the cards here are given to a command already, and waiting for them would never end")
    cards = cards_here()
    if count > len(cards):
        source = f"{VISIBLE} is '{os.environ[VISIBLE]}'" if VISIBLE in os.environ else "as nvidia-smi says"
        raise InputError(
            f"{who} needs {count} card(s) (GPUs), and this machine has {len(cards)} ({source}). Lower `resources.gpus_per_node` "
            "in the config, or that of the stage in `resources.stages` (0: on the CPU); or run it where there are more."
        )
    return cards


def take(count: int) -> dict[str, IO]:
    """Wait until so many cards are free, and take them, all at once.

    Returns:
        By name of the card, the open file whose lock holds it.

    Raises:
        InputError: the machine has fewer.
    """
    cards, uuids, folder = require(count, "this job"), _uuids(), _folder()
    # A card has one file, whether it is called by its index or by its UUID.
    paths = {name: folder / urllib.parse.quote(uuids.get(name, name), safe="") for name in cards}
    waiting = False
    while True:
        with _alone(folder):
            free = {name: file for name, path in paths.items() if (file := _lock_if_free(path))}
            taken = dict(itertools.islice(free.items(), count)) if len(free) >= count else {}
            for name, file in free.items():
                fcntl.flock(file, fcntl.LOCK_SH) if name in taken else file.close()
        if taken:
            return taken
        if not waiting:
            busy = ", ".join(name for name in cards if name not in free)
            print(f"waiting for {count} free card(s); busy: {busy}", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(POLL_SECONDS)


def hold() -> None:
    """Keep the cards that the command was given until this process ends, too.

    Raises:
        InputError: a lock's file cannot be opened.
    """
    for path in os.environ.get(HELD, "").split(os.pathsep):
        if path:
            try:
                fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_SH)
            except OSError as error:
                raise InputError(
                    f"{path}, which holds a card for this process ({HELD}): {error.strerror}. In a container, bind that folder."
                ) from None


def _uuids() -> dict[str, str]:
    """UUID of each card by its index, in nvidia-smi's order; empty without NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split(", ") for line in listed.splitlines() if line.count(", ") == 1)


def _folder() -> Path:
    """This user's folder of locks, which nobody else can write to."""
    folder = Path(tempfile.gettempdir()) / f"entropy-asr-cards-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InputError(f"{folder} must be a folder of yours that nobody else can use: remove it, or set TMPDIR")
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time tries the locks of a folder. (systemd-tmpfiles passes by what is locked.)"""
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _lock_if_free(path: Path) -> IO | None:
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def main() -> None:
    """Take the cards, then become the command."""
    leave_when_asked()
    with friendly_exit():
        count, dashes, *command = sys.argv[1:] if len(sys.argv) > 3 else ("", "")
        if not count.isdigit() or int(count) == 0 or dashes != "--":
            raise InputError("call it as: python -m entropy_asr.cards COUNT -- COMMAND...")
        taken = take(int(count))
        for file in taken.values():
            os.set_inheritable(file.fileno(), True)
        # An index means what nvidia-smi means by it. CUDA's own order is by speed.
        environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} | os.environ
        environment |= {VISIBLE: ",".join(taken), HELD: os.pathsep.join(file.name for file in taken.values())}
        try:
            os.execvpe(command[0], command, environment)
        except OSError as error:
            raise InputError(f"{command[0]}: {error.strerror}") from None


if __name__ == "__main__":
    main()
