"""What a tree of the overlay driver is made of, as it is written down; see `isolib.unionfs.drivers.overlay`."""

from __future__ import annotations

from dataclasses import dataclass
from secrets import token_hex

__all__ = ["State", "new_part"]


@dataclass(frozen=True, slots=True)
class State:
    """What a tree is made of.

    Attributes
    ----------
    part
        Which is written to; empty: a snapshot, in which none is.
    below
        ``layer NAME`` and ``part NAME``, the topmost first.
    sealing
        The part that is to become the topmost layer, if it is none yet.
    quota
        How many bytes each part may have that is written to; 0: any number.
    """

    part: str
    below: tuple[str, ...]
    sealing: str = ""
    quota: int = 0

    def text(self) -> str:
        """Return it as it is written."""
        return "\n".join((f"{self.part} {self.sealing} {self.quota}", *self.below))

    @classmethod
    def of(cls, text: str) -> State:
        """Return what was written."""
        first, *below = text.split("\n")
        part, sealing, quota = first.split(" ")
        return cls(part, tuple(below), sealing, int(quota))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, the topmost first."""
        return tuple(one.removeprefix("layer ") for one in self.below if one.startswith("layer "))

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts that are not written to, the topmost first."""
        return tuple(one.removeprefix("part ") for one in self.below if one.startswith("part "))


def new_part() -> str:
    """Return a name that no part has had."""
    return token_hex(8)
