"""Users of a container: from its own files, as data, bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import TargetMalformed, UnknownUser
from launcher.targets import users
from launcher.targets.users import Databases, User, choose

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
www:x:33:33:www:/var/www:/usr/sbin/nologin
# comment
broken:x:1
dave:x:1000:100:Dave,,,:home/dave:/bin/ash
evil:x:-1:0::/:/bin/sh
"""
GROUP = """\
root:x:0:
www:x:33:
users:x:100:dave
wheel:x:10:root,dave
dup:x:10:dave
bad:x:zz:dave
"""
DATABASES = Databases(PASSWD, GROUP)


@pytest.fixture
def container_root(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory with /etc that stands for a container's root, and its descriptor."""
    (tmp_path / "etc").mkdir()
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield tmp_path, fd
    os.close(fd)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("root", User(0, 0, (10,), "root", "/root", "/bin/sh")),
        ("www", User(33, 33, (), "www", "/var/www", "/usr/sbin/nologin")),
        ("33", User(33, 33, (), "www", "/var/www", "/usr/sbin/nologin")),
        ("dave", User(1000, 100, (100, 10), "dave", "/", "/bin/ash")),
        ("4242", User(4242, 0)),
        ("4242:wheel", User(4242, 10)),
        ("dave:33", User(1000, 33, (), "dave", "/", "/bin/ash")),
        ("root:777", User(0, 777, (), "root", "/root", "/bin/sh")),
    ],
)
def test_a_user_is_found(spec: str, expected: User) -> None:
    """Names, numbers and groups mean what they mean to docker exec -u."""
    assert expected == choose(DATABASES, spec)


@pytest.mark.parametrize("spec", ["nobody", "root:nogroup", "4294967295", "-1", "", "root:", "٣"])
def test_an_unknown_user_is_refused(spec: str) -> None:
    """A name without an entry, and a number that is no id, are refused."""
    with pytest.raises(UnknownUser):
        choose(DATABASES, spec)


def test_an_entry_with_a_bad_id_is_refused() -> None:
    """A user whose entry has an impossible id is named; it does not become root."""
    with pytest.raises(TargetMalformed, match="user 'evil' has the ids '-1':'0'"):
        choose(DATABASES, "evil")


@given(st.text(), st.text(), st.text(min_size=1))
def test_hostile_files_give_valid_ids_or_an_error(passwd: str, group: str, spec: str) -> None:
    """Whatever a container writes into its files, no id outside 0..2^32-2 comes out."""
    try:
        user = choose(Databases(passwd, group), spec)
    except (UnknownUser, TargetMalformed):
        return
    assert all(0 <= number <= 2**32 - 2 for number in (user.uid, user.gid, *user.groups))


def test_files_are_read_inside_the_root(container_root: tuple[Path, int]) -> None:
    """Symbolic links in the container lead to the container's files, never to the host's."""
    root, fd = container_root
    (root / "data").mkdir()
    (root / "data/passwd").write_text("inner:x:5:6::/:/bin/sh\n")
    (root / "etc/passwd").symlink_to("/data/passwd")
    (root / "etc/group").symlink_to("/../../../../etc/hostname")

    assert User(5, 6, (), "inner", "/", "/bin/sh") == users.look_up(fd, "inner")
    assert "" == users.read_databases(fd).group


def test_a_file_that_cannot_be_opened_is_named(container_root: tuple[Path, int]) -> None:
    """A loop of links in place of /etc/passwd is an error that names the file."""
    root, fd = container_root
    (root / "etc/passwd").symlink_to("/etc/passwd")

    with pytest.raises(TargetMalformed, match="/etc/passwd: cannot be read in the container"):
        users.look_up(fd, "root")


def test_a_container_without_files_has_numbers_only(container_root: tuple[Path, int]) -> None:
    """Without /etc/passwd a number is a user and a name is not."""
    _, fd = container_root

    assert User(7, 0) == users.look_up(fd, "7")
    with pytest.raises(UnknownUser):
        users.look_up(fd, "root")


def test_a_fifo_does_not_block(container_root: tuple[Path, int]) -> None:
    """A fifo in place of /etc/passwd is not opened for reading; it counts as empty."""
    root, fd = container_root
    os.mkfifo(root / "etc/passwd")

    assert User(7, 0) == users.look_up(fd, "7")


def test_a_huge_file_is_read_to_a_bound(container_root: tuple[Path, int]) -> None:
    """No more than MAX_FILE bytes of a file are read."""
    root, fd = container_root
    with open(root / "etc/passwd", "wb") as file:
        file.truncate(users.MAX_FILE * 100)

    assert users.MAX_FILE == len(users.read_databases(fd).passwd)
