"""One row of a task file as a sample whose pictures still lie on disk, and many of them, kept small."""

from __future__ import annotations

import errno
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

from streamcvit.data.files.spool import Spool
from streamcvit.data.images import no_picture, sniff
from streamcvit.data.locations import NotRegular, open_regular
from streamcvit.data.references import BadRow, Reference
from streamcvit.data.sample import Picture, Sample
from streamcvit.data.shards.tar import MAX_MEMBER
from streamcvit.errors import UserError


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file of its own; it was there, and of a kind that is read, when it was looked at."""

    path: str
    ext: str

    def load(self, spool: Spool) -> Picture:
        """The picture with its bytes as they are.

        Raises:
            UserError: it is gone.
        """
        try:
            with os.fdopen(open_regular(self.path), "rb") as stream:
                return Picture(stream.read(MAX_MEMBER + 1), self.ext)
        except OSError as fault:
            raise UserError(f"the picture cannot be read: {fault.strerror}", where=self.path) from None


@dataclass(frozen=True)
class SpooledPicture:
    """A picture that the row itself held, set aside."""

    start: int
    size: int
    ext: str

    def load(self, spool: Spool) -> Picture:
        """The picture."""
        return Picture(spool.get(self.start, self.size), self.ext)


@dataclass(frozen=True)
class Row:
    """A sample whose pictures are not read yet.

    Attributes:
        sample: without its pictures.
        pictures: where they lie.
        text: the sample's text under some id, and with as many pictures.
        spool: where those lie that the row itself held.
    """

    sample: Sample
    pictures: tuple[PictureFile | SpooledPicture, ...]
    text: bytes = field(repr=False, compare=False)
    spool: Spool = field(repr=False, compare=False)

    @property
    def sample_id(self) -> str:
        """Of the sample."""
        return self.sample.sample_id

    def load(self) -> Sample:
        """The sample with its pictures' bytes as they are.

        Raises:
            UserError: a picture is gone.
        """
        return replace(self.sample, pictures=tuple(one.load(self.spool) for one in self.pictures))


class Rows(Sequence[Sample]):
    """Rows as a sequence of samples, each read when it is asked for and not kept: in memory are only their ids.

    Attributes:
        ids: of the samples; may be changed.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._starts, self._sizes = array("q"), array("q")
        self.ids: list[str] = []

    def append(self, row: Row) -> None:
        """Add a row of this spool."""
        text = json.dumps([list(vars(one).values()) for one in row.pictures]).encode() + b"\n" + row.text
        self._starts.append(self._spool.put(text))
        self._sizes.append(len(text))
        self.ids.append(row.sample_id)

    def row(self, place: int) -> Row:
        """One of them, its pictures not read."""
        where, _, text = self._spool.get(self._starts[place], self._sizes[place]).partition(b"\n")
        pictures = [PictureFile(*one) if len(one) == 2 else SpooledPicture(*one) for one in json.loads(where)]
        sample = Sample.from_bytes(text, [Picture(b"")] * len(pictures))
        return Row(replace(sample, sample_id=self.ids[place], pictures=()), tuple(pictures), text, self._spool)

    @property
    def rows(self) -> Iterator[Row]:
        """Each of them in turn, its pictures not read."""
        return map(self.row, range(len(self)))

    def pick(self, places: Iterable[int]) -> Rows:
        """Those at the places."""
        picked = Rows(self._spool)
        for place in places:
            picked._starts.append(self._starts[place])
            picked._sizes.append(self._sizes[place])
            picked.ids.append(self.ids[place])
        return picked

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> Rows: ...

    def __getitem__(self, place: int | slice) -> Sample | Rows:
        if isinstance(place, slice):
            return self.pick(range(*place.indices(len(self))))
        return self.row(place).load()


def look_at(reference: Reference, images: str, spool: Spool) -> PictureFile | SpooledPicture:
    """Where a picture lies; its first bytes and its size are looked at.

    Args:
        reference: as a row names it.
        images: folder that paths start from.
        spool: where a picture goes that lies in the row.

    Raises:
        BadRow: it is not there, of no kind that is read, or too large.
        UserError: this machine cannot read it.
    """
    if isinstance(reference, bytes):
        ext = _kind(reference[:12], len(reference), "in the row")
        return SpooledPicture(spool.put(reference), len(reference), ext)
    picture = os.path.join(images, reference)
    if "\\" in reference and not os.path.exists(picture):  # written on Windows
        picture = os.path.join(images, reference.replace("\\", "/"))
    try:
        with os.fdopen(open_regular(picture), "rb") as stream:
            size, head = os.fstat(stream.fileno()).st_size, stream.read(12)
    except (FileNotFoundError, NotADirectoryError, NotRegular) as fault:
        raise BadRow("missing", f"the picture {reference!r:.200} cannot be opened: {fault.strerror}") from None
    except OSError as fault:
        if fault.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise BadRow("missing", f"the picture {reference!r:.200} cannot be opened: {fault.strerror}") from None
        # Anything else says something of this machine, not of the row.
        raise UserError(f"the picture cannot be read: {fault.strerror}", where=picture) from None
    return PictureFile(picture, _kind(head, size, f"{reference!r:.200}"))


def _kind(head: bytes, size: int, name: str) -> str:
    ext = sniff(head)
    if not ext:
        raise BadRow("image", f"the picture {name} {no_picture(head)}")
    if size > MAX_MEMBER:
        raise BadRow("image", f"the picture {name} has {size} bytes; at most {MAX_MEMBER} are allowed")
    return ext
