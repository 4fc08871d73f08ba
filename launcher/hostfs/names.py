"""Request handlers for names: look-up, making, removing and renaming of files of every kind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final

import pyfuse3

from launcher.hostfs.attributes import synthetic_reply_of
from launcher.hostfs.status import status_at
from launcher.hostfs.synthetic import FIRST_NUMBER
from launcher.hostfs.tree import Context, HostTree, Reply
from nsstages.syscalls import Call, execute

_RENAME_WHITEOUT: Final = 4  # the kernel has checked CAP_MKNOD (linux/fs.h, Linux 3.18)
_KNOWN_RENAME_FLAGS: Final = pyfuse3.RENAME_EXCHANGE | pyfuse3.RENAME_NOREPLACE | _RENAME_WHITEOUT


class NameOperations(HostTree):
    """LOOKUP to RENAME."""

    async def lookup(self, parent_inode: int, name: bytes, ctx: Context) -> Reply:
        """LOOKUP: find one name in a directory."""
        if parent_inode >= FIRST_NUMBER:
            entry = await self._synthetic_child(self._synthetic.find(parent_inode), name)
            if entry is None:
                raise FileNotFoundError(errno.ENOENT, "no such synthetic file", name)
            return synthetic_reply_of(entry)
        parent = self._inodes.find(parent_inode)
        reply, node = self._resolved(parent, name, ctx)
        if node is not None:
            if node.key.is_directory:
                self._inodes.hold(node)
            self._inodes.remember(node)
        return reply

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """FORGET: the kernel no longer knows these."""
        for number, count in inode_list:
            self._inodes.forget(number, count)

    async def readlink(self, inode: int, ctx: Context) -> bytes:  # noqa: ARG002 - the interface
        """READLINK."""
        return os.readlink(b"", dir_fd=self._inodes.descriptor(self._inodes.find(inode)))

    def _make(
        self, parent_inode: int, name: bytes, ctx: Context, make: Callable[[int], None]
    ) -> Reply:
        """Let ``make`` create ``name`` in a directory descriptor as the caller."""
        parent, fd = self._changeable(parent_inode, name)
        with self._creating(ctx, parent):
            make(fd)
        return self._remembered(parent, name, status_at(fd, name))

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Context
    ) -> Reply:
        """MKNOD: a fifo, socket, device or regular file."""
        return self._make(parent_inode, name, ctx, lambda fd: os.mknod(name, mode, rdev, dir_fd=fd))

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Context) -> Reply:
        """MKDIR."""
        return self._make(
            parent_inode, name, ctx, lambda fd: os.mkdir(name, stat.S_IMODE(mode), dir_fd=fd)
        )

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Context) -> Reply:
        """SYMLINK."""
        return self._make(parent_inode, name, ctx, lambda fd: os.symlink(target, name, dir_fd=fd))

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Context) -> Reply:
        """LINK: a further name for a file."""
        source = self._path(self._writable(inode))
        return self._make(
            new_parent_inode, new_name, ctx,
            lambda fd: os.link(source, new_name, dst_dir_fd=fd, follow_symlinks=True),
        )  # fmt: skip

    async def unlink(self, parent_inode: int, name: bytes, ctx: Context) -> None:
        """UNLINK."""
        self._remove(parent_inode, name, ctx, os.unlink)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Context) -> None:
        """RMDIR."""
        self._remove(parent_inode, name, ctx, os.rmdir)

    def _remove(
        self, parent_inode: int, name: bytes, ctx: Context, remove: Callable[..., None]
    ) -> None:
        parent, fd = self._changeable(parent_inode, name)
        victim = self._inodes.known_at(parent, name)
        if victim is not None:
            self._inodes.hold(victim)
        with self._touching(ctx, parent, *filter(None, [victim])):
            remove(name, dir_fd=fd)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Context,
    ) -> None:
        """RENAME2, with RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT."""
        if flags & ~_KNOWN_RENAME_FLAGS:
            raise OSError(errno.EINVAL, "unknown rename flags")
        old_parent, old_fd = self._changeable(parent_inode_old, name_old)
        new_parent, new_fd = self._changeable(parent_inode_new, name_new)
        moved = self._inodes.known_at(old_parent, name_old)
        replaced = self._inodes.known_at(new_parent, name_new)
        if replaced is not None:
            self._inodes.hold(replaced)
        concerned = [old_parent, new_parent, *filter(None, [moved, replaced])]
        acting = self._touching(ctx, *concerned)
        if flags & _RENAME_WHITEOUT:
            acting = self._creating(ctx, old_parent)  # the whiteout is the caller's
        with acting:
            execute(Call("renameat2", (old_fd, name_old, new_fd, name_new, flags)))
        if moved is not None:
            moved.move(new_parent, name_new)
        if replaced is not None and flags & pyfuse3.RENAME_EXCHANGE:
            replaced.move(old_parent, name_old)
