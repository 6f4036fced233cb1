"""The rules of the house that no other tool checks: which module may know which, and what none may do."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(isolib.__path__[0])

LAYERS = {
    0: {"errors", "types"},
    1: {"_kernel"},
    2: {"cgroups", "confine", "mounts", "namespaces", "net", "process", "support", "unionfs"},
    3: {"calls", "oneshot", "outlet", "sandbox", "setting", "spec", "workroom"},
    4: {"", "aio", "integrations", "jupyter", "pytest_plugin"},
}
"""Which unit, a module or a package directly in isolib, is in which layer. The empty name is isolib/__init__.py."""

LAYER = {unit: layer for layer, units in LAYERS.items() for unit in units}

LONGEST = 500
"""Lines that a module may have: what fits in one head."""

EXTENSION = "isolib._kernel._ext"
ITS_IMPORTER = "isolib._kernel.calls"

SEAM = "isolib._kernel.seam"
"""The one module that reaches upward, by name and when it is called."""

BY_NAME = {SEAM, "isolib"}
"""Who may import by a name in a string: the seam, and isolib itself, whose names are loaded when they are first used."""

BUILD = "isolib._kernel.native.build_ext"
"""Not of the package: the build runs it."""

UNWANTED = {
    "it waits without an event": {"asyncio.sleep", "time.sleep"},
    "it copies the host": {"multiprocessing", "os.fork", "os.forkpty", "os.vfork", "pty.fork", "pty.spawn"},
    "it ends the host": {"exit", "os._exit", "os.abort", "quit", "sys.exit"},
    "it runs a shell": {"os.popen", "os.system", "subprocess.getoutput", "subprocess.getstatusoutput"},
    "it changes the host": {
        *(
            "os.chdir",
            "os.chroot",
            "os.fchdir",
            "os.umask",
            "os.putenv",
            "os.unsetenv",
            "signal.signal",
            "signal.set_wakeup_fd",
        ),
        *("os.setegid", "os.seteuid", "os.setgid", "os.setgroups", "os.setresgid", "os.setresuid", "os.setsid", "os.setuid"),
    },
    "it speaks into the host's output or log": {
        *("print", "logging.basicConfig", "logging.critical", "logging.debug", "logging.error", "logging.exception"),
        *("logging.info", "logging.log", "logging.warning"),
    },
    "it runs text": {"eval", "exec"},
    "it is the extension's business": {"cffi", "ctypes"},
}

TOOLS = {
    *("bash", "dash", "sh", "zsh", "su", "sudo", "setpriv", "capsh", "chroot", "unshare", "nsenter", "lsns", "pivot_root"),
    *("mount", "umount", "losetup", "mknod", "ip", "tc", "nft", "iptables", "ip6tables", "ebtables", "brctl", "sysctl"),
    *("prlimit", "chrt", "cgcreate", "systemd-run", "systemd-nspawn", "bwrap", "docker", "podman", "runc", "crun"),
}
"""Programs whose work isolib does itself."""

EVERYTHING = {"BaseException", "Exception"}

RUNNERS = re.compile(r"(subprocess\.\w+|os\.(exec|spawn|posix_spawn)\w*|asyncio\.create_subprocess_\w+|.*\bspawn)")


@dataclass(frozen=True)
class Module:
    """A module of the package, read but not imported."""

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Return the syntax tree."""
        return ast.parse(self.text)

    @property
    def unit(self) -> str:
        """Return the unit that the module belongs to."""
        return [*self.name.split("."), ""][1]


def modules() -> list[Module]:
    """Return every module under isolib."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("isolib", *path.relative_to(PACKAGE).with_suffix("").parts)
        name = ".".join(parts).removesuffix(".__init__")
        if name != BUILD:
            found.append(Module(name, path.read_text(encoding="utf-8")))
    return found


MODULES = modules()
NAMES = {module.name for module in MODULES}


def imports(module: Module) -> Iterator[str]:
    """Yield the modules that a module imports, anywhere in it, also those that only type checkers import."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Relative imports are not used here (and ruff's TID252 sees to it), so `module` is the whole name.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in NAMES or full == EXTENSION else str(node.module)


def upward(module: Module) -> Iterator[str]:
    """Yield the imports that break the rule: downward only, and in layer 2 and below not across."""
    for name in imports(module):
        unit = Module(name, "").unit
        if name.split(".")[0] != "isolib" or unit == module.unit or module.name == SEAM:
            continue
        ours, theirs = LAYER[module.unit], LAYER[unit]
        if theirs > ours or (theirs == ours == LAYER["process"]):
            yield f"{module.name} (layer {ours}) imports {name} (layer {theirs})"


def extension_users(module: Module) -> Iterator[str]:
    """Yield imports of the extension by anybody but its one user."""
    if not f"{module.name}.".startswith(f"{ITS_IMPORTER}.") and EXTENSION in set(imports(module)):
        yield f"{module.name} imports {EXTENSION}"


def length(module: Module) -> Iterator[str]:
    """Yield a complaint about a module that is too long."""
    lines = module.text.count("\n")
    if lines > LONGEST:
        yield f"{module.name} has {lines} lines, more than {LONGEST}"


def documentation(module: Module) -> Iterator[str]:
    """Yield a complaint about a module without a docstring."""
    if not ast.get_docstring(module.tree):
        yield f"{module.name} has no docstring"


def names_used(module: Module) -> Iterator[tuple[str, int]]:
    """Yield every dotted name that is used, in full whatever it was imported as, with its line."""
    aliases: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from (
                (name, node.lineno) for alias in node.names for name in (node.module or "", f"{node.module}.{alias.name}")
            )
    for node in ast.walk(module.tree):
        if (isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load)) and (name := dotted(node)):
            first, _, rest = name.partition(".")
            yield ".".join(filter(None, (aliases.get(first, first), rest))), node.lineno


def dotted(node: ast.expr) -> str:
    """Return the dotted name that an expression is, or nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def unwanted(module: Module) -> Iterator[str]:
    """Yield the use of what a library in somebody's process must not do."""
    for name, line in names_used(module):
        for reason, names in UNWANTED.items():
            if name in names or name.split(".")[0] in names & {"cffi", "ctypes", "multiprocessing"}:
                yield f"{module.name}:{line}: {name}: {reason}"
        if name in {"__import__", "importlib.import_module"} and module.name not in BY_NAME:
            yield f"{module.name}:{line}: {name}: only {' and '.join(sorted(BY_NAME))} import by name"


def swallowed(module: Module) -> Iterator[str]:
    """Yield handlers that catch everything and say nothing."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = [dotted(kind) for kind in (node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]) if kind]
            silent = all(isinstance(line, (ast.Pass, ast.Continue)) for line in node.body)
            if node.type is None or (silent and EVERYTHING & set(kinds)):
                yield f"{module.name}:{node.lineno}: catches everything"
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] == "suppress":
            yield from (
                f"{module.name}:{node.lineno}: suppresses everything" for kind in node.args if dotted(kind) in EVERYTHING
            )


def foreign_tools(module: Module) -> Iterator[str]:
    """Yield what would run a shell, or a program whose work isolib does itself."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            path = re.fullmatch(r"(/usr)?(/local)?/s?bin/([\w-]+)", node.value)
            if path and path[3] in TOOLS:
                yield f"{module.name}:{node.lineno}: {node.value}"
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
                yield f"{module.name}:{node.lineno}: shell="
        if RUNNERS.fullmatch(dotted(node.func)):
            for argument in node.args[:2]:
                first = argument.elts[0] if isinstance(argument, (ast.List, ast.Tuple)) and argument.elts else argument
                if isinstance(first, ast.Constant) and os.path.basename(str(first.value)).split(" ")[0] in TOOLS:
                    yield f"{module.name}:{node.lineno}: runs {first.value!r}"


def layerless(module: Module) -> Iterator[str]:
    """Yield a complaint about a module that the picture above does not show."""
    if module.unit not in LAYER:
        yield f"isolib/{module.unit} has no layer: add it to {Path(__file__).name}"


def vague(module: Module) -> Iterator[str]:
    """Yield a complaint about a module whose name says nothing."""
    if re.search(r"(^|[._])(common|helpers?|managers?|misc|tools?|utils?)($|[._])", module.name):
        yield f"{module.name} is no topic"


RULES: dict[Callable[[Module], Iterator[str]], list[tuple[str, str]]] = {
    layerless: [("isolib.stuff", ""), ("isolib.stuff.more", "")],
    upward: [
        ("isolib.mounts.values", "import isolib.process"),
        ("isolib.process", "def late():\n    from isolib import support"),
        ("isolib._kernel.plan", "from isolib.spec import Limits"),
        ("isolib.types", "from isolib._kernel import calls"),
        ("isolib.process", "if TYPE_CHECKING:\n    from isolib.sandbox import Sandbox"),
        ("isolib.process", "from isolib import spawn"),
        ("isolib._kernel.calls", "import isolib"),
    ],
    extension_users: [
        ("isolib._kernel.plan", "from isolib._kernel import _ext"),
        ("isolib._kernel.callsign", "from isolib._kernel import _ext"),
        ("isolib.process", "import isolib._kernel._ext"),
        ("isolib.process", "from isolib._kernel._ext import lib"),
    ],
    length: [("isolib.process", "x = 1\n" * (LONGEST + 1))],
    documentation: [("isolib.process", "x = 1")],
    vague: [("isolib.utils", ""), ("isolib.net.misc", ""), ("isolib.net.net_helpers", "")],
    unwanted: [
        ("isolib.process", "import time\ntime.sleep(1)"),
        ("isolib.process", "from time import sleep as wait\nwait(1)"),
        ("isolib.process", "import os as system\nsystem.fork()"),
        ("isolib.process", "import os\nfork = os.fork"),
        ("isolib.process", "import sys\nsys.exit()"),
        ("isolib.process", "import ctypes.util"),
        ("isolib.process", "from multiprocessing import Pool"),
        ("isolib.process", "print('x')"),
        ("isolib.process", "import logging\nlogging.info('x')"),
        ("isolib.process", "from importlib import import_module\nimport_module('isolib.sandbox')"),
    ],
    swallowed: [
        ("isolib.process", "try:\n    f()\nexcept:\n    log()"),
        ("isolib.process", "try:\n    f()\nexcept Exception:\n    pass"),
        ("isolib.process", "try:\n    f()\nexcept (OSError, BaseException):\n    pass"),
        ("isolib.process", "with contextlib.suppress(Exception):\n    f()"),
    ],
    foreign_tools: [
        ("isolib.process", "subprocess.run(command, shell=True)"),
        ("isolib.process", "subprocess.run(command, shell=shell)"),
        ("isolib.process", "subprocess.run(['ip', 'link'])"),
        ("isolib.process", "subprocess.Popen(['/sbin/tc'])"),
        ("isolib.process", "subprocess.check_output('mount -a')"),
        ("isolib.process", "os.execvp('nsenter', argv)"),
        ("isolib.process", "NFT = '/usr/sbin/nft'"),
    ],
}
"""The rules, and what each must find."""


@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
def test_rule(rule: Callable[[Module], Iterator[str]]) -> None:
    """Every module keeps the rule."""
    assert [complaint for module in MODULES for complaint in rule(module)] == []


@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
def test_rule_bites(rule: Callable[[Module], Iterator[str]]) -> None:
    """A module that breaks the rule is found, whichever way it does."""
    assert [(name, text) for name, text in RULES[rule] if not list(rule(Module(name, text)))] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("isolib.process", "from isolib._kernel import calls\nfrom isolib.errors import PlanError\nimport os, time"),
        ("isolib.mounts.root", "from isolib.mounts import values\nfrom isolib.mounts.values import Bind"),
        ("isolib.oneshot", "from isolib.sandbox import Sandbox"),
        ("isolib._kernel.calls", "from isolib._kernel import _ext"),
        ("isolib._kernel.calls.bpf", "from isolib._kernel import _ext"),
        (
            "isolib._kernel.seam",
            "from isolib.process import Process\nimport importlib\nimportlib.import_module('isolib.process')",
        ),
        ("isolib", "from isolib.sandbox import Sandbox"),
        ("isolib.process", "try:\n    f()\nexcept OSError:\n    pass\nexcept BaseException:\n    undo()\n    raise"),
        ("isolib.process", "subprocess.run(['/usr/bin/newuidmap', pid], shell=False)\nself.sleep()\nmount('ip')"),
    ],
)
def test_rules_allow(name: str, text: str) -> None:
    """What is right is not complained about."""
    module = Module(name, text)
    assert [complaint for rule in RULES if rule is not documentation for complaint in rule(module)] == []


def run_python(code: str) -> str:
    """Return what code prints in a Python of its own that finds this isolib."""
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60).stdout


def test_import_loads_nothing() -> None:
    """`import isolib` loads no module but itself: it is what every program pays that may never make a sandbox."""
    loaded = run_python("import sys; old = set(sys.modules); import isolib; print(*sorted(set(sys.modules) - old))")
    assert set(loaded.split()) <= {"__future__", "isolib"}


def test_public_names() -> None:
    """Every public name can be loaded, by itself, and type checkers see the same names as programs do."""
    names = set(isolib.__all__) - {"__version__"}
    for name in names:
        assert getattr(isolib, name) is not None
    assert names <= set(dir(isolib))
    source = Module("isolib", (PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.asname
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("isolib.")
        for alias in node.names
        if alias.name == alias.asname
    }
    assert typed == names


def test_no_circles() -> None:
    """Modules do not import each other in circles, so any of them can be the first."""
    graph = {
        module.name: set(imports(Module(module.name, run_at_import(ast.parse(module.text))))) & NAMES for module in MODULES
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    assert "isolib.types" in graph["isolib.process"]


def run_at_import(tree: ast.Module) -> str:
    """Return the source of what runs when a module is imported: no function bodies, nothing for type checkers only."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                node.body = ast.parse("...").body
            case ast.If() if dotted(node.test).endswith("TYPE_CHECKING"):
                node.body = ast.parse("...").body
    return ast.unparse(tree)
