"""System calls as a batch that a stopped vessel runs by itself.

The values of nsstages.syscalls.Call become a table and its data in the vessel's scratch pages; the
vessel's code (machine.py) walks the table and stops at the first call that fails. One stop for the
whole batch instead of one for each call.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from launcher.supervisor import memory, tracer
from launcher.supervisor.machine import MACHINE
from launcher.supervisor.vessel import BATCH, SCRATCH, SCRATCH_SIZE
from nsstages.syscalls import Argument, Call, Packed

_ENTRY: Final = struct.Struct("<Q6QQ")
_MASK: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a batch. ``what`` says it to people; the batch goes on if it ``may_fail``."""

    call: Call
    what: str
    may_fail: bool = False


class InjectionFailed(Exception):
    """A call in the vessel failed."""

    def __init__(self, what: str, error: int) -> None:
        super().__init__(f"{what}: {os.strerror(error)}")
        self.error = error


def table_of(steps: Sequence[Step], base: int) -> bytes:
    """Return the table of ``steps`` and its data as they belong at address ``base``."""
    data = bytearray()
    data_at = base + _ENTRY.size * len(steps)
    table = bytearray()
    for step in steps:
        values = [_value(argument, data, data_at) for argument in step.call.arguments]
        values += [0] * (6 - len(values))
        table += _ENTRY.pack(step.call.number, *values, step.may_fail)
    return bytes(table + data)


def _value(argument: Argument, data: bytearray, data_at: int) -> int:
    if isinstance(argument, int):
        return argument & _MASK
    if isinstance(argument, Packed):
        argument = struct.pack(
            argument.layout, *(_value(value, data, data_at) for value in argument.values)
        )
    data += b"\0" * (-len(data) % 8)
    address = data_at + len(data)
    data += argument + b"\0"
    return address


class Batch:
    """A batch in one vessel: `load` it, let the vessel run, ask what happened."""

    def __init__(self, tid: int, steps: Sequence[Step]) -> None:
        self._tid = tid
        self._steps = steps

    def load(self, registers: tracer.Registers) -> None:
        """Write the batch and point the stopped vessel at it. Raises OSError, InjectionFailed."""
        table = table_of(self._steps, SCRATCH)
        if len(table) > SCRATCH_SIZE:
            raise InjectionFailed(f"{len(table)} bytes of arguments", 7)
        memory.write(self._tid, SCRATCH, table)
        setattr(registers, MACHINE.INSTRUCTION, BATCH)
        setattr(registers, MACHINE.BATCH_TABLE, SCRATCH)
        setattr(registers, MACHINE.BATCH_COUNT, len(self._steps))
        setattr(registers, MACHINE.NUMBER, _MASK)  # no system call to restart
        tracer.set_registers(self._tid, registers)

    def failure(self, registers: tracer.Registers) -> InjectionFailed | None:
        """Return why the stopped vessel's batch ended, None when every call was done."""
        remaining = int(getattr(registers, MACHINE.BATCH_COUNT))
        if not remaining:
            return None
        step = self._steps[len(self._steps) - remaining]
        return InjectionFailed(step.what, -int(getattr(registers, MACHINE.RESULT)) & 0xFFF)
