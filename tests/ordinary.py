"""An ordinary user with subordinate ids, for tests that root has started: what he runs sees a host that has granted them.

``ordinary.py PLACE UID RANGE PATHS... -- COMMAND...``, run by root in a mount namespace of its own, becomes him there.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USER: Final = 65534
"""Who is nobody else's user here."""
RANGE: Final = (700_000, 65_536)
"""The ids that he is granted, in the namespace that only he sees."""
_HELPERS: Final = ("/usr/bin/newuidmap", "/usr/bin/newgidmap")


def has_ids() -> bool:
    """Return whether this process's user has subordinate ids on this host."""
    names = {str(os.geteuid()), pwd.getpwuid(os.geteuid()).pw_name}
    try:
        granted = [Path(file).read_text(encoding="ascii").splitlines() for file in ("/etc/subuid", "/etc/subgid")]
    except OSError:
        return False
    return all(map(os.path.exists, _HELPERS)) and all(any(line.split(":")[0] in names for line in lines) for lines in granted)


@contextmanager
def place() -> Iterator[Path]:
    """Give a directory of his, with what he makes in it removed at the end."""
    where = tempfile.mkdtemp(prefix="ordinary-", dir="/tmp")
    os.chown(where, USER, USER)
    try:
        yield Path(where)
    finally:
        shutil.rmtree(where)


def run(argv: Sequence[str], where: Path, *, ids: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command as an ordinary user; the caller is root.

    Parameters
    ----------
    argv
        The command.
    where
        His home, where temporary files go too.
    ids
        Whether he has subordinate ids.
    """
    paths = [sys.base_prefix, sys.prefix, str(Path(__file__).resolve().parents[1])]
    granted = str(RANGE[0]) if ids else "-"
    command = ["unshare", "--mount", sys.executable, __file__, str(where), str(USER), granted, *paths, "--", *argv]
    return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _arrange(granted: str, paths: Sequence[str]) -> None:
    """See to it that he has ids, a way to the paths, and to FUSE."""
    _mount("-t", "tmpfs", "-o", "mode=0755", "none", "/mnt")
    text = "" if granted == "-" else f"{pwd.getpwuid(USER).pw_name}:{granted}:{RANGE[1]}\n"
    for file in ("/etc/subuid", "/etc/subgid"):
        if os.path.exists(file) or text:
            Path(file).touch()
            Path("/mnt/range").write_text(text, encoding="ascii")
            os.rename("/mnt/range", made := f"/mnt/{os.path.basename(file)}")
            _mount("--bind", made, file)
    if os.path.exists("/dev/fuse"):
        os.mknod("/mnt/fuse", 0o666 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        os.chmod("/mnt/fuse", 0o666)
        _mount("--bind", "/mnt/fuse", "/dev/fuse")
    for top in {f"/{Path(path).parts[1]}" for path in paths}:
        if os.stat(top).st_mode & stat.S_IXOTH:
            continue
        hidden = f"/mnt{top}"
        os.mkdir(hidden)
        _mount("--rbind", top, hidden)
        _mount("-t", "tmpfs", "-o", "mode=0755", "none", top)
        for path in sorted(path for path in paths if path.startswith(f"{top}/")):
            if not os.path.exists(path):  # it may lie in another one
                os.makedirs(path)
                _mount("--bind", f"/mnt{path}", path)


def _become() -> None:
    where, uid, granted, *rest = sys.argv[1:]
    split = rest.index("--")
    os.umask(0o022)
    _arrange(granted, rest[:split])
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    os.chdir(where)
    argv = rest[split + 1 :]
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "LC_ALL", "CI"}}
    os.execve(argv[0], argv, {**kept, "HOME": where, "TMPDIR": where, "PYTHONDONTWRITEBYTECODE": "1"})  # noqa: S606


if __name__ == "__main__":
    _become()
