"""The container's own tree at /c: natively, with mapped ids, or over a FUSE server of its own."""

from __future__ import annotations

from launcher.attachment import GUARDED, KERNEL_DIRECTORIES, Attachment
from launcher.hostfs.options import HostfsOptions, Mountpoint
from launcher.plan import Descriptors
from launcher.targets.snapshot import Snapshot
from nsstages.bootstrap import Tree
from nsstages.idmap import IDENTITY, IdMap, IdRange


def container_trees(attach: Attachment, descriptors: Descriptors, root: int) -> tuple[Tree, ...]:
    """Plan /c: one recursive clone, or a clone a mount where ids are to be mapped."""
    if attach.config.root.container_access == "fuse":
        return ()
    if not shows_mapped_ids(attach):
        return (Tree("c:/", "/", "inside", beneath=root, attributes=GUARDED),)
    outside, inside = mapping_namespaces(attach.target)
    candidates = (
        descriptors.add(-1, "user namespace that maps the host's ids back", outside),
        descriptors.add(-1, "user namespace that keeps the container's ids", inside),
    )
    return tuple(
        Tree(f"c:{path}", path, "inside", beneath=root, recursive=False, attributes=GUARDED,
             idmap_userns=candidates, required=path == "/")
        for path in container_mount_points(attach.target)
    )  # fmt: skip


def shows_mapped_ids(attach: Attachment) -> bool:
    """Tell whether /c is to show the container's ids while the shell has the host's."""
    return (
        attach.config.root.container_access in ("auto", "idmapped")
        and attach.host.privileged
        and not attach.joins_user_namespace
        and not attach.target.namespaces["user"].is_ours
    )


def mapping_namespaces(target: Snapshot) -> tuple[tuple[IdMap, IdMap], tuple[IdMap, IdMap]]:
    """Return (uid, gid) maps of the two candidate namespaces: an idmapped mount looks up the id
    of the file system as inside and shows the outside one.
    """
    reversed_maps = (_reverse(target.uid_map), _reverse(target.gid_map))
    kept_maps = (_keep(target.uid_map), _keep(target.gid_map))
    return reversed_maps, kept_maps


def _reverse(id_map: IdMap) -> IdMap:
    return tuple(IdRange(inside=r.outside, outside=r.inside, count=r.count) for r in id_map)


def _keep(id_map: IdMap) -> IdMap:
    return tuple(IdRange(inside=r.inside, outside=r.inside, count=r.count) for r in id_map)


def container_mount_points(target: Snapshot) -> tuple[str, ...]:
    """Return the target's mount points, parents first, without those below /proc, /dev, /sys."""
    points = {
        mount.mount_point
        for mount in target.mounts
        if not any(_is_below(mount.mount_point, above) for above in KERNEL_DIRECTORIES)
    }
    return tuple(sorted(points | {"/"}))


def _is_below(path: str, above: str) -> bool:
    return path == above or path.startswith(f"{above}/")


def plan_container_server(attach: Attachment) -> tuple[HostfsOptions, ...]:
    """Plan a second server for /c, as seed 1 proposes: it shows the container's ids whatever the
    file system can, at the price of FUSE.
    """
    if attach.config.root.container_access != "fuse":
        return ()
    target = attach.target
    shown = not attach.joins_user_namespace or attach.target.namespaces["user"].is_ours
    return (
        HostfsOptions(
            source="",
            mountpoints=tuple(Mountpoint(path, is_directory=True) for path in KERNEL_DIRECTORIES),
            uid_map=target.uid_map if shown else IDENTITY,
            gid_map=target.gid_map if shown else IDENTITY,
            container_root_fd=target.root_fd,
        ),
    )
