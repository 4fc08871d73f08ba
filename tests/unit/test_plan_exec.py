"""The plan of an exec: a program as one of the container's own."""

from __future__ import annotations

from typing import Any

import pytest

from launcher import config
from launcher.exec_plan import plan_exec
from launcher.plan import Plan
from launcher.targets.snapshot import Snapshot
from launcher.targets.users import User
from nsstages.credentials import CapabilitySets
from nsstages.init_config import Rlimit, Root
from tests.unit.made_up import (
    DEFAULT_CAPABILITIES,
    OWN,
    PIDFD,
    ROOT_FD,
    THEIRS,
    exec_host,
    references,
    snapshot,
)


def plan(target: Snapshot | None = None, facts: Any = None, **keys: Any) -> Plan:
    """Return the plan for the options of an exec."""
    keys.setdefault("command", ["id"])
    return plan_exec(config.exec_(keys), target or snapshot(), facts or exec_host())


def variables(made: Plan) -> dict[str, str]:
    """Return the program's environment."""
    return dict(entry.split("=", 1) for entry in made.init.process.env)


def joins(made: Plan) -> dict[str, int]:
    """Return kind to descriptor of what is joined."""
    return {join.kind: made.descriptors[join.fd].fd for join in made.bootstrap.joins}


def test_all_of_the_target_is_joined() -> None:
    """Every namespace that is not ours already, the user namespace included; nothing is created."""
    made = plan(snapshot(user_namespace=True))

    assert {kind: 100 + THEIRS[kind] for kind in OWN} | {"user": 199} == joins(made)
    assert () == made.bootstrap.create
    assert "user" not in joins(plan())
    assert PIDFD == made.descriptors[made.bootstrap.target_pidfd].fd


def test_kinds_can_be_chosen() -> None:
    """Like nsenter: without the mount namespace the root stays ours."""
    made = plan(namespaces=["net", "uts"])

    assert {"net", "uts"} == set(joins(made))
    assert (Root.KEEP, ()) == (made.init.root, made.config_descriptors)


def test_a_kind_can_be_a_file() -> None:
    """A file replaces the target's namespace of that kind."""
    facts = exec_host(namespace_files=references({"net": 77}))
    made = plan(facts=facts, namespaces={"net": "/run/netns/x", "mnt": "join"})

    assert {"net": 177, "mnt": 100 + THEIRS["mnt"]} == joins(made)


def test_the_targets_root_is_entered() -> None:
    """By descriptor: the target's root may be another than that of its mount namespace."""
    made = plan()

    assert Root.CHROOT == made.init.root
    assert [ROOT_FD] == [descriptor.fd for descriptor in made.config_descriptors]


def test_the_program_is_as_the_targets_own() -> None:
    """Environment, directory, umask, limits and rights are those of its first process."""
    process = plan().init.process

    assert {"PATH": "/srv/bin:/bin:relative", "A": "1"} == variables(plan())
    assert ("/app", 0o22, (Rlimit(7, 1024, 4096),)) == (
        process.cwd, process.umask, process.rlimits
    )  # fmt: skip
    rights = process.credentials
    assert (0, 0, (0,)) == (rights.uid, rights.gid, rights.groups)
    assert rights.capabilities is not None
    assert DEFAULT_CAPABILITIES == rights.capabilities.effective
    assert not plan().init.reaper


def test_options_come_before_the_targets() -> None:
    """-e, -w and --clear-env; a directory that is asked for has no fallback."""
    made = plan(env={"A": "2"}, cwd="/srv", clear_env=True)

    assert {"A", "PATH"} == set(variables(made))
    assert ("2", "/srv", "/srv") == (
        variables(made)["A"], made.init.process.cwd, made.init.process.cwd_fallback
    )  # fmt: skip
    assert "/" == plan().init.process.cwd_fallback


def test_another_user() -> None:
    """Ids, groups and home of the container's own user database; capabilities only for root."""
    made = plan(facts=exec_host(user=User(33, 34, (35,), "www", "/var/www", "/bin/sh")))
    rights = made.init.process.credentials

    assert (33, 34, (35,)) == (rights.uid, rights.gid, rights.groups)
    assert CapabilitySets(bounding=DEFAULT_CAPABILITIES) == rights.capabilities
    assert "/var/www" == variables(made)["HOME"]

    root = plan(facts=exec_host(user=User(0, 0, (), "root", "/root"))).init.process.credentials
    assert root.capabilities is not None
    assert DEFAULT_CAPABILITIES == root.capabilities.effective


def test_restrictions_are_the_targets() -> None:
    """no_new_privs and the seccomp filters come along, as whatever user."""
    target = snapshot(no_new_privs=True, seccomp_filters=(b"12345678",))
    rights = plan(target, exec_host(user=User(33, 34))).init.process.credentials

    assert (True, (b"12345678",)) == (rights.no_new_privs, rights.seccomp_filters)


def test_groups_are_kept_where_they_may_not_be_set() -> None:
    """A user namespace that denies setgroups."""
    target = snapshot(user_namespace=True, setgroups_allowed=False)

    assert plan(target).init.process.credentials.groups is None
    as_user = plan(target, exec_host(user=User(33, 34, (35,))))
    assert as_user.init.process.credentials.groups is None


@pytest.mark.parametrize(
    ("setting", "interactive", "expected"),
    [("auto", True, True), ("auto", False, False), (True, False, True), (False, True, False)],
)
def test_the_terminal(setting: bool | str, interactive: bool, expected: bool) -> None:
    """With a terminal the program has our TERM, without one the container's or none."""
    made = plan(facts=exec_host(interactive=interactive), terminal=setting)

    assert expected == made.init.process.terminal
    assert ("vt100" if expected else None) == variables(made).get("TERM")


@pytest.mark.parametrize(("privileged", "score"), [(True, -5), (False, None)])
def test_the_oom_score_is_the_targets(privileged: bool, score: int | None) -> None:
    """Where it may be set."""
    made = plan(snapshot(oom_score_adj=-5), exec_host(privileged=privileged))

    assert (score, not privileged) == (made.bootstrap.oom_score_adj, made.bootstrap.rootless)


def test_the_cgroup_is_the_targets_or_ours() -> None:
    """The manager moves stage 2."""
    assert ("/sys/fs/cgroup/web",) == plan().cgroup_directories
    assert () == plan(cgroup="host").cgroup_directories
