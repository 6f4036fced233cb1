"""Images are built: by commands, by what is copied, by changes to the config, and each step is done once."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

import isolib
from isolib import ArchiveError, CommandFailed, ImageNotFound, PlanError, SandboxTimeout, SetupFailed, SyscallError
from isolib._kernel.handle import Fd
from isolib.mounts import Bind, File, Tmpfs
from isolib.unionfs import ImageConfig
from tests.interrupts import interrupt
from tests.programs import tool
from tests.roots import root_with_accounts
from tests.storage import disk
from tests.stores import check, leftovers, usable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.unionfs import Image, Store, Tree

T = TypeVar("T")

CREATED = datetime(2024, 1, 1, tzinfo=UTC)
NANOSECONDS = int(CREATED.timestamp()) * 10**9
IS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a small system in it."""
    return root_with_accounts(tmp_path_factory.mktemp("small") / "root")


ON_ALL = pytest.mark.parametrize("driver", ["overlay", "vfs", "btrfs"], indirect=True)
"""For what a driver has a say in; all else is tried with one of them."""


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    """Return the name of a driver."""
    return usable(getattr(request, "param", "overlay" if IS_ROOT else "vfs"))


@pytest.fixture
def places(tmp_path: Path, driver: str) -> Iterator[Path]:
    """Return a directory for stores of the driver."""
    with ExitStack() as stack:
        if driver == "btrfs":
            yield Path(stack.enter_context(disk("btrfs")).path)
        else:
            yield tmp_path


@pytest.fixture
def store(places: Path, driver: str) -> Iterator[Store]:
    """Return an empty store, which must be in order at the end."""
    with isolib.open_store(places / "store", driver=driver) as opened:
        yield opened
        check(opened)


@pytest.fixture
def base(store: Store, root: Path) -> Image:
    """Return an image in which a shell runs."""
    return store.load(root, name="base")


def text(image: Image, path: str) -> str:
    """Return the content of a file of an image."""
    return see(image, lambda tree: Path(tree.path, path).read_text())


def see(image: Image, look: Callable[[Tree], T]) -> T:
    """Return what a function finds in a tree of an image."""
    with isolib.open_store(image._records.layout.path) as store, store.checkout(image) as tree:
        return look(tree)


def paths(image: Image) -> set[str]:
    """Return the paths at which the topmost layer of an image changes anything, be it a time."""
    with isolib.open_store(image._records.layout.path) as store:
        below = next(one for one in store.images() if one.layers == image.layers[:-1])
        with store.checkout(below) as tree, store.checkout(image) as above:
            return {path for path, _ in listed(above.path).items() ^ listed(tree.path).items()}


def listed(top: str) -> dict[str, tuple[int, int, int, int, int]]:
    """Return what is in a tree, by path."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in (*names, *files, "."):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            found[os.path.normpath(os.path.relpath(path, top))] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_size,
            )
    return found


def counted(tmp_path: Path) -> tuple[Bind, Callable[[], int]]:
    """Return a mount in which commands count that they ran, and how often they did."""
    place = tmp_path / "count"
    place.mkdir()
    place.chmod(0o777)
    return Bind(place, "/count", readonly=False), lambda: len((place / "runs").read_text().splitlines())


COUNT = "echo >> /count/runs"


# ---- what is built ----


def build(base: Image, source: Path) -> list[Image]:
    """Build an image in ten steps, as a Dockerfile would."""
    images = [base]

    def then(image: Image) -> None:
        images.append(image)

    then(images[-1].configure(env={"LANG": "C.UTF-8"}, labels={"maker": "tests"}, workdir="/srv", created=CREATED))
    then(images[-1].copy(source / "app", target="app/", created=CREATED))
    then(images[-1].copy(source / "requirements", target="/srv/", created=CREATED))
    then(images[-1].run("cat app/main requirements > /srv/both && ln -s both link", created=CREATED))
    then(images[-1].run(["mkdir", "-p", "/data/in"], created=CREATED))
    then(images[-1].run("rm -r /srv/app && mkdir /srv/app && echo new > /srv/app/new", created=CREATED))
    then(images[-1].run("echo $LANG $STAGE > stage; chmod 600 both", env={"STAGE": "7"}, created=CREATED))
    then(images[-1].copy("/srv/stage", target="/data/in/stage", from_image=images[-1], mode=0o444, created=CREATED))
    then(images[-1].run("rm /srv/requirements; ln both /data/hard", created=CREATED))
    then(images[-1].configure(cmd=["cat", "/srv/both"], expose=[80, "53/udp"], created=CREATED))
    return images


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a directory with what is copied."""
    top = tmp_path / "source"
    (top / "app/sub").mkdir(parents=True)
    (top / "app/main").write_text("main\n")
    (top / "app/sub/part").write_text("part\n")
    (top / "requirements").write_text("one\n")
    return top


@ON_ALL
def test_an_image_is_built_in_ten_steps(store: Store, base: Image, root: Path, source: Path) -> None:
    """Ten steps make ten images: the last has all that they did, one layer for each that changed a file, and says so."""
    images = build(base, source)
    last = images[-1]
    with store.checkout(last) as tree:
        top = Path(tree.path)
        assert (top / "srv/both").read_text() == "main\none\n"
        assert os.path.samefile(top / "srv/both", top / "data/hard")
        assert os.readlink(top / "srv/link") == "both"
        assert (top / "data/in/stage").read_text() == (top / "srv/stage").read_text() == "C.UTF-8 7\n"
        assert (top / "data/in/stage").stat().st_mode & 0o777 == 0o444
        assert sorted(os.listdir(top / "srv")) == ["app", "both", "link", "stage"]
        assert os.listdir(top / "srv/app") == ["new"]
        assert {*os.listdir(top)} == {*os.listdir(root), "srv", "data"}
        assert max(mtime for _, _, _, mtime, _ in listed(tree.path).values()) <= NANOSECONDS
    assert [len(one.layers) for one in images] == [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert [one.empty_layer for one in last.history] == [False, True, *[False] * 8, True]
    assert [one.created_by for one in last.history[4:8]] == [
        "RUN /bin/sh -c cat app/main requirements > /srv/both && ln -s both link",
        'RUN ["mkdir", "-p", "/data/in"]',
        "RUN /bin/sh -c rm -r /srv/app && mkdir /srv/app && echo new > /srv/app/new",
        "RUN /bin/sh -c echo $LANG $STAGE > stage; chmod 600 both",
    ]
    assert last.history[1].created_by == "ENV LANG=C.UTF-8; LABEL maker=tests; WORKDIR /srv"
    assert last.history[2].created_by.startswith("COPY dir:")
    assert last.history[10].created_by == 'CMD ["cat", "/srv/both"]; EXPOSE 80/tcp; EXPOSE 53/udp'
    assert {one.created for one in last.history[1:]} == {CREATED}
    assert last.config == ImageConfig(
        env={"LANG": "C.UTF-8"},
        labels={"maker": "tests"},
        workdir="/srv",
        cmd=("cat", "/srv/both"),
        exposed_ports=("80/tcp", "53/udp"),
        architecture=base.config.architecture,
        variant=base.config.variant,
        created=CREATED,
    )
    assert all(one.names == () for one in images[1:])


@ON_ALL
def test_equal_builds_make_equal_images(places: Path, base: Image, root: Path, source: Path, driver: str) -> None:
    """The same steps in another store, with the same time, from files of another time, make images of the same digests."""
    first = build(base, source)
    for path in source.rglob("*"):
        os.utime(path)
    with isolib.open_store(places / "other", driver=driver) as other:
        assert build(other.load(root), source) == first
        check(other)


def test_the_environment_says_when(base: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """SOURCE_DATE_EPOCH is when an image was made, and nothing in it is newer; created= goes first; nonsense is refused."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1600000000")
    image = base.run("touch /new", cache=False)
    assert image.config.created == datetime.fromtimestamp(1_600_000_000, UTC)
    assert see(image, lambda tree: os.stat(f"{tree.path}/new").st_mtime) == 1_600_000_000
    assert base.run("touch /new").digest == image.digest
    assert base.run("touch /new", created=CREATED).config.created == CREATED
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(PlanError, match="SOURCE_DATE_EPOCH"):
        base.run("touch /new")


def test_what_others_take(store: Store, base: Image, source: Path, tmp_path: Path) -> None:
    """skopeo copies what was built, and umoci unpacks it to the files that a checkout has."""
    image = build(base, source)[-1]
    out = tmp_path / "saved"
    out.mkdir()
    image.tag("built:1")
    image.save(out)
    told = json.loads(tool("skopeo", "--insecure-policy", "inspect", "--config", f"oci:{out}:1"))
    assert told["rootfs"]["diff_ids"] == [one.diff_id for one in image.layers]
    assert [one["created_by"] for one in told["history"]] == [one.created_by for one in image.history]
    tool("skopeo", "--insecure-policy", "copy", f"oci:{out}:1", f"docker-archive:{tmp_path}/docker.tar:built:1")
    options = [] if IS_ROOT else ["--rootless"]
    tool("umoci", "unpack", *options, "--image", f"{out}:1", tmp_path / "unpacked")
    ours = see(image, lambda tree: listed(tree.path))
    theirs = listed(str(tmp_path / "unpacked/rootfs"))
    assert {path: facts[:4] for path, facts in theirs.items()} == {path: facts[:4] for path, facts in ours.items()}


# ---- where a command runs ----


@ON_ALL
def test_nothing_of_the_room_is_in_the_image(store: Store, base: Image, tmp_path: Path) -> None:
    """Private directories, mounts, and places made for them are not in the layer, and the times of directories stay."""
    (tmp_path / "file").write_text("of the host")
    mounts = [Bind(tmp_path / "file", "/deep/down/file"), Tmpfs("/cache"), File("/etc/secret", "secret")]
    image = base.run("cat /deep/down/file /etc/secret; touch /tmp/x /cache/x /dev/shm/x; echo > /etc/kept", mounts=mounts)
    assert paths(image) == {"etc", "etc/kept"}
    assert base.run("cat /deep/down/file", mounts=mounts).layers == base.layers
    assert base.run("true").layers == base.layers


def test_a_place_that_is_used_stays(base: Image) -> None:
    """A directory that was made for a mount and that the command put something in stays, with that."""
    image = base.run("touch /deep/mine", mounts=[Tmpfs("/deep/down")])
    assert paths(image) == {".", "deep", "deep/mine"}


def test_a_command_is_alone(base: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no network, no processes of others, no environment of the caller, nothing to read, and is nobody on the host."""
    monkeypatch.setenv("ISOLIB_OUTSIDE", "1")
    image = base.run("ls /proc/sys/net/ipv4/conf > /net; env > /env; ls /proc > /list; cat; cat /proc/self/uid_map > /map")
    assert text(image, "net").split() == ["all", "default", "lo"]
    assert "ISOLIB" not in text(image, "env")
    numbers = [int(name) for name in text(image, "list").split() if name.isdigit()]
    assert max(numbers) < 100
    inside, outside, _ = text(image, "map").split()[:3]
    assert (inside, outside == "0") == ("0", False)


@pytest.mark.root
@ON_ALL
def test_a_command_is_root_over_the_image(store: Store, base: Image) -> None:
    """It gives files away, and what it makes is root's in the image."""
    image = base.run("touch /a /b; chown 1000:1001 /b; chmod 4755 /b; id -u > /who")
    with store.checkout(image) as tree:
        status = {name: os.stat(f"{tree.path}/{name}") for name in "ab"}
    assert (status["a"].st_uid, status["a"].st_gid) == (0, 0)
    assert (status["b"].st_uid, status["b"].st_gid, status["b"].st_mode & 0o7777) == (1000, 1001, 0o4755)
    assert text(image, "who") == "0\n"


def test_the_umask_of_who_builds_has_no_say(store: Store, base: Image, source: Path) -> None:
    """What a step makes has the same mode whatever the umask is."""
    before = os.umask(0o077)
    try:
        image = base.run("echo > /made; mkdir /deep").copy(source / "requirements", target="/way/to/it", mode=0o666)
        image = image.run("true", cwd="/where/it/starts")
    finally:
        os.umask(before)
    with store.checkout(image) as tree:
        there = listed(tree.path)
    modes = {"made": 0o644, "deep": 0o755, "way": 0o755, "way/to": 0o755, "way/to/it": 0o666, "where": 0o755, "where/it": 0o755}
    assert {path: there[path][0] & 0o7777 for path in modes} == modes


def test_a_command_has_its_limits(store: Store, base: Image) -> None:
    """Limits are those of a sandbox: time, and what is kept of the outputs."""
    with pytest.raises(SandboxTimeout):
        base.run("sleep 1000", limits=isolib.Limits(wall=0.3))
    with pytest.raises(CommandFailed) as failed:
        base.run("while :; do echo more; done", limits=isolib.Limits(output=1000))
    assert len(failed.value.stdout or b"") == 1000
    assert store.images() == (base,)


@pytest.mark.root
@pytest.mark.parametrize(
    ("user", "told"),
    [
        ("app", "uid=1000(app) gid=1001(app) groups=1001(app),1002(more)"),
        ("1000", "uid=1000(app) gid=1001(app) groups=1001(app),1002(more)"),
        ("app:others", "uid=1000(app) gid=1003(others) groups=1003(others)"),
        ("app:77", "uid=1000(app) gid=77 groups=77"),
        ("4000", "uid=4000 gid=0(root) groups=0(root)"),
        ("", "uid=0(root) gid=0(root) groups=0(root)"),
    ],
)
def test_the_image_says_who_a_user_is(base: Image, user: str, told: str) -> None:
    """Names are looked up in the image, with the groups that a user is in; a number needs no name."""
    with pytest.raises(CommandFailed) as failed:
        base.run("id; exit 1", user=user)
    assert failed.value.stdout is not None
    assert failed.value.stdout.decode().strip() == told


def test_a_user_that_is_none_is_refused(base: Image) -> None:
    """A name that the image does not know, of a user or a group, is a PlanError."""
    for user in ("nobody-here", "app:nobody-here", "4294967295"):
        with pytest.raises(PlanError, match="user"):
            base.run("true", user=user)


@pytest.mark.root
def test_the_config_says_where_and_how(base: Image) -> None:
    """Environment, user and directory are those of the config, unless they are given; the directory is made."""
    image = base.configure(env={"A": "1", "B": "2"}, workdir="/home/app", user="app")
    with pytest.raises(CommandFailed) as failed:
        image.run("echo $A $B $HOME $PWD; exit 1", env={"B": "3"})
    assert failed.value.stdout == b"1 3 /home/app /home/app\n"
    with pytest.raises(CommandFailed) as failed:
        image.run("id -u; pwd; exit 1", user=0, cwd="deeper")
    assert failed.value.stdout == b"0\n/home/app/deeper\n"


def test_with_a_network_names_are_mounted(base: Image, tmp_path: Path) -> None:
    """With the host's network a command reads the host's resolvers, also behind a link that leads nowhere; none stay."""
    linked = base.run("ln -s ../run/resolve/stub /etc/resolv.conf; echo mine > /etc/hosts", created=CREATED)
    with pytest.raises(CommandFailed) as failed:
        linked.run("cat /etc/resolv.conf; exit 1", network="host")
    there = Path("/etc/resolv.conf").read_bytes() if os.path.exists("/etc/resolv.conf") else b""
    assert failed.value.stdout == there
    image = linked.run("echo > /etc/resolv.conf; echo > /etc/hosts; echo > /mine", network="host", created=CREATED)
    assert paths(image) == {".", "mine"}
    assert text(image, "etc/hosts") == "mine\n"
    with isolib.new_network() as network, pytest.raises(CommandFailed) as failed:
        linked.run("cat /etc/resolv.conf /etc/hosts; exit 1", network=network)
    assert failed.value.stdout is not None
    assert b"nameserver" in failed.value.stdout
    assert b"localhost" in failed.value.stdout


# ---- what goes wrong ----


def test_a_command_that_fails_leaves_nothing(store: Store, base: Image) -> None:
    """Its status and outputs are in the exception; there is no new image, no layer, and no record of the step."""
    for _ in range(2):
        with pytest.raises(CommandFailed) as failed:
            base.run("echo out; echo > /x; echo err >&2; exit 3")
        assert (failed.value.returncode, failed.value.stdout, failed.value.stderr) == (3, b"out\n", b"err\n")
    assert store.images() == (base,)
    assert leftovers(store) == {}


def test_a_command_has_its_time(store: Store, base: Image) -> None:
    """A command that runs for too long is ended, with what it had said, and leaves nothing."""
    with pytest.raises(SandboxTimeout) as late:
        base.run("echo begun; sleep 1000", timeout=0.5)
    assert late.value.stdout == b"begun\n"
    assert store.images() == (base,)
    assert leftovers(store) == {}


def test_what_cannot_be_started_is_told(store: Store, base: Image) -> None:
    """A program that is not in the image, an image without a shell, and an image that was removed are errors."""
    with pytest.raises(SetupFailed, match="nonesuch"):
        base.run(["nonesuch"])
    with store.checkout() as tree:
        empty = tree.commit()
    with pytest.raises(SetupFailed, match="sh"):
        empty.run("true")
    gone = base.run("touch /gone")
    gone.remove()
    steps: list[Callable[[], object]] = [
        lambda: gone.run("true"),
        lambda: gone.copy("/etc/passwd", target="/x"),
        lambda: gone.configure(user="x"),
    ]
    for step in steps:
        with pytest.raises(ImageNotFound):
            step()
    empty.remove()


def test_bad_arguments_are_refused(base: Image, tmp_path: Path) -> None:
    """What cannot work is a PlanError, before anything is done."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    steps: list[Callable[[], object]] = [
        lambda: base.run([]),
        lambda: base.run(""),
        lambda: base.run("true", env={"A=": "x"}),
        lambda: base.run("true", env={"A": "\0"}),
        lambda: base.run("true", timeout=-1),
        lambda: base.copy(target="/x"),
        lambda: base.copy(tmp_path / "fifo", target="/x"),
        lambda: base.copy(tmp_path / "file", target=""),
        lambda: base.copy(tmp_path / "file", target="/x", mode=0o10000),
        lambda: base.copy(tmp_path / "file", target="/x", owner=-1),
        lambda: base.copy(tmp_path / "file", target="/x", owner="nobody-here"),
        lambda: base.copy(tmp_path, target="/x", exclude="*.pyc"),
        base.configure,
        lambda: base.configure(expose=[0]),
        lambda: base.configure(expose=["80/icmp"]),
        lambda: base.configure(expose="80"),
        lambda: base.configure(volumes=["relative"]),
        lambda: base.configure(user="a\nb"),
        lambda: base.configure(env={"": "x"}),
    ]
    for step in steps:
        with pytest.raises(PlanError):
            step()


def test_an_interrupt_at_any_time_leaves_nothing(
    store: Store, base: Image, source: Path, lost: list[type[BaseException]]
) -> None:
    """KeyboardInterrupt anywhere in a step is raised, or lost by Python in a finalizer, and nothing stays half made."""

    def action() -> None:
        base.run("echo > /x", cache=True, created=CREATED).copy(source, target="/y", created=CREATED)

    turn, step = 1, 1201
    while interrupt(turn, action, lambda code: "isolib/" in code.co_filename) <= 0:
        gc.collect()  # an interrupt at the very entry of an __exit__ leaves the rest to the finalizer
        assert store.verify(contents=False) == (), turn
        for image in store.images():
            if image != base:
                image.remove()
        turn += step
    assert turn > 3 * step
    assert set(lost) <= {KeyboardInterrupt}
    store._records.driver.settle()
    store.gc(unnamed=True)
    assert leftovers(store) == {}


@ON_ALL
def test_a_host_that_is_killed_leaves_a_store_in_order(store: Store, base: Image, tmp_path: Path) -> None:
    """Killed while a command runs, a process leaves no step on record, nothing for good, and no process."""
    go = tmp_path / "go"
    os.mkfifo(go)
    program = f"""
        import isolib
        from isolib.mounts import Bind
        with isolib.open_store({store.path!r}) as store:
            mounts = [Bind({str(go)!r}, "/go", readonly=False)]
            store.image("base").run("echo > /x; echo ready > /go; sleep 1000", mounts=mounts)
    """
    go.chmod(0o666)
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(argv, cwd="/", pass_fds=shared(store), env=environment()) as process:
        try:
            assert go.read_text() == "ready\n"
        finally:
            process.send_signal(signal.SIGKILL)
    wait_for_locks(store)
    assert store.verify() == ()
    store.gc()
    assert leftovers(store) == {}
    assert store.images() == (base,)
    assert base.run("echo > /x", created=CREATED).layers[:-1] == base.layers


def wait_for_locks(store: Store) -> None:
    """Wait until the kernel has dropped what a process had locked: with mounts to give up, that takes longer than its end."""
    for part in ("locks", "staging", "trees"):
        for path in Path(store.path, part).iterdir():
            with Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)


def shared(store: Store) -> tuple[int, ...]:
    """Return the descriptors by which another process gets at a store, where its path is one."""
    parts = Path(store.path).parts
    return (int(parts[4]),) if parts[1:4] == ("proc", "self", "fd") else ()


def environment() -> dict[str, str]:
    """Return the environment of a program that has isolib."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


# ---- what is known already ----


def test_a_step_is_done_once(store: Store, base: Image, source: Path, tmp_path: Path) -> None:
    """What was done is not done again, by this process or another, unless that is asked for or something is different."""
    mount, runs = counted(tmp_path)
    steps = [COUNT, f"{COUNT}; echo > /x"]
    images = [base.run(one, mounts=[mount]) for one in steps]
    assert runs() == 2
    assert [base.run(one, mounts=[mount]) for one in steps] == images
    with isolib.open_store(store.path) as again:
        assert again.image("base").run(steps[1], mounts=[mount]) == images[1]
    program = f"""
        import isolib
        from isolib.mounts import Bind
        with isolib.open_store({store.path!r}) as store:
            print(store.image("base").run({steps[1]!r}, mounts=[{mount!r}]).digest)
    """
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(argv, cwd="/", pass_fds=shared(store), env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout == f"{images[1].digest}\n", done.stderr
    assert runs() == 2
    different = [
        base.run(steps[1], mounts=[mount], cache=False),
        base.run(steps[1], mounts=[mount], env={"A": "1"}),
        base.run(steps[1], mounts=[mount], cwd="/etc"),
        base.run(steps[1], mounts=[mount], created=CREATED),
        base.run(steps[1], mounts=[mount, Tmpfs("/run")]),
        base.configure(labels={"a": "b"}).run(steps[1], mounts=[mount]),
    ]
    assert runs() == 2 + len(different)


def test_what_is_copied_is_known_by_its_content(base: Image, source: Path) -> None:
    """Of files that are the same but for their times the image is the same; of others, names, modes, or places, another."""
    image = base.copy(source, target="/x")
    for path in source.rglob("*"):
        os.utime(path, (1, 1))
    assert base.copy(source, target="/x") == image
    others = {
        base.copy(source, target="/y"),
        base.copy(source, target="/x", mode=0o700),
        base.copy(source, target="/x", exclude=["main"]),
    }
    (source / "app/main").write_text("other")
    others.add(base.copy(source, target="/x"))
    (source / "app/main").chmod(0o600)
    others.add(base.copy(source, target="/x"))
    (source / "app/main").rename(source / "app/renamed")
    others.add(base.copy(source, target="/x"))
    assert len(others | {image}) == 7


def test_of_equal_builds_at_once_one_is_done(store: Store, base: Image, tmp_path: Path) -> None:
    """Four threads and two processes that come to the same step get the same image, and the command has run once."""
    mount, runs = counted(tmp_path)
    command = f"{COUNT}; sleep 0.3; echo > /x"
    program = f"""
        import isolib
        from isolib.mounts import Bind
        with isolib.open_store({store.path!r}) as store:
            print(store.image("base").run({command!r}, mounts=[{mount!r}]).digest)
    """
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        others = [
            stack.enter_context(
                subprocess.Popen(argv, cwd="/", pass_fds=shared(store), env=environment(), stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        images = {*pool.map(lambda _: base.run(command, mounts=[mount]), range(4))}
        told = {other.communicate()[0].strip() for other in others}
    assert len(images) == 1
    assert told == {one.digest for one in images}
    assert runs() == 1


def test_what_is_gone_is_done_again(store: Store, base: Image, tmp_path: Path) -> None:
    """A step whose image was removed, or whose record is damaged, is done again; verify tells, and gc takes the record."""
    mount, runs = counted(tmp_path)
    image = base.run(f"{COUNT}; echo > /x", mounts=[mount], created=CREATED)
    image.remove()
    assert base.run(f"{COUNT}; echo > /x", mounts=[mount], created=CREATED) == image
    assert runs() == 2
    image.remove()
    store.gc()
    records = Path(store.path, "steps")
    assert os.listdir(records) == []
    base.run(f"{COUNT}; echo > /x", mounts=[mount], created=CREATED)
    (record,) = records.iterdir()
    record.write_text("{")
    assert [(one.subject.value, one.name) for one in store.verify()] == [("step", record.name)]
    assert base.run(f"{COUNT}; echo > /x", mounts=[mount], created=CREATED) == image
    assert runs() == 4
    record.write_text("{")
    store.gc()
    assert os.listdir(records) == []


def test_a_collection_keeps_what_led_to_a_name(store: Store, base: Image, tmp_path: Path) -> None:
    """Of images without a name those stay from which a named one was built, so that building it again takes no step."""
    mount, runs = counted(tmp_path)

    def made() -> Image:
        return (
            base.run(f"{COUNT}; echo > /x", mounts=[mount])
            .configure(user="app")
            .run(f"{COUNT}; true", mounts=[mount], user="0")
        )

    last = made()
    other = base.run("echo > /other")
    last.tag("last")
    assert store.gc(unnamed=True).images == (other.digest,)
    assert made() == last
    assert runs() == 2
    last.untag("last")
    assert len(store.gc(unnamed=True).images) == 3
    assert store.images() == (base,)
    assert os.listdir(f"{store.path}/steps") == []


# ---- what is copied ----


def test_a_copy_goes_where_copy_would_put_it(store: Store, base: Image, source: Path) -> None:
    """Contents of directories, files to a name, into a directory by slash, by what is there, or because there are several."""
    main = source / "app/main"
    image = base.copy(source, target="/a").copy(main, target="/b").copy(main, target="/c/").copy(main, target="/etc")
    image = image.copy(main, source / "app/sub", target="/d").copy(source / "app", target="/a").copy(main, target="/")
    image = image.configure(workdir="/w").copy(main, target="x/y")
    with store.checkout(image) as tree:
        there = listed(tree.path)
    found = {path for path in there if path.split("/")[0] in {"a", "b", "c", "d", "w", "main"} or path.startswith("etc/m")}
    assert found == {
        *("a", "a/app", "a/app/main", "a/app/sub", "a/app/sub/part", "a/requirements"),  # the content of source
        *("b", "c", "c/main", "etc/main", "main"),
        *("d", "d/main", "d/part"),
        *("a/main", "a/sub", "a/sub/part"),  # and that of source/app beside
        *("w", "w/x", "w/x/y"),
    }


@ON_ALL
def test_a_copy_keeps_what_a_file_is(store: Store, base: Image, tmp_path: Path) -> None:
    """Modes, times, links, names of one file, holes and attributes come along; owners do not, nor what is excluded."""
    top = tmp_path / "kept"
    (top / "sub/cache").mkdir(parents=True)
    (top / "sub/tool").write_text("tool")
    (top / "sub/tool").chmod(0o4711)
    os.symlink("tool", top / "sub/link")
    os.link(top / "sub/tool", top / "other")
    os.link(top / "sub/tool", top / "another")
    (top / "sub/cache/x").touch()
    (top / "sub/left.out").touch()
    (top / "out").mkdir()
    (top / "out/of").touch()
    os.mkfifo(top / "fifo")
    os.setxattr(top / "sub/tool", "user.note", b"noted")
    os.utime(top / "sub/tool", ns=(1, 1_234_567_890_123_456_789))
    os.utime(top / "sub", ns=(1, 5 * 10**9))
    (top / "sub").chmod(0o750)
    image = base.copy(top, target="/k", exclude=["cache", "*.out", "/out", "another"])
    with store.checkout(image) as tree:
        there = listed(f"{tree.path}/k")
        assert {*there} == {".", "fifo", "other", "sub", "sub/link", "sub/tool"}
        assert os.path.samefile(f"{tree.path}/k/other", f"{tree.path}/k/sub/tool")
        assert os.getxattr(f"{tree.path}/k/sub/tool", "user.note") == b"noted"
        assert os.readlink(f"{tree.path}/k/sub/link") == "tool"
    owner = (os.geteuid(), os.getegid())
    assert there["sub/tool"][:4] == (0o104711, *owner, 1_234_567_890_123_456_789)
    assert there["sub"][:4] == (0o040750, *owner, 5 * 10**9)


@pytest.mark.root
def test_a_copy_has_the_owner_and_mode_that_are_asked_for(store: Store, base: Image, source: Path) -> None:
    """Names are the image's; modes are for files, and directories can be searched beside; what is there already stays."""
    image = base.copy(source, target="/etc", owner="app", mode=0o640).copy(source, target="/n/m", owner=(5, 6))
    image = image.copy(source / "requirements", target="/one", owner=7).copy(
        source / "requirements", target="/two", owner="app:more"
    )
    with store.checkout(image) as tree:
        there = listed(tree.path)
    assert there["etc"][:3] == (0o040755, 0, 0)
    assert there["etc/app"][:3] == (0o040750, 1000, 1001)
    assert there["etc/app/main"][:3] == (0o100640, 1000, 1001)
    assert [there[path][1:3] for path in ("n", "n/m", "n/m/app/main", "one", "two")] == [*[(5, 6)] * 3, (7, 7), (1000, 1002)]
    assert image.history[1].created_by.startswith("COPY --chown=app dir:")


@ON_ALL
def test_a_copy_from_an_image(store: Store, base: Image, source: Path) -> None:
    """Files and directories of another image are copied by their paths in it, through its own links only."""
    other = base.copy(source, target="/srv").run("ln -s /srv/app /link; ln -s ../../../../srv /up; ln -s /etc/hostname /none")
    image = base.copy("/link", target="/a", from_image=other).copy(
        "up/requirements", "/etc/passwd", target="/b/", from_image=other
    )
    with store.checkout(image) as tree:
        assert {path for path in listed(tree.path) if path[0] in "ab" and path[:3] != "bin"} == {
            *("a", "a/main", "a/sub", "a/sub/part"),
            *("b", "b/passwd", "b/requirements"),
        }
    with pytest.raises(SyscallError, match="hostname"):
        base.copy("/none", target="/c", from_image=other)


@ON_ALL
def test_no_link_of_an_image_leads_a_copy_out(store: Store, base: Image, source: Path, tmp_path: Path) -> None:
    """Links on the way to a target lead within the image, also where they lead to nothing; a loop is refused."""
    victim = tmp_path / "victim"
    victim.mkdir()
    where = str(victim)
    image = base.run(
        f"ln -s {where} /abs; ln -s ../../../../../../../..{where} /rel; ln -s a /b; ln -s b /a; ln -s /etc /to-etc"
    )
    image = image.run("ln -s /proc/self/root/tmp /magic; mkdir /dir; ln -s /etc /dir/app; ln -s /etc/passwd /file")
    made = image.copy(source, target="/abs").copy(source / "requirements", target="rel/more/")
    made = made.copy(source / "requirements", target="/to-etc/x").copy(source / "requirements", target="/magic/y")
    made = made.copy(source / "requirements", target="/file")
    assert os.listdir(victim) == []
    with store.checkout(made) as tree:
        there = listed(tree.path)
        inside = where.lstrip("/")
        assert {f"{inside}/app/main", f"{inside}/more/requirements", "etc/x", "proc/self/root/tmp/y"} <= {*there}
        assert os.readlink(f"{tree.path}/abs") == where
        assert Path(tree.path, "etc/passwd").read_text() == "one\n"
    with pytest.raises(SyscallError, match="symbolic links"):
        image.copy(source, target="/a/x")
    for target, name in (("/dir", "app"), ("/etc/group", "group"), ("/etc/group/x", "group")):
        with pytest.raises(SyscallError, match=name) as refused:
            image.copy(source, target=target)
        assert isinstance(refused.value, OSError)
    (source / "x").mkdir()
    with pytest.raises(SyscallError, match="Is a directory"):
        image.run("mkdir -p /dir2/requirements").copy(source, target="/dir2")


def test_what_no_layer_can_have_is_not_copied(store: Store, base: Image, tmp_path: Path) -> None:
    """A file whose name says in a layer that something is gone is refused, and nothing is left."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/.wh.passwd").touch()
    with pytest.raises(ArchiveError, match="passwd"):
        base.copy(tmp_path / "bad", target="/etc")
    with pytest.raises(SyscallError, match="nonesuch"):
        base.copy(tmp_path / "nonesuch", target="/etc")
    assert store.images() == (base,)
    assert leftovers(store) == {}


@pytest.mark.root
def test_a_users_file_that_leads_out_is_not_read(base: Image) -> None:
    """Where /etc/passwd is a link, it is one within the image; a device or a FIFO there is no file of users."""
    image = base.run("rm /etc/passwd; ln -s ../../../../../../../../../../etc/group /etc/passwd")
    with pytest.raises(PlanError, match="no 'daemon'"):
        image.run("true", user="daemon")


# ---- the config ----


def test_a_config_is_changed_by_what_is_said(store: Store, base: Image) -> None:
    """What is given is added or replaced, None and empty take away, the rest stays; files are the same."""
    image = base.configure(
        env={"A": "1", "B": "2"},
        labels={"x": "1"},
        cmd="echo $A",
        entrypoint=["/bin/env"],
        workdir="/srv",
        user="app:more",
        expose=["80", "8000-8010/tcp"],
        volumes=["/data"],
        stop_signal="SIGINT",
        author="me",
    )
    config = image.config
    assert (dict(config.env), dict(config.labels)) == ({"A": "1", "B": "2"}, {"x": "1"})
    assert (config.cmd, config.entrypoint) == (("/bin/sh", "-c", "echo $A"), ("/bin/env",))
    assert (config.workdir, config.user, config.stop_signal, config.author) == ("/srv", "app:more", "SIGINT", "me")
    assert (config.exposed_ports, config.volumes) == (("80/tcp", "8000-8010/tcp"), ("/data",))
    changed = image.configure(env={"A": None, "C": "3"}, labels={"x": None}, cmd=(), workdir="../opt", user="", expose=[80, 81])
    config = changed.config
    assert (dict(config.env), dict(config.labels), config.cmd) == ({"B": "2", "C": "3"}, {}, None)
    assert (config.entrypoint, config.workdir, config.user) == (("/bin/env",), "/opt", "")
    assert config.exposed_ports == ("80/tcp", "8000-8010/tcp", "81/tcp")
    assert changed.layers == base.layers
    assert changed.history[-1].empty_layer
    assert (
        image.configure(env={"A": None, "C": "3"}, labels={"x": None}, cmd=(), workdir="../opt", user="", expose=[80, 81])
        == changed
    )
    assert base.configure(user="x", cache=False, created=CREATED) == base.configure(user="x", created=CREATED)
