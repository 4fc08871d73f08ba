"""A writable root for one container over an image that stays as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nsstages.syscalls import mount, umount2
from tests.product.images import Image
from tests.session import Session


class Overlay:
    """An overlay mount below the worker's directory; ``path`` is the container's root."""

    def __init__(self, session: Session, name: str) -> None:
        self.directory = session.own / name
        self.path = self.directory / "root"

    def mount(self, image: Image, *, shifted: bool) -> Path:
        """Mount it and return the root. The upper layer's owner becomes the root's owner."""
        lower = image.shifted if shifted else image.path
        owner = lower.stat()
        for name in ("root", "upper", "work"):
            (self.directory / name).mkdir(parents=True)
        os.chown(self.directory / "upper", owner.st_uid, owner.st_gid)
        layers = f"lowerdir={lower},upperdir={self.directory}/upper,workdir={self.directory}/work"
        mount("overlay", str(self.path), "overlay", 0, layers)
        return self.path

    def remove(self) -> None:
        """Unmount it and remove what the container wrote."""
        umount2(str(self.path), 0)
        shutil.rmtree(self.directory)
