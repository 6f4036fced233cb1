"""Prints the requirements that pyproject.toml states: ``requirements.py build|run|EXTRA|GROUP ...``."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(names: list[str]) -> None:
    """Print one requirement a line."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    known = {
        # meson runs ninja, and an isolated build would be given one by meson-python
        "build": [*project["build-system"]["requires"], "ninja"],
        "run": project["project"]["dependencies"],
        **project["project"]["optional-dependencies"],
        **project["dependency-groups"],
    }
    print("\n".join(requirement for name in names for requirement in known[name]))


if __name__ == "__main__":
    main(sys.argv[1:])
