"""Rules that say which devices may be used: values, and what a list of them means."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolib.errors import PlanError, from_errno
from isolib.types import check_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Literal, Self, TypeAlias

    from isolib.types import AnyPath

    Kind: TypeAlias = Literal["a", "b", "c"]
    Numbers: TypeAlias = tuple[int | None, int | None]

__all__ = [
    "ACCESSES",
    "STANDARD_DEVICES",
    "DeviceRule",
    "check_rules",
    "decisive",
    "evaluate",
    "granted",
    "in_order",
    "rule_text",
]

MAX_MAJOR: Final = (1 << 12) - 1
MAX_MINOR: Final = (1 << 20) - 1  # linux/kdev_t.h

ACCESSES: Final = "rwm"
"""The kinds of access, in the order in which the kernel lists them."""

_TEXT: Final = re.compile(r"(?P<kind>[abc])[ \t]+(?P<major>\*|[0-9]{1,10}):(?P<minor>\*|[0-9]{1,10})[ \t]+(?P<access>[rwm]+)")


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """What may, or may not, be done with a device or with several.

    Parameters
    ----------
    kind
        ``"c"``: character devices; ``"b"``: block devices; ``"a"``: both.
    major, minor
        The device's numbers; None: any.
    access
        A selection of ``r`` (open for reading), ``w`` (open for writing), ``m`` (make a node: mknod(2)).
    allow
        False: it is denied.

    Raises
    ------
    PlanError
        An argument cannot work.

    Notes
    -----
    Rules make a list. They apply in its order: of those that say something about an access, the last decides, and what none
    allows is denied.

    Examples
    --------
    >>> DeviceRule("c", 1, 3, "wr")
    DeviceRule(kind='c', major=1, minor=3, access='rw', allow=True)
    """

    kind: Kind
    major: int | None = None
    minor: int | None = None
    access: str = ACCESSES
    allow: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("a", "b", "c"):
            raise PlanError(f"DeviceRule: kind={self.kind!r}: it is 'c', 'b', or 'a' for both")
        _check_number("major", self.major, MAX_MAJOR)
        _check_number("minor", self.minor, MAX_MINOR)
        object.__setattr__(self, "access", _check_access(self.access, "DeviceRule: access"))
        if not isinstance(self.allow, bool):
            raise PlanError(f"DeviceRule: allow={self.allow!r}: it is True or False")

    @classmethod
    def parse(cls, text: str, *, allow: bool = True) -> Self:
        """Make a rule from the text that cgroup v1 and the OCI's tools use: ``"c 1:3 rwm"``, ``"b *:* m"``; ``"a"`` is all.

        After an ``a``, v1 ignores the rest; here it means what it says.

        Raises
        ------
        PlanError
            It is no such text.

        Examples
        --------
        >>> DeviceRule.parse("c 136:* rw")
        DeviceRule(kind='c', major=136, minor=None, access='rw', allow=True)
        """
        found = _TEXT.fullmatch("a *:* rwm" if text == "a" else str(text))
        if found is None:
            raise PlanError(f"DeviceRule.parse: text={text!r}: it is like 'c 1:3 rwm', with '*' for any number")
        major, minor = (None if found[name] == "*" else int(found[name]) for name in ("major", "minor"))
        kind: Kind = "a" if found["kind"] == "a" else "b" if found["kind"] == "b" else "c"
        return cls(kind, major, minor, found["access"], allow)

    @classmethod
    def of(cls, path: AnyPath, access: str = ACCESSES, *, allow: bool = True) -> Self:
        """Make a rule for the device behind a node on this host; symbolic links are followed.

        Raises
        ------
        PlanError
            It is no device.
        SyscallError
            It cannot be looked at.

        Examples
        --------
        >>> DeviceRule.of("/dev/null", "rw")
        DeviceRule(kind='c', major=1, minor=3, access='rw', allow=True)
        """
        name = check_path(path, "DeviceRule.of: path")
        try:
            status = os.stat(name)
        except OSError as error:
            raise from_errno("stat", name, error.errno or 0) from error
        if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise PlanError(f"DeviceRule.of: path={name!r}: it is no device")
        kind: Kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
        return cls(kind, os.major(status.st_rdev), os.minor(status.st_rdev), access, allow)

    @property
    def text(self) -> str:
        """The rule in the form that `parse` takes."""
        return rule_text(self.kind, (self.major, self.minor), self.access)

    def __str__(self) -> str:
        return f"{'allow' if self.allow else 'deny'} {self.text}"


def _check_number(name: str, value: object, most: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most):
        raise PlanError(f"DeviceRule: {name}={value!r}: it is a number from 0 to {most}, or None for any")


def _check_access(value: object, what: str) -> str:
    if not isinstance(value, str) or not value or not set(value) <= set(ACCESSES) or len(set(value)) < len(value):
        raise PlanError(f"{what}={value!r}: it is a selection of 'r', 'w' and 'm', each once")
    return in_order(value)


def in_order(letters: Iterable[str]) -> str:
    """Return accesses in the kernel's order."""
    chosen = set(letters)
    return "".join(letter for letter in ACCESSES if letter in chosen)


def rule_text(kind: str, numbers: Numbers, letters: str) -> str:
    """Return a rule as cgroup v1 writes it."""
    major, minor = ("*" if number is None else number for number in numbers)
    return f"{kind} {major}:{minor} {letters}"


STANDARD_DEVICES: Final = tuple(
    DeviceRule.parse(text)
    for text in (
        *("c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rw"),
        "c 0:0 m",  # old kernels ask about whiteouts, also where overlayfs makes them
    )
)
"""What every program may use: null, zero, full, random, urandom, tty, ptmx, and the terminals of devpts; and make: whiteouts.

To make nodes of other devices is not among them, though runc and Docker allow that (``c *:* m``, ``b *:* m``, which can be
added). A node outlives its group: one that a root in the group makes in a directory that it shares with the host opens the
device to those who are outside. Whoever unpacks images needs only whiteouts; and a sandbox in a user namespace cannot make
devices anyway. Nor is 5:1 among them: it is the host's console, and a container's /dev/console is a terminal of devpts.
"""


# ---- what rules mean ----


def evaluate(rules: Iterable[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    """Return whether rules allow a request: whether, of each access in it, the last rule that speaks of it allows it.

    This is the definition; the two forms decide alike. A request for nothing is allowed.

    Examples
    --------
    >>> evaluate(STANDARD_DEVICES, "c", 1, 3, "rw"), evaluate(STANDARD_DEVICES, "b", 7, 0, "r")
    (True, False)
    """
    return set(access) <= set(granted(check_rules(rules), kind, (major, minor)))


def decisive(rules: Sequence[DeviceRule], kind: str, numbers: Numbers, letter: str) -> DeviceRule | None:
    """Return the rule that decides; None in the numbers: a device whose number no rule names."""
    for rule in reversed(rules):
        concerned = rule.kind in ("a", kind) and rule.major in (None, numbers[0]) and rule.minor in (None, numbers[1])
        if concerned and letter in rule.access:
            return rule
    return None


def granted(rules: Sequence[DeviceRule], kind: str, numbers: Numbers) -> str:
    """Return the accesses that are allowed; numbers as in `decisive`."""
    deciding = {letter: decisive(rules, kind, numbers, letter) for letter in ACCESSES}
    return in_order(letter for letter, rule in deciding.items() if rule is not None and rule.allow)


def check_rules(rules: Iterable[DeviceRule]) -> tuple[DeviceRule, ...]:
    """Return rules, when they are some."""
    try:
        checked = tuple(rules)
    except TypeError:
        raise PlanError(f"devices={rules!r}: it is a list of DeviceRule") from None
    for index, rule in enumerate(checked):
        if not isinstance(rule, DeviceRule):
            raise PlanError(f"devices[{index}]={rule!r}: it is no DeviceRule; DeviceRule.parse makes one of a text")
    return checked
