"""Podman containers: names from the container storage, processes from the run directory.

Both are where storage.conf says, else below /var/lib and /run for root and below the data home and
$XDG_RUNTIME_DIR for an ordinary user. Stores that podman's own options put elsewhere are known to
the podman command only; it is asked last, since it takes twenty times as long.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from launcher.errors import EngineUnavailable, TargetNotRunning
from launcher.targets.lookup import Engine, Found, choose_id, decode_json, dig, is_plain_name
from launcher.targets.process import is_running, read_stat

_NAME: Final = "podman"
_TIMEOUT: Final = 10.0
_ROOT: Final = (
    Path("/etc/containers/storage.conf"),
    Path("/var/lib/containers/storage"),
    Path("/run/containers/storage"),
)


def _look_up(name: str) -> Found | None:
    if not is_plain_name(name):
        return None
    storage, run = _stores()
    try:
        names = dict(_containers(storage, run))
    except OSError as error:
        raise EngineUnavailable(_NAME, f"{error.filename}: {error.strerror}") from error
    identity = choose_id(name, names, _NAME)
    if identity is None:
        return None
    shown = (*names[identity], identity)[0]
    for directory in run.glob(f"*-containers/{identity}/userdata"):
        if pid := _pid_of(directory):
            return Found(_NAME, shown, pid)
    raise _not_running(shown, "no process")


def _stores() -> tuple[Path, Path]:
    """Return where containers are stored and where running ones keep their files."""
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0 or not own:
        configuration, storage, run = _ROOT
    else:
        home = Path.home()
        settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
        configuration = settings / "containers/storage.conf"
        storage, run = data / "containers/storage", Path(own) / "containers"
    chosen = _configured(Path(os.environ.get("CONTAINERS_STORAGE_CONF") or configuration))
    return Path(chosen.get("graphroot", storage)), Path(chosen.get("runroot", run))


def _configured(path: Path) -> dict[str, str]:
    """Return the directories that a storage.conf sets; containers-storage.conf(5)."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    import tomllib

    try:
        table = dig(tomllib.loads(text), dict, "storage")
    except tomllib.TOMLDecodeError as error:
        raise EngineUnavailable(_NAME, f"{path}: {error}") from error
    return {key: dig(table, str, key) for key in ("graphroot", "runroot") if dig(table, str, key)}


def _containers(*stores: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each container's id and names; transient stores keep their list in /run."""
    for store in stores:
        for path in store.glob("*-containers/*containers.json"):
            for entry in decode_json(path.read_bytes()) or ():
                if identity := dig(entry, str, "id"):
                    yield identity, dig(entry, list, "names")


def _pid_of(directory: Path) -> int:
    """Return the container's process, or 0: it must be the child of the monitor on record."""
    try:
        pid = int((directory / "pidfile").read_text())
        monitor = int((directory / "conmon.pid").read_text())
    except (OSError, ValueError):
        return 0
    stat = read_stat(pid)
    return pid if stat and stat.is_running and stat.parent == monitor else 0


def _ask(name: str) -> Found | None:
    import subprocess

    if not is_plain_name(name):
        return None
    words = ["{{.Name}}", "{{.State.Pid}}", "{{.State.Status}}"]
    command = ["podman", "container", "inspect", "--format", " ".join(words), name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
    except FileNotFoundError:
        raise EngineUnavailable(_NAME, "the podman command is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnavailable(_NAME, f"podman container inspect: {error}") from error
    answer = done.stdout.decode(errors="replace").split()
    if done.returncode or len(answer) != len(words) or not answer[1].isdigit():
        return None
    if not is_running(int(answer[1])):
        raise _not_running(answer[0], answer[2])
    return Found(_NAME, answer[0], int(answer[1]))


def _not_running(name: str, state: str) -> TargetNotRunning:
    return TargetNotRunning(
        f"podman container {name!r} is not running ({state})", hint=f"podman start {name}"
    )


PODMAN = Engine(_NAME, _look_up, _ask)
