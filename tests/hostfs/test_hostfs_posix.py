"""What programs expect of a file system, through the mount."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from launcher.hostfs.options import HostfsOptions
from nsstages.syscalls import Call, execute
from tests import needs
from tests.hostfs.conftest import Serve
from tests.hostfs.mounted import Mounted, Rights, errno_of

pytestmark = [needs.root, needs.fuse]

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


def rename2(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    arguments = (-100, os.fsencode(old), -100, os.fsencode(new), flags)
    execute(Call("renameat2", arguments), str(old))


def test_contents_written_on_one_side_are_read_on_the_other(mount: Mounted, source: Path) -> None:
    """A file written through the mount has the same bytes on the host, and the reverse."""
    data = os.urandom(3_000_000)
    (source / "from-host").write_bytes(data)

    def inside() -> bool:
        (mount.path / "from-mount").write_bytes(data[::-1])
        return (mount.path / "from-host").read_bytes() == data

    assert mount.run(inside)
    assert data[::-1] == (source / "from-mount").read_bytes()


def test_every_kind_of_file_can_be_made(mount: Mounted, source: Path) -> None:
    """Directories, links, fifos, devices and sockets made inside exist on the host."""

    def inside() -> None:
        os.chdir(mount.path)
        os.mkdir("made-directory", 0o750)
        os.symlink("any where", "made-symlink")
        os.link("file", "made-link")
        os.mkfifo("made-fifo", 0o640)
        os.mknod("made-device", stat.S_IFCHR | 0o600, os.makedev(1, 300))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("made-socket")

    mount.run(inside)

    assert 0o40750 == (source / "made-directory").stat().st_mode
    assert "any where" == os.readlink(source / "made-symlink")
    assert 2 == (source / "file").stat().st_nlink
    assert stat.S_IFIFO | 0o640 == (source / "made-fifo").stat().st_mode
    assert os.makedev(1, 300) == (source / "made-device").stat().st_rdev
    assert stat.S_ISSOCK((source / "made-socket").stat().st_mode)


def test_attributes_are_the_hosts(mount: Mounted, source: Path) -> None:
    """stat(2) inside says what it says on the host, device aside."""
    os.chown(source / "file", 12, 34)
    os.chmod(source / "file", 0o4751)
    os.utime(source / "file", ns=(123_456_789_012, 987_654_321_098_765_432))

    def seen(directory: Path) -> list[tuple[int, ...]]:
        stats = [os.lstat(directory / name) for name in ("file", "link", "directory")]
        return [
            (s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size, s.st_blocks, s.st_mtime_ns,
             s.st_atime_ns, s.st_ctime_ns, s.st_ino)
            for s in stats
        ]  # fmt: skip

    assert seen(source) == mount.run(lambda: seen(mount.path))


def test_attributes_can_be_changed(mount: Mounted, source: Path) -> None:
    """chmod, chown, truncate and utimensat work by path, by descriptor and on a symlink."""

    def inside() -> None:
        os.chdir(mount.path)
        os.chmod("file", 0o4711)
        os.truncate("file", 3)
        os.utime("file", ns=(1_000_000_001, 2_000_000_002))
        os.chown("link", 7, 8, follow_symlinks=False)
        os.utime("link", ns=(5, 6), follow_symlinks=False)
        with open("directory/inner", "r+b") as inner:
            os.ftruncate(inner.fileno(), 10_000)
            os.fchmod(inner.fileno(), 0o600)
            os.fchown(inner.fileno(), 1, 2)

    mount.run(inside)

    file, link = (source / "file").stat(), (source / "link").lstat()
    inner = (source / "directory" / "inner").stat()
    assert (0o104711, 3) == (file.st_mode, file.st_size)
    assert (1_000_000_001, 2_000_000_002) == (file.st_atime_ns, file.st_mtime_ns)
    assert (7, 8, 6) == (link.st_uid, link.st_gid, link.st_mtime_ns)
    assert (0o100600, 10_000, 1, 2) == (inner.st_mode, inner.st_size, inner.st_uid, inner.st_gid)


def test_one_time_is_changed_alone(mount: Mounted, source: Path) -> None:
    """`touch -a` leaves the modification time as it is, to the nanosecond."""
    os.utime(source / "file", ns=(11, 22))

    assert 0 == mount.command("touch", "-a", "-d", "@33", "file").status

    status = (source / "file").stat()
    assert (33_000_000_000, 22) == (status.st_atime_ns, status.st_mtime_ns)


def test_set_user_id_bits_go_with_a_write_and_a_chown(mount: Mounted, source: Path) -> None:
    """A write by an ordinary user and a chown clear the bits, as on any file system."""
    for name in ("written", "truncated", "given"):
        (source / name).write_text("x")
        os.chown(source / name, 1000, 1000)
        os.chmod(source / name, 0o6777)

    def write() -> None:
        with open(mount.path / "written", "r+b") as file:
            file.write(b"y")
        os.truncate(mount.path / "truncated", 0)

    mount.run(write, Rights(1000, 1000))
    mount.run(lambda: os.chown(mount.path / "given", 1001, -1))

    modes = [
        stat.S_IMODE((source / name).stat().st_mode) for name in ("written", "truncated", "given")
    ]
    assert [0o777, 0o777, 0o777] == modes


def test_an_open_file_outlives_its_name(mount: Mounted, source: Path) -> None:
    """An unlinked file can be read, written, and asked for its status until it is closed."""

    def inside() -> tuple[bytes, int, int]:
        fd = os.open(mount.path / "file", os.O_RDWR)
        os.unlink(mount.path / "file")
        os.pwrite(fd, b"C", 0)
        os.ftruncate(fd, 4)
        time.sleep(1.2)  # past the attributes' validity: the server is asked
        status = os.fstat(fd)
        data = os.pread(fd, 100, 0)
        os.close(fd)
        return data, status.st_nlink, status.st_size

    assert (b"Cont", 0, 4) == mount.run(inside)
    assert not (source / "file").exists()


def test_a_removed_working_directory_still_has_attributes(mount: Mounted) -> None:
    """A process that stands in a removed directory can look at it, and is told it is empty."""

    def inside() -> tuple[int, int]:
        os.mkdir(mount.path / "gone")
        os.chdir(mount.path / "gone")
        os.rmdir(mount.path / "gone")
        time.sleep(1.2)
        refused = errno_of(partial(os.open, "new", os.O_CREAT | os.O_WRONLY))
        return os.stat(".").st_nlink, refused

    assert (0, errno.ENOENT) == mount.run(inside)


def test_rename_with_flags(mount: Mounted, source: Path) -> None:
    """RENAME_NOREPLACE refuses, RENAME_EXCHANGE swaps, and the plain form replaces."""

    def inside() -> tuple[int, str, str, str]:
        os.chdir(mount.path)
        Path("a").write_text("a")
        Path("b").write_text("b")
        refused = errno_of(partial(rename2, Path("a"), Path("b"), RENAME_NOREPLACE))
        rename2(Path("a"), Path("b"), RENAME_EXCHANGE)
        exchanged = Path("a").read_text() + Path("b").read_text()
        os.rename("a", "b")
        os.rename("directory", "moved")
        return refused, exchanged, Path("b").read_text(), Path("moved/inner").read_text()

    assert (errno.EEXIST, "ba", "b", "inner\n") == mount.run(inside)
    assert ["b", "file", "link", "moved"] == sorted(os.listdir(source))


def test_a_renamed_directory_keeps_its_open_files_and_children(mount: Mounted) -> None:
    """Whoever stands in a directory that is renamed, inside or below, goes on working."""

    def inside() -> tuple[str, str]:
        os.chdir(mount.path)
        os.makedirs("one/two/three")
        os.chdir("one/two/three")
        os.rename(mount.path / "one", mount.path / "uno")
        Path("here").write_text("still")
        return os.getcwd(), (mount.path / "uno/two/three/here").read_text()

    assert (str(mount.path / "uno/two/three"), "still") == mount.run(inside)


def test_two_writers_append_without_loss(mount: Mounted, source: Path) -> None:
    """A file with O_APPEND in both worlds keeps every line, whatever size inside is believed."""
    log = source / "log"
    log.write_text("")

    def inside() -> None:
        with open(mount.path / "log", "ab", buffering=0) as file:
            for _ in range(20):
                file.write(b"inside\n")
                time.sleep(0.003)

    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    pid = os.fork()
    if not pid:
        for _ in range(200):
            os.write(fd, b"host\n")
            time.sleep(0.0005)
        os._exit(0)
    mount.run(inside)
    os.waitpid(pid, 0)
    os.close(fd)

    lines = log.read_text().splitlines()
    assert (20, 200, 220) == (lines.count("inside"), lines.count("host"), len(lines))


def test_a_shared_mapping_is_written_back_in_place(mount: Mounted, source: Path) -> None:
    """Pages of a mapping land where they belong although the file was opened to append."""

    def inside() -> None:
        path = mount.path / "mapped"
        path.write_bytes(b"." * 8192)
        appender = os.open(path, os.O_RDWR | os.O_APPEND)
        with mmap.mmap(appender, 8192) as mapping:
            mapping[0:3] = b"abc"
            mapping[5000:5003] = b"xyz"
            mapping.flush()
        os.write(appender, b"end")
        os.close(appender)

    mount.run(inside)

    data = (source / "mapped").read_bytes()
    assert (b"abc.", b"xyz.", b"end", 8195) == (data[:4], data[5000:5004], data[8192:], len(data))


def test_umask_is_respected(mount: Mounted, source: Path) -> None:
    """Files and directories get the mode that the caller's umask leaves."""

    def inside() -> None:
        os.umask(0o027)
        os.close(os.open(mount.path / "new", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(mount.path / "new-directory", 0o777)

    mount.run(inside)

    assert 0o640 == stat.S_IMODE((source / "new").stat().st_mode)
    assert 0o750 == stat.S_IMODE((source / "new-directory").stat().st_mode)


def test_extended_attributes(mount: Mounted, source: Path) -> None:
    """user, trusted and security attributes and ACLs pass both ways."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind... =ep

    def inside() -> tuple[list[str], bytes, bytes, int]:
        path = mount.path / "file"
        os.setxattr(path, "user.colour", b"blue")
        os.setxattr(path, "trusted.secret", b"x")
        os.setxattr(path, "security.capability", capability)
        os.setxattr(path, "user.gone", b"")
        os.removexattr(path, "user.gone")
        missing = errno_of(partial(os.getxattr, path, "user.gone"))
        return (
            sorted(os.listxattr(path)),
            os.getxattr(path, "user.colour"),
            os.getxattr(path, "security.capability"),
            missing,
        )

    names, colour, read_capability, missing = mount.run(inside)

    assert ["security.capability", "trusted.secret", "user.colour"] == names
    assert (b"blue", capability, errno.ENODATA) == (colour, read_capability, missing)
    assert capability == os.getxattr(source / "file", "security.capability")


def test_access_control_lists_decide(mount: Mounted, source: Path) -> None:
    """A host file that an ACL opens to one user is open to that user, and to no other."""
    acl = acl_of((1, 6, -1), (2, 4, 1000), (4, 0, -1), (16, 4, -1), (32, 0, -1))
    os.setxattr(source / "file", "system.posix_acl_access", acl)

    def read() -> bool:
        return os.access(mount.path / "file", os.R_OK)

    assert mount.run(read, Rights(1000, 1000))
    assert not mount.run(read, Rights(1001, 1001))


def acl_of(*entries: tuple[int, int, int]) -> bytes:
    """Return the value of system.posix_acl_access: (tag, permissions, id) for each entry."""
    packed = [
        tag.to_bytes(2, "little") + permissions.to_bytes(2, "little")
        + (number & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, permissions, number in entries
    ]  # fmt: skip
    return (2).to_bytes(4, "little") + b"".join(packed)


def test_a_large_directory_is_listed_once_and_whole(mount: Mounted, source: Path) -> None:
    """Every name of 5,000 comes exactly once, also when files come and go during the listing."""
    many = source / "many"
    many.mkdir()
    for number in range(5000):
        (many / f"{number:05}").touch()

    def inside() -> tuple[int, int, bool]:
        whole = os.listdir(mount.path / "many")
        seen = []
        with os.scandir(mount.path / "many") as entries:
            for entry in entries:
                seen.append(entry.name)
                if len(seen) == 1000:
                    os.unlink(mount.path / "many" / "00007")
                    (mount.path / "many" / "new").touch()
        stable = {f"{n:05}" for n in range(5000)} - {"00007"}
        return len(whole), len(set(whole)), stable <= set(seen) and len(seen) == len(set(seen))

    assert (5000, 5000, True) == mount.run(inside)


def test_dots_and_kinds_are_listed(mount: Mounted) -> None:
    """`.` and `..` are listed, and every entry says its kind."""
    listed = mount.command("sh", "-c", "ls -aF1").output.split()

    assert ["./", "../", "directory/", "file", "link@"] == listed


def test_names_that_are_no_text(mount: Mounted, source: Path) -> None:
    """Names are bytes: they need not be UTF-8."""
    name = b"caf\xe9 \xff\n"

    def inside() -> list[bytes]:
        directory = os.fsencode(mount.path)
        with open(directory + b"/" + name, "w") as file:
            file.write("x")
        os.symlink(name, directory + b"/to-it")
        os.rename(directory + b"/" + name, directory + b"/directory/" + name)
        return [*os.listdir(directory + b"/directory"), os.readlink(directory + b"/to-it")]

    assert sorted([b"inner", name, name]) == sorted(mount.run(inside))
    assert name in os.listdir(os.fsencode(source / "directory"))


def test_synchronising_and_figures(mount: Mounted, source: Path) -> None:
    """fsync works on files and directories; statfs gives the host's figures."""

    def inside() -> tuple[int, int]:
        for path in ("file", "directory"):
            fd = os.open(mount.path / path, os.O_RDONLY)
            os.fsync(fd)
            os.fdatasync(fd)
            os.close(fd)
        figures = os.statvfs(mount.path)
        return figures.f_blocks * figures.f_frsize, figures.f_namemax

    figures = os.statvfs(source)

    assert (figures.f_blocks * figures.f_frsize, figures.f_namemax) == mount.run(inside)


def test_errors_are_the_hosts(mount: Mounted) -> None:
    """What the host refuses is refused inside with the same errno."""

    def inside() -> list[int]:
        os.chdir(mount.path)
        return [
            errno_of(partial(os.open, "nothing", os.O_RDONLY)),
            errno_of(partial(os.mkdir, "directory")),
            errno_of(partial(os.rmdir, "directory")),
            errno_of(partial(os.rename, "directory", "directory/below")),
            errno_of(partial(os.listdir, "file")),
            errno_of(partial(os.mkdir, "n" * 300)),
            errno_of(partial(os.open, "file", os.O_CREAT | os.O_EXCL)),
            errno_of(partial(os.readlink, "file")),
        ]

    expected = [
        errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.ENOTDIR,
        errno.ENAMETOOLONG, errno.EEXIST, errno.EINVAL,
    ]  # fmt: skip
    assert expected == mount.run(inside)


def test_programs_run_from_the_mount(mount: Mounted, source: Path) -> None:
    """An executable of the host runs through the mount, the second time too."""
    program = source / "program"
    program.write_bytes(Path("/bin/echo").read_bytes())
    program.chmod(0o755)

    runs = [mount.command("./program", "hello").output for _ in range(2)]

    assert ["hello\n", "hello\n"] == runs


def test_nothing_can_be_changed_read_only(serve: Serve, source: Path) -> None:
    """With read_only every change is EROFS, and reading works."""
    mount = serve(HostfsOptions(read_only=True))

    def inside() -> list[int]:
        os.chdir(mount.path)
        attempts: list[Callable[[], object]] = [
            lambda: os.open("file", os.O_WRONLY),
            lambda: os.open("new", os.O_CREAT | os.O_WRONLY),
            lambda: os.open("file", os.O_RDONLY | os.O_TRUNC),
            lambda: os.mkdir("new"),
            lambda: os.unlink("file"),
            lambda: os.rmdir("directory"),
            lambda: os.rename("file", "other"),
            lambda: os.chmod("file", 0o777),
            lambda: os.symlink("x", "new"),
            lambda: os.link("file", "new"),
            lambda: os.setxattr("file", "user.x", b""),
        ]
        return [*map(errno_of, attempts), len(Path("file").read_text())]

    before = (source / "file").stat()
    assert [errno.EROFS] * 11 + [8] == mount.run(inside)
    assert before == (source / "file").stat()


def test_a_client_cannot_start_a_server_side_read_of_a_fifo(mount: Mounted) -> None:
    """A fifo works between two processes inside; the server never opens it."""
    script = "mkfifo pipe; (echo through > pipe &); cat pipe"

    assert "through\n" == mount.command("sh", "-c", script).output


@pytest.mark.parametrize("flags", [os.O_DIRECT, os.O_SYNC, os.O_NOATIME, os.O_NONBLOCK])
def test_open_flags_are_harmless(mount: Mounted, flags: int) -> None:
    """Flags that mean nothing here, or something to the host, do not hinder reading."""

    def inside() -> bytes:
        fd = os.open(mount.path / "file", os.O_RDONLY | flags)
        buffer = mmap.mmap(-1, 4096)
        return buffer[: os.readv(fd, [buffer])]

    assert b"content\n" == mount.run(inside)
