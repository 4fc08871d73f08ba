"""From a name to a process: state files, sockets and answers of every engine, and their ties."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import targets
from launcher.errors import (
    AmbiguousTarget,
    EngineUnavailable,
    LauncherError,
    TargetError,
    TargetNotFound,
    TargetNotRunning,
)
from launcher.targets import TargetSpec, find, parse_spec, pid, podman, runc, sandbox
from launcher.targets.lookup import Found
from launcher.targets.process import ProcessStat, read_stat

ME = os.getpid()


def start_time() -> int:
    stat = read_stat(ME)
    assert stat is not None
    return stat.start_time


@pytest.fixture
def dead_pid() -> int:
    """A number that a process had and nobody has."""
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    return child.pid


@pytest.fixture(autouse=True)
def no_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point every engine at an empty directory of this test; no podman command is found."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    storage = f'[storage]\ngraphroot = "{tmp_path}/storage"\nrunroot = "{tmp_path}/run"\n'
    (tmp_path / "storage.conf").write_text(storage)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(runc, "_run_directory", lambda runtime: tmp_path / runtime)
    monkeypatch.setattr(sandbox, "_path", lambda: str(tmp_path / "launcher"))
    return tmp_path


@pytest.fixture
def docker(no_engines: Path) -> Iterator[Callable[[int, Any], list[bytes]]]:
    """Answer one request on docker's socket with a status and a JSON value; note the request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(no_engines / "docker.sock"))
    threads: list[threading.Thread] = []

    def answer(status: int, value: Any) -> list[bytes]:
        requests: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                requests.append(connection.recv(4096))
                head = f"HTTP/1.0 {status} Whatever\r\nServer: Docker\r\n\r\n"
                connection.sendall(head.encode() + json.dumps(value).encode())

        listener.listen()
        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return requests

    yield answer
    for thread in threads:
        thread.join(5)
    listener.close()


def write_runc(directory: Path, name: str, pid: int, start: int) -> Path:
    state = directory / "runc" / name
    state.mkdir(parents=True)
    (state / "state.json").write_text(
        json.dumps({"id": name, "init_process_pid": pid, "init_process_start": start})
    )
    return state


def write_podman(directory: Path, *containers: tuple[str, str]) -> None:
    store = directory / "storage/overlay-containers"
    store.mkdir(parents=True)
    (store / "containers.json").write_text(
        json.dumps([{"id": identity, "names": [name]} for identity, name in containers])
    )
    for identity, _ in containers:
        userdata = directory / f"run/overlay-containers/{identity}/userdata"
        userdata.mkdir(parents=True)
        (userdata / "pidfile").write_text(str(ME))
        (userdata / "conmon.pid").write_text(str(os.getppid()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web", TargetSpec("web")),
        ("docker:web", TargetSpec("web", "docker")),
        ("123", TargetSpec("123", "pid")),
        ("runc:123", TargetSpec("123", "runc")),
        ("٣", TargetSpec("٣")),
    ],
)
def test_a_spec_is_parsed(text: str, expected: TargetSpec) -> None:
    """A number is a process; a name may have its engine before it."""
    assert expected == parse_spec(text)


def test_a_process_is_found_by_number() -> None:
    """A pid is found with its start time, so that a reused number is noticed later."""
    assert Found("pid", str(ME), ME, start_time()) == find(str(ME))


def test_a_missing_process_is_said_so(dead_pid: int) -> None:
    """A number that no process has is not found."""
    with pytest.raises(TargetNotFound, match=f"no process '{dead_pid}'"):
        find(str(dead_pid))


def test_a_zombie_is_not_running() -> None:
    """A process that has ended and was not waited for is not a target."""
    child = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    with pytest.raises(TargetNotRunning, match="zombie"):
        find(str(child.pid))

    child.wait()


def test_a_kernel_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel thread has nothing to attach to."""
    thread = ProcessStat(pid=2, state="S", parent=0, is_kernel_thread=True, start_time=1)
    monkeypatch.setattr(pid, "read_stat", lambda _: thread)

    with pytest.raises(TargetError, match="process 2 is a kernel thread"):
        find("2")


@pytest.mark.parametrize("spec", ["", "docker:", "rkt:web"])
def test_a_useless_spec_is_refused(spec: str) -> None:
    """An empty name and an unknown engine are refused with what is possible."""
    with pytest.raises(TargetNotFound) as caught:
        find(spec)
    assert caught.value.hint


def test_an_unknown_name_says_who_was_asked() -> None:
    """Who could not be asked is said, so that a missing engine is not taken for an answer."""
    with pytest.raises(TargetNotFound, match="no running container 'nope'") as caught:
        find("nope")
    assert "docker: no engine listens on" in caught.value.hint


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a\nb", "a b", "-x", "x" * 300])
def test_a_name_is_never_a_path(no_engines: Path, name: str) -> None:
    """A name that is no plain name reaches no file and no socket."""
    write_runc(no_engines, "x", ME, start_time())

    for engine in ("docker", "podman", "runc", "crun", "launcher"):
        with pytest.raises(TargetNotFound):
            find(TargetSpec(name, engine))


def test_docker_is_asked_by_its_socket(docker: Callable[[int, Any], list[bytes]]) -> None:
    """One request with the name; the answer's pid is the target, its name the container's."""
    requests = docker(200, {"Name": "/web", "State": {"Running": True, "Pid": ME}})

    assert Found("docker", "web", ME) == find("docker:3f2a")
    assert requests[0].startswith(b"GET /containers/3f2a/json HTTP/1.0\r\n")


@pytest.mark.parametrize(
    ("status", "value", "error", "message"),
    [
        (404, {"message": "No such container: web"}, TargetNotFound, "no docker container 'web'"),
        (200, {"Name": "/web", "State": {"Running": False, "Pid": 0, "Status": "exited"}},
         TargetNotRunning, r"docker container 'web' is not running \(state: exited\)"),
        (400, {"message": "multiple IDs found with provided prefix: web"}, AmbiguousTarget, "web"),
        (500, {"message": "boom"}, EngineUnavailable, "docker: answered 500: boom"),
        (200, ["nonsense"], EngineUnavailable, "docker: answered 200"),
    ],
)  # fmt: skip
def test_what_docker_answers(
    docker: Callable[[int, Any], list[bytes]],
    status: int,
    value: Any,
    error: type[LauncherError],
    message: str,
) -> None:
    """Unknown, stopped and ambiguous containers and a sick engine each have their own error."""
    docker(status, value)

    with pytest.raises(error, match=message):
        find("docker:web")


def test_a_docker_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of an engine on another machine are not here."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")

    with pytest.raises(EngineUnavailable, match="not on this machine"):
        find("docker:web")


def test_a_runc_container_is_found(no_engines: Path) -> None:
    """The state file's process is the target, with the start time on record."""
    write_runc(no_engines, "box", ME, start_time())

    assert Found("runc", "box", ME, start_time()) == find("box")


def test_a_crun_container_is_found(no_engines: Path) -> None:
    """The state file of crun has other names for the same."""
    (no_engines / "crun/box").mkdir(parents=True)
    state = {"pid": ME, "process-start-time": start_time()}
    (no_engines / "crun/box/status").write_text(json.dumps(state))

    assert Found("crun", "box", ME, start_time()) == find("box")


def test_a_reused_number_is_not_the_container(no_engines: Path) -> None:
    """When another process has the recorded number now, the container has stopped."""
    write_runc(no_engines, "box", ME, start_time() - 1)

    with pytest.raises(TargetNotRunning, match="has stopped"):
        find("box")


def test_a_created_container_is_not_running(no_engines: Path) -> None:
    """A container that waits for its start runs the runtime's program, not its own."""
    state = write_runc(no_engines, "box", ME, start_time())
    (state / "exec.fifo").touch()

    with pytest.raises(TargetNotRunning, match="created but not started"):
        find("box")


@pytest.mark.parametrize("name", ["web", "aaaa1111", "aaaa"])
def test_a_podman_container_is_found(no_engines: Path, name: str) -> None:
    """By name, by id and by the beginning of its id alone, without the podman command."""
    write_podman(no_engines, ("aaaa1111", "web"), ("bbbb2222", "db"))

    assert Found("podman", "web", ME) == find(name)


def test_a_prefix_of_several_ids_is_ambiguous(no_engines: Path) -> None:
    """The candidates are listed as specs that name one each."""
    write_podman(no_engines, ("aa11", "web"), ("aa22", "db"))

    with pytest.raises(AmbiguousTarget) as caught:
        find("aa")
    assert ("podman:aa11", "podman:aa22") == caught.value.candidates


def test_a_podman_process_must_be_its_monitors_child(no_engines: Path) -> None:
    """A process that got the number of a dead container's process is not taken for it."""
    write_podman(no_engines, ("aa11", "web"))
    monitor = no_engines / "run/overlay-containers/aa11/userdata/conmon.pid"
    monitor.write_text("1")

    with pytest.raises(TargetNotRunning, match="podman container 'web' is not running"):
        find("web")


def test_the_podman_command_is_asked_last(no_engines: Path) -> None:
    """A store that only podman knows is still found, by its command."""
    (no_engines / "bin").mkdir()
    script = no_engines / "bin/podman"
    script.write_text(f"#!/bin/sh\necho web {ME} running\n")
    script.chmod(0o755)

    assert Found("podman", "web", ME) == find("web")


def test_the_podman_command_is_not_asked_without_need(no_engines: Path) -> None:
    """When any engine knows the name, no program is started."""
    write_runc(no_engines, "web", ME, start_time())
    (no_engines / "bin").mkdir()
    script = no_engines / "bin/podman"
    script.write_text(f"#!/bin/sh\ntouch {no_engines}/asked\n")
    script.chmod(0o755)

    assert "runc" == find("web").engine
    assert not (no_engines / "asked").exists()


def test_a_name_of_two_engines_is_ambiguous(
    no_engines: Path, docker: Callable[[int, Any], list[bytes]]
) -> None:
    """Two containers with one name: the error lists both with their engines."""
    child = subprocess.Popen(["/bin/sleep", "60"])
    stat = read_stat(child.pid)
    assert stat is not None
    write_runc(no_engines, "web", child.pid, stat.start_time)
    docker(200, {"Name": "/web", "State": {"Running": True, "Pid": ME}})

    with pytest.raises(AmbiguousTarget, match="docker:web, runc:web"):
        find("web")

    child.kill()
    child.wait()


def test_one_container_of_two_engines_is_one(no_engines: Path) -> None:
    """Podman's containers are runc's too: the same process is the same container."""
    write_podman(no_engines, ("aa11", "web"))
    write_runc(no_engines, "aa11", ME, start_time())

    assert "podman:web" == find("aa11").spec


def test_a_name_beats_a_prefix(
    no_engines: Path, docker: Callable[[int, Any], list[bytes]], dead_pid: int
) -> None:
    """A container called "a" is meant, not the one whose id happens to begin with it."""
    write_runc(no_engines, "a", ME, start_time())
    docker(200, {"Name": "/web", "State": {"Running": True, "Pid": dead_pid}})

    assert "runc:a" == find("a").spec


def test_a_running_container_beats_a_stopped_one(
    no_engines: Path, docker: Callable[[int, Any], list[bytes]]
) -> None:
    """A stopped container of another engine is no candidate."""
    write_runc(no_engines, "web", ME, start_time())
    docker(200, {"Name": "/web", "State": {"Running": False, "Status": "exited"}})

    assert "runc:web" == find("web").spec


def test_a_sandbox_is_written_found_and_removed(no_engines: Path) -> None:
    """What `launcher run` records is found by name, and gone when it says so."""
    sandbox.write_state("box", ME, start_time(), ["sleep", "1"])

    assert Found("launcher", "box", ME, start_time()) == find("box")
    assert [("box", ("sleep", "1"))] == [(s.name, s.command) for s in sandbox.list_states()]
    assert 0o700 == (no_engines / "launcher").stat().st_mode & 0o777

    sandbox.remove_state("box", ME)
    sandbox.remove_state("box", ME)

    assert [] == os.listdir(no_engines / "launcher")


def test_a_sandboxs_name_is_unique() -> None:
    """A second container cannot take the name of a running one, and does not harm it."""
    sandbox.write_state("box", ME, start_time(), ["a"])

    with pytest.raises(LauncherError, match=f"named 'box' is running \\(process {ME}\\)"):
        sandbox.write_state("box", os.getppid(), 1, ["b"])
    sandbox.remove_state("box", os.getppid())

    assert ME == find("box").pid


def test_a_stale_sandbox_is_removed(no_engines: Path, dead_pid: int) -> None:
    """The state of a container that ended without saying so is ignored and removed."""
    sandbox.write_state("old", dead_pid, 1, ["a"])
    sandbox.write_state("reused", ME, start_time() - 1, ["a"])
    (no_engines / "launcher/broken.json").write_text("{")
    (no_engines / "launcher/newer.json").write_text('{"version": 99}')

    assert () == sandbox.list_states()
    assert [] == os.listdir(no_engines / "launcher")


@pytest.mark.parametrize("name", ["", "a/b", "..", "12", "a\0b"])
def test_a_sandbox_needs_a_plain_name(no_engines: Path, name: str) -> None:
    """A name that is a path or a number could never be found again."""
    with pytest.raises(LauncherError):
        sandbox.write_state(name, ME, 1, [])
    assert not (no_engines / "launcher").exists()


def test_a_directory_of_somebody_else_is_refused(no_engines: Path) -> None:
    """State files that others may write are not believed: they name processes to act on."""
    (no_engines / "launcher").mkdir()
    (no_engines / "launcher").chmod(0o770)

    with pytest.raises(EngineUnavailable, match="does not belong to user"):
        find("launcher:box")
    with pytest.raises(TargetNotFound, match="no running container"):
        find("box")


def test_a_link_in_place_of_the_directory_is_refused(no_engines: Path) -> None:
    """In a public /tmp the directory's name may be somebody's symbolic link."""
    (no_engines / "launcher").symlink_to(no_engines)

    with pytest.raises(LauncherError, match="launcher: "):
        sandbox.write_state("box", ME, 1, [])


def test_storage_conf_that_is_no_toml_is_named(no_engines: Path) -> None:
    """A broken storage.conf is podman's trouble, said with its path."""
    (no_engines / "storage.conf").write_text("[storage\n")

    with pytest.raises(EngineUnavailable, match=r"storage\.conf"):
        find("podman:web")


def test_every_engine_has_its_own_name() -> None:
    """The registry holds each technology under the name that specs use."""
    assert ["pid", "launcher", "docker", "podman", "runc", "crun"] == list(targets.ENGINES)
    assert podman.PODMAN is targets.ENGINES["podman"]
