"""Files that exist only in the mount: mount points, the container's program names, the vessel.

Their inode numbers never change and their names never expire, so that what is mounted on them
stays. They cannot be changed by clients.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Final

from launcher.hostfs.options import HostfsOptions
from nsstages.syscalls import open_in_root

FIRST_NUMBER: Final = 1 << 62
NEVER_SERVED: Final = ("/proc", "/sys", "/dev")


class Entry:
    """One synthetic file or directory.

    An entry that is not ``fixed`` stands on the way to a fixed one: the host's directory of that
    name is served when there is one. ``is_lasting`` False: the name may vanish.
    """

    __slots__ = ("children", "content", "fixed", "is_lasting", "mode", "number")

    def __init__(self, number: int, mode: int, *, content: bytes = b"", fixed: bool = True) -> None:
        self.number = number
        self.mode = mode
        self.content = content
        self.fixed = fixed
        self.is_lasting = True
        self.children: dict[bytes, Entry] = {}

    @property
    def is_blocking(self) -> bool:
        """Tell whether `find` and `names` may take long: they belong into a thread."""
        return False

    @property
    def is_directory(self) -> bool:
        """Tell whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    def find(self, name: bytes) -> Entry | None:
        """Return the entry called ``name``, or None."""
        return self.children.get(name)

    def names(self) -> list[bytes]:
        """Return the names in this directory."""
        return list(self.children)


class Programs(Entry):
    """A directory with one file per program in the container's PATH, looked up at every request.

    The container is hostile: its symlinks are resolved inside its own root, and only the name and
    the mode of what is found there are used.
    """

    __slots__ = ("_content", "_path", "_root_fd", "_tree")

    def __init__(
        self, tree: SyntheticTree, root_fd: int, path: Iterable[str], content: bytes
    ) -> None:
        super().__init__(tree.new_number(), stat.S_IFDIR | 0o755)
        self._tree = tree
        self._root_fd = root_fd
        self._path = tuple(path)
        self._content = content

    @property
    def is_blocking(self) -> bool:
        """A container can make its own files slow."""
        return True

    def find(self, name: bytes) -> Entry | None:
        """Return the entry of program ``name`` if the container has it now."""
        if not any(_is_program(self._root_fd, directory, name) for directory in self._path):
            return None
        return self.children.get(name) or self._add(name)

    def _add(self, name: bytes) -> Entry:
        entry = self._tree.add(stat.S_IFREG | 0o755, self._content)
        entry.is_lasting = False
        return self.children.setdefault(name, entry)

    def names(self) -> list[bytes]:
        """Return the names of the container's programs; `children` has each of them."""
        found: dict[bytes, None] = {}
        for directory in self._path:
            found.update(dict.fromkeys(_names_in(self._root_fd, directory)))
        return [name for name in found if self.find(name) is not None]


def _is_program(root_fd: int, directory: str, name: bytes) -> bool:
    try:
        fd = open_in_root(root_fd, f"{directory}/{os.fsdecode(name)}", os.O_PATH)
    except OSError:
        return False
    try:
        mode = os.fstat(fd).st_mode
    finally:
        os.close(fd)
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _names_in(root_fd: int, directory: str) -> list[bytes]:
    try:
        fd = open_in_root(root_fd, directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)


class SyntheticTree:
    """All synthetic entries of one mount; the trunk is `/` itself, which is the host's."""

    def __init__(self, options: HostfsOptions) -> None:
        self._by_number: dict[int, Entry] = {}
        self._numbers = itertools.count(FIRST_NUMBER)
        self._trunk = self.add(stat.S_IFDIR | 0o755)
        if options.source == "/":
            for path in NEVER_SERVED:
                self._plant(path, is_directory=True)
        for mountpoint in options.mountpoints:
            self._plant(mountpoint.path, is_directory=mountpoint.is_directory)
        for file in options.files:
            self._plant(file.path, is_directory=False).content = file.content
        self._plant_launcher(options)

    @property
    def overlay(self) -> Mapping[bytes, Entry]:
        """What is laid over the host's root directory."""
        return self._trunk.children

    def find(self, number: int) -> Entry:
        """Return the entry with this inode number."""
        return self._by_number[number]

    def new_number(self) -> int:
        """Return an inode number that was never used in this mount; safe in any thread."""
        return next(self._numbers)

    def add(self, mode: int, content: bytes = b"") -> Entry:
        """Make a fixed entry, not yet in any directory."""
        return self._register(Entry(self.new_number(), mode, content=content))

    def _register(self, entry: Entry) -> Entry:
        self._by_number[entry.number] = entry
        return entry

    def _plant(self, path: str, *, is_directory: bool) -> Entry:
        *parents, name = (os.fsencode(part) for part in path.split("/") if part)
        directory = self._trunk
        for part in parents:
            if part not in directory.children:
                directory.children[part] = self.add(stat.S_IFDIR | 0o755)
                directory.children[part].fixed = False
            directory = directory.children[part]
        if name in directory.children:
            directory.children[name].fixed = True
        else:
            mode = stat.S_IFDIR | 0o755 if is_directory else stat.S_IFREG | 0o644
            directory.children[name] = self.add(mode)
        return directory.children[name]

    def _plant_launcher(self, options: HostfsOptions) -> None:
        if options.container_root_fd is None and options.vessel is None:
            return
        directory = self._plant("/.launcher", is_directory=True)
        if options.vessel is not None:
            vessel = self.add(stat.S_IFREG | stat.S_ISUID | 0o755, options.vessel)
            directory.children[b"vessel"] = vessel
        if options.container_root_fd is not None:
            programs = Programs(
                self, options.container_root_fd, options.container_path, options.program
            )
            directory.children[b"bin"] = self._register(programs)
