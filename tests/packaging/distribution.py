"""Builds an sdist of the checkout and a wheel of the sdist, as a release does."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

OLDEST = (3, 11)

# Prints the version when this interpreter can make environments for isolib.
_FITS = """
import ensurepip, sys, sysconfig, venv
if sys.version_info >= (3, 11) and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    print(*sys.version_info[:2], sys.executable)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Return the command's output; its errors are shown when it fails."""
    # The checkout may belong to another user than the tests', whom git then must be told to trust.
    git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **git, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@cache
def interpreters() -> dict[tuple[int, int], str]:
    """Return every usable CPython of this machine by its version, one of each."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [
        sys.executable,
        *(f"python3.{minor}" for minor in range(OLDEST[1], 20)),
        "/usr/bin/python3",
        *map(str, sorted(pyenv.glob("versions/3.*/bin/python3"))),
    ]
    found: dict[tuple[int, int], str] = {}
    for candidate in candidates:
        try:
            answer = subprocess.run([candidate, "-I", "-c", _FITS], capture_output=True, text=True, check=False).stdout
        except OSError:
            continue
        if answer:
            major, minor, executable = answer.split(maxsplit=2)
            found.setdefault((int(major), int(minor)), executable.strip())
    return dict(sorted(found.items()))


def build_sdist(target: Path) -> Path:
    """Make the sdist of what is committed."""
    code = "import mesonpy, sys; print(mesonpy.build_sdist(sys.argv[1], {'build-dir': sys.argv[2]}))"
    name = run(sys.executable, "-c", code, target, target / "build-sdist", cwd=ROOT).splitlines()[-1]
    return target / name


def build_wheel(sdist: Path, target: Path) -> Path:
    """Make the wheel of the sdist with the oldest Python there is, in an environment of its own, as pip does for a user."""
    python = next(iter(interpreters().values()))
    run(python, "-m", "venv", target / "build-wheel", cwd=target)
    pip = target / "build-wheel" / "bin" / "pip"
    run(pip, "wheel", "--no-deps", "--wheel-dir", target / "wheels", sdist, cwd=target)
    (wheel,) = (target / "wheels").iterdir()
    return wheel
