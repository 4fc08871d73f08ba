"""The host files that the kernel knows, and the bounded set of descriptors that reach them.

A file enters the table when the kernel looks it up and leaves when the kernel has forgotten every
look-up. In between it is reached, in this order, by its O_PATH descriptor (the least recently used
ones are closed), by a descriptor that a client has open, by its file handle, or by its name in its
parent directory, which is checked to lead to the same file still.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from launcher.hostfs.handles import Handle, Handles
from launcher.hostfs.status import FileKey, Status, status_at, status_of
from launcher.hostfs.synthetic import Entry

ROOT: Final = 1
_PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_INODE_BITS: Final = 46
_EXTRA_NUMBERS: Final = 1 << 61
_ALWAYS_KEPT: Final = 16
_NO_OVERLAY: Final[Mapping[bytes, Entry]] = MappingProxyType({})


class Node:
    """One host file that the kernel knows by ``number``."""

    __slots__ = (
        "fd", "handle", "key", "known_size", "lookups", "name", "number", "open_fds", "overlay",
        "parent", "version",
    )  # fmt: skip

    def __init__(self, number: int, key: FileKey, parent: Node | None, name: bytes) -> None:
        self.number = number
        self.key = key
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.fd = -1
        self.handle: Handle | None = None
        self.open_fds: list[int] = []
        self.overlay: Mapping[bytes, Entry] = _NO_OVERLAY
        self.version: tuple[int, ...] = ()
        self.known_size = 0

    def move(self, parent: Node, name: bytes) -> None:
        """Note where the file was seen last; the root has no place."""
        if self.parent is not None:
            self.parent, self.name = parent, name

    @property
    def is_held(self) -> bool:
        """Tell whether a descriptor keeps the host from giving the inode to another file."""
        return self.fd >= 0 or bool(self.open_fds)


class InodeTable:
    """All nodes by number and by key. Raises OSError; ESTALE makes the kernel look up again."""

    def __init__(self, source: str, *, capacity: int) -> None:
        root_fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        status = status_of(root_fd)
        self.capacity = max(capacity, 2 * _ALWAYS_KEPT)
        self.handles = Handles(root_fd)
        self.root = Node(ROOT, status.key, None, b"")
        self.root.fd = root_fd
        self.root.lookups = 1
        self._by_number = {ROOT: self.root}
        self._by_key = {status.key: self.root}
        self._held: OrderedDict[Node, None] = OrderedDict()
        self._pinned = [self.root]
        self._filesystems = {(status.key.mount, status.key.device): 0}
        self._extra = _EXTRA_NUMBERS

    def __len__(self) -> int:
        return len(self._by_number)

    def find(self, number: int) -> Node:
        """Return the node that the kernel means by ``number``."""
        try:
            return self._by_number[number]
        except KeyError:
            raise OSError(errno.ESTALE, "unknown inode", str(number)) from None

    def identify(self, parent: Node, name: bytes, status: Status) -> Node:
        """Return the node of the file just seen as ``name`` in ``parent``, possibly a new one.

        A new node is in the table only after `remember`.
        """
        node = self._by_key.get(status.key)
        if node is None:
            return Node(self._number(status), status.key, parent, name)
        node.move(parent, name)
        return node

    def known_at(self, parent: Node, name: bytes) -> Node | None:
        """Return the node of the file that is ``name`` now, if the kernel knows that file."""
        try:
            status = status_at(self.descriptor(parent), name)
        except FileNotFoundError:
            return None
        node = self._by_key.get(status.key)
        if node is not None:
            node.move(parent, name)
        return node

    def _number(self, status: Status) -> int:
        """Choose a number that stays the same as long as this server lives, where possible.

        Files of the root's file system keep the host's inode number.
        """
        filesystem = (status.key.mount, status.key.device)
        index = self._filesystems.setdefault(filesystem, len(self._filesystems))
        number = index << _INODE_BITS | status.key.inode
        if (
            status.key.inode >> _INODE_BITS
            or number in self._by_number
            or not ROOT < number < _EXTRA_NUMBERS
        ):
            self._extra += 1
            return self._extra
        return number

    def remember(self, node: Node) -> None:
        """Count one look-up that the kernel learns of by our reply."""
        if not node.lookups:
            self._by_number[node.number] = node
            self._by_key[node.key] = node
        node.lookups += 1

    def forget(self, number: int, count: int) -> None:
        """Take back ``count`` look-ups; the last one removes the node. Never raises."""
        node = self._by_number.get(number)
        if node is None or node is self.root:
            return
        node.lookups -= count
        if node.lookups <= 0:
            del self._by_number[number]
            if self._by_key.get(node.key) is node:
                del self._by_key[node.key]
            if node in self._held:
                del self._held[node]
                self._close(node)

    def descriptor(self, node: Node) -> int:
        """Return a descriptor of the file, O_PATH or not, that stays the table's.

        It is valid until some dozen other nodes' descriptors have been asked for.
        """
        if node.fd >= 0:
            if node in self._held:
                self._held.move_to_end(node)
            return node.fd
        if node.open_fds:
            return node.open_fds[-1]
        missing = [node]
        while (parent := missing[-1].parent) and not missing[-1].handle and not parent.is_held:
            missing.append(parent)
        while missing:
            self._hold(missing[-1], self._reopened(missing[-1]))
            missing.pop()
        return node.fd

    def _reopened(self, node: Node) -> int:
        if node.handle is not None:
            try:
                return self.handles.open(node.handle)
            except OSError:
                node.handle = None
        if node.parent is None:
            raise OSError(errno.ESTALE, "not below the root any more", node.name)
        parent_fd = self.descriptor(node.parent)
        try:
            fd = self.open(node.name, _PATH_FLAGS, dir_fd=parent_fd)
        except (FileNotFoundError, NotADirectoryError):
            raise OSError(errno.ESTALE, "gone", node.name) from None
        if status_of(fd).key != node.key:
            os.close(fd)
            raise OSError(errno.ESTALE, "another file now", node.name)
        return fd

    def status(self, node: Node) -> Status:
        """Return the present status of the file, opening it only if that pays.

        A directory is opened: its entries come next, and it is often somebody's working directory,
        which must be found again after the host renamed it.
        """
        if node.is_held or node.handle or node.key.is_directory or node.parent is None:
            return status_of(self.descriptor(node))
        try:
            status = status_at(self.descriptor(node.parent), node.name)
        except (FileNotFoundError, NotADirectoryError):
            raise OSError(errno.ESTALE, "gone", node.name) from None
        if status.key != node.key:
            raise OSError(errno.ESTALE, "another file now", node.name)
        return status

    def hold(self, node: Node) -> None:
        """Make sure that the file is found again when its name changes or goes away."""
        self.descriptor(node)

    def pin(self, node: Node) -> None:
        """Keep the node and its descriptor until the end."""
        self.descriptor(node)
        self.remember(node)
        self._pinned.append(node)
        self._held.pop(node, None)

    def _hold(self, node: Node, fd: int) -> None:
        node.fd = fd
        self._held[node] = None
        if len(self._held) > self.capacity:
            self._release_oldest()

    def _release_oldest(self) -> None:
        node, _ = self._held.popitem(last=False)
        if node.handle is None:
            node.handle = self.handles.take(node.fd, self._directory_fd(node))
        self._close(node)

    def _directory_fd(self, node: Node) -> int | None:
        """Return a directory that is probably on the node's mount, if one is open anyway."""
        directory = node if node.key.is_directory else node.parent
        return directory.fd if directory is not None and directory.fd >= 0 else None

    @staticmethod
    def _close(node: Node) -> None:
        os.close(node.fd)
        node.fd = -1

    def open(self, path: bytes | str, flags: int, mode: int = 0, *, dir_fd: int | None) -> int:
        """open(2) that gives up idle descriptors of the table before it fails with EMFILE."""
        try:
            return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        for _ in range(max(0, len(self._held) - _ALWAYS_KEPT)):
            self._release_oldest()
        return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)

    def close(self) -> None:
        """Close every descriptor of the table."""
        for node in [*self._held, *self._pinned]:
            self._close(node)
        self._held.clear()
        self.handles.close()
