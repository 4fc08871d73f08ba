"""File handles (name_to_handle_at(2)): how the server finds a host file again without holding it.

Needs CAP_DAC_READ_SEARCH in the initial user namespace, and a file system that has handles;
without either the caller falls back to paths.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from typing import Final

from nsstages.syscalls import AT_EMPTY_PATH, Call, execute

_MAX_HANDLE: Final = 128
_HEADER: Final = struct.Struct("=Ii")


@dataclass(frozen=True, slots=True)
class Handle:
    """A struct file_handle and the id of the mount it was taken through."""

    mount: int
    data: bytes


class Handles:
    """Takes and opens handles; owns one open directory of each mount it has taken one from."""

    def __init__(self, root_fd: int) -> None:
        self._mount_fds: dict[int, int] = {}
        self._allowed = True
        self._allowed = self._is_allowed(root_fd)

    def _is_allowed(self, root_fd: int) -> bool:
        handle = self.take(root_fd, root_fd)
        if handle is None:
            return True
        try:
            os.close(self.open(handle))
        except PermissionError:
            self.close()
            return False
        return True

    def take(self, fd: int, directory_fd: int | None) -> Handle | None:
        """Return a handle of the O_PATH descriptor ``fd``, or None where that cannot be.

        ``directory_fd`` is a directory that is likely on the same mount, used when this is the
        first handle of that mount.
        """
        handle = _name_to_handle(fd) if self._allowed else None
        if handle is None or handle.mount in self._mount_fds:
            return handle
        return handle if directory_fd is not None and self._adopt(handle, directory_fd) else None

    def _adopt(self, handle: Handle, directory_fd: int) -> bool:
        same = _name_to_handle(directory_fd)
        if same is None or same.mount != handle.mount:
            return False
        try:
            # open_by_handle_at does not take an O_PATH descriptor for the mount
            mount_fd = os.open(
                f"/proc/self/fd/{directory_fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except OSError:
            return False
        self._mount_fds[handle.mount] = mount_fd
        return True

    def open(self, handle: Handle) -> int:
        """Return an O_PATH descriptor; raises OSError (ESTALE when the file is gone)."""
        mount_fd = self._mount_fds[handle.mount]
        return execute(Call("open_by_handle_at", (mount_fd, handle.data, os.O_PATH | os.O_CLOEXEC)))

    def close(self) -> None:
        """Close the directories that keep the mounts."""
        while self._mount_fds:
            os.close(self._mount_fds.popitem()[1])


def _name_to_handle(fd: int) -> Handle | None:
    buffer = ctypes.create_string_buffer(_HEADER.pack(_MAX_HANDLE, 0), _HEADER.size + _MAX_HANDLE)
    mount = ctypes.c_int()
    addresses = ctypes.addressof(buffer), ctypes.addressof(mount)
    try:
        execute(Call("name_to_handle_at", (fd, b"", *addresses, AT_EMPTY_PATH)))
    except OSError:
        return None
    length, _ = _HEADER.unpack_from(buffer)
    return Handle(mount.value, buffer.raw[: _HEADER.size + length])
