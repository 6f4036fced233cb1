"""Huge pages (Documentation/admin-guide/cgroup-v2.rst, HugeTLB)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from isolib.cgroups.controllers.knobs import Controller, load_limit, show_limit, show_v1_limit
from isolib.cgroups.values import parse_limit
from isolib.errors import PlanError
from isolib.types import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib.cgroups.files import Directory

__all__ = ["Hugetlb", "page_name", "parse_limits", "sizes"]

_FILE: Final = re.compile(r"hugetlb\.(\d+(?:KB|MB|GB))\.(?:max|limit_in_bytes)")


def page_name(size: int | str, what: str = "hugetlb") -> str:
    """Return how the kernel names a size of pages: ``"2MB"``.

    Examples
    --------
    >>> page_name("2M")
    '2MB'
    """
    number = parse_size(size, f"{what}: size of a page")
    for unit, letters in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{letters}"
    raise PlanError(f"{what}: {size!r} is no size of huge pages; 2M and 1G are on x86-64")


def parse_limits(value: object, what: str) -> dict[str, int | None]:
    """Return limits by the name of the page size: ``{"2M": "64M"}`` is 64 MiB of 2 MiB pages."""
    if not hasattr(value, "items"):
        raise PlanError(f"{what}: limits by size of page are wanted, {{'2M': '64M'}}, not {value!r}")
    return {page_name(size, what): parse_limit(limit, what) for size, limit in value.items()}


def sizes(directory: Directory) -> list[str]:
    """Return the sizes of pages that a group counts, as the kernel names them."""
    return sorted({match[1] for name in directory.entries() if (match := _FILE.fullmatch(name))})


class Hugetlb(Controller):
    """The huge pages of a group, by their size."""

    name = "hugetlb"

    @property
    def max(self) -> dict[str, int | None]:
        """Bytes of each size of pages that the group may use at the most: ``{"2MB": None}``; None: no limit."""
        found = sizes(self.directory)
        return {one: load_limit(self.read(*self._files(one, "max", "limit_in_bytes"), "max")) for one in found}

    @max.setter  # noqa: A003 - the property
    def max(self, value: Mapping[int | str, int | str | None]) -> None:
        for size, limit in parse_limits(value, "hugetlb.max").items():
            text = show_limit(limit) if self.is_v2 else show_v1_limit(limit)
            self.write(*self._files(size, "max", "limit_in_bytes"), "max", text)

    def current(self, size: int | str) -> int:
        """Return the bytes of pages of one size that are in use."""
        return int(self.read(*self._files(page_name(size), "current", "usage_in_bytes"), "current"))

    @staticmethod
    def _files(size: str, v2: str, v1: str) -> tuple[str, str]:
        return f"hugetlb.{size}.{v2}", f"hugetlb.{size}.{v1}"
