"""The expressions that a rule of nftables is made of, as values: to bytes and back.

A rule is a list of them, which the kernel goes through for each packet.  They work on registers: one loads a field of the
packet, the next compares it, and the rule ends there when they differ.  The kernel has 64 bytes of registers; `register` names
a place in them by its number of four bytes.

Source: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, cast

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.codec import MalformedError
from isolib._kernel.netlink.nft_numbers import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

__all__ = [
    "ACCEPT",
    "DROP",
    "Bitwise",
    "Byteorder",
    "Compare",
    "Counter",
    "Ct",
    "Expression",
    "Fib",
    "Lookup",
    "Masquerade",
    "Meta",
    "Nat",
    "Numgen",
    "Payload",
    "Reject",
    "Unknown",
    "Verdict",
    "decode",
    "encode",
    "register",
]

_REGISTERS: Final = 16
_FIRST: Final = 1  # NFT_REG_1, the first of the registers of 16 bytes
_FIRST_SHORT: Final = 8  # NFT_REG32_00, the first of those of four
_PER_LONG: Final = 4

_EXPRESSION_NAME: Final = 1
_EXPRESSION_DATA: Final = 2
_DATA_VALUE: Final = 1
_DATA_VERDICT: Final = 2
_VERDICT_CODE: Final = 1
_VERDICT_CHAIN: Final = 2


def register(word: int) -> int:
    """Return the number of the register that begins at one of the sixteen words, as the kernel itself names it.

    Examples
    --------
    >>> [register(word) for word in range(6)]
    [1, 9, 10, 11, 2, 13]
    """
    if not 0 <= word < _REGISTERS:
        raise ValueError(f"nftables has {_REGISTERS} registers of four bytes, and no number {word}")
    return _FIRST_SHORT + word if word % _PER_LONG else _FIRST + word // _PER_LONG


# ---- fields of an expression ----


class _Form(NamedTuple):
    """How a field stands in an attribute."""

    encode: Callable[[int, object], bytes]
    decode: Callable[[bytes], object]


def _big(size: int, kind: int, value: object) -> bytes:
    return codec.attribute(kind, int(cast("int", value)).to_bytes(size, "big"))


def _number(size: int) -> _Form:
    def read(data: bytes) -> int:
        if len(data) != size:
            raise MalformedError(f"a number of {size} bytes has {len(data)}")
        return int.from_bytes(data, "big")

    return _Form(lambda kind, value: _big(size, kind, value), read)


def _read_value(data: bytes) -> bytes:
    try:
        return codec.table(data)[_DATA_VALUE]
    except KeyError:
        raise MalformedError("data without a value") from None


_BYTE: Final = _number(1)
_WORD: Final = _number(4)
_LONG: Final = _number(8)
_TEXT: Final = _Form(lambda kind, value: codec.text(kind, cast("str", value)), codec.word)
_DATA: Final = _Form(
    lambda kind, value: codec.nested(kind, codec.attribute(_DATA_VALUE, cast("bytes", value))),
    _read_value,
)


class _Field(NamedTuple):
    """A field of an expression: the kind of its attribute, and its form.  What is None is left out."""

    name: str
    kind: int
    form: _Form = _WORD


class Expression:
    """One step of a rule."""

    __slots__ = ()

    word: ClassVar[str]
    """The kernel's name for it."""
    _fields: ClassVar[tuple[_Field, ...]] = ()

    def data(self) -> bytes:
        """Return its attributes."""
        values = ((one, getattr(self, one.name)) for one in self._fields)
        return b"".join(one.form.encode(one.kind, value) for one, value in values if value is not None)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return an expression from its attributes.

        Raises
        ------
        MalformedError, TypeError, ValueError
            They are not those of such an expression.
        """
        found = codec.table(data)
        return cls(**{one.name: one.form.decode(found[one.kind]) for one in cls._fields if one.kind in found})


@dataclass(frozen=True, slots=True)
class Payload(Expression):
    """Load a part of the packet."""

    base: int
    offset: int
    length: int
    register: int = 1

    word: ClassVar[str] = "payload"
    _fields: ClassVar = (_Field("register", 1), _Field("base", 2), _Field("offset", 3), _Field("length", 4))


@dataclass(frozen=True, slots=True)
class Meta(Expression):
    """Load what is known of the packet into a register, or set it from ``source``."""

    key: int
    register: int | None = None
    source: int | None = None

    word: ClassVar[str] = "meta"
    _fields: ClassVar = (_Field("key", 2), _Field("register", 1), _Field("source", 3))


@dataclass(frozen=True, slots=True)
class Ct(Expression):
    """Load what is known of the packet's connection, or set it from ``source``."""

    key: int
    register: int | None = None
    direction: int | None = None
    source: int | None = None

    word: ClassVar[str] = "ct"
    _fields: ClassVar = (_Field("register", 1), _Field("key", 2), _Field("direction", 3, _BYTE), _Field("source", 4))


@dataclass(frozen=True, slots=True)
class Compare(Expression):
    """Go on only where a register compares with a value like this."""

    op: int
    value: bytes
    register: int = 1

    word: ClassVar[str] = "cmp"
    _fields: ClassVar = (_Field("register", 1), _Field("op", 2), _Field("value", 3, _DATA))


@dataclass(frozen=True, slots=True)
class Bitwise(Expression):
    """Mask the bits of a register, then exchange those of ``xor``."""

    mask: bytes
    xor: bytes
    register: int = 1
    into: int = 1

    word: ClassVar[str] = "bitwise"

    def data(self) -> bytes:
        """Return its attributes."""
        fields = (_WORD.encode(1, self.register), _WORD.encode(2, self.into), _WORD.encode(3, len(self.mask)))
        return b"".join((*fields, _DATA.encode(4, self.mask), _DATA.encode(5, self.xor)))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return it from its attributes."""
        found = codec.table(data)
        if any(found.get(6, b"")):
            raise MalformedError("a shift, and no mask")
        registers = (cast("int", _WORD.decode(found[kind])) for kind in (1, 2))
        return cls(_read_value(found[4]), _read_value(found[5]), *registers)


@dataclass(frozen=True, slots=True)
class Byteorder(Expression):
    """Change the byte order of numbers of ``size`` bytes in a register: 0 to the machine's, 1 to the network's."""

    op: int
    length: int
    size: int
    register: int = 1
    into: int = 1

    word: ClassVar[str] = "byteorder"
    _fields: ClassVar = (
        _Field("register", 1),
        _Field("into", 2),
        _Field("op", 3),
        _Field("length", 4),
        _Field("size", 5),
    )


@dataclass(frozen=True, slots=True)
class Lookup(Expression):
    """Go on only where a set has what is in a register (``flags`` 1: has not); of a map, load what it is mapped to."""

    set: str
    register: int = 1
    into: int | None = None
    flags: int = 0

    word: ClassVar[str] = "lookup"
    _fields: ClassVar = (_Field("set", 1, _TEXT), _Field("register", 2), _Field("into", 3), _Field("flags", 5))


@dataclass(frozen=True, slots=True)
class Counter(Expression):
    """Count what comes as far as here."""

    packets: int = 0
    bytes: int = 0

    word: ClassVar[str] = "counter"
    _fields: ClassVar = (_Field("bytes", 1, _LONG), _Field("packets", 2, _LONG))


@dataclass(frozen=True, slots=True)
class Numgen(Expression):
    """Load a number below ``modulus``, plus ``offset``, in the machine's byte order: the next one (``type`` 0), or any (1)."""

    modulus: int
    type: int = 1
    offset: int = 0
    register: int = 1

    word: ClassVar[str] = "numgen"
    _fields: ClassVar = (_Field("register", 1), _Field("modulus", 2), _Field("type", 3), _Field("offset", 4))


@dataclass(frozen=True, slots=True)
class Fib(Expression):
    """Load what the routing table says of the packet's source (``flags`` 1) or destination (2)."""

    result: int
    flags: int
    register: int = 1

    word: ClassVar[str] = "fib"
    _fields: ClassVar = (_Field("register", 1), _Field("result", 2), _Field("flags", 3))


@dataclass(frozen=True, slots=True)
class Reject(Expression):
    """Drop the packet and tell its sender so."""

    type: int
    code: int | None = None

    word: ClassVar[str] = "reject"
    _fields: ClassVar = (_Field("type", 1), _Field("code", 2, _BYTE))


@dataclass(frozen=True, slots=True)
class Masquerade(Expression):
    """Give the connection the address of the interface that it leaves by as its source."""

    flags: int | None = None

    word: ClassVar[str] = "masq"
    _fields: ClassVar = (_Field("flags", 1),)


@dataclass(frozen=True, slots=True)
class Nat(Expression):
    """Give the connection another source (``type`` 0) or destination (1): what the registers have."""

    type: int
    family: int
    address: int
    port: int | None = None
    flags: int | None = None

    word: ClassVar[str] = "nat"
    _fields: ClassVar = (
        _Field("type", 1),
        _Field("family", 2),
        _Field("address", 3),
        _Field("port", 5),
        _Field("flags", 7),
    )
    #: Which of address and port are given: the kernel sets these bits by itself, and shows them.
    _given: ClassVar = 0b11

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return it from its attributes; ranges of addresses or ports are not known here."""
        found = codec.table(data)
        if any(end in found and found[end] != found.get(start) for start, end in ((3, 4), (5, 6))):
            raise MalformedError("a range of addresses or ports")
        values = {one.name: cast("int", one.form.decode(found[one.kind])) for one in cls._fields if one.kind in found}
        flags = values.pop("flags", 0) & ~cls._given
        return cls(**values, flags=flags or None)


@dataclass(frozen=True, slots=True)
class Verdict(Expression):
    """Say what becomes of the packet; ``chain`` is where JUMP and GOTO lead.  Loading any other value is `Unknown`."""

    code: int
    chain: str | None = None

    word: ClassVar[str] = "immediate"

    def data(self) -> bytes:
        """Return its attributes."""
        where = () if self.chain is None else (codec.text(_VERDICT_CHAIN, self.chain),)
        code = codec.attribute(_VERDICT_CODE, self.code.to_bytes(4, "big", signed=True))
        return _WORD.encode(1, 0) + codec.nested(2, codec.nested(_DATA_VERDICT, code, *where))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return it from its attributes."""
        verdict = codec.table(codec.table(codec.table(data)[2])[_DATA_VERDICT])
        code = int.from_bytes(verdict[_VERDICT_CODE], "big", signed=True)
        return cls(code, codec.word(verdict[_VERDICT_CHAIN]) if _VERDICT_CHAIN in verdict else None)


@dataclass(frozen=True, slots=True)
class Unknown(Expression):
    """An expression that has no value here: its name, and its attributes as they came."""

    word: str  # type: ignore[misc]  # of each one, where other expressions have it by class
    attributes: bytes

    def data(self) -> bytes:
        """Return its attributes."""
        return self.attributes


ACCEPT: Final = Verdict(Code.ACCEPT)
DROP: Final = Verdict(Code.DROP)

_CLASSES: Final[Mapping[str, type[Expression]]] = {
    one.word: one
    for one in (
        *(Payload, Meta, Ct, Compare, Bitwise, Byteorder, Lookup, Counter, Numgen, Fib, Reject, Masquerade, Nat),
        Verdict,
    )
}


def encode(*expressions: Expression) -> bytes:
    """Return expressions as the kernel takes and shows them: a list of attributes."""
    return b"".join(map(_encoded, expressions))


@lru_cache(maxsize=512)  # firewalls are made of the same few again and again
def _encoded(one: Expression) -> bytes:
    return codec.nested(1, codec.text(_EXPRESSION_NAME, one.word), codec.nested(_EXPRESSION_DATA, one.data()))


def decode(data: bytes) -> tuple[Expression, ...]:
    """Return the expressions of a rule; those that are not known here as `Unknown`.

    Raises
    ------
    MalformedError
        It is no list of expressions.
    """
    found = []
    for _, one in codec.attributes(data):
        parts = codec.table(one)
        found.append(_expression(codec.word(parts.get(_EXPRESSION_NAME, b"")), parts.get(_EXPRESSION_DATA, b"")))
    return tuple(found)


def _expression(word: str, data: bytes) -> Expression:
    known = _CLASSES.get(word)
    try:
        if known is not None:
            return known.parse(data)
    except (KeyError, TypeError, ValueError):
        pass  # of another shape than ours are: it is shown as it came
    return Unknown(word, data)
