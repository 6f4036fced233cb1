from __future__ import annotations

import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.packaging import distribution

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

# What a user does first: it imports, finds its launcher, and runs a program.
FIRST_USE = """
import importlib.metadata, sys
import isolib
assert isolib.__file__.startswith(sys.prefix), isolib.__file__
print(isolib.run(["/bin/echo", "from a sandbox"], check=True).stdout.decode(), importlib.metadata.version("isolib"))
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the sdist of the checkout."""
    if not (distribution.ROOT / ".git").exists():
        pytest.skip("an sdist is made of committed files, and this is no git checkout")
    return distribution.build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of that sdist."""
    return distribution.build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


def test_sdist_is_complete(sdist: Path) -> None:
    """The sdist holds every committed file, documentation, tests and benchmarks included."""
    committed = distribution.run("git", "ls-tree", "-r", "-z", "--name-only", "HEAD", cwd=distribution.ROOT)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(committed.rstrip("\0").split("\0")) - names == set()
    assert "PKG-INFO" in names


def test_wheel_is_for_every_python_from_the_oldest(wheel: Path) -> None:
    """The wheel has the stable ABI, and its oldest Python is the one that built it."""
    major, minor = next(iter(distribution.interpreters()))
    assert f"-cp{major}{minor}-abi3-linux_" in wheel.name


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """The wheel holds all modules, both binaries and the type marker, but neither tests nor C sources."""
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: info for info in archive.infolist()}
    package = {name for name in files if ".dist-info/" not in name}
    modules = {
        path.relative_to(distribution.ROOT).as_posix()
        for path in (distribution.ROOT / "isolib").rglob("*.py")
        if path.parent.name != "native"
    }
    launcher = "isolib/_kernel/isolib-launcher"
    assert package == modules | {"isolib/py.typed", "isolib/_kernel/_ext.abi3.so", launcher}
    assert files[launcher].external_attr >> 16 & 0o777 == 0o755


@pytest.mark.parametrize("version", distribution.interpreters(), ids=lambda version: "python{}.{}".format(*version))
def test_wheel_works_in_a_new_environment(version: tuple[int, int], wheel: Path, tmp_path: Path) -> None:
    """A new environment of each Python on this machine installs the wheel and runs a program in a sandbox."""
    run = distribution.run
    run(distribution.interpreters()[version], "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", wheel, cwd=tmp_path)
    assert "from a sandbox" in run(python, "-W", "error", "-c", FIRST_USE, cwd=tmp_path)
