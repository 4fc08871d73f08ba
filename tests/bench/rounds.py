"""Interleaved rounds and their medians: machine noise falls on all rivals alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence

ROUNDS = 15


def milliseconds(
    commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], rounds: int = ROUNDS
) -> dict[str, float]:
    """Run each command once to warm up, then all of them in turn; return medians in ms."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, **environment},
            )
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode()}")
            if turn:
                taken[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(values) for name, values in taken.items()}


def table(title: str, medians: Mapping[str, float], base: str) -> str:
    """Return rows of name, median and ratio to ``base``."""
    rows = [f"{name:<44} {ms:9.2f} ms {ms / medians[base]:7.2f} x" for name, ms in medians.items()]
    return "\n".join([f"\n{title} (medians of {ROUNDS}, load {os.getloadavg()[0]:.1f})", *rows])
