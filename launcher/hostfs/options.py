"""What the manager tells the FUSE server: frozen values, built before the fork, light to import."""

from __future__ import annotations

from dataclasses import dataclass

from nsstages.idmap import IDENTITY, IdMap


@dataclass(frozen=True, slots=True)
class Mountpoint:
    """An absolute ``path`` that something will be mounted on, below the served root.

    The server answers it with a synthetic, fixed inode: the kernel drops a mount whose mount point
    changes identity, and the host may rename or replace its own files at any time.
    """

    path: str
    is_directory: bool


@dataclass(frozen=True, slots=True)
class File:
    """A synthetic regular file at the absolute ``path``, mode 0644, instead of the host's."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class HostfsOptions:
    """What to serve, and how.

    ``source`` is the host directory that becomes the root, "" the container's own root.
    ``uid_map`` and ``gid_map`` are those of the user namespace that mounted: requests come with
    inside ids, replies carry inside ids,
    the host's files have outside ids. ``container_root_fd`` (kept open by the caller) and
    ``container_path`` make `/.launcher/bin` hold one file with the bytes of ``program`` for each
    program of the container; ``vessel`` makes `/.launcher/vessel`, mode 4755. ``files`` are more
    synthetic files.
    """

    source: str = "/"
    read_only: bool = False
    mountpoints: tuple[Mountpoint, ...] = ()
    uid_map: IdMap = IDENTITY
    gid_map: IdMap = IDENTITY
    container_root_fd: int | None = None
    container_path: tuple[str, ...] = ()
    program: bytes = b""
    vessel: bytes | None = None
    files: tuple[File, ...] = ()
