"""Request handlers for what is known about a file: attributes, extended ones, statfs."""

from __future__ import annotations

import errno
import os

import pyfuse3

from launcher.hostfs.attributes import ACL_NAMES, change, synthetic_reply_of, translated_acl
from launcher.hostfs.synthetic import FIRST_NUMBER
from launcher.hostfs.tree import Context, HostTree, Reply


class AttributeOperations(HostTree):
    """GETATTR to REMOVEXATTR."""

    async def getattr(self, inode: int, ctx: Context) -> Reply:  # noqa: ARG002 - the interface
        """GETATTR."""
        if inode >= FIRST_NUMBER:
            return synthetic_reply_of(self._synthetic.find(inode))
        node = self._inodes.find(inode)
        return self._reply(node, self._inodes.status(node))

    async def setattr(
        self,
        inode: int,
        attr: Reply,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: Context,
    ) -> Reply:
        """SETATTR: chmod, chown, truncate and utimensat in one request."""
        node = self._writable(inode)
        with self._touching(ctx, node):
            change(self._path(node), attr, fields, fh, self._identity)
        return self._reply(node, self._inodes.status(node))

    async def statfs(self, ctx: Context) -> pyfuse3.StatvfsData:  # noqa: ARG002 - the interface
        """STATFS: the figures of the root's file system, whatever file is asked about."""
        host = os.statvfs(self._inodes.root.fd)
        reply = pyfuse3.StatvfsData()
        reply.f_bsize, reply.f_frsize = host.f_bsize, host.f_frsize
        reply.f_blocks, reply.f_bfree, reply.f_bavail = host.f_blocks, host.f_bfree, host.f_bavail
        reply.f_files, reply.f_ffree, reply.f_favail = host.f_files, host.f_ffree, host.f_favail
        reply.f_namemax = host.f_namemax
        return reply

    async def getxattr(self, inode: int, name: bytes, ctx: Context) -> bytes:
        """GETXATTR."""
        if inode >= FIRST_NUMBER:
            raise OSError(errno.ENODATA, "synthetic files have no attributes")
        node = self._inodes.find(inode)
        with self._touching(ctx, node):
            value = os.getxattr(self._path(node), name)
        if name in ACL_NAMES and not self._identity.is_plain:
            return translated_acl(value, self._identity, to_host=False)
        return value

    async def listxattr(self, inode: int, ctx: Context) -> list[bytes]:  # noqa: ARG002 - the interface
        """LISTXATTR."""
        if inode >= FIRST_NUMBER:
            return []
        return [os.fsencode(n) for n in os.listxattr(self._path(self._inodes.find(inode)))]

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Context) -> None:
        """SETXATTR."""
        node = self._writable(inode)
        self._check_attribute(name)
        if name in ACL_NAMES and not self._identity.is_plain:
            value = translated_acl(value, self._identity, to_host=True)
        with self._touching(ctx, node):
            os.setxattr(self._path(node), name, value)

    async def removexattr(self, inode: int, name: bytes, ctx: Context) -> None:
        """REMOVEXATTR."""
        node = self._writable(inode)
        self._check_attribute(name)
        with self._touching(ctx, node):
            os.removexattr(self._path(node), name)

    def _check_attribute(self, name: bytes) -> None:
        """Refuse what is privilege on the host to clients that are privileged only inside.

        Root of a user namespace may set security.capability on this mount as its kernel sees it;
        written by a host root server it would grant capabilities to every user of the host.
        """
        if not self._identity.is_plain and name.startswith((b"security.", b"trusted.")):
            raise PermissionError(errno.EPERM, "not from inside a user namespace", name)
