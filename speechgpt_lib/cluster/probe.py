"""One task of the job by which `doctor --on slurm` looks at a cluster from inside.

    python -m speechgpt_lib.cluster.probe FOLDER WORD [PATH …]

It writes what it sees to FOLDER/answer-N.json: whether WORD is in FOLDER/word, which of the paths
are missing, versions, cores, whether the first task can be reached, how far the clock is off.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from pathlib import Path

from speechgpt_lib import __version__
from speechgpt_lib.errors import one_line
from speechgpt_lib.runs.artefacts import write_json
from speechgpt_lib.runs.machine import usable_cores

WAIT_S = 60.0  # for the other tasks of the job


def main(folder: str, word: str, *paths: str) -> None:
    """Look around, meet the other tasks, write the answer; prints it, too, in case that fails."""
    rank, tasks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    file = Path(folder) / "word"
    answer: dict = {
        "node": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        "speechgpt": __version__,
        "python": platform.python_version(),
        "cores": usable_cores(),
        "sees_folder": file.is_file() and file.read_text(encoding="utf-8") == word,
        "missing": [path for path in paths if not Path(path).exists()],
    }
    try:
        answer["clock_s"] = meet(rank, tasks)
    except OSError as error:
        answer["alone"] = one_line(error)
    print(answer, flush=True)
    write_json(Path(folder) / f"answer-{rank}.json", answer)


def meet(rank: int, tasks: int) -> float:
    """The first task tells all others its time; returns how far the clock here is ahead of it, in
    seconds.  OSError where they don't reach each other."""
    if tasks == 1:
        return 0.0
    port = int(os.environ["MASTER_PORT"])
    if rank == 0:
        with socket.create_server(("", port)) as server:
            server.settimeout(WAIT_S)
            for _ in range(tasks - 1):
                with server.accept()[0] as other:
                    other.sendall(repr(time.time()).encode())
        return 0.0
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            with socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=5) as first:
                return time.time() - float(first.recv(64))
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                where = f"{os.environ['MASTER_ADDR']}:{port}"
                raise OSError(f"{where} not reached in {WAIT_S:.0f} s ({error})") from None
            time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
