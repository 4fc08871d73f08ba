"""What depends on the processor: audit architectures, ABIs, registers, the vessel's code.

Everything else in the package speaks of "the argument registers of the ABI" and "the batch".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_X32_BIT: Final = 0x40000000


@dataclass(frozen=True, slots=True)
class Abi:
    """One system call interface of the machine; ``arguments`` name its registers in order."""

    audit_arch: int
    execve: int
    execveat: int
    ptrace: int
    ioctl: int
    close: int
    arguments: tuple[str, ...]


_64_BIT: Final = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_32_BIT: Final = ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
_AUDIT_X86_64: Final = 0xC000003E
_AUDIT_I386: Final = 0x40000003


class Amd64:
    """The x86_64 implementation."""

    ELF_MACHINE: Final = 62
    ABIS: Final = (
        Abi(_AUDIT_X86_64, 59, 322, 101, 16, 3, _64_BIT),
        Abi(
            _AUDIT_X86_64,
            execve=_X32_BIT | 520,
            execveat=_X32_BIT | 545,
            ptrace=_X32_BIT | 521,
            ioctl=_X32_BIT | 514,
            close=_X32_BIT | 3,
            arguments=_64_BIT,
        ),
        Abi(_AUDIT_I386, 11, 358, 26, 54, 6, _32_BIT),
    )
    NUMBER: Final = "orig_rax"
    RESULT: Final = "rax"
    STACK: Final = "rsp"
    INSTRUCTION: Final = "rip"
    SYSCALL_SIZE: Final = 2  # of `syscall` and of `int 0x80`
    BATCH_TABLE: Final = "r12"
    BATCH_COUNT: Final = "r13"

    # Run by itself the vessel does exit_group(126).
    EXIT: Final = bytes.fromhex("bf7e000000 b8e7000000 0f05")
    # The batch: r13 times the system call at r12 (number, six arguments, "may fail", 64 bytes in
    # all), until one fails that may not; then a breakpoint. No memory is written.
    BATCH: Final = bytes.fromhex(
        "498b0424"  # mov rax, [r12]
        "498b7c2408"  # mov rdi, [r12+8]
        "498b742410"  # mov rsi, [r12+16]
        "498b542418"  # mov rdx, [r12+24]
        "4d8b542420"  # mov r10, [r12+32]
        "4d8b442428"  # mov r8, [r12+40]
        "4d8b4c2430"  # mov r9, [r12+48]
        "0f05"  # syscall
        "4885c0"  # test rax, rax
        "7908"  # jns next
        "41807c243800"  # cmp byte [r12+56], 0
        "7409"  # je stop
        "4983c440"  # next: add r12, 64
        "49ffcd"  # dec r13
        "75c6"  # jnz batch
        "cc"  # stop: int3
    )


MACHINE: Final = Amd64


_EXECS: Final = {
    (abi.audit_arch, number): abi for abi in MACHINE.ABIS for number in (abi.execve, abi.execveat)
}
_PTRACES: Final = frozenset((abi.audit_arch, abi.ptrace) for abi in MACHINE.ABIS)


def abi_of(audit_arch: int, number: int) -> Abi | None:
    """Return the ABI of a notified execve or execveat, None for another call."""
    return _EXECS.get((audit_arch, number))


def is_ptrace(audit_arch: int, number: int) -> bool:
    """Tell whether a notified system call is ptrace(2)."""
    return (audit_arch, number) in _PTRACES


NOTIFIED: Final = frozenset(
    number for abi in MACHINE.ABIS for number in (abi.execve, abi.execveat, abi.ptrace)
)
ERESTARTSYS: Final = 512  # restarted, but EINTR after a signal handler without SA_RESTART
ERESTARTNOINTR: Final = 513  # always restarted, as the registers then say
ENTERED: Final = 38  # what the result register holds at the entry of a call: -ENOSYS
