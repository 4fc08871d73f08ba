"""One probe for each thing that a test may need from the machine.

A test says what it needs:

    @needs.fuse
    def test_... : ...

An unmet need skips the test and says why. In CI, and wherever LAUNCHER_MUST_RUN is set, it is a
failure: a suite that ran nothing must not look like one that passed.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

_LAUNCHER: Final = Path(__file__).parents[1] / ".venv/bin/launcher"
USER: Final = "launchertest"  # the ordinary user that .ci/setup makes

PROBES: Final[dict[str, Callable[[], str]]] = {}


def must_run() -> bool:
    """Tell whether a missing need is a failure here."""
    return bool(os.environ.get("CI") or os.environ.get("LAUNCHER_MUST_RUN"))


def unmet(name: str) -> str:
    """Return why the need ``name`` is not met, or "". An unknown name is a KeyError."""
    return PROBES[name]()


def _need(probe: Callable[[], str]) -> pytest.MarkDecorator:
    """Register a probe; what it returns is the reason, "" when all is well."""
    name = probe.__name__
    PROBES[name] = functools.cache(probe)
    return pytest.mark.need(name)


def _program(name: str, package: str) -> str:
    return "" if shutil.which(name) else f"{name} is missing (Debian package {package})"


@_need
def root() -> str:
    return "" if os.geteuid() == 0 else "root is needed"


@_need
def fuse() -> str:
    return "" if os.path.exists("/dev/fuse") else "/dev/fuse is missing"


@_need
def userns() -> str:
    done = subprocess.run(["unshare", "-U", "true"], capture_output=True, text=True)
    return f"no user namespaces: {done.stderr.strip()}" if done.returncode else ""


@_need
def user() -> str:
    try:
        home = pwd.getpwnam(USER).pw_dir
    except KeyError:
        return f"no user {USER} (.ci/setup makes it)"
    ranges = Path("/etc/subuid").read_text() if os.path.exists("/etc/subuid") else ""
    if f"{USER}:" not in ranges:
        return f"{USER} has no range in /etc/subuid"
    if not os.path.isdir(home):
        return f"{USER} has no home directory"
    reach = ["setpriv", f"--reuid={USER}", "--clear-groups", "test", "-x", str(_LAUNCHER)]
    if os.geteuid() == 0 and subprocess.run(reach).returncode:
        return f"{USER} cannot reach {_LAUNCHER}: clone to where ordinary users may go"
    return ""


@_need
def docker() -> str:
    return _program("dockerd", "docker.io") or _program("docker", "docker.io") or unmet("root")


@_need
def podman() -> str:
    return _program("podman", "podman") or _program("runc", "runc") or unmet("root")


@_need
def runc() -> str:
    return _program("runc", "runc") or unmet("root")


@_need
def launcher() -> str:
    return unmet("root")


@_need
def musl() -> str:
    return _program("musl-gcc", "musl-tools")


@_need
def strace() -> str:
    return _program("strace", "strace")


@_need
def gdb() -> str:
    return _program("gdb", "gdb")


@_need
def lsof() -> str:
    return _program("lsof", "lsof")


@_need
def sudo() -> str:
    return _program("sudo", "sudo")


@_need
def vim() -> str:
    return _program("vim.tiny", "vim-tiny")


@_need
def tmux() -> str:
    return _program("tmux", "tmux")


@_need
def bwrap() -> str:
    return _program("bwrap", "bubblewrap")
