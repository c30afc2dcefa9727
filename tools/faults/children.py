"""Runs of the command line as the script sees them: started, watched, signalled."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 180.0
"""Seconds after which a run hangs."""


@dataclass
class Run:
    """One run. log: what it says on stderr."""

    children: "Children"
    pid: int
    log: Path
    said: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code as a shell has it; None while it runs."""
        if self.code is None and (code := self.children.order({"poll": self.pid})["code"]) is not None:
            self.code = int(code) if int(code) >= 0 else 128 - int(code)
        return self.code

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> bool:
        """Wait until it has ended, or `until` holds; whether one of them came about in time."""
        end = time.monotonic() + seconds
        while self.poll() is None and not until():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def kill(self) -> None:
        """End a run that hangs; its code stays None."""
        os.kill(self.pid, signal.SIGKILL)

    @property
    def lines(self) -> list[str]:
        """What it has said on stderr."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []


class Children:
    """Whoever starts the runs; a context manager. model: any file of the kind that is published."""

    def __init__(self, model: Path, environment: dict[str, str]):
        self._words = [sys.executable, "-W", "ignore", "-m", "faults.forked", str(model)]
        self._environment = os.environ | environment
        self._runs: list[Run] = []

    def __enter__(self) -> "Children":
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(self._words, stdin=pipe, stdout=pipe, text=True, env=self._environment)
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._runs:
            if run.poll() is None:
                run.kill()
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)

    def order(self, order: dict[str, object]) -> dict[str, object]:
        """Have something done."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def start(self, words: list[str], log: Path, **facts: object) -> Run:
        """Start a run. facts: what `forked.run` wants besides."""
        said = log.with_suffix(".out")
        for path in (log, said):
            path.unlink(missing_ok=True)
        answer = self.order({"words": words, "log": str(log), "said": str(said), **facts})
        self._runs.append(Run(self, int(str(answer["pid"])), log, said))
        return self._runs[-1]

    def _answer(self) -> dict[str, object]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts the runs has ended")
        found: dict[str, object] = json.loads(line)
        return found
