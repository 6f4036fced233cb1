"""KeyboardInterrupt at a chosen point, for tests of what is left when it comes there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType


def interrupt(turn: int, action: Callable[[], object], counts: Callable[[CodeType], bool]) -> int:
    """Raise KeyboardInterrupt at one of the points where CPython does: when a function is entered, or a call returns.

    Only points in the code that counts are counted.  Returns how many were still to come: 0 where the interrupt came.
    """
    left = turn

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event == "c_call" or frame.f_code is interrupt.__code__ or not counts(frame.f_code):
            return
        left -= 1
        if left == 0:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        action()
    except KeyboardInterrupt:
        assert left == 0
    finally:
        sys.setprofile(None)
    return left
