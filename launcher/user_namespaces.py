"""User namespaces that nobody lives in: they exist to hold the maps of an idmapped mount."""

from __future__ import annotations

import os
import signal
import socket

from nsstages.idmap import IdMap, write_maps
from nsstages.syscalls import CLONE_NEWUSER, unshare


def user_namespace_with(uid_map: IdMap, gid_map: IdMap) -> int:
    """Return a descriptor of a new user namespace with these maps. Called by a host-root manager.

    A throw-away child makes it and is killed; the descriptor keeps it alive. Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        _unshare_and_wait(theirs)
    theirs.close()
    try:
        if ours.recv(1) != b"u":
            raise PermissionError(1, "a user namespace could not be created")
        write_maps(pid, uid_map, gid_map, setgroups=True)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _unshare_and_wait(theirs: socket.socket) -> None:
    try:
        unshare(CLONE_NEWUSER)
        theirs.send(b"u")
        signal.pause()
    finally:
        os._exit(1)
