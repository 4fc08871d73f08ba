"""The containers of the product's tests."""

from __future__ import annotations

from tests.product.conftest import containers_unchanged, engines, start

__all__ = ["containers_unchanged", "engines", "start"]
