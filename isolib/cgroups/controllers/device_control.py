"""The devices that a group may use, as a controller like the others: rules that are read and assigned."""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from isolib.cgroups.controllers import devices
from isolib.cgroups.controllers.device_rules import DeviceRule
from isolib.cgroups.controllers.knobs import Controller
from isolib.errors import PermissionDenied, PlanError, SyscallError, Unsupported, from_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from isolib._kernel.handle import Fd
    from isolib.cgroups.files import Directory

__all__ = ["Devices", "parse_rules"]


def parse_rules(value: object, what: str) -> tuple[DeviceRule, ...]:
    """Return a list of rules; a text is read as `DeviceRule.parse` does.

    Raises
    ------
    PlanError
        It is no list, or holds something else.
    """
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise PlanError(f"{what}: a list of DeviceRule is wanted, not {value!r}")
    rules = []
    for one in value:
        rule = DeviceRule.parse(one) if isinstance(one, str) else one
        if not isinstance(rule, DeviceRule):
            raise PlanError(f"{what}: a DeviceRule is wanted, not {one!r}")
        rules.append(rule)
    devices.program(rules)  # raises when there are too many
    return tuple(rules)


class Devices(Controller):
    """The devices that a group may use: by a BPF program in cgroup v2, by the files of v1 where that is refused.

    Parameters
    ----------
    directory
        In v2, or None.
    legacy
        Finds the directory in v1, or raises its refusal.
    """

    name = "devices"

    def __init__(self, directory: Directory | None, legacy: Callable[[], Directory]) -> None:
        super().__init__(directory)
        self._legacy = legacy
        self._rules: tuple[DeviceRule, ...] | None = None
        self._program: Fd | None = None

    @property
    def is_available(self) -> bool:
        """Whether rules can be tried to be set."""
        if self._directory is not None:
            return True
        try:
            self._legacy()
        except Unsupported:
            return False
        return True

    @property
    def rules(self) -> tuple[DeviceRule, ...] | None:
        """The rules that were set; None: none, and what binds the group above binds this one only.

        Raises
        ------
        Unsupported
            When assigning: neither v2 nor v1 takes rules from this user.
        SyscallError
            When assigning in v1, with EINVAL: a group that has others below it cannot be given other rules.
        """
        return self._rules

    @rules.setter
    def rules(self, value: Iterable[DeviceRule | str]) -> None:
        wanted = parse_rules(value, "devices.rules")
        if self._directory is None:
            self._write(self._legacy(), wanted)
        else:
            try:
                self._attach(self._directory, wanted)
            except (Unsupported, PermissionDenied) as refusal:
                self._write(self._legacy_instead(refusal), wanted)
        self._rules = wanted

    def _attach(self, directory: Directory, wanted: tuple[DeviceRule, ...]) -> None:
        if self._program is None:
            self._program = devices.attach(directory.fileno(), wanted)
        else:
            self._program = devices.replace(directory.fileno(), self._program, wanted)

    def _legacy_instead(self, refusal: Unsupported | PermissionDenied) -> Directory:
        if self._program is not None:
            raise refusal
        try:
            return self._legacy()
        except Unsupported:
            if isinstance(refusal, Unsupported):
                raise refusal from None
            raise Unsupported(
                "device rules of a control group", f"the kernel: bpf: {refusal.strerror}", refusal.hint or "root of the host"
            ) from refusal

    def _write(self, directory: Directory, wanted: tuple[DeviceRule, ...]) -> None:
        """Replace the rules in v1; where a rule is refused, those before hold again."""
        writes = devices.v1_writes(wanted)
        if self._rules is not None and ("devices.allow", "a") in writes and directory.read("cgroup.procs").strip():
            raise Unsupported(
                "device rules that allow all but some, for processes that run",
                "cgroup v1, which would allow them all for a moment",
                "set them before a process is started; or allow the devices one by one; or use cgroup v2",
            )
        before = self._held(directory)
        first, *others = writes
        try:
            directory.write(*first)
        except SyscallError as error:
            if error.errno != EINVAL:
                raise
            hint = "in cgroup v1 only a group that has none below can be given other rules; or use cgroup v2"
            raise from_errno(error.op, error.target, EINVAL, hint) from None
        try:
            for file, text in others:
                directory.write(file, text)
        except SyscallError:
            for file, text in before:
                directory.write(file, text)
            raise

    def _held(self, directory: Directory) -> list[tuple[str, str]]:
        """Return what to write so that the rules of now hold again."""
        if self._rules is not None:
            return devices.v1_writes(self._rules)
        lines = directory.read("devices.list").splitlines()  # what the group above has
        return [("devices.deny", "a"), *(("devices.allow", "a" if line.startswith("a") else line) for line in lines)]
