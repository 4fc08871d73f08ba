"""A pseudo-terminal from a container's devpts, opened as if the container were hostile.

Stage 2 calls this after it joined the mount namespace, where /dev/pts is whatever the container
made of it: a regular file, a bind mount of a host device, another file system. So the master is
looked at before it is opened, and the slave comes from the master (TIOCGPTPEER, Linux 4.13),
never from a name. Copying bytes is the manager's job (launcher.terminal).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import termios
from typing import Final

from nsstages import syscalls

_DEVPTS_MAGIC: Final = 0x1CD1
_PTMX_INODE: Final = 2
_PTMX_DEVICE: Final = os.makedev(5, 2)
_TIOCSPTLCK: Final = 0x40045431
_TIOCGPTPEER: Final = 0x5441
_NO_LINKS: Final = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


class UntrustedTerminal(OSError):
    """What the container has at /dev/pts is not the kernel's devpts; nothing was opened."""


def open_verified_pty(dev_pts_ptmx: str = "/dev/pts/ptmx") -> tuple[int, int]:
    """Return a new (master, slave), both close-on-exec and no one's controlling terminal.

    Called by stage 2. The slave belongs to the caller's file system uid; whoever starts a program
    of another user changes its owner with fchown. Raises UntrustedTerminal, or OSError.
    """
    directory, name = os.path.split(dev_pts_ptmx)
    directory_fd = syscalls.openat2(
        syscalls.AT_FDCWD, directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=_NO_LINKS
    )
    try:
        _verify(directory_fd, directory, name)
        # A mount put over ptmx since the check would be another mount: NO_XDEV refuses it.
        master_fd = syscalls.openat2(
            directory_fd, name, os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW,
            resolve=_NO_LINKS | syscalls.RESOLVE_NO_XDEV,
        )  # fmt: skip
    except PermissionError:
        master_fd = _open_beside(directory, name)
    finally:
        os.close(directory_fd)
    try:
        fcntl.ioctl(master_fd, _TIOCSPTLCK, struct.pack("i", 0))
        slave_fd = fcntl.ioctl(master_fd, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        os.close(master_fd)
        raise
    return master_fd, slave_fd


def _open_beside(directory: str, name: str) -> int:
    """Open the ptmx above the devpts, whose own has mode 000 by default. The kernel takes the
    devpts that is mounted beside such a node, and nothing else (pts(4)).
    """
    path = f"{os.path.dirname(directory)}/{name}"
    ptmx_fd = syscalls.openat2(
        syscalls.AT_FDCWD, path, os.O_PATH | os.O_NOFOLLOW, resolve=_NO_LINKS
    )
    try:
        status = os.fstat(ptmx_fd)
    finally:
        os.close(ptmx_fd)
    if (stat.S_ISCHR(status.st_mode), status.st_rdev) != (True, _PTMX_DEVICE):
        raise UntrustedTerminal(f"{path}: not the kernel's ptmx")
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW
    return syscalls.openat2(syscalls.AT_FDCWD, path, flags, resolve=_NO_LINKS)


def _verify(directory_fd: int, directory: str, name: str) -> None:
    """Raise UntrustedTerminal unless ``name`` is the ptmx node of the devpts mounted there."""
    if syscalls.fstatfs_type(directory_fd) != _DEVPTS_MAGIC:
        raise UntrustedTerminal(f"{directory}: not a devpts file system")
    try:
        ptmx_fd = syscalls.openat2(
            directory_fd,
            name,
            os.O_PATH | os.O_NOFOLLOW,
            resolve=_NO_LINKS | syscalls.RESOLVE_NO_XDEV,
        )
    except OSError as error:
        raise UntrustedTerminal(f"{directory}/{name}: {error.strerror}") from error
    try:
        status = os.fstat(ptmx_fd)
    finally:
        os.close(ptmx_fd)
    found = (stat.S_ISCHR(status.st_mode), status.st_ino, status.st_rdev)
    if found != (True, _PTMX_INODE, _PTMX_DEVICE):
        raise UntrustedTerminal(f"{directory}/{name}: not the ptmx of this devpts")


def make_controlling(slave_fd: int) -> None:
    """Make ``slave_fd`` the controlling terminal and descriptors 0, 1 and 2; it is then closed.

    Called by the process that becomes the program; it leads a session afterwards.
    """
    if os.getsid(0) != os.getpid():  # a leader may not call setsid(2) again
        os.setsid()
    fcntl.ioctl(slave_fd, termios.TIOCSCTTY, 0)
    for standard_fd in (0, 1, 2):
        os.dup2(slave_fd, standard_fd)
        os.set_inheritable(standard_fd, True)  # dup2 onto itself keeps close-on-exec
    if slave_fd > 2:
        os.close(slave_fd)
