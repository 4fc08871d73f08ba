"""Seccomp user notification: the filter of the supervised tree, and its listener.

Stage 2's child installs the filter (seccomp_unotify(2), with WAIT_KILLABLE_RECV, Linux 5.19); the
supervisor holds the listener. Imports nothing heavy: the manager needs `filter_program()`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple

from launcher.supervisor.machine import MACHINE

_RET_USER_NOTIF: Final = 0x7FC00000
_RET_ALLOW: Final = 0x7FFF0000
_RET_ERRNO: Final = 0x00050000

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

PTRACE_TRACEME: Final = 0
PTRACE_ATTACH: Final = 16
PTRACE_SEIZE: Final = 0x4206
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C

_RECV: Final = 0xC0502100
_SEND: Final = 0xC0182101
_ID_VALID: Final = 0x40082102
_ADDFD: Final = 0x40182103
_SET_FLAGS: Final = 0x40082104
_SYNC_WAKE_UP: Final = 1
_CONTINUE: Final = 1
_ADDFD_SETFD: Final = 1

_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_RESPONSE: Final = struct.Struct("=QqiI")
_ADD: Final = struct.Struct("=QIIII")
_ID: Final = struct.Struct("=Q")
_EMPTY: Final = bytes(_NOTIFICATION.size)


def filter_program() -> bytes:
    """Return an array of struct sock_filter.

    Notified are execve and execveat of every ABI, and ptrace(2) with TRACEME, ATTACH or SEIZE (all
    of ptrace would make strace several times slower). EPERM for the ioctls that type into the
    terminal: a routed program shares it with a shell of the host. All else is allowed.
    """
    program = []
    for arch in dict.fromkeys(abi.audit_arch for abi in MACHINE.ABIS):
        body = _load(_NUMBER)
        for abi in MACHINE.ABIS:
            if abi.audit_arch == arch:
                body += _when((abi.execve, abi.execveat), _return(_RET_USER_NOTIF))
                body += _when((abi.ptrace,), _by_argument(0, _TAKING_OVER, _RET_USER_NOTIF))
                body += _when((abi.ioctl,), _by_argument(1, _TYPING, _RET_ERRNO | errno.EPERM))
        program += _load(_ARCH) + _when((arch,), body + _return(_RET_ALLOW))
    program += _return(_RET_ALLOW)
    return b"".join(program)


_TAKING_OVER: Final = (PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE)
_TYPING: Final = (_TIOCSTI, _TIOCLINUX)


def _instruction(code: int, value: int, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, on_true, on_false, value)


def _load(offset: int) -> list[bytes]:
    return [_instruction(_LOAD, offset)]


def _return(action: int) -> list[bytes]:
    return [_instruction(_RETURN, action)]


def _when(values: tuple[int, ...], block: list[bytes]) -> list[bytes]:
    """Run ``block`` when the accumulator is one of ``values``; it must return."""
    tests = []
    for position, value in enumerate(values):
        remaining = len(values) - position - 1
        missed = len(block) if not remaining else 0
        tests.append(_instruction(_JUMP_EQUAL, value, remaining, missed))
    return tests + block


def _by_argument(index: int, values: tuple[int, ...], action: int) -> list[bytes]:
    """Return ``action`` when the low word of an argument is one of ``values``, else allow.

    The low word only: the kernel truncates ioctl's and i386's arguments to it.
    """
    low_word = _ARGUMENTS + 8 * index
    return _load(low_word) + _when(values, _return(action)) + _return(_RET_ALLOW)


class Notification(NamedTuple):
    """A thread (``tid`` as the supervisor's PID namespace numbers it) waiting for an answer."""

    id: int
    tid: int
    number: int
    arch: int
    arguments: tuple[int, ...]


class Listener:
    """The listener's end of the filter; the owner of the descriptor closes it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray(_NOTIFICATION.size)
        self._response = bytearray(_RESPONSE.size)
        try:
            # The waiting thread is woken on this CPU at once, since this thread will sleep anyway.
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):  # before Linux 6.6
                raise

    def receive(self) -> Notification | None:
        """Return the next notification; None when the thread died meanwhile."""
        buffer = self._buffer
        buffer[:] = _EMPTY  # the kernel wants zeroes
        try:
            fcntl.ioctl(self.fd, _RECV, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        id_, tid, _, number, arch, _, *arguments = _NOTIFICATION.unpack(buffer)
        return Notification(id_, tid, number, arch, tuple(arguments))

    def let_through(self, id_: int) -> bool:
        """Let the kernel run the call. False when the thread is gone."""
        return self._send(id_, 0, _CONTINUE)

    def refuse(self, id_: int, error: int) -> bool:
        """Fail the call with ``error`` (positive). False when the thread is gone."""
        return self._send(id_, -error, 0)

    def succeed(self, id_: int) -> bool:
        """Make the call return 0 without running it. False when the thread is gone."""
        return self._send(id_, 0, 0)

    def _send(self, id_: int, error: int, flags: int) -> bool:
        _RESPONSE.pack_into(self._response, 0, id_, 0, error, flags)
        try:
            fcntl.ioctl(self.fd, _SEND, self._response)
        except OSError as problem:
            if problem.errno in (errno.ENOENT, errno.EINPROGRESS):
                return False
            raise
        return True

    def is_valid(self, id_: int) -> bool:
        """Tell whether the thread still waits: what /proc said of its tid was about it."""
        try:
            fcntl.ioctl(self.fd, _ID_VALID, _ID.pack(id_))
        except OSError:
            return False
        return True

    def add_fd(self, id_: int, fd: int, number: int | None = None) -> int:
        """Put a close-on-exec duplicate of ``fd`` into the waiting process; return its number.

        Raises OSError: ENOENT when the thread is gone, EBADF for an O_PATH descriptor.
        """
        flags = 0 if number is None else _ADDFD_SETFD
        request = bytearray(_ADD.pack(id_, flags, fd, number or 0, os.O_CLOEXEC))
        number_there: int = fcntl.ioctl(self.fd, _ADDFD, request)
        return number_there
