"""The plan of a new container: namespaces, maps, root, mounts, rights."""

from __future__ import annotations

import os
from typing import Any

import pytest

from launcher import config
from launcher.people import Person
from launcher.plan import Plan
from launcher.run_plan import CONTAINER_CAPABILITIES, DEFAULT_KINDS, plan_run
from launcher.targets.users import User
from nsstages.bootstrap import TimeOffset
from nsstages.credentials import CapabilitySets, Credentials
from nsstages.idmap import IDENTITY, IdRange
from nsstages.init_config import MountPlan, Root, Source
from nsstages.syscalls import MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from tests.unit.made_up import references, run_host

FUSE = {"source": "/", "fuse": True}
DIRECTORY = {"path": "/srv/root"}
SHELLS = Person("eve", os.geteuid(), os.getegid(), (), "/home/eve", "/bin/zsh")


def plan(facts: Any = None, **keys: Any) -> Plan:
    """Return the plan for the keys of a run.json."""
    return plan_run(config.run(keys), facts or run_host())


def targets(made: Plan) -> list[str]:
    """Return where mounts are attached, in order."""
    return [planned.target for planned in made.init.mounts]


def mounted(made: Plan, target: str) -> MountPlan:
    """Return the last mount at ``target``."""
    return [planned for planned in made.init.mounts if planned.target == target][-1]


# --- namespaces and maps


@pytest.mark.parametrize(
    ("privileged", "keys", "kinds"),
    [
        (True, {}, set(DEFAULT_KINDS)),
        (False, {}, {*DEFAULT_KINDS, "user"}),
        (True, {"namespaces": ["net"]}, {"net"}),
        (True, {"namespaces": []}, set()),
        (True, {"time_offsets": {"monotonic": 1}}, {*DEFAULT_KINDS, "time"}),
        (True, {"namespaces": {"mnt": "new", "net": "/run/netns/x"}}, {"mnt"}),
    ],
)
def test_which_namespaces_are_new(privileged: bool, keys: dict[str, Any], kinds: set[str]) -> None:
    """A default set, with a user namespace for ordinary users; or exactly what is listed."""
    assert kinds == set(plan(run_host(privileged=privileged), **keys).bootstrap.create)


def test_a_namespace_can_be_a_file() -> None:
    """A kind that is given as a file is joined."""
    facts = run_host(namespace_files=references({"net": 77}))
    made = plan(facts, namespaces={"mnt": "new", "net": "/run/netns/x"})
    (join,) = made.bootstrap.joins

    assert ("net", 177) == (join.kind, made.descriptors[join.fd].fd)


def test_root_maps_all_ids_as_they_are() -> None:
    """Unless maps are given."""
    made = plan(namespaces=["user", "mnt"])
    assert (IDENTITY, IDENTITY) == (made.bootstrap.uid_map, made.bootstrap.gid_map)
    assert made.bootstrap.setgroups

    ids = [{"inside": 0, "outside": 100000, "count": 10}]
    made = plan(namespaces=["user", "mnt"], uid_map=ids, gid_map=ids)
    assert ((IdRange(0, 100000, 10),),) * 2 == (made.bootstrap.uid_map, made.bootstrap.gid_map)


def test_without_a_user_namespace_there_are_no_maps() -> None:
    """Nothing to map, and no helper to do it."""
    assert "" == plan().bootstrap.newuidmap == plan().bootstrap.newgidmap
    assert () == plan().bootstrap.uid_map == plan().bootstrap.gid_map


def test_an_ordinary_user_is_root_with_subordinate_ids() -> None:
    """Their own id is 0, the ranges follow from 1; the set-user-id helpers write them."""
    made = plan(run_host(privileged=False, uid=1000, gid=100)).bootstrap

    assert (IdRange(0, 1000, 1), IdRange(1, 200000, 65536)) == made.uid_map
    assert (IdRange(0, 100, 1), IdRange(1, 300000, 65536)) == made.gid_map
    assert ("/usr/bin/newuidmap", "/usr/bin/newgidmap") == (made.newuidmap, made.newgidmap)
    assert (True, True) == (made.setgroups, made.rootless)


def test_an_ordinary_user_without_ranges_has_one_id() -> None:
    """Then the kernel itself takes the map, when setgroups is denied."""
    facts = run_host(privileged=False, uid=1000, gid=100, subordinate_uids=(), subordinate_gids=())
    made = plan(facts).bootstrap

    assert (IdRange(0, 1000, 1),) == made.uid_map
    assert not made.setgroups


def test_several_ranges_follow_each_other() -> None:
    """All subordinate ranges are used, without holes inside."""
    facts = run_host(
        privileged=False, uid=1000, gid=100, subordinate_uids=((200000, 10), (400000, 5))
    )
    inside = [(r.inside, r.count) for r in plan(facts).bootstrap.uid_map]

    assert [(0, 1), (1, 10), (11, 5)] == inside


def test_clock_offsets_cgroup_and_score_arrive() -> None:
    """Time offsets for both clocks, one new cgroup a hierarchy, the oom score."""
    made = plan(time_offsets={"boottime": 7}, cgroup="/a/b", oom_score_adj=5)
    cgroups = [made.descriptors[index].new_cgroup for index in made.bootstrap.cgroups]

    assert (TimeOffset("monotonic", 0), TimeOffset("boottime", 7)) == made.bootstrap.time_offsets
    assert ["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/pids/a/b"] == cgroups
    assert 5 == made.bootstrap.oom_score_adj


@pytest.mark.parametrize(
    ("keys", "up"),
    [
        ({}, True),
        ({"loopback": False}, False),
        ({"namespaces": ["mnt"]}, False),
    ],
)
def test_loopback(keys: dict[str, Any], up: bool) -> None:
    """It is up in every new network namespace, unless it is not wanted; both stages know."""
    made = plan(**keys)

    assert (up, up) == (made.init.loopback, made.bootstrap.loopback)


# --- root and mounts


def test_a_directory_root_has_what_programs_expect() -> None:
    """/proc, /dev with its nodes bound, terminals and links, /sys read-only where it can be."""
    made = plan(root=DIRECTORY)
    devices = [f"/dev/{n}" for n in ("null", "zero", "full", "random", "urandom", "tty")]

    assert (Root.DIRECTORY, "/srv/root") == (made.init.root, made.init.root_path)
    assert ["/proc", "/dev"] == targets(made)[:2]
    assert set(devices) < set(targets(made))
    assert all(Source.BIND == mounted(made, path).source_kind for path in devices)
    assert ("devpts", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC) == (
        mounted(made, "/dev/pts").kind, mounted(made, "/dev/pts").attributes
    )  # fmt: skip
    assert ("pts/ptmx", Source.SYMLINK) == (
        mounted(made, "/dev/ptmx").source, mounted(made, "/dev/ptmx").source_kind
    )  # fmt: skip
    assert (MOUNT_ATTR_RDONLY, False) == (
        mounted(made, "/sys").attributes, mounted(made, "/sys").required
    )  # fmt: skip


def test_the_terminals_group_is_mapped_or_left_out() -> None:
    """gid 5 does not exist in a map that has no such id: devpts would refuse it."""
    small = [{"inside": 0, "outside": 100000, "count": 5}]
    made = plan(root=DIRECTORY, namespaces=["user", "mnt"], uid_map=small, gid_map=small)
    assert "gid=5" not in mounted(made, "/dev/pts").options
    assert "gid=5" in mounted(plan(root=DIRECTORY), "/dev/pts").options


def test_mounts_that_are_given_replace_the_default() -> None:
    """Bind mounts with their attributes, file systems with their options, in their order."""
    made = plan(
        root=DIRECTORY,
        mounts=[
            {"type": "bind", "source": "/data", "target": "/d", "options": ["ro", "rbind"]},
            {"type": "tmpfs", "target": "/t", "options": ["size=1m", "noexec"]},
        ],
    )
    bind, tmpfs = made.init.mounts

    assert (Source.BIND, "/data", MOUNT_ATTR_RDONLY, ()) == (
        bind.source_kind, bind.source, bind.attributes, bind.options
    )  # fmt: skip
    assert (Source.NEW, "tmpfs", MOUNT_ATTR_NOEXEC, ("size=1m",)) == (
        tmpfs.source_kind, tmpfs.kind, tmpfs.attributes, tmpfs.options
    )  # fmt: skip
    assert bind.create_target
    assert tmpfs.required


def test_a_fuse_root_has_the_hosts_kernel_directories() -> None:
    """They are cloned from the host, but /proc is new with a new PID namespace; nothing of the
    host is created or served there.
    """
    made = plan(root=FUSE)
    served = {point.path for point in made.hostfs[0].mountpoints}

    assert (Root.FUSE, 1, 1) == (made.init.root, len(made.bootstrap.fuse), len(made.hostfs))
    assert ["/dev", "/sys", "/proc"] == targets(made)
    assert ("proc", Source.NEW) == (
        mounted(made, "/proc").kind, mounted(made, "/proc").source_kind
    )  # fmt: skip
    assert {"/proc", "/dev", "/sys"} <= served
    assert not any(planned.create_target for planned in made.init.mounts)

    shared = plan(root=FUSE, namespaces=["mnt"])
    assert Source.TREE == mounted(shared, "/proc").source_kind


def test_mounts_on_a_fuse_root_have_places_there() -> None:
    """What the configuration mounts is a fixed mount point of the server."""
    made = plan(root=FUSE, mounts=[{"type": "tmpfs", "target": "/scratch"}])

    assert "/scratch" in {point.path for point in made.hostfs[0].mountpoints}
    assert "/scratch" == targets(made)[-1]


def test_a_fuse_root_shows_the_ids_of_the_namespace() -> None:
    """The server translates between host ids and the map; without a user namespace not."""
    assert IDENTITY == plan(root=FUSE).hostfs[0].uid_map
    made = plan(run_host(privileged=False, uid=1000, gid=100), root=FUSE)
    assert made.bootstrap.uid_map == made.hostfs[0].uid_map


def test_read_only_is_the_servers_or_the_mounts() -> None:
    """A FUSE root is refused by its server, a directory by the mount's attribute."""
    fuse = plan(root={**FUSE, "read_only": True})
    directory = plan(root={**DIRECTORY, "read_only": True})

    assert (True, False) == (fuse.hostfs[0].read_only, fuse.init.root_read_only)
    assert directory.init.root_read_only


def test_without_a_root_nothing_is_mounted() -> None:
    """The program keeps the root that it has."""
    made = plan()

    assert (Root.KEEP, ()) == (made.init.root, made.init.mounts)


@pytest.mark.parametrize(
    ("keys", "supervised"),
    [
        ({"root": FUSE}, True),
        ({"root": DIRECTORY}, False),
        ({"root": FUSE, "supervise": "off"}, False),
        ({"root": DIRECTORY, "supervise": "tree"}, True),
    ],
)
def test_who_is_supervised(keys: dict[str, Any], supervised: bool) -> None:
    """A FUSE root by default; supervisor, filter and reaper come together."""
    made = plan(**keys)

    assert supervised == (made.supervisor is not None)
    assert supervised == made.init.reaper == bool(made.init.seccomp_notify)


# --- the program


def test_a_container_has_an_environment_of_its_own() -> None:
    """Of the caller's variables only TERM; a directory root's program is root of the container."""
    process = plan(root=DIRECTORY, env={"A": "1"}).init.process
    variables = dict(entry.split("=", 1) for entry in process.env)

    assert {"PATH", "TERM", "HOME", "A"} == set(variables)
    assert ("vt100", "/root", ("/bin/sh",), "/") == (
        variables["TERM"], variables["HOME"], process.argv, process.cwd
    )  # fmt: skip


def test_a_fuse_roots_shell_is_the_persons() -> None:
    """With the person's environment, home and directory."""
    process = plan(run_host(person=SHELLS), root=FUSE).init.process
    variables = dict(entry.split("=", 1) for entry in process.env)

    assert ("x", "/home/eve", ("/bin/zsh", "-l"), "/work") == (
        variables["SECRET"], variables["HOME"], process.argv, process.cwd
    )  # fmt: skip


FULL = CapabilitySets(
    permitted=CONTAINER_CAPABILITIES,
    effective=CONTAINER_CAPABILITIES,
    bounding=CONTAINER_CAPABILITIES,
)


@pytest.mark.parametrize(
    ("keys", "user", "expected"),
    [
        ({"root": DIRECTORY}, None, Credentials(capabilities=FULL)),
        ({"root": DIRECTORY}, User(0, 0), Credentials(capabilities=FULL)),
        (
            {"root": DIRECTORY},
            User(33, 34, (35,)),
            Credentials(33, 34, (35,), CapabilitySets(bounding=CONTAINER_CAPABILITIES)),
        ),
        ({"root": FUSE}, None, Credentials()),
        ({}, None, Credentials()),
    ],
)
def test_the_programs_rights(
    keys: dict[str, Any], user: User | None, expected: Credentials
) -> None:
    """A container's root has what engines leave it; another user nothing; a person's shell all."""
    assert expected == plan(run_host(user=user), **keys).init.process.credentials


def test_groups_are_kept_where_they_may_not_be_set() -> None:
    """With setgroups denied the user's groups cannot be had."""
    facts = run_host(
        privileged=False, uid=1000, gid=100, subordinate_gids=(), user=User(33, 34, (35,))
    )

    assert plan(facts, root=DIRECTORY).init.process.credentials.groups is None
