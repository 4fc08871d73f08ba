"""Interactive use: a real terminal, a login shell, the keys and the signals of a person."""

from __future__ import annotations

import os
import pwd
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import needs
from tests.product.attached import LAUNCHER, attach
from tests.product.container import Container
from tests.product.interactive import COLUMNS, FEW, ONE, ROWS, Terminal, login, terminal

on_few = pytest.mark.parametrize("container", FEW, indirect=True, ids=str)
on_one = pytest.mark.parametrize("container", ONE, indirect=True, ids=str)


@on_few
def test_a_prompt_after_one_line_of_banner(container: Container, home: Path) -> None:
    """Without a command $SHELL starts as a login shell, below one line that says whose files
    are where.
    """
    own = {"HOME": str(home), "SHELL": "/bin/bash"}
    with terminal(container, environment=own) as person:
        greeting = person.prompt().strip().splitlines()
        shell = person.run('shopt -q login_shell && echo "$0 login"')
        code = person.exit(3)

    assert [
        f"attached to {container.name}: its files are in /c,"
        " all other files are this host's and writable"
    ] == greeting
    assert "/bin/bash login" == shell
    assert 3 == code


@on_few
def test_history_goes_on_in_the_next_attach(container: Container, home: Path) -> None:
    """A command of the first attach is in the second one's history and in the host's file."""
    with login(container, home) as person:
        person.run("echo remember-$((6 * 7))")
        person.exit()
    with login(container, home) as person:
        history = person.run("history")
        person.exit()

    assert "echo remember-$((6 * 7))" in history
    assert "echo remember-$((6 * 7))" in (home / ".bash_history").read_text().splitlines()
    assert os.geteuid() == os.stat(home / ".bash_history").st_uid


@on_one
@needs.user
def test_under_sudo_it_is_the_person_behind(container: Container, home: Path) -> None:
    """sudo's root is not the person: ids, groups, home, shell and history are those of the user
    who called sudo, and so are the owners of new files.
    """
    entry = pwd.getpwnam(needs.USER)
    for path in (home, home / ".bash_profile"):
        os.chown(path, entry.pw_uid, entry.pw_gid)
    behind = {"SUDO_UID": str(entry.pw_uid), "SUDO_GID": str(entry.pw_gid), "HOME": "/root"}
    script = 'echo "$HOME $SHELL $USER $LOGNAME"; id -u; id -g; id -G'
    plain = attach(container, "sh", "-c", script, environment=behind)
    # its real home stays untouched: -e gives another one for the interactive part
    options = ("-e", f"HOME={home}")
    with login(container, home, options=options, **behind) as person:
        person.run("echo remember-me")
        person.exit()

    groups = " ".join(map(str, os.getgrouplist(needs.USER, entry.pw_gid)))
    words = f"{entry.pw_dir} {entry.pw_shell} {needs.USER} {needs.USER}"
    assert [words, str(entry.pw_uid), str(entry.pw_gid), groups] == plain.stdout.splitlines()
    assert "echo remember-me" in (home / ".bash_history").read_text().splitlines()
    assert entry.pw_uid == os.stat(home / ".bash_history").st_uid


@on_one
def test_programs_of_the_container_are_in_a_login_shells_path(
    container: Container, home: Path
) -> None:
    """A login shell reads /etc/profile, which sets PATH; the container's programs stay in it, once
    and last, and the host gets no file for that.
    """
    with login(container, home) as person:
        directories = person.run("echo $PATH").split(":")
        found = person.run("onlyhere exit 5; echo $?").splitlines()[-1]
        of_the_host = person.run("command -v ls")
        person.exit()

    assert "/.launcher/bin" == directories[-1]
    assert 1 == directories.count("/.launcher/bin")
    assert "5" == found
    assert of_the_host in ("/bin/ls", "/usr/bin/ls")
    assert not os.path.lexists("/etc/profile.d/zz-launcher.sh")


@on_few
def test_the_size_follows_the_window(container: Container, home: Path) -> None:
    """The program's terminal has the window's size from the start and after every change."""
    with login(container, home) as person:
        first = person.run("stty size")
        person.child.setwinsize(50, 180)
        second = person.run("sleep 0.1; stty size")
        person.exit()

    assert f"{ROWS} {COLUMNS}" == first
    assert "50 180" == second


@on_few
@pytest.mark.parametrize("sleep", ["sleep", "/c/bin/sleep"])
def test_keys_end_stop_and_resume_jobs(container: Container, home: Path, sleep: str) -> None:
    """Ctrl-C ends the program and not the shell, Ctrl-Z stops it, fg, bg and jobs work; just so
    for a routed program of the container.
    """
    long = f"sh -c 'echo started-$((6 * 7)); exec {sleep} 1000'"
    with login(container, home) as person:
        person.child.sendline(long)
        person.wait_for("started-42")
        person.press("c")
        person.prompt()
        interrupted = person.run("echo $?")
        person.child.sendline(long)
        person.wait_for("started-42")
        person.press("z")
        stopped = person.prompt()
        person.run("bg")
        running = person.run("jobs")
        person.child.sendline("fg")
        person.wait_for("1000")
        person.interrupt()
        left = person.run("jobs")
        code = person.exit()

    assert "130" == interrupted
    assert "Stopped" in stopped
    assert "Running" in running
    assert "" == left
    assert 0 == code


@on_one
@needs.vim
def test_a_full_screen_program(container: Container, home: Path) -> None:
    """vim draws on the whole window, writes a file of the host and gives the terminal back."""
    with login(container, home, TERM="xterm") as person:
        person.child.sendline(f"vim.tiny -u NONE -i NONE {home}/text")
        person.wait_for("\x1b[?1049h")  # the alternate screen
        person.child.send("ifirst line\rsecond line\x1b:wq\r")
        person.wait_for("\x1b[?1049l")
        person.prompt()
        canonical = person.run("stty -a | grep -o ' icanon' | wc -l")
        person.exit()

    assert "first line\nsecond line\n" == (home / "text").read_text()
    assert "1" in canonical


@on_one
def test_exit_codes_on_a_terminal(container: Container) -> None:
    """The program's own; 128 and the signal's number; 127 and 126 for what cannot be run."""
    for script, code in (("exit 0", 0), ("exit 42", 42), ("kill -KILL $$", 137)):
        with terminal(container, "sh", "-c", script) as person:
            assert code == person.end(), script
    for program, code in (("no-such-program", 127), ("/etc/passwd", 126)):
        with terminal(container, program) as person:
            assert code == person.end(), program


def _is_given_back(person: Terminal) -> bool:
    return person.before == person.attributes()


@on_one
def test_the_terminal_is_given_back_at_the_end(container: Container) -> None:
    """Raw while the program runs, and as before after its end and after an error."""
    with terminal(container, "sh", "-c", "echo started; read line") as person:
        person.wait_for("started")
        assert person.is_raw
        person.child.sendline("go")
        assert 0 == person.end()
        assert _is_given_back(person)
    with terminal(container, "no-such-program") as person:
        assert 127 == person.end()
        assert _is_given_back(person)


@on_one
def test_the_terminal_is_given_back_after_sigterm(container: Container) -> None:
    """SIGTERM to the launcher ends the program, and the terminal is as before."""
    with terminal(container, "sh", "-c", "echo started; exec sleep 1000") as person:
        person.wait_for("started")
        os.kill(person.pid, signal.SIGTERM)

        assert 128 + signal.SIGTERM == person.end()
        assert _is_given_back(person)


@pytest.mark.parametrize("engine", [pytest.param("runc", marks=needs.runc),
                                    pytest.param("docker", marks=needs.docker)])  # fmt: skip
def test_the_terminal_is_given_back_when_the_container_dies(
    start: Callable[..., Container], engine: str
) -> None:
    """A container that ends takes the shell along; the launcher says so on a sane terminal."""
    container = start(engine, "busybox")
    with terminal(container, "sh", "-c", "echo started; exec sleep 1000") as person:
        person.wait_for("started")
        os.kill(container.pid, signal.SIGKILL)
        message = person.wait_for("has exited")

        assert container.name in message
        assert 137 == person.end()
        assert _is_given_back(person)


@on_one
def test_a_closed_window_ends_the_shell(container: Container) -> None:
    """A terminal that hangs up ends launcher and program."""
    with terminal(container, "sh", "-c", "echo started; exec sleep 1000") as person:
        person.wait_for("started")
        pidfd = os.pidfd_open(person.pid)
        person.child.ptyproc.fileobj.close()
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        ended = poller.poll(5000)
        os.close(pidfd)

    assert ended


@on_few
def test_bytes_pass_unharmed_without_a_terminal(container: Container, tmp_path: Path) -> None:
    """Every byte value, and 10 MB, come through pipes as they are, in both directions."""
    every = bytes(range(256)) * 64
    much = os.urandom(10_000_000)

    assert every == _through(container, every, "cat")
    assert every == _through(container, every, "/c/bin/cat")
    assert much == _through(container, much, "cat")
    assert much == _through(container, much, "/c/bin/cat")


def _through(container: Container, data: bytes, program: str) -> bytes:
    done = subprocess.run(
        [LAUNCHER, "attach", container.spec, "--", program],
        input=data,
        capture_output=True,
        timeout=60,
        env={**os.environ, **container.engine.environment},
    )
    assert (0, b"") == (done.returncode, done.stderr)
    return done.stdout


@on_one
def test_the_end_of_input_ends_a_reader(container: Container, home: Path) -> None:
    """End of file at a pipe, and Ctrl-D at a terminal, end what reads."""
    assert "3\n" == attach(container, "wc", "-l", stdin="a\nb\nc\n").stdout
    with login(container, home) as person:
        person.child.sendline("echo started-$((6 * 7)); cat; echo over-$((6 * 7))")
        person.wait_for("started-42")
        person.child.sendline("text")
        person.wait_for("text\r\ntext")
        person.press("d")
        person.wait_for("over-42")
        person.prompt()
        person.press("d")
        assert 0 == person.end()


@on_one
def test_a_pipeline_on_a_terminal(container: Container) -> None:
    """With only its output in a pipe the program reads the person's own terminal, which stays as
    it is; Ctrl-C ends it.
    """
    script = "echo started; head -n1; exec sleep 1000"
    with terminal(container, "sh", "-c", script, pipeline="| tr a-z A-Z") as person:
        person.wait_for("STARTED")
        assert not person.is_raw
        person.child.sendline("one line")
        person.wait_for("ONE LINE")
        person.press("c")
        assert 128 + signal.SIGINT == person.end()
        assert _is_given_back(person)


@on_one
def test_a_terminal_can_be_asked_for_or_refused(container: Container) -> None:
    """-t gives a pty though the standard streams are pipes; --no-terminal gives none on one."""
    asked = attach(container, "tty", options=("-t",))
    script = "cut -d' ' -f7 /proc/self/stat; echo end"
    with terminal(container, "sh", "-c", script, options=("--no-terminal",)) as person:
        controlling = person.wait_for("end").split()[-1]
        person.end()

    assert asked.stdout.startswith("/dev/pts/")
    assert 0 == asked.returncode
    assert "0" == controlling
