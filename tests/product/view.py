"""What programs/onlyhere.c prints, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """How one process of a container sees the world; ``facts`` has every line by its key."""

    facts: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, stdout: str) -> View:
        """Parse the whole output of one `onlyhere`."""
        facts: dict[str, list[str]] = {}
        for line in stdout.splitlines():
            key, _, value = line.partition(" ")
            facts.setdefault(key, []).append(value)
        return cls({key: tuple(values) for key, values in facts.items()})

    def one(self, key: str) -> str:
        """Return the only value of ``key``."""
        (value,) = self.facts[key]
        return value

    @property
    def image(self) -> str:
        """The image whose root this is; absent on the host."""
        return self.facts.get("image", ("",))[0]

    @property
    def root(self) -> frozenset[str]:
        """The names in /."""
        return frozenset(self.facts["root"])

    @property
    def environment(self) -> dict[str, str]:
        """The environment."""
        pairs = (line.partition("=") for line in self.facts.get("environment", ()))
        return {name: value for name, _, value in pairs}

    @property
    def namespaces(self) -> dict[str, int]:
        """The namespaces: kind to inode, as in /proc/PID/ns."""
        pairs = (line.partition(":[") for line in self.facts["namespace"])
        return {kind: int(inode.rstrip("]")) for kind, _, inode in pairs}

    @property
    def status(self) -> dict[str, str]:
        """The fields of /proc/self/status, where there is a /proc."""
        pairs = (line.partition(":") for line in self.facts.get("status", ()))
        return {name: value.strip() for name, _, value in pairs}

    @property
    def descriptors(self) -> dict[int, str]:
        """The open descriptors and what they lead to."""
        pairs = (line.partition(" ") for line in self.facts.get("fd", ()))
        return {int(number): target for number, _, target in pairs}
