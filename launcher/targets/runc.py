"""Containers of runc and crun, read from the state files below their run directories.

Root's are in /run/runc and /run/crun, an ordinary user's below $XDG_RUNTIME_DIR. A container that
was created and not started still holds its exec.fifo; its process is the runtime's, not its own.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from launcher.errors import EngineUnavailable, TargetNotRunning
from launcher.targets.lookup import Engine, Found, decode_json, dig, is_plain_name
from launcher.targets.process import is_running


def _look_up(
    runtime: str, state_file: str, pid_key: str, start_key: str, name: str
) -> Found | None:
    if not is_plain_name(name):
        return None
    directory = _run_directory(runtime) / name
    try:
        state = decode_json((directory / state_file).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EngineUnavailable(runtime, f"{error.filename}: {error.strerror}") from error
    pid, start_time = dig(state, int, pid_key), dig(state, int, start_key)
    if not is_running(pid, start_time):
        raise TargetNotRunning(f"{runtime} container {name!r} has stopped")
    if (directory / "exec.fifo").exists():
        raise TargetNotRunning(
            f"{runtime} container {name!r} is created but not started",
            hint=f"{runtime} start {name}",
        )
    return Found(runtime, name, pid, start_time)


def _run_directory(runtime: str) -> Path:
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path("/run" if os.geteuid() == 0 or not own else own) / runtime


RUNC = Engine(
    "runc", partial(_look_up, "runc", "state.json", "init_process_pid", "init_process_start")
)
CRUN = Engine("crun", partial(_look_up, "crun", "status", "pid", "process-start-time"))
