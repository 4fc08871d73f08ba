"""The plan of an attach, from made-up targets and hosts: who is refused, what is joined."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import config
from launcher.attach_plan import plan_attach
from launcher.attachment import GUARDED
from launcher.errors import LauncherError
from launcher.plan import Plan, describe
from launcher.targets.snapshot import Snapshot
from nsstages.bootstrap import Tree
from nsstages.credentials import CapabilitySets
from nsstages.idmap import IDENTITY, IdRange, to_outside
from nsstages.init_config import Root
from nsstages.namespaces import FLAGS
from nsstages.syscalls import MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from tests.unit.made_up import (
    DAVE,
    MAP,
    OWN,
    PIDFD,
    PTRACE,
    ROOT_FD,
    host,
    mount,
    references,
    snapshot,
)


def plan(target: Snapshot | None = None, facts: Any = None, **keys: Any) -> Plan:
    """Return the plan for the keys of an attach.json."""
    return plan_attach(config.attach(keys), target or snapshot(), facts or host())


def joined_kinds(made: Plan) -> set[str]:
    """Return the kinds that stage 1 joins."""
    return {join.kind for join in made.bootstrap.joins}


def joined_fds(made: Plan) -> set[int]:
    """Return the descriptors of the namespaces that stage 1 joins."""
    return {made.descriptors[join.fd].fd for join in made.bootstrap.joins}


def tree(made: Plan, name: str) -> Tree:
    """Return the tree of that name."""
    return next(tree for tree in made.bootstrap.trees if tree.name == name)


# --- who is refused


def with_ptrace(**changes: Any) -> Snapshot:
    """Return a container whose root may trace."""
    return snapshot(capabilities=CapabilitySets(bounding=PTRACE), **changes)


@pytest.mark.parametrize(
    ("target", "privileged", "keys", "refused"),
    [
        (snapshot(), True, {}, False),
        (with_ptrace(), True, {}, True),
        (with_ptrace(), True, {"trust_container": True}, False),
        (with_ptrace(), True, {"pid_namespace": "host"}, False),
        (with_ptrace(), True, {"pid_namespace": "new"}, True),
        (with_ptrace(user_namespace=True), True, {}, False),
        (with_ptrace(user_namespace=True), True, {"user_namespace": "join"}, True),
        (with_ptrace(user_namespace=True), False, {}, True),
        (with_ptrace(user_namespace=True), False, {"user_namespace": "host"}, False),
        (snapshot(user_namespace=True), False, {}, False),
    ],
)
def test_a_container_that_could_reach_the_shell_is_refused(
    target: Snapshot, privileged: bool, keys: dict[str, Any], refused: bool
) -> None:
    """CAP_SYS_PTRACE in the shell's user namespace, when its pid namespace is the shell's, too."""
    facts = host(privileged=privileged)
    if not refused:
        plan(target, facts, **keys)
        return
    with pytest.raises(LauncherError, match="CAP_SYS_PTRACE") as raised:
        plan(target, facts, **keys)

    assert "--trust-container" in raised.value.hint


@pytest.mark.parametrize("is_supervised", [True, False])
def test_inside_another_attach(is_supervised: bool) -> None:
    """The root is a clone of the other's, without a FUSE server of its own; there is no routing,
    and it says so; it is supervised if the other one is not.
    """
    made = plan(facts=host(root_is_served=True, is_supervised=is_supervised))

    assert ((), ()) == (made.bootstrap.fuse, made.hostfs)
    assert Tree("host", "/", "outside", recursive=False) == made.bootstrap.trees[0]
    assert is_supervised == (made.supervisor is None)
    assert is_supervised == (made.init.seccomp_notify == b"")
    assert "" == made.init.vessel
    assert made.supervisor is None or made.supervisor.routing is None
    expected = "no supervision and no routing" if is_supervised else "no routing"
    assert f"inside another attach: {expected} here" in made.warnings[0]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"is_supervised": True, "root_is_served": True}, "supervises this process already"),
        ({"is_supervised": True}, "supervises this process already"),
        ({"root_is_served": True}, "another attach serves this root"),
    ],
)
def test_routing_that_is_not_possible_is_refused(facts: dict[str, bool], reason: str) -> None:
    """Whoever demands routing inside another attach is told why there is none."""
    with pytest.raises(LauncherError, match=reason):
        plan(facts=host(**facts), routing=True)


def test_inside_a_supervised_process_with_a_root_of_the_hosts() -> None:
    """A supervisor alone takes away the routing: the root is served as everywhere."""
    made = plan(facts=host(is_supervised=True))

    assert ["host"] == [mount.name for mount in made.bootstrap.fuse]
    assert 1 == len(made.hostfs)
    assert "no supervision and no routing" in made.warnings[0]


def test_a_second_server_inside_another_attach_is_refused() -> None:
    """container_access: fuse needs /dev/fuse, which an attached shell has not."""
    with pytest.raises(LauncherError, match=r"root\.container_access: fuse is not possible"):
        plan(facts=host(root_is_served=True), root={"container_access": "fuse"})


# --- namespaces


def test_all_that_differs_is_joined_but_the_user_namespace() -> None:
    """Host root stays in the host's user namespace; what is shared need not be joined."""
    shared = references({**dict.fromkeys(OWN, 60), "net": OWN["net"], "user": 99})
    made = plan(snapshot(user_namespace=True, namespaces=shared))

    assert set(OWN) - {"net", "user"} == joined_kinds(made)
    assert {160} == joined_fds(made)
    assert ("mnt",) == made.bootstrap.create
    assert PIDFD == made.descriptors[made.bootstrap.target_pidfd].fd


@pytest.mark.parametrize(
    ("privileged", "keys", "joins"),
    [
        (True, {}, False),
        (True, {"user_namespace": "join"}, True),
        (True, {"user_namespace": "host"}, False),
        (False, {}, True),
        (False, {"user_namespace": "host"}, False),
    ],
)
def test_which_user_namespace_the_shell_lives_in(
    privileged: bool, keys: dict[str, Any], joins: bool
) -> None:
    """The host's where the manager is host root, else the target's; the key decides."""
    made = plan(snapshot(user_namespace=True), host(privileged=privileged), **keys)

    assert joins == ("user" in joined_kinds(made))
    assert (not privileged) == made.bootstrap.rootless
    assert (MAP if joins else IDENTITY) == made.hostfs[0].uid_map


def test_a_target_in_our_user_namespace_is_not_joined_there() -> None:
    """Joining one's own user namespace is an error of the kernel's."""
    assert "user" not in joined_kinds(plan(user_namespace="join"))


@pytest.mark.parametrize("mode", ["join", "host", "new"])
def test_the_pid_namespace(mode: str) -> None:
    """join: the target's /proc; host: the host's, without routing; new: a /proc of its own."""
    made = plan(pid_namespace=mode)
    proc = [m for m in made.init.mounts if m.target == "/proc"]

    assert (mode != "host") == ("pid" in joined_kinds(made))
    assert (mode == "new") == made.init.new_pid_namespace
    assert 1 == len(proc)
    expected = {"join": "/proc", "host": "host /proc", "new": "proc"}[mode]
    assert expected == proc[0].source
    assert made.supervisor is not None
    assert (mode != "host") == (made.supervisor.routing is not None)


def test_a_namespace_can_be_a_file() -> None:
    """A kind that is given as a file is joined there and not at the target."""
    files = references({"net": 77})
    names = {"net": "/run/netns/x", "mnt": "join"}
    made = plan(facts=host(namespace_files=files), namespaces=names)

    assert {"net", "mnt"} == joined_kinds(made)
    assert {177, 150} == joined_fds(made)


# --- root and mounts


def test_the_root_is_fuse_and_the_mounts_are_guarded() -> None:
    """/c and what the container owns can neither execute nor be set-user-id."""
    made = plan()

    assert (Root.FUSE, 1) == (made.init.root, len(made.bootstrap.fuse))
    assert GUARDED == MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSUID
    for name in ("c:/", "/proc", "/dev", "/sys", "/etc/hosts"):
        assert GUARDED == tree(made, name).attributes & GUARDED, name
        assert "inside" == tree(made, name).side
    assert ROOT_FD == made.descriptors[tree(made, "c:/").beneath].fd


def test_every_mount_has_its_place_in_the_served_root() -> None:
    """Each target of a mount is a fixed mount point of the server, of the right type."""
    made = plan()
    served = {point.path: point.is_directory for point in made.hostfs[0].mountpoints}

    for planned in made.init.mounts:
        assert planned.target.rstrip("/") in served, planned.target
    assert served["/c"]
    assert served["/run"]
    assert not served["/etc/hosts"]


def test_what_the_container_has_not_is_not_taken_from_it() -> None:
    """Paths of `from_container` that do not exist there stay the host's."""
    made = plan(facts=host(existing=frozenset({"/proc"}), directories=frozenset({"/proc"})))
    names = {t.name for t in made.bootstrap.trees}

    assert "/proc" in names
    assert not {"/etc/hosts", "/etc/resolv.conf", "/dev"} & names


def test_kernel_directories_of_the_container_are_not_in_c() -> None:
    """/c has no /proc, /dev and /sys, wherever it is."""
    assert ("/c/proc", "/c/dev", "/c/sys") == plan().init.unmounts
    made = plan(root={"container_path": "/mnt/box"})
    assert ("/mnt/box/proc", "/mnt/box/dev", "/mnt/box/sys") == made.init.unmounts
    assert "/mnt/box" in {m.target.rstrip("/") for m in made.init.mounts}


def test_native_subtrees_come_from_outside() -> None:
    """They are cloned before any join, with their programs executable; read-only on request."""
    assert ("outside", 0) == (tree(plan(), "host /run").side, tree(plan(), "host /run").attributes)
    made = plan(root={"read_only": True})
    assert MOUNT_ATTR_RDONLY == tree(made, "host /run").attributes
    assert made.hostfs[0].read_only


MOUNTS = tuple(
    map(mount, ("/", "/proc", "/proc/sys", "/data", "/data/x", "/dev/shm", "/processes"))
)


def test_c_shows_the_containers_ids() -> None:
    """With a user namespace that the shell does not join, each mount is cloned for itself, with
    two user namespaces to choose from: one for host ids, one for ids that are the container's.
    """
    made = plan(snapshot(user_namespace=True, mounts=MOUNTS))
    names = [t.name for t in made.bootstrap.trees if t.name.startswith("c:")]
    root = tree(made, "c:/")
    outside, inside = (made.descriptors[index].maps for index in root.idmap_userns)

    assert ["c:/", "c:/data", "c:/data/x", "c:/processes"] == names
    assert (root.required, tree(made, "c:/data").required) == (True, False)
    assert not root.recursive
    assert outside is not None
    assert inside is not None
    assert ((IdRange(100000, 0, 65536),), (IdRange(0, 0, 65536),)) == (outside[0], inside[0])


@given(st.integers(0, 65535))
def test_a_file_of_the_container_shows_its_id(number: int) -> None:
    """The kernel looks the id on disk up inside and shows the outside one: the maps undo it."""
    made = plan(snapshot(user_namespace=True, mounts=MOUNTS))
    outside, inside = (made.descriptors[n].maps for n in tree(made, "c:/").idmap_userns)
    assert outside is not None
    assert inside is not None

    assert number == to_outside(outside[0], 100000 + number)
    assert number == to_outside(inside[0], number)


@pytest.mark.parametrize(
    ("target", "privileged", "keys"),
    [
        (snapshot(mounts=MOUNTS), True, {}),
        (snapshot(user_namespace=True, mounts=MOUNTS), False, {}),
        (snapshot(user_namespace=True, mounts=MOUNTS), True, {"user_namespace": "join"}),
        (snapshot(user_namespace=True), True, {"root": {"container_access": "native"}}),
    ],
)
def test_c_is_one_tree_where_ids_need_no_map(
    target: Snapshot, privileged: bool, keys: dict[str, Any]
) -> None:
    """Without a user namespace, or from within it: one recursive clone."""
    made = plan(target, host(privileged=privileged), **keys)
    names = [t.name for t in made.bootstrap.trees if t.name.startswith("c:")]

    assert ["c:/"] == names
    assert tree(made, "c:/").recursive
    assert () == tree(made, "c:/").idmap_userns


def test_c_can_be_served_by_fuse() -> None:
    """A second mount with a server of its own, guarded like the native one, and no clone."""
    made = plan(snapshot(user_namespace=True), root={"container_access": "fuse"})

    assert 2 == len(made.bootstrap.fuse) == len(made.hostfs)
    assert GUARDED == made.bootstrap.fuse[1].attributes
    assert MAP == made.hostfs[1].uid_map
    assert ROOT_FD == made.hostfs[1].container_root_fd
    assert not any(t.name.startswith("c:") for t in made.bootstrap.trees)
    assert "/c" in {m.target.rstrip("/") for m in made.init.mounts}


# --- routing


def test_the_vessel_joins_the_user_namespace_last() -> None:
    """A routed program joins mnt, and what the shell is not in already; pid comes by fork."""
    made = plan(snapshot(user_namespace=True))
    assert made.supervisor is not None
    assert made.supervisor.routing is not None

    assert ((150, FLAGS["mnt"]), (199, FLAGS["user"])) == made.supervisor.routing.namespace_fds


def test_the_vessel_joins_what_the_shell_left_out() -> None:
    """Kinds that the shell was told not to join are joined by the routed program."""
    made = plan(namespaces=["mnt", "pid"])
    assert made.supervisor is not None
    assert made.supervisor.routing is not None
    flags = [flag for _, flag in made.supervisor.routing.namespace_fds]

    assert {FLAGS[kind] for kind in ("mnt", "uts", "ipc", "net", "cgroup", "time")} == set(flags)


def test_a_routed_program_acts_as_the_target() -> None:
    """Its root, directory, environment, PATH, oom score and rights are the container's."""
    target = snapshot(root_is_namespace_root=False, oom_score_adj=-5)
    made = plan(target)
    assert made.supervisor is not None
    routing = made.supervisor.routing
    assert routing is not None

    assert (ROOT_FD, True, "/app", -5) == (
        routing.container_root_fd, routing.chroot, routing.cwd, routing.oom_score_adj
    )  # fmt: skip
    assert target.environment == routing.environment
    assert ("/srv/bin", "/bin") == routing.container_path == made.hostfs[0].container_path
    assert ("setgroups", "capset") == (routing.calls[0].name, routing.calls[-2].name)
    assert ("/proc", "/dev", "/sys") == routing.bound
    assert b"vessel" == made.hostfs[0].vessel


@pytest.mark.parametrize(
    ("keys", "supervised", "routed"),
    [
        ({}, True, True),
        ({"supervise": "routed"}, True, True),
        ({"supervise": "off"}, False, False),
        ({"routing": False}, True, False),
        ({"pid_namespace": "host"}, True, False),
    ],
)
def test_what_is_supervised_and_routed(
    keys: dict[str, Any], supervised: bool, routed: bool
) -> None:
    """Filter, supervisor, vessel and PATH directory come and go together."""
    made = plan(**keys)
    path = next(v for v in made.init.process.env if v.startswith("PATH="))

    assert supervised == (made.supervisor is not None) == bool(made.init.seccomp_notify)
    assert routed == bool(made.init.vessel) == (made.hostfs[0].vessel is not None)
    assert routed == path.endswith(":/.launcher/bin")
    assert made.init.reaper


# --- the shell


def test_the_shell_is_the_persons() -> None:
    """Under sudo: login shell, home, ids and groups of the user behind it."""
    made = plan(facts=host(person=DAVE))
    process = made.init.process
    variables = dict(entry.split("=", 1) for entry in process.env)

    assert ("/bin/zsh", "-l") == process.argv
    assert ("/home/dave", "dave", "/bin/zsh") == (
        variables["HOME"], variables["USER"], variables["SHELL"]
    )  # fmt: skip
    assert (1000, 1000, (1000, 27)) == (
        process.credentials.uid, process.credentials.gid, process.credentials.groups
    )  # fmt: skip
    assert ("/work", "/home/dave") == (process.cwd, process.cwd_fallback)


@pytest.mark.parametrize(
    ("bounding", "guard"),
    [(0, 1 << 35), (1 << 35, 1 << 36), ((1 << 41) - 1, 0)],
    ids=["nothing", "wake alarm", "everything"],
)
def test_an_ordinary_persons_shell_is_guarded(bounding: int, guard: int) -> None:
    """It holds one harmless capability that the container lacks, where there is one."""
    made = plan(
        snapshot(capabilities=CapabilitySets(bounding=bounding)),
        host(person=DAVE),
        trust_container=True,
    )
    sets = made.init.process.credentials.capabilities
    assert sets is not None

    assert {guard} == {sets.permitted, sets.effective, sets.inheritable, sets.ambient}
    assert (1 << 41) - 1 == sets.bounding


def test_command_environment_and_directory_are_overridden() -> None:
    """What the configuration says comes before what the person has."""
    made = plan(command=["make", "x"], env={"A": "1", "HOME": "/h"}, cwd="/c/app", clear_env=True)
    variables = dict(entry.split("=", 1) for entry in made.init.process.env)

    assert (("make", "x"), "/c/app") == (made.init.process.argv, made.init.process.cwd)
    assert ("1", "/h") == (variables["A"], variables["HOME"])


@pytest.mark.parametrize(
    ("setting", "interactive", "expected"),
    [("auto", True, True), ("auto", False, False), (True, False, True), (False, True, False)],
)
def test_the_terminal(setting: bool | str, interactive: bool, expected: bool) -> None:
    """auto is what standard input and output are."""
    made = plan(facts=host(interactive=interactive), terminal=setting)

    assert expected == made.init.process.terminal


def test_host_tools_die_first() -> None:
    """The shell's oom score is the highest, so the container's own processes outlive it."""
    assert 1000 == plan().bootstrap.oom_score_adj


def test_the_cgroup_is_entered_late_or_not_at_all() -> None:
    """Not by stage 0, which has /dev/fuse still to open: by the manager, when FUSE is mounted."""
    assert () == plan().bootstrap.cgroups
    assert ("/sys/fs/cgroup/web",) == plan().cgroup_directories
    assert () == plan(cgroup="host").cgroup_directories


def test_the_plan_can_be_printed() -> None:
    """explain shows JSON, with names of variables and never their values."""
    made = plan(snapshot(user_namespace=True, mounts=MOUNTS), env={"TOKEN": "secret"})
    text = json.dumps(describe(made))

    assert "TOKEN" in text
    assert "secret" not in text
    assert "pidfd of the target" in text
