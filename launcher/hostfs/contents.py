"""Request handlers for open files and directories: their contents."""

from __future__ import annotations

import errno
import os
import stat

import pyfuse3
import trio

from launcher.hostfs.attributes import synthetic_reply_of, unreachable_reply_of
from launcher.hostfs.files import OpenDirectory, drop_set_ids, host_names
from launcher.hostfs.inodes import Node
from launcher.hostfs.synthetic import FIRST_NUMBER
from launcher.hostfs.tree import Context, HostTree, Reply


class ContentOperations(HostTree):
    """OPEN to RELEASEDIR."""

    async def open(self, inode: int, flags: int, ctx: Context) -> pyfuse3.FileInfo:
        """OPEN of a regular file."""
        if inode >= FIRST_NUMBER:
            if flags & (os.O_ACCMODE | os.O_TRUNC):
                raise OSError(errno.EROFS, "read-only")
            return pyfuse3.FileInfo(fh=inode, keep_cache=True)
        if self._read_only and flags & (os.O_ACCMODE | os.O_TRUNC):
            raise OSError(errno.EROFS, "read-only")
        node = self._inodes.find(inode)
        with self._touching(ctx, node):
            fh, is_same = self._files.open(node, flags)
        if flags & os.O_TRUNC and ctx.uid:
            drop_set_ids(fh)
        return pyfuse3.FileInfo(fh=fh, keep_cache=is_same)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Context
    ) -> tuple[pyfuse3.FileInfo, Reply]:
        """CREATE: make a regular file as the caller and open it."""
        parent, fd = self._changeable(parent_inode, name)
        with self._creating(ctx, parent):
            fh, status = self._files.create(fd, name, mode, flags)
        node = self._inodes.identify(parent, name, status)
        self._inodes.remember(node)
        self._files.add(fh, node, flags, status)
        return pyfuse3.FileInfo(fh=fh), self._reply(node, status)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """READ."""
        if fh >= FIRST_NUMBER:
            return self._synthetic.find(fh).content[off : off + size]
        return os.pread(fh, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """WRITE."""
        return self._files.write(fh, off, buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """FSYNC, in a thread: it takes as long as the disk does."""
        if fh < FIRST_NUMBER:
            await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, fh)

    async def release(self, fh: int) -> None:
        """RELEASE: the last descriptor of an open file is gone."""
        if fh < FIRST_NUMBER:
            self._files.release(fh)

    async def opendir(self, inode: int, ctx: Context) -> int:
        """OPENDIR."""
        if inode >= FIRST_NUMBER:
            return self._directories.open_entry(self._synthetic.find(inode))
        node = self._inodes.find(inode)
        with self._touching(ctx, node):
            return self._directories.open(node)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """READDIRPLUS: names and attributes. Offsets are positions in a list taken at the start."""
        directory = self._directories.get(fh)
        if start_id == 0:
            directory.names = await self._names(directory)
        for position in range(start_id, len(directory.names)):
            name = directory.names[position]
            found = self._listed(directory, name)
            if found is None:
                continue
            reply, node = found
            if not pyfuse3.readdir_reply(token, name, reply, position + 1):
                return
            if node is not None:
                self._inodes.remember(node)

    async def _names(self, directory: OpenDirectory) -> list[bytes]:
        dots = [b".", b".."]
        if directory.node is not None:
            return dots + host_names(directory.fd, directory.node.overlay)
        entry = directory.entry
        assert entry is not None
        if entry.is_blocking:
            return dots + await trio.to_thread.run_sync(entry.names, abandon_on_cancel=True)
        return dots + entry.names()

    def _listed(self, directory: OpenDirectory, name: bytes) -> tuple[Reply, Node | None] | None:
        """Return reply and node for one name of a listing, None when it is not there any more."""
        if name in (b".", b".."):
            return self._dots(directory, name), None
        if directory.entry is not None:
            return synthetic_reply_of(directory.entry.children[name]), None
        assert directory.node is not None
        try:
            return self._resolved(directory.node, name, None)
        except FileNotFoundError:
            return None
        except OSError:
            return unreachable_reply_of(self._synthetic.new_number()), None

    def _dots(self, directory: OpenDirectory, name: bytes) -> Reply:
        """Return what `.` or `..` needs in a listing: a number and the type; nothing is counted."""
        node = directory.node
        if node is not None and name == b".." and node.parent is not None:
            node = node.parent
        reply = pyfuse3.EntryAttributes()
        reply.st_ino = node.number if node is not None else pyfuse3.ROOT_INODE
        reply.st_mode = stat.S_IFDIR
        return reply

    async def releasedir(self, fh: int) -> None:
        """RELEASEDIR."""
        self._directories.release(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """FSYNCDIR, in a thread as FSYNC."""
        directory = self._directories.get(fh)
        if directory.node is not None:
            await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, directory.fd)
