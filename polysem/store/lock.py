"""One writer at a time: a lock that its process takes with it when it ends, however it ends."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # not a Unix: nothing is locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock"]

#: How long a lock is waited for: reading processes of a killed probe notice within five seconds
#: that it is gone, and hold its lock until then.
PATIENCE_S = 6.0


class Lock:
    """The exclusive use of whatever a file stands for.

    The file may lie there from earlier: what counts is whether a living process holds it. On
    network drives the kernel's ``flock`` reaches other machines where the drive supports it (NFS
    from version 4, Lustre, GPFS).

    Parameters
    ----------
    path : Path
        The file; made if it is not there, in a folder that is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self, *, patience: float | None = None) -> bool:
        """Try to get the lock for so many seconds, and return whether this process has it now."""
        until = time.monotonic() + (PATIENCE_S if patience is None else patience)
        while not self._try():
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        return True

    def release(self) -> None:
        """Let others have it."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    @property
    def taken_by_another(self) -> bool:
        """Whether a process holds it that is not this one."""
        if self._file is not None or not self.path.exists():
            return False
        free = self.take(patience=0)
        self.release()
        return not free

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _try(self) -> bool:
        if self._file is not None:
            return True
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the folder went with a holder that has just finished
            return False
        try:
            if _locked(file) and os.path.samestat(os.stat(self.path), os.fstat(file)):
                self._file = file
        except FileNotFoundError:  # so did the file
            pass
        finally:
            if self._file is None:
                os.close(file)
        return self._file is not None


def _locked(file: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # no locks on this drive
    return True
