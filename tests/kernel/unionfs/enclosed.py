"""Runs the machine of trees in the namespaces that it is started in: run by test_model.py.

``enclosed.py DIRECTORY EXAMPLES STEPS`` makes stores in a directory; what fails is told on the standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))

import isolib
from tests.treemachine import try_trees


def main() -> None:
    """Try overlays, and the stores of whole trees that their layers are carried to."""
    directory, examples, steps = sys.argv[1:]
    with isolib.open_store(f"{directory}/other", driver="vfs") as other:
        try_trees(
            lambda name: isolib.open_store(f"{directory}/{name}", driver="overlay"),
            {"vfs": other},
            examples=int(examples),
            steps=int(steps),
        )


if __name__ == "__main__":
    main()
