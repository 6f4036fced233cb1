"""The only code of isolib that makes system calls."""

from __future__ import annotations
