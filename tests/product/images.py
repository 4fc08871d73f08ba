"""Root file systems of the test containers, made once a session.

    busybox   a static busybox with its absolute links, a program that needs musl's loader
    noshell   two static programs and nothing else
    debian    a Debian tree, bootstrapped once and kept in /var/cache

Each has /image.txt with its name, /bin/pause as its first process, and programs that the host does
not have: /bin/onlyhere (static), /bin/onlylink (an absolute link to it), and where there is a
shell /bin/onlyscript. `shifted` is the same tree owned by the ids that a user namespace maps.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.product import debian
from tests.product.debian import locked
from tests.session import Session

OFFSET: Final = 100000  # where user namespaces of the test containers map id 0
COUNT: Final = 65536
_PROGRAMS: Final = Path(__file__).with_name("programs")
_MUSL_LOADER: Final = "/lib/ld-onlyhere.so.1"  # a name that no host has


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system; ``path`` is a template that nobody writes to."""

    name: str
    path: Path
    has_shell: bool

    @property
    def shifted(self) -> Path:
        """The same tree, owned by ids from OFFSET on."""
        return self.path.with_name(self.name + ".shifted")


def image(session: Session, name: str) -> Image:
    """Return the image ``name``, made now if this session has not made it yet."""
    directory = session.shared / "images"
    directory.mkdir(exist_ok=True)
    made = Image(name, directory / name, has_shell=name != "noshell")
    with locked(directory / f"{name}.lock"):
        if not made.shifted.exists():
            _make(made)
    return made


def _make(image: Image) -> None:
    shutil.rmtree(image.path, ignore_errors=True)  # of an attempt that failed half-way
    RECIPES[image.name](image.path)
    (image.path / "image.txt").write_text(image.name + "\n")
    for name in ("proc", "sys", "dev", "tmp", "run", "etc"):
        (image.path / name).mkdir(exist_ok=True)
    (image.path / "tmp").chmod(0o1777)
    _build_static(image.path, "pause")
    _build_static(image.path, "onlyhere")
    (image.path / "bin/onlylink").symlink_to("/bin/onlyhere")
    if image.has_shell:
        script = image.path / "bin/onlyscript"
        script.write_text('#!/bin/sh\necho "script $0 $*"\nexec onlyhere "$@"\n')
        script.chmod(0o755)
    # under another name first: `shifted` existing says that all of the image is there
    unfinished = image.path.with_name(image.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    subprocess.run(["cp", "-a", image.path, unfinished], check=True)
    _shift(unfinished)
    unfinished.rename(image.shifted)


def _make_busybox(path: Path) -> None:
    (path / "bin").mkdir(parents=True)
    (path / "lib").mkdir()
    shutil.copy("/bin/busybox", path / "bin/busybox")
    listed = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True)
    for applet in set(listed.stdout.split()) - {"busybox"}:
        (path / "bin" / applet).symlink_to("/bin/busybox")
    _write_users(path)
    _build_musl(path)


def _make_noshell(path: Path) -> None:
    (path / "bin").mkdir(parents=True)


def _make_debian(path: Path) -> None:
    path.mkdir()
    subprocess.run(["tar", "-x", "-f", debian.archive(), "-C", path], check=True)
    target = path / "usr/local/bin/onlyglibc"
    subprocess.run(["gcc", "-O1", "-o", target, _PROGRAMS / "onlyhere.c"], check=True)


def _write_users(path: Path) -> None:
    (path / "etc").mkdir()
    (path / "root").mkdir()
    (path / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nworker:x:1234:1234:worker:/tmp:/bin/sh\n"
    )
    (path / "etc/group").write_text("root:x:0:\nworker:x:1234:\n")
    (path / "etc/os-release").write_text('ID=onlyhere\nPRETTY_NAME="busybox test image"\n')


def _build_static(path: Path, name: str) -> None:
    source = _PROGRAMS / f"{name}.c"
    subprocess.run(["musl-gcc", "-O1", "-static", "-o", path / "bin" / name, source], check=True)


def _build_musl(path: Path) -> None:
    """Build a dynamic program whose loader only the container has."""
    target = path / "bin/onlymusl"
    linker = f"-Wl,--dynamic-linker={_MUSL_LOADER}"
    subprocess.run(["musl-gcc", "-O1", linker, "-o", target, _PROGRAMS / "onlyhere.c"], check=True)
    loader = Path(f"/lib/ld-musl-{os.uname().machine}.so.1")
    shutil.copy(loader.resolve(), path / _MUSL_LOADER.lstrip("/"))


def _shift(path: Path) -> None:
    """Give every file to the mapped id. chown(2) drops set-user-id bits: put them back."""
    for directory, subdirectories, files in os.walk(path):
        for name in (".", *files, *(d for d in subdirectories if _is_link(directory, d))):
            target = os.path.join(directory, name)
            facts = os.lstat(target)
            os.lchown(target, facts.st_uid + OFFSET, facts.st_gid + OFFSET)
            if not stat.S_ISLNK(facts.st_mode):
                os.chmod(target, stat.S_IMODE(facts.st_mode))


def _is_link(directory: str, name: str) -> bool:
    return os.path.islink(os.path.join(directory, name))


RECIPES: Final[Mapping[str, Callable[[Path], None]]] = MappingProxyType(
    {"busybox": _make_busybox, "noshell": _make_noshell, "debian": _make_debian}
)
