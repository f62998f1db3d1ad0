"""Outages: the tracking server goes away, or answers nonsense, before or within a command, and comes back.

The command succeeds, or ends with one line, and waits no longer than the time-out without a word. When the
server is back, `mnist sync` completes everything: one run, one version, nothing twice.
"""

import functools
import itertools
import json
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.request import Request

from tests import servers
from tests.e2e.test_servers import REGISTER, TRAIN, Site, assert_complete, site_at
from tests.faults.case import Case, clone_at, one_line_error
from tests.servers import Fault, Proxy, answers

NUMBER = 20
TIMEOUT_SECONDS = 3  # of a request
GRACE_SECONDS = 60  # for imports on a busy machine; retries without end would take minutes
MNIST = ("python", "-m", "mnist")
# The commands, each with about as many requests as it makes.
COMMANDS = {
    "train": (TRAIN, 25),
    "register": (REGISTER, 60),
    "sync": ((*MNIST, "sync"), 60),
    "promote": ((*MNIST, "promote"), 15),
    "serve": ((*MNIST, "serve", "--port", "0"), 8),
}
FAULTS: tuple[Fault | Literal["refuse"], ...] = (
    "refuse",
    "hang",
    500,
    "half",
    "page",
    503,
    "cut",
    "slow",
    "drop",
)
WHEN = ("before", "within", "blip")  # from the first request, from some request, at two requests alone


def cases(seed: int) -> Iterator[Case]:
    """Yield outages without end: commands and faults in turn, their moments drawn."""
    for number in itertools.count():
        command, fault = list(COMMANDS)[number % len(COMMANDS)], FAULTS[number % len(FAULTS)]
        draw = random.Random(f"{seed} {number}")  # noqa: S311 -- no secret
        when, moment = draw.choice(WHEN), draw.random()
        label = f"{number}-{command}-{fault}-{when}-{moment:.2f}"
        yield Case("outages", label, Outage(command, fault, when, moment))


@functools.cache
def server() -> str:
    """Start a sound server for this process, and return its URL."""
    return STACK.enter_context(servers.mlflow_server())


STACK = ExitStack()  # the server ends with this process


@dataclass(frozen=True)
class Outage:
    """An outage: `moment` is the part of the command's requests after which it begins."""

    command: str
    fault: Fault | Literal["refuse"]
    when: str
    moment: float

    def __call__(self, folder: Path) -> str | None:
        """Cut the server off, run the command, let the server come back, and look."""
        with servers.faulty_proxy(server()) as proxy:
            site = site_at(proxy.url, clone_at(folder), folder.parent.name, server())
            environment = site.clone.environment
            environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"  # but in the outage: the machine may be busy
            if self.command in ("promote", "serve"):
                site.run(*MNIST, "sync")
            if self.command == "serve":
                site.run(*MNIST, "promote")
            before = site.outs()
            environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(TIMEOUT_SECONDS)
            self._begin(proxy)
            problem = serves(site, must=False) if self.command == "serve" else self._run(site)
            assert site.outs() == before, "training made other bytes"
        environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"
        with servers.faulty_proxy(server(), port=proxy.server_port):
            site.run(*MNIST, "sync")
            assert_complete(site)
            if self.command == "promote":
                site.run(*MNIST, "promote")
                champion = site.client.get_model_version_by_alias(site.name, "champion")
                lines = [json.loads(line) for line in site.clone.read("promotions.jsonl").splitlines()]
                assert {line["candidate"]["version"] for line in lines} == {champion.version}
            if self.command == "serve":
                problem = problem or serves(site)
        return problem

    def _begin(self, proxy: Proxy) -> None:
        """Let the outage begin in time."""
        first = len(proxy.exchanges) + (self.when != "before") * int(self.moment * COMMANDS[self.command][1])
        num_requests = 2 if self.when == "blip" else 10**9

        def choose(_path: str) -> Fault:
            if not first <= len(proxy.exchanges) < first + num_requests:
                return "pass"
            if self.fault == "refuse":
                threading.Thread(target=stop, args=[proxy]).start()
                return "cut"
            return self.fault

        proxy.choose = choose
        if self.fault == "refuse" and self.when == "before":
            stop(proxy)

    def _run(self, site: Site) -> str | None:
        """Run the command in the outage; return what is wrong with how it ends, or waits."""
        with site.clone.start(*COMMANDS[self.command][0], PYTHONUNBUFFERED="1") as process:
            assert process.stdout
            lines, since, waited = [], time.monotonic(), 0.0
            for line in process.stdout:
                lines.append(line)
                waited, since = max(waited, time.monotonic() - since), time.monotonic()
        output = "".join(lines)
        if waited > TIMEOUT_SECONDS + GRACE_SECONDS and self.fault != "slow":
            return f"{waited:.0f} s without a word"
        if process.returncode == 0:
            return f"a traceback: {output[-300:]}" if "Traceback" in output else None
        return one_line_error(output, process.returncode)


def stop(proxy: Proxy) -> None:
    """Let a proxy listen no more."""
    proxy.shutdown()
    proxy.server_close()


def serves(site: Site, *, must: bool = True) -> str | None:
    """Start `mnist serve`; return what is wrong: it answers, or, unless it must, ends with a line."""
    with site.clone.start(*COMMANDS["serve"][0], PYTHONUNBUFFERED="1") as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"(http\S+)/invocations", line):
                is_up = answers(Request(f"{found[1]}/ping"))
                process.terminate()
                return None if is_up else f"no answer to a ping: {line}"
    output = "".join(lines)
    return f"does not serve: {output[-300:]}" if must else one_line_error(output, process.wait())
