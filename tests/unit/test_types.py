from __future__ import annotations

import dataclasses
import math
import os
import pickle
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

import isolib
from isolib.errors import PlanError
from isolib.types import (
    MAX_ID,
    MAX_SECONDS,
    MAX_SIZE,
    Exit,
    IdMap,
    Reason,
    Usage,
    check_argv,
    check_hostname,
    check_id_map,
    check_path,
    parse_duration,
    parse_size,
)

Anything: TypeAlias = Any
"""What a user may pass by mistake, and a type checker would rightly refuse."""

RUBBISH: list[Anything] = [
    None,
    object(),
    [],
    {},
    1j,
    "",
    "x",
    b"1",
    True,
    False,
    float("nan"),
    [1],
    "1 2",
    "0x10",
    "\N{ARABIC-INDIC DIGIT ONE}",
    int,
    float,
    timedelta,
]


class TestValues:
    @pytest.mark.parametrize("value", [IdMap(0, 1000), Reason.OOM, Usage(wall=1.0), Exit(0, None, Reason.EXITED)])
    def test_public_value(self, value: object) -> None:
        """A value is named after the place that users import from, hashable, and survives pickling."""
        assert type(value).__module__ == "isolib"
        assert getattr(isolib, type(value).__name__) is type(value)
        assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301 -- our own
        assert hash(value) == hash(value)

    def test_frozen(self) -> None:
        """A value cannot be changed."""
        for value, name in ((IdMap(0, 1), "inside"), (Usage(), "wall"), (Exit(0, None, Reason.EXITED), "code")):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, name, 1)

    def test_returncode(self) -> None:
        """The return code is that of subprocess."""
        assert Exit(code=3, signal=None, reason=Reason.EXITED).returncode == 3
        assert Exit(code=None, signal=9, reason=Reason.KILLED).returncode == -9
        with pytest.raises(ValueError, match="neither"):
            _ = Exit(code=None, signal=None, reason=Reason.EXITED).returncode


class TestSizes:
    @pytest.mark.parametrize(
        ("value", "size"),
        [
            (0, 0),
            (4096, 4096),
            ("0", 0),
            ("123", 123),
            ("256M", 256 << 20),
            ("256m", 256 << 20),
            ("1K", 1024),
            ("1kb", 1024),
            ("2GiB", 2 << 30),
            ("2 GiB", 2 << 30),
            (" 3T ", 3 << 40),
            ("7B", 7),
            ("1.5G", 3 << 29),
            ("0.3K", 307),
            ("0.1B", 0),
            (str(MAX_SIZE), MAX_SIZE),
        ],
    )
    def test_size(self, value: int | str, size: int) -> None:
        """A size is a number of bytes, with a unit in powers of 1024."""
        assert parse_size(value, "memory") == size

    def test_index(self) -> None:
        """Whatever counts as an integer is a size, as a numpy integer does."""

        class Seven:
            def __index__(self) -> int:
                return 7

        assert parse_size(Seven(), "memory") == 7

    @pytest.mark.parametrize(
        "value",
        [
            *(*RUBBISH, -1, 1.5, 2**63),
            *(
                "-1",
                "-1M",
                "+1",
                "1.5.5",
                ".5M",
                "5.M",
                "1e6",
                "M",
                "IB",
                "1IB",
                "1KK",
                "1BK",
                "1P",
                "1_000",
                "½",
                "1\0",
                "1K\n1",
            ),
            *("8388608T", "9" * 41, "1 K B"),
        ],
    )
    def test_no_size(self, value: Anything) -> None:
        """Anything else is refused with the name of the argument."""
        with pytest.raises(PlanError, match=r"^memory: "):
            parse_size(value, "memory")

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Any text is a size or refused."""
        try:
            size = parse_size(text, "memory")
        except PlanError:
            return
        assert 0 <= size <= MAX_SIZE

    @given(st.integers(min_value=0, max_value=2**20), st.sampled_from("KMGT"))
    def test_units(self, number: int, unit: str) -> None:
        """A unit multiplies by its power of 1024."""
        assert parse_size(f"{number}{unit}", "memory") == number * 1024 ** ("KMGT".index(unit) + 1)


class TestDurations:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (0, 0.0),
            (2, 2.0),
            (0.5, 0.5),
            (timedelta(minutes=1, milliseconds=500), 60.5),
            (Decimal("1.25"), 1.25),
            (Fraction(1, 4), 0.25),
            (MAX_SECONDS, float(MAX_SECONDS)),
        ],
    )
    def test_duration(self, value: Anything, seconds: float) -> None:
        """A duration is any number of seconds, or a timedelta."""
        result = parse_duration(value, "timeout")
        assert result == seconds
        assert type(result) is float

    @pytest.mark.parametrize(
        "value",
        [*RUBBISH, -1, -0.1, math.inf, -math.inf, 10**400, timedelta(-1), MAX_SECONDS + 2000, "1", b"1", Decimal("NaN")],
    )
    def test_no_duration(self, value: Anything) -> None:
        """Anything else is refused with the name of the argument."""
        with pytest.raises(PlanError, match=r"^timeout: "):
            parse_duration(value, "timeout")


class TestPaths:
    @pytest.mark.parametrize(
        ("value", "path"),
        [
            ("/srv", "/srv"),
            (b"/srv/\xe9", "/srv/\udce9"),
            (Path("a/b"), "a/b"),
            ("/a:b,c\\d e\n", "/a:b,c\\d e\n"),
            ("/" + "x" * 4094, "/" + "x" * 4094),
        ],
    )
    def test_path(self, value: Anything, path: str) -> None:
        """A path is text, bytes or os.PathLike, and may hold anything but a NUL."""
        assert check_path(value, "root") == path

    @pytest.mark.parametrize("value", ["", b"", "a\0b", b"a\0b", "x" * 4096, "\ud800", None, 7, ["/"], object()])
    def test_no_path(self, value: Anything) -> None:
        """What no system call takes is refused with the name of the argument."""
        with pytest.raises(PlanError, match=r"^root: "):
            check_path(value, "root")

    @given(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw))
    def test_any_bytes(self, raw: bytes) -> None:
        """No byte of a name is lost."""
        assert os.fsencode(check_path(raw, "root")) == raw


class TestHostnames:
    @pytest.mark.parametrize("name", ["a", "build-7.example", "x" * 64, "bücher", "a b", "\udce9"])
    def test_hostname(self, name: str) -> None:
        """A name of up to 64 bytes is taken as it is."""
        assert check_hostname(name, "hostname") == name

    @pytest.mark.parametrize("name", ["", "x" * 65, "ü" * 33, "a\0", "a\nb", "a/b", "\x1b[2J", "\x7f", "\ud800", None, b"a", 7])
    def test_no_hostname(self, name: Anything) -> None:
        """A name that is too long, or would spoil a log or a prompt, is refused."""
        with pytest.raises(PlanError, match=r"^hostname: "):
            check_hostname(name, "hostname")


class TestCommands:
    def test_argv(self) -> None:
        """A command is a list of texts, bytes and paths, and an argument may be empty."""
        assert check_argv(["ls", b"-l\xff", Path("/srv"), "", "ü"]) == (b"ls", b"-l\xff", b"/srv", b"", "ü".encode())
        assert check_argv(("true",)) == (b"true",)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("ls -l", "^argv: a command is a list"),
            (b"ls", "^argv: a command is a list"),
            (bytearray(b"ls"), "^argv: a command is a list"),
            ({"ls"}, "^argv: a command is a list"),
            (iter(["ls"]), "^argv: a command is a list"),
            (None, "^argv: a command is a list"),
            ([], "^argv: the command is empty"),
            ([""], r"^argv\[0\]: the name of the program is empty"),
            (["ls", "a\0b"], r"^argv\[1\]: an argument cannot hold a NUL"),
            (["ls", 7], r"^argv\[1\]: an argument is a str"),
            (["ls", None], r"^argv\[1\]: an argument is a str"),
            (["ls", "\ud800"], r"^argv\[1\]: this text cannot be written"),
        ],
    )
    def test_no_argv(self, value: Anything, message: str) -> None:
        """What cannot be executed is refused, and the message says which argument it is."""
        with pytest.raises(PlanError, match=message):
            check_argv(value)


class TestIdMaps:
    def test_map(self) -> None:
        """Ranges that touch each other do not overlap, and their order stays."""
        ranges = [IdMap(1, 100000, 65536), IdMap(0, 99999), IdMap(65537, 7)]
        assert check_id_map(ranges) == tuple(ranges)
        whole = IdMap(0, 0, MAX_ID + 1)
        assert check_id_map([whole]) == (whole,)
        many = [IdMap(number, 2 * number) for number in range(340)]
        assert check_id_map(many) == tuple(many)

    @pytest.mark.parametrize(
        ("ranges", "message"),
        [
            ([], "empty"),
            ([IdMap(0, 0, 0)], "maps no id"),
            ([IdMap(0, 0, -1)], "maps no id"),
            ([IdMap(-1, 0)], "leaves the range"),
            ([IdMap(0, -1)], "leaves the range"),
            ([IdMap(MAX_ID + 1, 0)], "leaves the range"),
            ([IdMap(0, MAX_ID, 2)], "leaves the range"),
            ([IdMap(0, 5, 2), IdMap(1, 9)], "overlap inside"),
            ([IdMap(0, 5, 2), IdMap(9, 6)], "overlap outside"),
            ([IdMap(0, 5), IdMap(0, 5)], "overlap inside"),
            ([IdMap(number, number) for number in range(341)], "341 ranges"),
            ([(0, 0, 1)], "a list of IdMap"),
            (7, "a list of IdMap"),
            ("root", "a list of IdMap"),
            ([IdMap(0, 1.5)], "integers"),  # type: ignore[arg-type]
            ([IdMap(0, outside=True)], "integers"),
        ],
    )
    def test_no_map(self, ranges: Anything, message: str) -> None:
        """What the kernel would refuse is refused with the reason."""
        with pytest.raises(PlanError, match=f"^uid map: .*{message}"):
            check_id_map(ranges, "uid map")

    @given(
        st.lists(
            st.builds(IdMap, *[st.integers(min_value=0, max_value=12)] * 2, st.integers(min_value=1, max_value=4)), min_size=1
        )
    )
    def test_overlap(self, ranges: list[IdMap]) -> None:
        """Ranges are refused exactly when an id would be mapped twice."""
        inside = [one.inside + step for one in ranges for step in range(one.count)]
        outside = [one.outside + step for one in ranges for step in range(one.count)]
        unique = len(set(inside)) == len(inside) and len(set(outside)) == len(outside)
        try:
            check_id_map(ranges)
        except PlanError:
            assert not unique
        else:
            assert unique
