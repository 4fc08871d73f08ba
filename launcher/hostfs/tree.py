"""What all request handlers share: the tables, resolving a name, and what may be changed."""

from __future__ import annotations

import errno
import stat
from contextlib import AbstractContextManager

import pyfuse3
import trio

from launcher.hostfs.attributes import FOREVER, reply_of, synthetic_reply_of
from launcher.hostfs.files import OpenDirectories, OpenFiles
from launcher.hostfs.identity import AS_SERVER, Identity
from launcher.hostfs.inodes import InodeTable, Node
from launcher.hostfs.options import HostfsOptions
from launcher.hostfs.status import Status, status_at
from launcher.hostfs.synthetic import FIRST_NUMBER, NEVER_SERVED, Entry, SyntheticTree
from nsstages.syscalls import AT_FDCWD
from nsstages.trace import Recorder

Reply = pyfuse3.EntryAttributes
Context = pyfuse3.RequestContext


class HostTree(pyfuse3.Operations):
    """The host's files below ``options.source`` with the synthetic ones laid over them."""

    def __init__(self, options: HostfsOptions, recorder: Recorder, *, capacity: int) -> None:
        super().__init__()
        self.recorder = recorder
        self._read_only = options.read_only
        self._identity = Identity(options.uid_map, options.gid_map)
        self._inodes = InodeTable(options.source, capacity=capacity)
        self._synthetic = SyntheticTree(options)
        self._inodes.root.overlay = self._synthetic.overlay
        self._waypoints: dict[int, Node] = {}
        self._files = OpenFiles(self._inodes)
        self._directories = OpenDirectories(self._inodes)
        self._hidden_devices = self._devices_to_hide() if options.source == "/" else frozenset()

    def _devices_to_hide(self) -> frozenset[int]:
        """Return the devices of the host's own /proc, /sys and /dev, wherever else bound."""
        devices = {status_at(AT_FDCWD, path.encode()).key.device for path in NEVER_SERVED}
        return frozenset(devices - {self._inodes.root.key.device})

    def close(self) -> None:
        """Close what the tables hold; called when the mount is gone."""
        self._inodes.close()

    async def _synthetic_child(self, directory: Entry, name: bytes) -> Entry | None:
        """Return an entry of a synthetic directory; the container may make this slow."""
        if directory.is_blocking:
            return await trio.to_thread.run_sync(directory.find, name, abandon_on_cancel=True)
        return directory.find(name)

    def _resolved(
        self, parent: Node, name: bytes, ctx: Context | None
    ) -> tuple[Reply, Node | None]:
        """Return the reply for ``name`` in a host directory and its node, None for synthetic.

        ``ctx`` None looks with the server's own rights (a listing, which was checked at opendir).
        """
        entry = parent.overlay.get(name)
        if entry is not None:
            return self._overlaid(entry, parent, name, ctx)
        status = self._status_in(parent, name, ctx)
        if status.key.device in self._hidden_devices:
            raise PermissionError(errno.EACCES, "the host's own proc, sys or dev", name)
        node = self._inodes.identify(parent, name, status)
        return self._reply(node, status), node

    def _overlaid(
        self, entry: Entry, parent: Node, name: bytes, ctx: Context | None
    ) -> tuple[Reply, Node | None]:
        """Return what is shown for a mount point, or for a directory on the way to one.

        That directory is the host's when it has one, and always the one that was found first: the
        kernel drops the mounts below a name that leads to something else.
        """
        if not entry.fixed and entry.number not in self._waypoints:
            self._find_waypoint(entry, parent, name, ctx)
        node = self._waypoints.get(entry.number)
        if node is None:
            return synthetic_reply_of(entry), None
        reply = self._reply(node, self._inodes.status(node))
        reply.entry_timeout = FOREVER
        return reply, node

    def _find_waypoint(self, entry: Entry, parent: Node, name: bytes, ctx: Context | None) -> None:
        try:
            status = self._status_in(parent, name, ctx)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.mode):
            node = self._waypoints[entry.number] = self._inodes.identify(parent, name, status)
            node.overlay = entry.children
            self._inodes.pin(node)

    def _status_in(self, parent: Node, name: bytes, ctx: Context | None) -> Status:
        fd = self._inodes.descriptor(parent)
        if ctx is None:
            return status_at(fd, name)
        with self._touching(ctx, parent):
            return status_at(fd, name)

    def _reply(self, node: Node, status: Status) -> Reply:
        node.known_size = status.size
        return reply_of(node.number, status, self._identity)

    def _remembered(self, parent: Node, name: bytes, status: Status) -> Reply:
        """Return the reply that tells the kernel of a file just made."""
        node = self._inodes.identify(parent, name, status)
        self._inodes.remember(node)
        return self._reply(node, status)

    def _touching(self, ctx: Context, *nodes: Node) -> AbstractContextManager[None]:
        if not self._identity.is_partial:
            return AS_SERVER
        return self._identity.touching(ctx, *map(self._inodes.status, nodes))

    def _creating(self, ctx: Context, parent: Node) -> AbstractContextManager[None]:
        if not self._identity.is_partial:
            return self._identity.creating(ctx)
        return self._identity.creating(ctx, self._inodes.status(parent))

    def _writable(self, inode: int) -> Node:
        """Return the node of a host file that may be changed at all."""
        if self._read_only or inode >= FIRST_NUMBER:
            raise OSError(errno.EROFS, "read-only")
        return self._inodes.find(inode)

    def _changeable(self, parent_inode: int, name: bytes) -> tuple[Node, int]:
        """Return the host directory, with its descriptor, in which ``name`` may be changed."""
        parent = self._writable(parent_inode)
        if name in parent.overlay:
            raise OSError(errno.EBUSY, "a mount point", name)
        return parent, self._inodes.descriptor(parent)

    def _path(self, node: Node) -> str:
        """Return a path for calls that take no descriptor; it leads to a symlink itself too."""
        return f"/proc/self/fd/{self._inodes.descriptor(node)}"
