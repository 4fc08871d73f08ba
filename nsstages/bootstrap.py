"""The bootstrap: all that stages 0 and 1 need to know, sent once, typed, bounded, printable.

It crosses the channel as one msgpack map (length prefix, size limit and version are the
channel's and the first field's). Descriptors travel beside it; fields that name one hold its
index. The pipeline's caller builds it, stage 0 checks it before the first fork.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nsstages.errors import Malformed
from nsstages.idmap import IdMap, IdRange
from nsstages.namespaces import FLAGS, Join, flags_of
from nsstages.typed import from_payload, to_payload

VERSION: Final = 1
MAX_ID_RANGES: Final = 340  # the kernel's own limit
MAX_ID: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class TimeOffset:
    """One line of /proc/PID/timens_offsets; ``clock`` is monotonic or boottime."""

    clock: str
    secs: int
    nanosecs: int = 0


@dataclass(frozen=True, slots=True)
class Tree:
    """A mount (tree) that stage 1 clones and stage 2 attaches.

    ``side`` says where ``path`` is looked up: ``outside`` before any join, ``inside`` in the
    joined mount namespace before it is copied (a copy by another user namespace locks its
    mounts together), or in the new one when none is joined. ``beneath`` is a descriptor index:
    ``path`` is then resolved below it, as a chroot there would, -1 for the process's own root.
    """

    name: str
    path: str
    side: str
    beneath: int = -1
    recursive: bool = True
    attributes: int = 0  # MOUNT_ATTR_* to set on every mount of the tree
    idmap_userns: tuple[int, ...] = ()  # candidates: the first that maps the root's owner
    required: bool = True


@dataclass(frozen=True, slots=True)
class FuseMount:
    """A FUSE mount that stage 1 makes and stage 2 attaches under its tree ``name``."""

    name: str
    attributes: int = 0  # MOUNT_ATTR_*


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Everything stages 0 and 1 do. Namespace kinds are the names in /proc/PID/ns."""

    version: int = VERSION
    create: tuple[str, ...] = ()
    joins: tuple[Join, ...] = ()
    target_pidfd: int = -1
    rootless: bool = False
    uid_map: tuple[IdRange, ...] = ()
    gid_map: tuple[IdRange, ...] = ()
    setgroups: bool = True
    newuidmap: str = ""
    newgidmap: str = ""
    time_offsets: tuple[TimeOffset, ...] = ()
    oom_score_adj: int | None = None
    cgroups: tuple[int, ...] = ()
    trees: tuple[Tree, ...] = ()
    fuse: tuple[FuseMount, ...] = ()
    loopback: bool = False
    timeout: int = 10  # seconds, for each wait

    @property
    def clone_flags(self) -> int:
        """Return the CLONE_NEW* mask of the namespaces to create."""
        return flags_of(self.create)

    def pack(self) -> dict[str, Any]:
        """Return the payload of the word BOOTSTRAP."""
        return to_payload(self)


def unpack(payload: Mapping[str, Any], descriptors: int) -> Bootstrap:
    """Check and build; ``descriptors`` came with the message. Raises Malformed by field name."""
    if payload.get("version") != VERSION:
        raise Malformed("Bootstrap.version", f"{payload.get('version')!r}, not {VERSION}")
    bootstrap = from_payload(Bootstrap, payload)
    _check_kinds(bootstrap)
    _check_map("Bootstrap.uid_map", bootstrap.uid_map)
    _check_map("Bootstrap.gid_map", bootstrap.gid_map)
    _check_descriptors(bootstrap, descriptors)
    for number, offset in enumerate(bootstrap.time_offsets):
        if offset.clock not in ("monotonic", "boottime"):
            raise Malformed(f"Bootstrap.time_offsets[{number}].clock", "monotonic or boottime")
    if bootstrap.oom_score_adj is not None and not -1000 <= bootstrap.oom_score_adj <= 1000:
        raise Malformed("Bootstrap.oom_score_adj", "-1000 to 1000")
    return bootstrap


def _check_kinds(bootstrap: Bootstrap) -> None:
    for number, kind in enumerate(bootstrap.create):
        if kind not in FLAGS:
            raise Malformed(f"Bootstrap.create[{number}]", f"no namespace kind {kind!r}")
    for number, join in enumerate(bootstrap.joins):
        if join.kind not in FLAGS:
            raise Malformed(f"Bootstrap.joins[{number}].kind", f"no namespace kind {join.kind!r}")
    if "user" in bootstrap.create and not (bootstrap.uid_map and bootstrap.gid_map):
        raise Malformed("Bootstrap.uid_map", "a new user namespace needs both maps")


def _check_map(name: str, id_map: IdMap) -> None:
    if len(id_map) > MAX_ID_RANGES:
        raise Malformed(name, f"{len(id_map)} ranges, at most {MAX_ID_RANGES}")
    for number, r in enumerate(id_map):
        if r.count < 1 or min(r.inside, r.outside) < 0:
            raise Malformed(f"{name}[{number}]", "ids start at 0 and counts at 1")
        if max(r.inside, r.outside) + r.count > MAX_ID:
            raise Malformed(f"{name}[{number}]", "beyond the last id")


def _check_descriptors(bootstrap: Bootstrap, descriptors: int) -> None:
    named = {f"joins[{n}].fd": join.fd for n, join in enumerate(bootstrap.joins)}
    named |= {f"cgroups[{n}]": index for n, index in enumerate(bootstrap.cgroups)}
    optional = {"target_pidfd": bootstrap.target_pidfd}
    for n, tree in enumerate(bootstrap.trees):
        optional |= {f"trees[{n}].beneath": tree.beneath}
        named |= {f"trees[{n}].idmap_userns": index for index in tree.idmap_userns}
    named |= {name: index for name, index in optional.items() if index != -1}
    for name, index in named.items():
        if not 0 <= index < descriptors:
            raise Malformed(f"Bootstrap.{name}", f"descriptor {index} of {descriptors}")
