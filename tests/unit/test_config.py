"""attach.json, run.json and the options of exec: merging, and every problem at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import config
from launcher.errors import ConfigError, UsageError
from launcher.settings import Attach, IdMapping, Run, Target, chosen

ATTACH_KEYS = (  # part G of the specification
    "target", "command", "user", "cwd", "env", "clear_env", "namespaces", "user_namespace",
    "pid_namespace", "cgroup", "root", "routing", "supervise", "terminal", "timeout", "trace",
)  # fmt: skip
ROOT_KEYS = ("source", "fuse", "read_only", "container_path", "container_access",
             "from_container", "native")  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


def problems_of(make: Any, values: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        make(values)
    return {problem.key: problem.text for problem in caught.value.problems}


def test_nothing_given_is_a_valid_attach() -> None:
    """Every key has a default: the shell joins everything, the root is the host's by FUSE."""
    made = config.attach({})

    assert ("/", True, "/c") == (made.root.source, made.root.fuse, made.root.container_path)
    assert ("join", True, "tree") == (made.pid_mode, made.routes, made.supervise)
    assert made.namespaces is None


def test_all_specified_keys_exist() -> None:
    """The schema of attach.json has every key of the specification, and describes it."""
    definitions = config.schema("attach")["$defs"]

    assert set(ATTACH_KEYS) <= set(definitions["Attach"]["properties"])
    assert set(ROOT_KEYS) == set(definitions["AttachRoot"]["properties"])
    for definition in ("Attach", "AttachRoot"):
        for key, value in definitions[definition]["properties"].items():
            assert value.get("description") or "$ref" in value, key


def test_the_core_example_of_run_is_accepted() -> None:
    """The host's root over FUSE is asked for as {"source": "/", "fuse": true}."""
    made = config.run({"root": {"source": "/", "fuse": True}, "command": ["sh"]})

    assert ("/", True, ("sh",)) == (made.root.source, made.root.fuse, made.command)


def test_a_configuration_is_frozen() -> None:
    """Nothing changes a configuration after it was checked."""
    with pytest.raises(AttributeError):
        config.attach({}).user = "x"  # type: ignore[misc]


def test_all_problems_are_reported_at_once() -> None:
    """Wrong types, unknown keys, missing keys and contradictions come together, by key."""
    found = problems_of(
        config.run,
        {
            "hostnme": "x",
            "oom_score_adj": 2000,
            "mounts": [{"type": "bind", "target": "/x"}, {"type": "nfs", "target": "y"}, {}],
            "root": {"path": "/a", "source": "/b", "fuse": True, "pivot": "yes"},
            "time_offsets": {"monotonic": 1.5},
            "namespaces": ["pid"],
            "loopback": True,
        },
    )

    assert {
        "hostnme", "oom_score_adj", "mounts[0].source", "mounts[1].type", "mounts[1].target",
        "mounts[2].type", "mounts[2].target", "root.pivot", "root.path", "time_offsets.monotonic",
        "loopback", "mounts", "root",
    } >= set(found)  # fmt: skip
    assert 'expected one of "bind"' in found["mounts[1].type"]
    assert "got 'nfs'" in found["mounts[1].type"]
    assert "expected a number from -1000 to 1000, got 2000" == found["oom_score_adj"]
    assert "root.source" in found["root.path"]
    assert "mounts[0].source" in found
    assert "loopback" in found


def test_an_index_is_the_one_that_was_written() -> None:
    """A refused item of a list does not shift the numbers of the contradictions after it."""
    found = problems_of(
        config.run,
        {"uid_map": [{}, {"inside": 0, "outside": 0, "count": 9},
                     {"inside": 8, "outside": 100, "count": 9}]},
    )  # fmt: skip

    assert "overlaps `uid_map[1]` (inside)" == found["uid_map[2]"]
    assert {"uid_map[0].inside", "uid_map[0].outside", "uid_map[0].count"} < set(found)


def test_a_refused_value_causes_no_second_problem() -> None:
    """What is missing because it was refused is not reported as missing too."""
    found = problems_of(config.run, {"root": {"source": 3, "fuse": True}})

    assert ["root.source"] == list(found)


def test_a_value_that_may_be_secret_is_not_shown() -> None:
    """A message about a misplaced value of `env` does not repeat the value."""
    found = problems_of(config.attach, {"env": {"TOKEN": 424242}})

    assert "expected a string without NUL, got a number" == found["env.TOKEN"]


@pytest.mark.parametrize(
    ("values", "key", "named"),
    [
        ({"pid_namespace": "host", "routing": True}, "routing", "pid_namespace"),
        ({"namespaces": ["mnt", "net"], "routing": True}, "routing", "namespaces"),
        ({"supervise": "off", "routing": True}, "routing", "supervise"),
        ({"supervise": "routed", "routing": False}, "routing", "supervise"),
        ({"namespaces": ["mnt"], "pid_namespace": "new"}, "pid_namespace", "namespaces"),
        ({"namespaces": ["mnt", "user"], "user_namespace": "host"}, "user_namespace", "namespaces"),
        ({"namespaces": ["net"]}, "namespaces", "mnt"),
        ({"namespaces": {"mnt": "/run/x"}}, "namespaces", "mnt"),
        ({"target": {"pid": 3, "name": "x"}}, "target", "`pid` alone"),
        ({"target": {"name": "x"}}, "target", "`engine` and `name`"),
        ({"root": {"container_path": "/"}}, "root.container_path", "below /"),
        ({"root": {"container_path": "/proc/c"}}, "root.container_path", "/proc"),
        ({"root": {"container_path": "/run/c"}}, "root.container_path", "root.native"),
        ({"root": {"native": ["/"]}}, "root.native[0]", "below /"),
        ({"root": {"native": ["/x", "/sys/fs"]}}, "root.native[1]", "/sys"),
        ({"root": {"from_container": ["/"]}}, "root.from_container[0]", "below /"),
        ({"command": [""]}, "command[0]", "a program"),
        ({"command": ["a\0b"]}, "command[0]", "NUL"),
        ({"env": {"A=B": "c"}}, "env", "name"),
        ({"env": {"": "c"}}, "env", "name"),
        ({"cwd": "work"}, "cwd", "absolute"),
        ({"cwd": "/a/../b"}, "cwd", ".."),
        ({"timeout": 0}, "timeout", "above 0"),
        ({"timeout": True}, "timeout", "a number"),
        ({"terminal": "yes"}, "terminal", '"auto"'),
        ({"target": ""}, "target", "non-empty"),
    ],
)
def test_attach_refuses(values: dict[str, Any], key: str, named: str) -> None:
    """Each wrong attach.json is refused at its key, naming what was expected or contradicted."""
    found = problems_of(config.attach, values)

    assert [key] == list(found)
    assert named in found[key]


@pytest.mark.parametrize(
    ("values", "key", "named"),
    [
        ({"name": "123"}, "name", "not a number"),
        ({"name": "a/b"}, "name", "letters"),
        ({"hostname": "x" * 65}, "hostname", "1 to 64"),
        ({"hostname": "x", "namespaces": ["mnt"]}, "hostname", "uts"),
        ({"hostname": "x", "namespaces": {"uts": "/run/x"}}, "hostname", "uts"),
        ({"time_offsets": {}, "namespaces": ["mnt"]}, "time_offsets", "time"),
        ({"root": {"fuse": True}}, "root.fuse", "root.source"),
        ({"root": {"source": "/"}}, "root.source", "root.fuse"),
        ({"root": {"path": "/x"}, "namespaces": ["uts"]}, "root", "mnt"),
        ({"mounts": [{"type": "tmpfs", "target": "/"}]}, "mounts[0].target", "below /"),
        ({"mounts": [{"type": "proc", "target": "/p", "source": "/x"}]},
         "mounts[0].source", "proc"),
        ({"uid_map": []}, "uid_map", "1 to 340"),
        ({"gid_map": [{"inside": 1, "outside": 0, "count": 4294967295}]}, "gid_map[0]", "inside"),
        ({"uid_map": [{"inside": 0, "outside": 0, "count": 1}], "namespaces": ["mnt"]},
         "uid_map", "user"),
        ({"namespaces": {"net": "join"}}, "namespaces.net", '"new"'),
        ({"oom_score_adj": -1001}, "oom_score_adj", "-1000"),
    ],
)  # fmt: skip
def test_run_refuses(values: dict[str, Any], key: str, named: str) -> None:
    """Each wrong run.json is refused at its key, naming what was expected or contradicted."""
    found = problems_of(config.run, values)

    assert [key] == list(found)
    assert named in found[key]


@pytest.mark.parametrize(
    ("values", "pid_mode", "routes"),
    [
        ({"pid_namespace": "host"}, "host", False),
        ({"pid_namespace": "new"}, "new", True),
        ({"namespaces": ["mnt", "net"]}, "host", False),
        ({"namespaces": ["mnt", "pid"]}, "join", True),
        ({"supervise": "off"}, "join", False),
        ({"routing": False}, "join", False),
    ],
)
def test_what_is_not_given_follows_from_the_rest(
    values: dict[str, Any], pid_mode: str, routes: bool
) -> None:
    """Without a key of their own, pid namespace and routing follow from the other keys."""
    made = config.attach(values)

    assert (pid_mode, routes) == (made.pid_mode, made.routes)


@pytest.mark.parametrize(
    ("namespaces", "expected"),
    [
        (None, None),
        (("mnt", "net"), {"mnt": None, "net": None}),
        ({"mnt": "join", "net": "/run/netns/x"}, {"mnt": None, "net": "/run/netns/x"}),
        ({"pid": "new"}, {"pid": None}),
    ],
)
def test_both_forms_of_namespaces_mean_the_same(namespaces: Any, expected: Any) -> None:
    """A list and a mapping are both read as kind -> file."""
    assert expected == chosen(namespaces)


def test_a_target_can_be_given_in_each_form() -> None:
    """A string, a pid, and an engine with a name are all targets."""
    assert "docker:web" == config.attach({"target": "docker:web"}).target
    assert Target(pid=7) == config.exec_({"target": {"pid": 7}}).target
    given = {"engine": "runc", "name": "a"}
    assert Target(engine="runc", name="a") == config.attach({"target": given}).target


def test_merge_lays_the_command_line_over_the_file() -> None:
    """Keys of `env` and `root` are laid over one by one, every other value as a whole."""
    base = {"env": {"A": "1", "B": "2"}, "root": {"fuse": True}, "target": {"pid": 1},
            "command": ["a"]}  # fmt: skip
    over = {"env": {"B": "3"}, "root": {"read_only": True}, "target": "web", "command": ["b", "c"]}

    assert {
        "env": {"A": "1", "B": "3"},
        "root": {"fuse": True, "read_only": True},
        "target": "web",
        "command": ["b", "c"],
    } == config.merge(base, over)
    assert {"A": "1", "B": "2"} == base["env"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{\n  "a": 1,\n  b\n}', "line 3, column 3: not JSON"),
        (b"", "line 1, column 1: not JSON"),
        (b'{"a": "\xff"}', "line 1, column 8: not UTF-8"),
        (b'{"a": NaN}', "not JSON"),
        (b"[]", "expected an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * (1024 * 1024 + 1), "at most 1048576 allowed"),
    ],
)
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    """A malformed file is refused with its path and the place of the fault."""
    path = tmp_path / "attach.json"
    path.write_bytes(text)

    with pytest.raises(ConfigError) as caught:
        config.load(str(path))

    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A missing file and a directory are named with the reason."""
    with pytest.raises(ConfigError, match=r"x\.json: cannot be read: No such file"):
        config.load(str(tmp_path / "x.json"))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(str(tmp_path))


def test_a_file_is_read(tmp_path: Path) -> None:
    """A JSON object is returned as it is, unchecked."""
    path = tmp_path / "run.json"
    path.write_text('{"whatever": [1]}')

    assert {"whatever": [1]} == config.load(str(path))


def test_an_unknown_schema_is_a_usage_error() -> None:
    """`launcher schema x` names the schemas that exist."""
    with pytest.raises(UsageError, match="attach, run"):
        config.schema("x")


@pytest.mark.parametrize("name", ["attach", "run"])
def test_a_schema_is_json(name: str) -> None:
    """The schemas name their dialect and refuse unknown keys."""
    schema = config.schema(name)

    assert set(schema) == set(json.loads(json.dumps(schema)))
    assert "2020-12" in schema["$schema"]
    assert all(d["additionalProperties"] is False for d in schema["$defs"].values())


@given(st.dictionaries(st.sampled_from(sorted(Attach.__struct_fields__)) | st.text(), JSON))
def test_any_json_is_accepted_or_refused_by_key(values: dict[str, Any]) -> None:
    """Whatever JSON comes, the answer is a configuration or problems that all have a key."""
    try:
        made = config.attach(values)
    except ConfigError as error:
        keys = {problem.key.split(".")[0].split("[")[0] for problem in error.problems}
    else:
        keys = set()
        assert isinstance(made, Attach)

    refused = set(values) - set(Attach.__struct_fields__)
    assert {name for name in refused if name.isidentifier()} <= keys


@given(st.dictionaries(st.sampled_from(sorted(Run.__struct_fields__)), JSON))
def test_the_walk_and_msgspec_agree(values: dict[str, Any]) -> None:
    """The walk that reports all problems refuses exactly what msgspec refuses."""
    from launcher.schema import check

    try:
        msgspec.convert(values, Run)
        accepted = True
    except msgspec.ValidationError:
        accepted = False

    assert accepted == (not check(values, Run).problems)


@given(
    st.lists(
        st.builds(
            IdMapping,
            inside=st.integers(0, 20),
            outside=st.integers(0, 20),
            count=st.integers(1, 5),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_overlapping_ranges_are_found(ranges: list[IdMapping]) -> None:
    """Ranges are refused exactly when two of them share an id inside or outside."""
    inside = [i for r in ranges for i in range(r.inside, r.inside + r.count)]
    outside = [i for r in ranges for i in range(r.outside, r.outside + r.count)]
    overlap = len(set(inside)) < len(inside) or len(set(outside)) < len(outside)
    values = {"uid_map": msgspec.to_builtins(ranges)}

    if overlap:
        assert all("overlaps" in text for text in problems_of(config.run, values).values())
    else:
        assert tuple(ranges) == config.run(values).uid_map
