"""Commands run as a launcher runs them: several processes that know of each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def together(*words: object, count: int = 2, code: int = 0) -> list[str]:
    """Run ``polysem WORDS`` in so many processes; return what each prints, both streams if it fails.

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
    said = []
    for process in started:
        out_text, err_text = process.communicate(timeout=300)
        assert process.returncode == code, err_text
        said.append(out_text + (err_text if code else ""))
    return said
