"""Interleaved rounds and their medians: machine noise falls on all rivals alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

ROUNDS: Final = 15


def milliseconds(
    commands: Mapping[str, Sequence[str]], environment: Mapping[str, str]
) -> dict[str, float]:
    """Return the median ms that each command takes, run in turn with the others."""
    return medians({name: _timed(command, environment) for name, command in commands.items()})


def medians(rivals: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """Call each rival once to warm up, then all of them in turn; return the medians."""
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, rival in rivals.items():
            value = rival()
            if turn:
                taken[name].append(value)
    return {name: statistics.median(values) for name, values in taken.items()}


def _timed(command: Sequence[str], environment: Mapping[str, str]) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        taken = (time.perf_counter() - started) * 1000
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode()}")
        return taken

    return run


def table(title: str, values: Mapping[str, float], base: str) -> str:
    """Return rows of name, median in ms and ratio to ``base``, under the machine's load."""
    load = os.getloadavg()[0]
    rows = [f"{name:<44} {ms:9.2f} ms {ms / values[base]:7.2f} x" for name, ms in values.items()]
    return "\n".join([f"\n{title} (medians, load {load:.1f})", *rows])


def goal(what: str, value: float, limit: float, unit: str) -> str:
    """Return the line that says whether a goal is met."""
    verdict = "met" if value <= limit else "MISSED"
    return f"goal: {what}: {value:.2f} {unit}, at most {limit:g} {unit}: {verdict}"
