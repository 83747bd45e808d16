"""Commands run as a launcher runs them: several processes that know of each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time


def together(*words: object, count: int = 2, code: int = 0) -> list[str]:
    """Run ``polysem WORDS`` in so many processes and return what each prints.

    All must end with the exit code `code`.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "polysem", *map(str, words)],
            env={**os.environ, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
                 "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    while any(process.poll() is None for process in started):
        if any(process.poll() not in (None, code) for process in started):
            for process in started:  # as a launcher does: the others would wait
                process.kill()
        time.sleep(0.1)
    said = []
    for process in started:
        out_text, err_text = process.communicate()
        assert process.returncode == code, err_text
        said.append(out_text + (err_text if code else ""))
    return said
