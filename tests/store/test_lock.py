"""A lock ends with its process, however that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from polysem.store.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from polysem.store.lock import Lock

lock = Lock(Path(sys.argv[1]))
assert lock.take()
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_once_and_dies_with_its_process(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    words = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        mine = Lock(file)
        assert not mine.take(patience=0)
        assert mine.taken_by_another
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert file.exists()  # stale, and no hindrance
    assert not mine.taken_by_another
    with mine:
        assert mine.take(patience=0)
        assert mine.take(patience=0)  # once is enough
        assert not Lock(file).take(patience=0)
        assert not mine.taken_by_another
    with Lock(file) as another:
        assert another.take(patience=0)
