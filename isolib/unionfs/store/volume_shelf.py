"""What a store does with volumes."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from isolib.unionfs.store.volume_records import VolumeRecord, volume_names
from isolib.unionfs.store.volume_uses import check_labels, check_quota
from isolib.unionfs.store.volumes import new_volume, open_volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib.unionfs.store.volumes import Volume, VolumeKeeper

__all__ = ["Volumes"]


class Volumes:
    """What a store does with volumes."""

    @property
    @abstractmethod
    def _volume_keeper(self) -> VolumeKeeper:
        """What volumes know of their store, which is open."""

    def new_volume(self, name: str, *, quota: int | str | None = None, labels: Mapping[str, str] | None = None) -> Volume:
        """Make an empty volume: a directory that is kept apart from images, and shown to sandboxes.

        Parameters
        ----------
        name
            What to call it.
        quota
            How much it has room for, in bytes or as ``"1G"``, where the driver can see to that: btrfs, for root.
        labels
            Texts to note of it.

        Raises
        ------
        PlanError
            There is a volume of this name already.
        Unsupported
            The driver knows no quota here.
        SyscallError
            It cannot be made.

        Examples
        --------
        >>> import isolib, os, tempfile
        >>> with tempfile.TemporaryDirectory() as place, isolib.open_store(place, driver="vfs") as store:
        ...     with store.new_volume("data") as data:
        ...         _ = isolib.run(["sh", "-c", "date > /data/now"], volumes={"/data": data}, check=True)
        ...         os.listdir(data.path)
        ['now']
        """
        record = VolumeRecord({} if labels is None else check_labels(labels), check_quota(quota))
        return new_volume(self._volume_keeper, name, record)

    def volume(self, name: str) -> Volume:
        """Take a volume, which any number of handles may have at once.

        Raises
        ------
        ImageNotFound
            There is none of this name.
        """
        return open_volume(self._volume_keeper, name)

    def volumes(self) -> tuple[str, ...]:
        """Return the names of the volumes, sorted."""
        return volume_names(self._volume_keeper.records)
