"""How the tests attach: the real command, as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.product.container import Container
from tests.product.view import View

LAUNCHER: Final = str(Path(sys.executable).with_name("launcher"))
SECONDS: Final = 60


def attach(
    container: Container,
    *command: str,
    options: tuple[str, ...] = (),
    cwd: str = "/",
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in an attach to ``container``, without a terminal."""
    return subprocess.run(
        [LAUNCHER, "attach", *options, container.spec, "--", *command],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=SECONDS,
        cwd=cwd,
        env={**os.environ, **container.engine.environment, **(environment or {})},
    )


@contextmanager
def running(
    container: Container,
    *command: str,
    options: tuple[str, ...] = (),
    under: tuple[str, ...] = (),
) -> Iterator[subprocess.Popen[str]]:
    """Have an attach run, ``under`` another program; `command` has said "started" on entering."""
    process = subprocess.Popen(
        [*under, LAUNCHER, "attach", *options, container.spec, "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, **container.engine.environment},
    )
    with process:
        try:
            assert process.stdout is not None
            assert "started\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def attach_shell(container: Container, script: str, **wishes: object) -> str:
    """Run a shell script in an attach; return its output. Raises AssertionError on a failure."""
    done = attach(container, "sh", "-ec", script, **wishes)  # type: ignore[arg-type]
    assert (0, "") == (done.returncode, done.stderr), done.stderr
    return done.stdout


def routed_view(container: Container, command: str, **wishes: object) -> View:
    """Return the view of a program of the container that the attached shell starts."""
    return View.parse(attach_shell(container, command, **wishes))
