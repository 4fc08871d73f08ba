"""Settings that keep every podman that a worker runs, or makes the launcher run, off the machine's.

The first use of a podman makes directories and a mount for its storage that stay. Those are the
worker's own here, and go with the session.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

from tests.session import Session

_STORAGE: Final = """\
[storage]
driver = "overlay"
graphroot = "{0}/storage"
runroot = "{0}/run"
[storage.options.overlay]
skip_mount_home = "true"
"""
# Limits within those of the tests: podman's own are above what root without CAP_SYS_RESOURCE may
# set. Locks in files: those in /dev/shm are shared by all podmans of the machine.
_SETTINGS: Final = """\
[containers]
default_ulimits = ["nofile={1}:{1}", "nproc={2}:{2}"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{0}/tmp"
static_dir = "{0}/static"
volume_path = "{0}/volumes"
"""


def directory(session: Session) -> Path:
    """Return where the worker's podman keeps everything."""
    return session.own / "podman"


def environment(session: Session) -> dict[str, str]:
    """Return the variables that lead every podman there."""
    return {
        "CONTAINERS_CONF": str(directory(session) / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(directory(session) / "storage.conf"),
    }


def write_settings(session: Session) -> None:
    """Write the files that `environment` names."""
    own = directory(session)
    own.mkdir(exist_ok=True)
    limits = _limit(resource.RLIMIT_NOFILE, 20000), _limit(resource.RLIMIT_NPROC, 10000)
    (own / "containers.conf").write_text(_SETTINGS.format(own, *limits))
    (own / "storage.conf").write_text(_STORAGE.format(own))


def _limit(kind: int, wanted: int) -> int:
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
