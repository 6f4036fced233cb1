"""What the documentation says is what happens: its examples run, its paths exist, its demo holds."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import os
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

import isolib
from tests.groups import controllers, hierarchies

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PRINTS = re.compile(r"#.*\bprints (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:tests|docs|isolib|benchmarks|\.ci)/[\w./*-]*)`")
# What an example calls that makes a control group, which not everybody may.
GROUPS = re.compile(r"new_cgroup\(")
# The examples of namespaces have threads enter them, which takes root, and so does /dev/net/tun on most hosts.
MODULES = [
    pytest.param(name, marks=[pytest.mark.root] if name.startswith(("isolib.namespaces", "isolib.net.tap")) else [])
    for _, name, _ in pkgutil.walk_packages(isolib.__path__, "isolib.")
    if not name.startswith("isolib._kernel.native") and name != "isolib._kernel._ext"
]


def page_id(page: Path) -> str:
    """Return how a test of a page is called."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[int, str]]:
    """Return the page's Python blocks, each with the number of its first line."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=page_id)
def test_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, as typed, and print what they say that they print."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, source in blocks(page):
        code = compile("\n" * (line - 1) + source, page, "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)  # noqa: S102 - the example itself
        for promised in PRINTS.findall(source):
            assert promised in printed.getvalue().splitlines(), f"{page}:{line}"
    assert list(tmp_path.iterdir()) == []


def examples_of(module: ModuleType) -> Iterator[doctest.DocTest]:
    """Yield the examples of a module and of all that its source defines; they may use every public name of isolib.

    doctest would pass over what says that it is of another module, which is what users import it from.
    """
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {name: getattr(isolib, name) for name in isolib.__all__} | vars(module)
    if module.__doc__:
        yield doctest.DocTestParser().get_doctest(module.__doc__, dict(names), module.__name__, module.__file__, 0)
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found = getattr(module, node.name)
            yield from finder.find(found, f"{module.__name__}.{node.name}", module=False, globs=names)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples in a module's docstrings give what they show; those with a group, where this user may make one."""
    may_make_groups = bool(hierarchies()) and {"cpu", "memory", "pids"} <= controllers()
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report = io.StringIO()
    for test in examples_of(importlib.import_module(name)):
        if not any(GROUPS.search(example.source) for example in test.examples) or may_make_groups:
            runner.run(test, out=report.write)
    assert runner.failures == 0, report.getvalue()


def test_examples_of_public_classes_are_found() -> None:
    """Of classes that name another module than their own, and of their methods, the examples are among those that run."""
    modules = [importlib.import_module(name) for name in ("isolib.types", "isolib.cgroups.group")]
    found = {test.name for module in modules for test in examples_of(module)}
    assert {"isolib.types.IdMap", "isolib.cgroups.group.Cgroup.spawn"} <= found


def test_public_classes_of_cgroups_name_their_place() -> None:
    """What users import from isolib.cgroups says so in tracebacks and pickles; values can be pickled."""
    cgroups = isolib.cgroups
    classes = {name: found for name, found in vars(cgroups).items() if inspect.isclass(found) and not name.startswith("_")}
    assert {name: (found.__module__, found.__qualname__) for name, found in classes.items()} == {
        name: ("isolib.cgroups", name) for name in classes
    }
    stats = cgroups.Stats(memory=cgroups.MemoryStats(1), io={(8, 0): cgroups.DeviceIo()}, pids=cgroups.PidsStats(peak=2))
    values = (stats, cgroups.Event(cgroups.EventKind.OOM), cgroups.IoLimit(rbps=1), cgroups.STANDARD_DEVICES)
    assert pickle.loads(pickle.dumps(values)) == values  # noqa: S301 - our own


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_of_a_page_exist(page: Path) -> None:
    """Every link within the repository leads somewhere, and every file that is named is there."""
    text = page.read_text(encoding="utf-8")
    links = [page.parent / target for target in LINK.findall(text) if "://" not in target and not target.startswith("mailto:")]
    missing = [str(path) for path in links if not path.exists()]
    missing += [path for path in PATH.findall(text) if not any(ROOT.glob(path.rstrip("/")))]
    assert missing == []


def test_picture_is_self_contained() -> None:
    """The picture is valid XML without scripts, and refers to nothing outside itself, as GitHub wants it."""
    tree = ET.parse(ROOT / "docs/architecture.svg")  # noqa: S314 - our own
    for element in tree.iter():
        tag = element.tag.rpartition("}")[2]
        assert tag not in {"script", "image", "foreignObject", "link"}
        references = [value for key, value in element.attrib.items() if key.endswith(("href", "src")) or "url(" in value]
        assert all(value.startswith(("#", "url(#")) for value in references)
    assert "@import" not in (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")


def test_demo_finds_everything_isolated(tmp_path: Path) -> None:
    """The demo ends well, in 80 columns, and leaves nothing where it ran."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs/demo.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert os.listdir(tmp_path) == []
