"""Roots and mounts by the new mount API: detached first, attached below a root descriptor.

A target inside a root is resolved by openat2(RESOLVE_IN_ROOT), so a symlink planted there leads
nowhere else, and nothing is created in a joined container.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from nsstages import syscalls
from nsstages.bootstrap import Tree
from nsstages.idmap import OVERFLOW_ID

FUSE_SOURCE = "launcher"  # by which the mount table tells our mounts from other FUSE mounts


def make_private() -> None:
    """Cut the whole mount namespace off: nothing done in it shows anywhere else."""
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


def new_filesystem(kind: str, options: Sequence[str] = (), attributes: int = 0) -> int:
    """Return a detached mount of a new ``kind`` file system; options are key or key=value."""
    context = syscalls.fsopen(kind)
    try:
        for option in options:
            key, equals, value = option.partition("=")
            command = syscalls.FSCONFIG_SET_STRING if equals else syscalls.FSCONFIG_SET_FLAG
            syscalls.fsconfig(context, command, key, value if equals else None)
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, attributes)
    finally:
        os.close(context)


def open_fuse(device: int, attributes: int) -> int:
    """Return a detached FUSE mount served through ``device``, /dev/fuse opened by this process.

    The kernel wants device and mount from one user namespace, and fixes the mounter's PID
    namespace in the connection: called by stage 1, which still lives in the host's.
    """
    options = (
        f"fd={device}", f"source={FUSE_SOURCE}", "rootmode=40000", "user_id=0", "group_id=0",
        "allow_other", "default_permissions",
    )  # fmt: skip
    return new_filesystem("fuse", options, attributes)


def clone_tree(path: str, *, beneath: int = -1, recursive: bool = True) -> int:
    """Return a detached copy of the mount (tree) at ``path``, looked up below ``beneath``."""
    flags = (
        syscalls.OPEN_TREE_CLONE
        | syscalls.OPEN_TREE_CLOEXEC
        | (syscalls.AT_RECURSIVE if recursive else 0)
    )
    if beneath == -1:
        return syscalls.open_tree(syscalls.AT_FDCWD, path, flags)
    here = syscalls.open_in_root(beneath, path, os.O_PATH)
    try:
        return syscalls.open_tree(here, "", flags | syscalls.AT_EMPTY_PATH)
    finally:
        os.close(here)


def open_planned_tree(tree: Tree, fds: Sequence[int]) -> int:
    """Clone ``tree`` for stage 2 to attach; -1 when it is absent and not required."""
    beneath = fds[tree.beneath] if tree.beneath != -1 else -1
    try:
        fd = _idmapped(tree, beneath, [fds[index] for index in tree.idmap_userns])
        # Slave: a clone of a shared mount would carry mounts made below it back to its origin.
        syscalls.mount_setattr(fd, set_attributes=tree.attributes, propagation=syscalls.MS_SLAVE)
    except OSError:
        if tree.required:
            raise
        return -1
    return fd


def _idmapped(tree: Tree, beneath: int, candidates: Sequence[int]) -> int:
    """Clone, with the first user namespace that maps the owner; unmapped where none does.

    Which one fits depends on the user namespace that mounted the file system, and nobody tells;
    a mount takes a mapping only once, so each try has a clone of its own.
    """
    for userns in candidates:
        fd = clone_tree(tree.path, beneath=beneath, recursive=tree.recursive)
        try:
            attribute = syscalls.MOUNT_ATTR_IDMAP
            syscalls.mount_setattr(fd, set_attributes=attribute, userns_fd=userns, recursive=False)
            if os.fstat(fd).st_uid != OVERFLOW_ID:
                return fd
        except OSError as error:
            # EINVAL: a file system without idmap support. EPERM: another's, or mapped already.
            if error.errno not in (errno.EINVAL, errno.EPERM):
                os.close(fd)
                raise
        os.close(fd)
    return clone_tree(tree.path, beneath=beneath, recursive=tree.recursive)


def attach(mount_fd: int, root_fd: int, target: str, *, create: bool = False) -> None:
    """Attach a detached mount at ``target`` inside the root; ``create`` makes what is missing."""
    if create:
        create_target(root_fd, target, directory=stat.S_ISDIR(os.fstat(mount_fd).st_mode))
    where = syscalls.open_in_root(root_fd, target, os.O_PATH)
    try:
        syscalls.move_mount(mount_fd, where, "", syscalls.MOVE_MOUNT_T_EMPTY_PATH)
    finally:
        os.close(where)


def create_target(root_fd: int, target: str, *, directory: bool) -> None:
    """Make a mount's directory or file, and the directories above it, inside the root."""
    *above, last = target.strip("/").split("/")
    done = "/"
    for name in above:
        _create(root_fd, done, name, directory=True)
        done = f"{done}{name}/"
    _create(root_fd, done, last, directory=directory)


def _create(root_fd: int, parent: str, name: str, *, directory: bool) -> None:
    parent_fd = syscalls.open_in_root(root_fd, parent, os.O_PATH | os.O_DIRECTORY)
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent_fd)
        else:
            os.mknod(name, 0o644 | stat.S_IFREG, dir_fd=parent_fd)
    except FileExistsError:
        return
    finally:
        os.close(parent_fd)


def create_symlink(root_fd: int, target: str, text: str) -> None:
    """Make the symbolic link ``target`` inside the root, unless something is there."""
    parent, _, name = target.rpartition("/")
    parent_fd = syscalls.open_in_root(root_fd, parent or "/", os.O_PATH | os.O_DIRECTORY)
    try:
        os.symlink(text, name, dir_fd=parent_fd)
    except FileExistsError:
        return
    finally:
        os.close(parent_fd)


def enter_root(mount_fd: int) -> None:
    """Lay a detached mount over the root directory: the one place that always exists."""
    syscalls.move_mount(mount_fd, syscalls.AT_FDCWD, "/")
    os.fchdir(mount_fd)


def switch_root() -> None:
    """Make the current directory, a mount point, the root; the old root is gone after.

    pivot_root, not chroot: in a chroot unshare(CLONE_NEWUSER) fails with EPERM, and bwrap or
    rootless podman with it.
    """
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")


def uncover(root_fd: int, path: str) -> None:
    """Take the mount at ``path`` away; where it is locked to its parent, cover it instead."""
    parent, _, _ = path.rpartition("/")
    try:
        where = syscalls.open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return
    above = syscalls.open_in_root(root_fd, parent or "/", os.O_PATH | os.O_DIRECTORY)
    try:
        if os.fstat(where).st_dev != os.fstat(above).st_dev:
            _detach_or_cover(where)
    finally:
        os.close(where)
        os.close(above)
    os.fchdir(root_fd)


def _detach_or_cover(where: int) -> None:
    os.fchdir(where)  # "." needs no /proc to name a descriptor
    try:
        syscalls.umount2(".", syscalls.MNT_DETACH)
    except OSError:
        cover = new_filesystem("tmpfs", ("size=4k", "mode=0555"), syscalls.MOUNT_ATTR_RDONLY)
        syscalls.move_mount(cover, where, "", syscalls.MOVE_MOUNT_T_EMPTY_PATH)
        os.close(cover)
