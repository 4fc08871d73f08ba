"""The same random operations on a native tree and over FUSE: same results, errors and end."""

from __future__ import annotations

import fcntl
import itertools
import os
import stat
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.hostfs.options import HostfsOptions
from tests import needs
from tests.hostfs.conftest import Serve
from tests.hostfs.differential import OMIT, SLOTS, Operation, run
from tests.hostfs.mounted import ROOT, Rights, run_forked

USER: Final = Rights(1001, 1001, (1002,))
NAMES: Final = ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "l", "d/l", "a/x", "missing/x", "ä")

paths = st.sampled_from(NAMES)
modes = st.sampled_from((0o644, 0o600, 0o777, 0o755, 0o000, 0o4755, 0o2775, 0o1777, 0o444))
slots = st.integers(0, SLOTS - 1)
sizes = st.sampled_from((0, 1, 7, 100, 4096, 5000, 70000))
data = st.sampled_from((b"", b"x", b"hello", b"0123456789" * 500))
ids = st.sampled_from((-1, 0, 1001, 1002))
times = st.sampled_from((OMIT, 0, 1_000_000_001, 1_700_000_000_123_456_789, -5_000_000_001))
attributes = st.sampled_from(("user.a", "user.b", "trusted.a", "nothing"))
access = st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
kinds = st.sampled_from((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR))
flags = st.sets(
    st.sampled_from((os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW,
                     os.O_DIRECTORY, os.O_CREAT))
).map(sum)  # fmt: skip
locks = st.sampled_from((fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN))
opening = st.builds(lambda how, more: how | more, access, flags)

OPERATIONS: Final = st.one_of(
    st.tuples(st.just("mkdir"), paths, modes),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("rename"), paths, paths, st.sampled_from((0, 0, 0, 1, 2, 4, 8))),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("symlink"), st.sampled_from((*NAMES, "../a", ".", "l")), paths),
    st.tuples(st.just("readlink"), paths),
    st.tuples(st.just("mknod"), paths, kinds, modes),
    st.tuples(st.just("listdir"), st.sampled_from((".", *NAMES))),
    st.tuples(st.just("lstat"), paths),
    st.tuples(st.just("stat"), paths),
    st.tuples(st.just("fstat"), slots),
    st.tuples(st.just("access"), paths, st.integers(0, 7)),
    st.tuples(st.just("chmod"), paths, modes),
    st.tuples(st.just("fchmod"), slots, modes),
    st.tuples(st.just("chown"), paths, ids, ids),
    st.tuples(st.just("umask"), st.sampled_from((0o022, 0o000, 0o077, 0o777))),
    st.tuples(st.just("utime"), paths, times, times),
    st.tuples(st.just("setxattr"), paths, attributes, data, st.integers(0, 2)),
    st.tuples(st.just("getxattr"), paths, attributes),
    st.tuples(st.just("removexattr"), paths, attributes),
    st.tuples(st.just("listxattr"), paths),
    st.tuples(st.just("open"), slots, paths, opening, modes),
    st.tuples(st.just("open"), slots, paths, st.just(os.O_RDWR | os.O_CREAT), st.just(0o644)),
    st.tuples(st.just("close"), slots),
    st.tuples(st.just("read"), slots, sizes),
    st.tuples(st.just("pread"), slots, sizes, sizes),
    st.tuples(st.just("write"), slots, data),
    st.tuples(st.just("pwrite"), slots, data, sizes),
    st.tuples(st.just("lseek"), slots, sizes, st.integers(0, 2)),
    st.tuples(st.just("ftruncate"), slots, sizes),
    st.tuples(st.just("truncate"), paths, sizes),
    st.tuples(st.just("fsync"), slots),
    st.tuples(st.just("copy"), slots, slots, sizes, sizes, sizes),
    st.tuples(st.just("map"), slots, sizes, data),
    st.tuples(st.just("lock"), slots, locks),
    st.tuples(st.just("contents"), paths),
)  # fmt: skip


@needs.root
@needs.fuse
@pytest.mark.parametrize("rights", [ROOT, USER], ids=["root", "user"])
def test_the_same_as_native(serve: Serve, area: Path, rights: Rights) -> None:
    """Results, error numbers and the tree that is left, for root and for an ordinary user."""
    native = area / "native"
    native.mkdir()
    source = area / "served"
    source.mkdir()
    for directory in (native, source):
        directory.chmod(0o777)
    mount = serve(HostfsOptions(), root=source)
    numbers = itertools.count()

    @settings(
        max_examples=int(os.environ.get("LAUNCHER_EXAMPLES", "150")),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(OPERATIONS, min_size=1, max_size=120))
    def compare(operations: list[Operation]) -> None:
        name = str(next(numbers))
        expected = run_forked(lambda: run_as(rights, native / name, operations))
        actual = mount.run(lambda: run(mount.path / name, operations), rights)
        assert len(expected) == len(actual)
        for operation, one, other in zip(operations, expected, actual, strict=False):
            assert one == other, operation
        assert expected[-1] == actual[-1], "what is left"

    compare()


def run_as(rights: Rights, root: Path, operations: list[Operation]) -> list[Any]:
    """Run natively with the same rights."""
    rights.take()
    return run(root, operations)
