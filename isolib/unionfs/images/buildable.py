"""What images are built of: other images, and steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime, timedelta

    from isolib._kernel.request import MountValue
    from isolib._kernel.seam import Limits, Network
    from isolib.types import AnyPath
    from isolib.unionfs.images.images import Image

__all__ = ["Buildable"]


class Buildable:
    """An image, as what others are made of.  The modules that make them know trees, which know images."""

    __slots__ = ()

    @property
    def _image(self) -> Image:
        return cast("Image", self)

    def run(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]] | str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: str | int | None = None,
        mounts: Sequence[MountValue] = (),
        network: str | Network | None = None,
        timeout: float | timedelta | None = None,
        limits: Limits | None = None,
        cache: bool = True,
        created: datetime | None = None,
    ) -> Image:
        """Run a command in it, and make an image of what that has changed, as one layer more.

        The command runs in a sandbox: all its namespaces are new, nobody in it is somebody on the host, and it is root over
        what is the image's.  /proc, /dev and /tmp are private, and neither they nor any mount are in the new image.  This image
        is not changed.

        Parameters
        ----------
        argv
            The program and its arguments; or one text, which ``/bin/sh -c`` of the image gets.
        env
            Variables for this command, beside those of the image's config.
        cwd
            Where it starts; a relative path starts from the config's, which is used if nothing is said.  It is made where it is
            absent.
        user
            ``name``, ``uid``, or either with ``:group``, as the image's /etc/passwd and /etc/group know them; None: the
            config's.
        mounts
            Values of `isolib.mounts`.  Files that the command needs and the image does not: ``Bind(source, target)``.
        network
            As of `isolib.run`.  With one, /etc/resolv.conf and /etc/hosts are mounted for the command.
        timeout
            Seconds after which it is killed.
        limits
            What it may use: `isolib.Limits`.
        cache
            Whether the image is returned that came of the same step before, if the store has it still.  The step is this image,
            command, environment, directory, user, kind of network, the mounts as values, and ``created``; what is in a mount,
            or can be reached by network, has no say.  With mounts that are no values, but of a handle, there is no cache.
        created
            When the new image was made.  Nothing that the command has changed is newer in it, so commands that do the same make
            the same image.  None: what ``SOURCE_DATE_EPOCH`` says in the environment, else now.

        Returns
        -------
        Image
            The new one, without a name.

        Raises
        ------
        CommandFailed
            It ended with another status than 0; its outputs are in the exception.  As with all others, nothing is left.
        SandboxTimeout, OutOfMemory
            It took too long, or too much.
        SetupFailed
            It could not be started: there is no such program in the image.
        PlanError
            An argument cannot work; the image has no such user.
        ImageNotFound
            This image is not in the store any more.
        Unsupported
            It is to be another user than root, and the caller has no ids for another one.

        Notes
        -----
        Privileges: as of `isolib.run`, and those of the store's driver.  Of several who come to the same step at the same time
        one does it, and the others wait for what comes of it.

        Examples
        --------
        >>> image.run("apt-get update && apt-get install -y gcc", network="host").tag("gcc")  # doctest: +SKIP
        """
        from isolib.unionfs.images import building  # noqa: PLC0415 - as the class says

        return building.run(
            self._image,
            argv,
            env=env,
            cwd=cwd,
            user=user,
            mounts=mounts,
            network=network,
            timeout=timeout,
            limits=limits,
            cache=cache,
            created=created,
        )

    def copy(
        self,
        *sources: AnyPath,
        target: AnyPath,
        from_image: Image | None = None,
        owner: str | int | tuple[int, int] | None = None,
        mode: int | None = None,
        exclude: Collection[str] = (),
        cache: bool = True,
        created: datetime | None = None,
    ) -> Image:
        """Copy files and directories into it: make an image that has them in one layer more.

        What is in a directory is copied, not the directory itself.  A file becomes what lies at the target; or it is copied
        into that, with its name, where that is a directory, has a slash at its end, or several things are copied.  What lies in
        the way of a file is replaced; a directory takes the place of nothing else, nor the other way round.  Links of the image
        on the way to the target lead within the image; nothing that is copied is written through any other.

        Parameters
        ----------
        *sources
            Files and directories of the host; symbolic links to them are followed, those in them are copied as links.  For
            patterns there is `glob.glob`.
        target
            The path in the image; a relative one starts from the config's working directory.  Directories that are missing are
            made, for the owner, with the mode 0755.
        from_image
            The sources are paths in this image, not on the host.
        owner
            ``name``, ``uid``, or either with ``:group``, as the image knows them; a number for both; or (uid, gid).  None:
            root.
        mode
            Permission bits of all that is copied; directories can also be searched by those who can read them.  None: as they
            are.
        exclude
            What to leave out of directories, by patterns of `fnmatch`: ``"*.pyc"``, ``".git"`` at any depth; with a slash, the
            whole path below the source, of which each ``*`` is for one name: ``"docs/*.html"``.
        cache
            Whether the image is returned that came of the same step before, if the store has it still.  The step is this image,
            what is copied, by its content, names, modes and owners, not by its times, the target, and ``created``.
        created
            As of `run`: nothing that is copied is newer in the image.  Without it, times stay as they are.

        Returns
        -------
        Image
            The new one, without a name.

        Raises
        ------
        SyscallError
            Something cannot be read or written.  ENOTDIR, EISDIR: a directory would take the place of something else, or the
            other way round.
        ArchiveError
            No layer can have it: a file whose name begins with ``.wh.``.
        PlanError
            An argument cannot work; the image has no such user.
        ImageNotFound
            An image is not in the store any more.

        Notes
        -----
        What is copied is read once; what becomes of it later has no say in what the cache knows.  Sockets are left out, and so
        are access control lists: they name users of the host.

        Examples
        --------
        >>> image.copy("pyproject.toml", "src", target="/app/", exclude=["__pycache__"])  # doctest: +SKIP
        """
        from isolib.unionfs.images import building  # noqa: PLC0415 - as the class says

        return building.copy(
            self._image,
            sources,
            target,
            from_image=from_image,
            owner=owner,
            mode=mode,
            exclude=exclude,
            cache=cache,
            created=created,
        )

    def configure(
        self,
        *,
        env: Mapping[str, str | None] | None = None,
        cmd: Sequence[str] | str | None = None,
        entrypoint: Sequence[str] | str | None = None,
        workdir: AnyPath | None = None,
        user: str | int | None = None,
        labels: Mapping[str, str | None] | None = None,
        expose: Collection[str | int] | None = None,
        volumes: Collection[str] | None = None,
        stop_signal: str | None = None,
        author: str | None = None,
        cache: bool = True,
        created: datetime | None = None,
    ) -> Image:
        """Make an image with the same layers that is to be run in another way.

        Parameters
        ----------
        env, labels
            Are added, or take the place of what is there; None takes a name away.
        cmd, entrypoint
            A list; a text is for ``/bin/sh -c``; an empty one takes away what is there.
        workdir
            A relative path starts from what is there.
        user
            ``name``, ``uid``, or either with ``:group``; empty: root.
        expose
            Ports that are added: 80, ``"80/tcp"``, ``"53/udp"``.
        volumes
            Directories that are added.
        stop_signal, author
            Take the place of what is there.
        cache, created
            As of `run`.

        Returns
        -------
        Image
            The new one, without a name.  Its history has one step more, without a layer.

        Raises
        ------
        PlanError
            An argument cannot work, or there is none.
        ImageNotFound
            This image is not in the store any more.

        Examples
        --------
        >>> image.configure(env={"LANG": "C.UTF-8"}, cmd=["bash"], expose=[80])  # doctest: +SKIP
        """
        from isolib.unionfs.images import building, configuring  # noqa: PLC0415 - as the class says

        changes = configuring.Changes(env, cmd, entrypoint, workdir, user, labels, expose, volumes, stop_signal, author)
        return building.configure(self._image, changes, cache=cache, created=created)
