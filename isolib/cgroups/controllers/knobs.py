"""What the controllers have in common: a directory, and attributes that are files in it.

A controller is an object with a directory of cgroup v2 or of v1.  `Knob` makes an attribute of a pair of files: reading the
attribute reads the file, assigning to it writes it, and the value is the same in both versions.
"""

from __future__ import annotations

from errno import ENOENT
from typing import TYPE_CHECKING, ClassVar, Final, Generic, TypeVar, overload

from isolib.cgroups.values import MAX, V1_UNLIMITED, parse_count, parse_flag, parse_limit, parse_weight
from isolib.errors import GoneError, SyscallError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from isolib.cgroups.files import Directory

__all__ = ["Controller", "Knob", "absent_file", "count", "flag", "number", "size", "weight"]

T = TypeVar("T")

_V2: Final = 2


class Controller:
    """A controller of one group.

    Parameters
    ----------
    directory
        The group's directory in the hierarchy that has the controller, or None.
    refusal
        Why there is none: what every use of the controller raises then.
    """

    #: As cgroup v2 calls it.
    name: ClassVar[str]

    def __init__(self, directory: Directory | None, refusal: Unsupported | None = None) -> None:
        self._directory = directory
        self._refusal = refusal

    @property
    def directory(self) -> Directory:
        """The group's directory in the hierarchy that has this controller."""
        if self._directory is None:
            raise self._refusal or Unsupported(
                f"the {self.name} controller of a control group", "this host, where no hierarchy has it", "mount cgroup2"
            )
        return self._directory

    @property
    def is_v2(self) -> bool:
        """Whether it is in cgroup v2 here."""
        return self.directory.version == _V2

    @property
    def is_available(self) -> bool:
        """Whether this group has it."""
        return self._directory is not None

    def __repr__(self) -> str:
        where = "not available" if self._directory is None else f"{self._directory.path}, v{self._directory.version}"
        return f"<{type(self).__name__} {where}>"

    def read(self, v2: str | None, v1: str | None, what: str) -> str:
        """Return what the file of this version holds, without the line feed at its end."""
        file = self._file(v2, v1, what)
        try:
            return self.directory.read(file).strip()
        except SyscallError as error:
            raise self._rewritten(error, file, what) from None

    def sample(self, v2: str | None, v1: str | None, what: str) -> bytes:
        """As `read`, of a short file that is asked again and again: it stays open."""
        file = self._file(v2, v1, what)
        try:
            return self.directory.sample(file)
        except SyscallError as error:
            raise self._rewritten(error, file, what) from None

    def write(self, v2: str | None, v1: str | None, what: str, value: str) -> None:
        """Write into the file of this version."""
        file = self._file(v2, v1, what)
        try:
            self.directory.write(file, value)
        except SyscallError as error:
            raise self._rewritten(error, file, what) from None

    def _file(self, v2: str | None, v1: str | None, what: str) -> str:
        file = v2 if self.is_v2 else v1
        if file is None:
            version, other = ("v2", "v1") if self.is_v2 else ("v1", "v2")
            raise Unsupported(
                f"{self.name}.{what} of a control group",
                f"cgroup {version}, which has no such thing ({self.directory.path})",
                f"a host whose {self.name} controller is in cgroup {other}",
            )
        return file

    def _rewritten(self, error: SyscallError, file: str, what: str) -> Exception:
        if error.errno == ENOENT and not isinstance(error, GoneError):
            return absent_file(self, file, what)
        return error


def absent_file(controller: Controller, file: str, what: str) -> Unsupported:
    """Return the exception for a file that a group does not have."""
    path = controller.directory.path
    return Unsupported(
        f"{controller.name}.{what} of a control group",
        f"the kernel, which gives {path} no {file}: it is too old, or built or booted without this, or the controller is not "
        f"enabled above",
        f"a newer kernel, or +{controller.name} in cgroup.subtree_control of the group above",
    )


class Knob(Generic[T]):
    """An attribute of a controller that is a file of its group.

    Parameters
    ----------
    v2, v1
        The file in each version, or None.
    parse
        From what the user assigns to a value; raises PlanError.
    show
        From a value to what is written.
    load
        From what is read to a value.
    v1_show, v1_load
        The same for v1, where it differs.
    doc
        The docstring of the attribute.
    """

    def __init__(
        self,
        v2: str | None,
        v1: str | None,
        *,
        parse: Callable[[object, str], T],
        show: Callable[[T], str],
        load: Callable[[str], T],
        v1_show: Callable[[T], str] | None = None,
        v1_load: Callable[[str], T] | None = None,
        doc: str,
    ) -> None:
        self.v2, self.v1 = v2, v1
        self._parse = parse
        self._show = {2: show, 1: v1_show or show}
        self._load = {2: load, 1: v1_load or load}
        self.__doc__ = doc

    def __set_name__(self, owner: type[Controller], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type[Controller]) -> Self: ...

    @overload
    def __get__(self, instance: Controller, owner: type[Controller]) -> T: ...

    def __get__(self, instance: Controller | None, owner: type[Controller]) -> Self | T:
        if instance is None:
            return self
        text = instance.read(self.v2, self.v1, self._name)
        return self._load[instance.directory.version](text)

    def __set__(self, instance: Controller, value: object) -> None:
        wanted = self._parse(value, f"{instance.name}.{self._name}")
        text = self._show[instance.directory.version](wanted)
        instance.write(self.v2, self.v1, self._name, text)


# ---- kinds of values ----


def load_limit(text: str) -> int | None:
    """Return a limit as it is read; None: there is none.  v1 shows the most pages that there can be, and -1 for swap."""
    if text in {MAX, "-1"}:
        return None
    value = int(text)
    return None if value >= V1_UNLIMITED else value


def show_limit(value: int | None) -> str:
    """Return a limit as both versions take it."""
    return MAX if value is None else str(value)


def show_v1_limit(value: int | None) -> str:
    """Return a limit of memory as v1 takes it."""
    return "-1" if value is None else str(value)


def size(v2: str | None, doc: str) -> Knob[int | None]:
    """Return an attribute in bytes, of v2 only."""
    return Knob(v2, None, parse=parse_limit, show=show_limit, load=load_limit, doc=doc)


def count(v2: str, v1: str | None, doc: str) -> Knob[int | None]:
    """Return an attribute that counts things."""
    return Knob(v2, v1, parse=parse_count, show=show_limit, load=load_limit, doc=doc)


def flag(v2: str, v1: str | None, doc: str) -> Knob[bool]:
    """Return an attribute that is on or off."""
    return Knob(v2, v1, parse=parse_flag, show=lambda value: str(int(value)), load=lambda text: text == "1", doc=doc)


def weight(v2: str, doc: str) -> Knob[int]:
    """Return an attribute that is a weight, of v2 only."""
    return Knob(v2, None, parse=parse_weight, show=str, load=int, doc=doc)


def number(controller: Controller, v2: str | None, v1: str | None, what: str) -> int:
    """Return a counter."""
    return int(controller.sample(v2, v1, what))
