"""What the routing decision asks the system about one caller of execve.

Host parts are resolved on the host's own root, container parts below the descriptor of the
container's root: /proc/PID/root of a process with a FUSE root is closed even to the host's root.
"""

from __future__ import annotations

import os
from stat import S_ISLNK
from typing import Final

from launcher.supervisor.mounts import MountTable, Tree, mount_id, mount_id_of
from launcher.supervisor.options import Routing
from launcher.supervisor.program import is_program
from launcher.supervisor.routes import Layout, Place, Where
from nsstages.syscalls import fstatfs_type, open_in_root

_MAX_PATH_ENTRIES: Final = 64
_PROC_MAGIC: Final = 0x9FA0


def layout_of(routing: Routing) -> Layout:
    """Return the paths that the decision needs."""
    return Layout(
        routing.container_prefix.rstrip("/"),
        frozenset(prefix.rstrip("/") for prefix in routing.bound),
        routing.program_directory.rstrip("/"),
    )


class Shell:
    """The mount namespace that routing starts from: that of the supervised shell.

    ``pid`` is the shell's, alive and in its final root.
    """

    def __init__(self, pid: int, routing: Routing) -> None:
        self.layout = layout_of(routing)
        self.routing = routing
        self.source = routing.source.rstrip("/")
        self.mounts = MountTable(pid, self.layout.container_prefixes)
        self._namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        self._user_namespace = os.stat(f"/proc/{pid}/ns/user").st_ino
        self._container_root = os.fstat(routing.container_root_fd)
        self._anonymous_mount = _mount_of_memfds()
        self.container_mount = mount_id_of(routing.container_root_fd)

    def close(self) -> None:
        """Let go of the namespace."""
        self.mounts.close()

    def has(self, tid: int) -> bool:
        """Tell whether ``tid`` lives in the shell's mount namespace, with the shell's root."""
        try:
            same = os.stat(f"/proc/{tid}/ns/mnt").st_ino == self._namespace
            return same and os.readlink(f"/proc/{tid}/root") == "/"
        except OSError:
            return False

    def shares_user_namespace(self, tid: int) -> bool:
        """Tell whether ``tid`` is in the shell's user namespace."""
        try:
            return os.stat(f"/proc/{tid}/ns/user").st_ino == self._user_namespace
        except OSError:
            return False

    def place_behind(self, link: str) -> Place:
        """Return where a link of /proc leads. Raises OSError when the process is gone."""
        mount = mount_id(link)
        tree = self.mounts.tree_of(mount)
        text = os.readlink(link)
        if tree is Tree.CONTAINER:
            return self.layout.place_of(text)
        if tree is Tree.HOST or mount == self._anonymous_mount:
            return Place(Where.HOST, text)
        if mount == self.container_mount and self._is_container_root(link):
            return Place(Where.CONTAINER, "/")
        return Place(Where.FOREIGN, text)

    def _is_container_root(self, link: str) -> bool:
        found = os.stat(link)
        root = self._container_root
        return (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino)

    def runs_strange_file(self, pid: int) -> bool:
        """Tell whether a process that just did an ordinary exec runs a file it must not.

        True for a file of the container, and for one of a mount outside the shell's namespace
        while the process is in it: the path was exchanged after the decision was made.
        """
        mount = mount_id(f"/proc/{pid}/exe")
        tree = self.mounts.tree_of(mount)
        if tree is Tree.HOST or mount == self._anonymous_mount:
            return False
        return self.has(pid)


def _mount_of_memfds() -> int:
    fd = os.memfd_create("mount", os.MFD_CLOEXEC)
    try:
        return mount_id_of(fd)
    finally:
        os.close(fd)


class Caller:
    """The Resolver (routes.py) of one thread that calls execve or execveat."""

    def __init__(self, tid: int, shell: Shell) -> None:
        self._tid = tid
        self._shell = shell

    def host_link(self, path: str) -> str | None:
        """Return the text of a symbolic link of the host."""
        path = self._shell.source + path
        try:
            # Not readlink at once: raising and catching its EINVAL costs several times as much.
            return os.readlink(path) if S_ISLNK(os.lstat(path).st_mode) else None
        except OSError:
            return None

    def container_link(self, path: str) -> str | None:
        """Return the text of a symbolic link of the container."""
        try:
            fd = open_in_root(
                self._shell.routing.container_root_fd, path, os.O_PATH | os.O_NOFOLLOW
            )
        except OSError:
            return None
        try:
            return os.readlink("", dir_fd=fd)
        except OSError:
            return None
        finally:
            os.close(fd)

    def container_program(self, name: str) -> str | None:
        """Return the container's path of the first executable ``name`` in its PATH."""
        routing = self._shell.routing
        for directory in routing.container_path[:_MAX_PATH_ENTRIES]:
            path = f"{directory.rstrip('/')}/{name}"
            if is_program(routing.container_root_fd, path):
                return path
        return None

    def start(self, directory_fd: int | None) -> Place:
        """Return the working directory of the caller, or what its descriptor is."""
        link = "cwd" if directory_fd is None else f"fd/{directory_fd}"
        return self._shell.place_behind(f"/proc/{self._tid}/{link}")

    def process_link(self, process: str, link: str) -> Place | None:
        """Return where /proc/``process``/``link`` leads; None when there is no such link."""
        if not (process.isdigit() or process in ("self", "thread-self")):
            return None
        if not self._shell.mounts.has_genuine_proc():
            return Place(Where.FOREIGN, f"/proc/{process}/{link}")
        if not process.isdigit():
            return self._place(f"/proc/{self._tid}/{link}")
        if "/proc" in self._shell.layout.bound:
            return self._link_of_container(process, link)
        # A /proc of the shell's own: the caller's numbers are known, all others are strangers'.
        if process in numbers_of(self._tid):
            return self._place(f"/proc/{self._tid}/{link}")
        return Place(Where.FOREIGN, f"/proc/{process}/{link}")

    def _link_of_container(self, process: str, link: str) -> Place | None:
        """Look through the container's own /proc: only that knows its PID namespace's numbers."""
        try:
            fd = open_in_root(
                self._shell.routing.container_root_fd,
                f"/proc/{process}",
                os.O_PATH | os.O_DIRECTORY,
            )
        except OSError:
            return None
        try:
            if fstatfs_type(fd) != _PROC_MAGIC:
                return Place(Where.FOREIGN, f"/proc/{process}/{link}")
            return self._place(f"/proc/self/fd/{fd}/{link}")
        finally:
            os.close(fd)

    def _place(self, path: str) -> Place | None:
        try:
            return self._shell.place_behind(path)
        except OSError:
            return None


def numbers_of(tid: int) -> list[str]:
    """Return the numbers of ``tid`` in its PID namespaces, outermost first; none when gone."""
    return _status_line(tid, "NSpid:")


def process_of(tid: int) -> int:
    """Return the process that the thread ``tid`` belongs to."""
    return int(next(iter(_status_line(tid, "Tgid:")), tid))


def _status_line(tid: int, key: str) -> list[str]:
    try:
        with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith(key):
                    return line.split()[1:]
    except OSError:
        pass
    return []
