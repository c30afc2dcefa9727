"""The page as `hswq-hub demo` serves it, in a process of its own, and visitors who speak to it by HTTP alone."""

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

HERE, FOR_ANYBODY = "127.0.0.1", "127.0.0.2"
"""On the second, which is loopback too, the page takes nobody for the one who sits at this machine."""
START = 180
"""Seconds in which the page has to be there, on a machine that does other things too."""


@dataclass(frozen=True)
class Served:
    """url: ends in "/". process: the server's."""

    url: str
    process: psutil.Process

    def cpu(self, seconds: float) -> float:
        """The share of a core that it takes during the next seconds."""
        begin, start = self._busy(), time.monotonic()
        time.sleep(seconds)
        return (self._busy() - begin) / (time.monotonic() - start)

    def _busy(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    @property
    def memory(self) -> int:
        """Bytes that it has in memory."""
        return self.process.memory_info().rss


@contextmanager
def served(
    home: Path, *options: str, host: str = HERE, environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """The page with these options of the command, once it has made a picture."""
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    variables = os.environ | {"HSWQ_HOME": str(home), "OMP_NUM_THREADS": "1"} | (environment or {})
    command = [sys.executable, "-m", "hswq_hub", "demo", "--host", host, "--port", str(port), *options]
    with (home / "page.log").open("w") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        page = Served(f"http://{host}:{port}/", psutil.Process(process.pid))
        wait_for(lambda: _answers(page.url) or process.poll() is not None, START)
        assert process.poll() is None, (home / "page.log").read_text()
        Visitor(page.url).compare("a star", steps=1)
        yield page
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


def wait_for(there: Callable[[], bool], seconds: float) -> None:
    """Wait until it is, `seconds` at most."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


class Refused(Exception):
    """What the page said instead of an answer."""


class Visitor:
    """Somebody with a session, who asks and then reads what comes, and may leave before that."""

    def __init__(self, url: str, patience: float = 120):
        self._api = f"{url}gradio_api/"
        self._client = httpx2.Client(timeout=patience)
        self.session = uuid.uuid4().hex

    def join(self, data: list, function: int) -> None:
        """Get in the queue for the function with that number, which the page's configuration tells."""
        body = {"data": data, "fn_index": function, "session_hash": self.session}
        answer = self._client.post(f"{self._api}queue/join", json=body)
        if answer.status_code != 200:
            raise Refused(answer.json()["detail"])

    def messages(self) -> Iterator[dict]:
        """What the page says to this session; closing the iterator closes the connection."""
        address = f"{self._api}queue/data"
        with self._client.stream("GET", address, params={"session_hash": self.session}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def functions(self) -> dict[str, int]:
        """Numbers of the functions by name."""
        config = self._client.get(f"{self._api.removesuffix('gradio_api/')}config").json()
        return {one["api_name"]: one["id"] for one in config["dependencies"]}

    def compare(self, *data, **named) -> dict:
        """The answer of the endpoint for programs.

        Raises:
            Refused: it was refused.
        """
        self.ask(*data, **named)
        for message in self.messages():
            if message["msg"] == "process_completed":
                if not message["success"]:
                    raise Refused(message["output"]["error"])
                return message["output"]["data"][0]
        raise Refused("the page hung up")

    def ask(self, *data, **named) -> None:
        """Ask for a comparison, and wait for nothing."""
        fields = ["prompt", "seed", "steps", "guidance", "size", "negative", "variants", "model", "lora", "pictures"]
        usual = {"seed": 1, "negative": "", "lora": "", "pictures": False}
        given = usual | dict(zip(fields, data, strict=False)) | named
        self.join([given.get(name) for name in fields], self.functions()["compare"])
