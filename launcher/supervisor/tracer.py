"""ptrace(2): the calls of python-ptrace's binding, and those that it lacks.

The only importer of python-ptrace. Its debugger is not used: it polls with sleeps. Every call
raises OSError (ProcessLookupError when the tracee is gone or not stopped), and all calls about one
tracee come from the thread that seized it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any, Final, TypeAlias

from ptrace import PtraceError
from ptrace.binding import REGISTER_NAMES, ptrace_getregs, ptrace_registers_t, ptrace_setregs
from ptrace.binding.func import (
    PTRACE_CONT,
    PTRACE_DETACH,
    PTRACE_EVENT_CLONE,
    PTRACE_EVENT_EXEC,
    PTRACE_EVENT_FORK,
    PTRACE_EVENT_VFORK,
    PTRACE_GETEVENTMSG,
    PTRACE_O_TRACECLONE,
    PTRACE_O_TRACEEXEC,
    PTRACE_O_TRACEFORK,
    PTRACE_O_TRACESYSGOOD,
    PTRACE_O_TRACEVFORK,
    PTRACE_PEEKUSER,
    PTRACE_POKEUSER,
    PTRACE_SYSCALL,
    ptrace,
)

# missing in python-ptrace 0.9.9 (linux/ptrace.h, Linux 3.4 and later)
PTRACE_SEIZE: Final = 0x4206
PTRACE_INTERRUPT: Final = 0x4207
PTRACE_LISTEN: Final = 0x4208
PTRACE_GETSIGMASK: Final = 0x420A
PTRACE_SETSIGMASK: Final = 0x420B
PTRACE_O_EXITKILL: Final = 0x100000
PTRACE_EVENT_STOP: Final = 128

EVENT_EXEC: Final = int(PTRACE_EVENT_EXEC)
EVENT_STOP: Final = PTRACE_EVENT_STOP
EVENT_CLONE: Final = int(PTRACE_EVENT_CLONE)
FORKS: Final = frozenset((PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK, PTRACE_EVENT_CLONE))
SYSCALL_STOP: Final = signal.SIGTRAP | 0x80  # with O_TRACESYSGOOD

ONE_EXEC: Final = PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL
WHOLE_TREE: Final = ONE_EXEC | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE

_OFFSETS: Final = {name: getattr(ptrace_registers_t, name).offset for name in REGISTER_NAMES}
_MASK_SIZE: Final = 8
_ALL_SIGNALS: Final = 2**64 - 1
_message: Final = ctypes.c_ulong()
_message_address: Final = ctypes.addressof(_message)

Registers: TypeAlias = Any  # ptrace_registers_t, a ctypes structure of the machine


def _ptrace(
    request: int, tid: int, address: int = 0, data: int = 0, *, check_errno: bool = False
) -> int:
    try:
        return int(ptrace(request, tid, address, data, check_errno))
    except PtraceError as error:
        code = error.errno or 0
        raise OSError(code, os.strerror(code)) from error


def seize(tid: int, options: int) -> None:
    """Trace ``tid`` without stopping it. EPERM when another tracer has it."""
    _ptrace(PTRACE_SEIZE, tid, 0, options)


def interrupt(tid: int) -> None:
    """Make a seized tracee stop with EVENT_STOP, as soon as it leaves its system call."""
    _ptrace(PTRACE_INTERRUPT, tid)


def resume(tid: int, deliver: int = 0) -> None:
    """Let a stopped tracee run, with the signal ``deliver``."""
    _ptrace(PTRACE_CONT, tid, 0, deliver)


def resume_to_syscall(tid: int, deliver: int = 0) -> None:
    """Let a stopped tracee run until it enters or leaves a system call."""
    _ptrace(PTRACE_SYSCALL, tid, 0, deliver)


def listen(tid: int) -> None:
    """Leave a tracee in its group-stop; SIGCONT or `interrupt` make it report again."""
    _ptrace(PTRACE_LISTEN, tid)


def detach(tid: int, deliver: int = 0) -> None:
    """Stop tracing a stopped tracee; it runs on, or stays in its group-stop."""
    _ptrace(PTRACE_DETACH, tid, 0, deliver)


def peek_register(tid: int, name: str) -> int:
    """Return one register of a stopped tracee, as a signed number."""
    word = _ptrace(PTRACE_PEEKUSER, tid, _OFFSETS[name], check_errno=True)
    return word - 2**64 if word >> 63 else word


def poke_register(tid: int, name: str, value: int) -> None:
    """Set one register of a stopped tracee."""
    _ptrace(PTRACE_POKEUSER, tid, _OFFSETS[name], value & _ALL_SIGNALS)


def event_message(tid: int) -> int:
    """Return the message of the event the tracee stopped for: a tid."""
    _ptrace(PTRACE_GETEVENTMSG, tid, 0, _message_address)
    return _message.value


def get_registers(tid: int) -> Registers:
    """Return the general registers of a stopped tracee."""
    return ptrace_getregs(tid)


def set_registers(tid: int, registers: Registers) -> None:
    """Set the general registers of a stopped tracee."""
    ptrace_setregs(tid, registers)


def block_signals(tid: int) -> int:
    """Block every signal that can be blocked in a stopped tracee; return its former mask."""
    mask = ctypes.c_uint64()
    _ptrace(PTRACE_GETSIGMASK, tid, _MASK_SIZE, ctypes.addressof(mask))
    set_signal_mask(tid, _ALL_SIGNALS)
    return mask.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Set the signal mask of a stopped tracee."""
    value = ctypes.c_uint64(mask)
    _ptrace(PTRACE_SETSIGMASK, tid, _MASK_SIZE, ctypes.addressof(value))
