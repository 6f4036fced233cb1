"""Placeholder until the branch with the real one is merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Ticket:
    """A ticket."""

    def strike(self) -> None:
        """Strike."""


def entrust(bases: Sequence[int], name: str) -> Ticket:
    """Entrust."""
    return Ticket()


def pid() -> int:
    """Return the pid."""
    return 0
