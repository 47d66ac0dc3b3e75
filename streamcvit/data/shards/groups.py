"""From a tar's members to samples: which of them belong together.

WebDataset's rule: neighbours whose names agree up to the first dot of the last part are one sample. Names as people
write them may have more dots. Where the neighbours hold one record it is theirs (`7.input.png`, `7.output.json`), but
for pictures that have no part in a pair beside them. Where they hold several, each is a sample with the pictures whose
names go on from its own (`scan 2.0.json`, `scan 2.0.png`; `scan 2.1.json`, `scan 2.1.left.png`), or from what stands
before the last name that all the records share (`v1.1.out.json`, `v1.1.in.png`); but of a plain `7.json` and others of
which some only have pictures, it is the record (`7.json`, `7.meta.json`, `7.png`).

Pictures of names that differ in a number alone are in its order (`7.0.png` ... `7.10.png`), others in that of the tar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from streamcvit.data.images import EXTENSIONS
from streamcvit.data.shards.tar import PICTURES, Fault, HashingStream, Member, scan_members, unread

MAX_SAMPLE = 128 << 20
"""Bytes of a sample's record and pictures together."""
MAX_TOGETHER = 256
"""Members of one key that are held at once."""

_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})\.[^.]+")


@dataclass(frozen=True)
class Group:
    """What may be one sample.

    Attributes:
        key: the name that its members share.
        record: what says question and answer.
        pictures: in their order.
        unread: what is said of the first member of the key that is never looked at; empty: there is none.
        cut: nothing tells whether the members are all: right behind them the shard ends too early or is damaged.
    """

    key: str
    record: Member
    pictures: tuple[Member, ...] = ()
    unread: str = ""
    cut: bool = False


def scan_groups(
    stream: HashingStream, shard: str, record: str = "json", pictures: Sequence[str] = ()
) -> Iterator[Group | Fault]:
    """Samples and faults of a tar in file order.

    Args:
        record: ending of the members that say question and answer.
        pictures: patterns of what names have behind the key (`jpg`, `input.png`, `view_*.png`), in the order that the
            pictures shall have; empty: every picture is one.
    """
    grouping = _Grouping(shard, record, pictures)
    for found in scan_members(stream, shard, grouping.read):
        if isinstance(found, Member):
            yield from grouping.add(found)
            continue
        if found.fatal:
            yield from grouping.settle(cut=True)
        yield found
    yield from grouping.settle()


class _Grouping:
    def __init__(self, shard: str, record: str, patterns: Sequence[str]) -> None:
        self._shard, self._record = shard, record
        self._patterns = [pattern.lower() for pattern in patterns]
        named = [pattern.rpartition(".")[2] for pattern in self._patterns]
        self._pictures = frozenset({*PICTURES, *named} - {record})
        self.read = self._pictures | {record}
        self._said = (record, *named, *EXTENSIONS)  # the rest are other names of these, and pictures that are not read
        self._seen: set[str] = set()
        self._members: list[Member] = []  # neighbours of one key
        self._bytes = 0
        self._apart: str | None = None  # of the key were so many that the first are settled; what their names end in
        self._passed: str | None = None  # a key with more than may be held; what follows of it is passed over

    def add(self, member: Member) -> Iterator[Group | Fault]:
        if member.key == self._passed:
            return
        self._passed = None
        if self._members and member.key != self._members[0].key:
            yield from self.settle()
        self._members.append(member)
        self._bytes += len(member.data)
        if len(self._members) > MAX_TOGETHER or self._bytes > MAX_SAMPLE:
            yield from self._make_room()

    def settle(self, cut: bool = False) -> Iterator[Group | Fault]:
        """What the members held make."""
        members, apart = self._members, self._apart
        self._members, self._bytes, self._apart = [], 0, None
        if members:
            yield from self._settle(members, apart, cut)

    def _make_room(self) -> Iterator[Group | Fault]:
        members = self._members
        records = [member for member in members if member.kind == self._record]
        ending = _ending(records) if self._apart is None else self._apart
        with_record = [part for part in _parts(members, records, ending).values() if any(m in records for m in part)]
        place = {id(member): number for number, member in enumerate(members)}
        last = max(with_record, key=lambda part: place[id(part[-1])], default=[])
        kept = {id(member) for member in (*last, *members[place[id(last[-1])] + 1 if last else 0 :])}
        rest = [member for member in members if id(member) in kept]
        size = sum(len(member.data) for member in rest)
        if len(records) > 1 and size <= MAX_SAMPLE // 2 and len(rest) <= MAX_TOGETHER // 2:
            self._members, self._bytes, self._apart = rest, size, ending
            yield from self._settle([member for member in members if id(member) not in kept], ending, False)
            return
        self._passed = members[0].key
        self._members, self._bytes, self._apart = [], 0, None
        most = f"{MAX_TOGETHER} members" if len(members) > MAX_TOGETHER else f"{MAX_SAMPLE} bytes"
        detail = f"key {members[0].key!r} has more than {most}; all of it is passed over"
        yield self._fault(members[0], "incomplete", detail)

    def _settle(self, members: list[Member], apart: str | None, cut: bool) -> Iterator[Group | Fault]:
        first, last = members[0], members[-1]
        if len(members) == 2 and first.ext == self._record and last.ext in self._pictures:  # nearly all there is
            yield from self._group(first.key, first, members, cut)
            return
        members, doubles = _without_doubles(members)
        for double in doubles:
            yield self._fault(double, "order", f"key {double.key!r} has a second {double.ext}")
        if not any(member.kind in self.read for member in members):
            yield from self._without_record(first.key, members)
            return
        records = {member.ext: member for member in members if member.kind == self._record}
        parts = _parts(members, list(records.values()), _ending(list(records.values())) if apart is None else apart)
        of = {key: next((records[m.ext] for m in part if m.ext in records), None) for key, part in parts.items()}
        pictured = {key for key, part in parts.items() if any(member.kind in self._pictures for member in part)}
        if apart is None and (whole := self._whole(of, pictured)):
            key = next(key for key in parts if of[key] is whole)
            yield from self._group(whole.key if pictured - {key} else key, whole, members, cut)
            return
        for key, part in parts.items():
            record = of[key]
            if record is None:
                yield from self._without_record(key, part)
            else:
                yield from self._group(key, record, part, cut and members[-1] in part)

    def _whole(self, of: dict[str, Member | None], pictured: set[str]) -> Member | None:
        """The record that all members belong to; None: they come apart."""
        records = {key: record for key, record in of.items() if record}
        if len(records) == 1:
            ((key, record),) = records.items()
            return None if key in pictured and len(pictured) > 1 else record
        plain = next((record for record in records.values() if record.ext == self._record), None)
        return plain if len({key in pictured for key in records}) == 2 else None

    def _group(self, key: str, record: Member, members: list[Member], cut: bool) -> Iterator[Group | Fault]:
        if key in self._seen:
            yield self._comes_again(key, members[0])
            return
        self._seen.add(key)
        pictures = self._pictures_of(members, len(key) + 1)
        used = {record.ext, *[picture.ext for picture in pictures]}
        extra = {member.ext: self._unread(member) for member in members if member.ext not in used}
        yield Group(key, record, tuple(pictures), next(iter(extra.values()), ""), cut)
        for member in members:
            if member.ext in extra:
                yield self._fault(member, "extra", extra[member.ext])

    def _without_record(self, key: str, members: list[Member]) -> Iterator[Fault]:
        first, wanted = members[0], any(member.kind in self.read for member in members)
        if again := {key, first.key} & self._seen:
            yield self._comes_again(min(again), first, "order" if wanted else "extra")
        elif wanted:
            yield self._fault(first, "incomplete", f"key {key!r} has no {self._record}")
        else:
            yield self._fault(first, "member", self._unread(first))

    def _unread(self, member: Member) -> str:
        if member.kind in self.read:
            return f"member {_name(member)!r} is not asked for beside the others of its key"
        return unread(_name(member), self._said)

    def _pictures_of(self, members: Sequence[Member], start: int) -> list[Member]:
        """The pictures in their order; their own names begin at a character of the whole ones."""
        named = [(_name(member)[start:], member) for member in members if member.kind in self._pictures]
        if not self._patterns:
            return _by_number(named)
        groups = [[one for one in named if fnmatchcase(one[0].lower(), pattern)] for pattern in self._patterns]
        return list({one.ext: one for group in groups for one in _by_number(group)}.values())

    def _comes_again(self, key: str, member: Member, reason: str = "order") -> Fault:
        return self._fault(member, reason, f"key {key!r} comes again; its members must be adjacent")

    def _fault(self, member: Member, reason: str, detail: str) -> Fault:
        return Fault(self._shard, member.header, reason, detail)


def _name(member: Member) -> str:
    return f"{member.key}.{member.ext}"


def _stem(member: Member) -> str:
    """The name up to its last dot."""
    return member.key if member.ext == member.kind else _name(member).rpartition(".")[0]


def _ending(records: Sequence[Member]) -> str:
    """What the names of several records end in, such as `.out`, where what stands before it tells them apart."""
    stems = [_stem(record) for record in records]
    endings = {stem.rpartition(".")[2] for stem in stems}
    fronts = {stem.rpartition(".")[0] for stem in stems}
    if len(stems) < 2 or len(endings) > 1 or len(fronts) < len(stems):
        return ""
    return f".{endings.pop()}" if all(front.startswith(f"{records[0].key}.") for front in fronts) else ""


def _parts(members: Sequence[Member], records: Sequence[Member], ending: str) -> dict[str, list[Member]]:
    """The members by the key of the record whose name theirs go on from, the longest one; others by their own stem."""
    keys = {_stem(record).removesuffix(ending) for record in records}
    parts: dict[str, list[Member]] = {}
    for member in members:
        key = stem = _stem(member)
        while key not in keys and len(key) > len(member.key):
            key = key.rpartition(".")[0]
        parts.setdefault(key if key in keys else stem, []).append(member)
    return parts


def _by_number(named: list[tuple[str, Member]]) -> list[Member]:
    """In the order of the number by which alone their names differ; else as they are."""
    numbered = [match for name, _ in named if (match := _NUMBERED.fullmatch(name))]
    members = [member for _, member in named]
    if len(members) < 2 or len(numbered) < len(members) or len({match[1] for match in numbered}) > 1:
        return members
    places = sorted(range(len(members)), key=lambda place: int(numbered[place][2]))
    return [members[place] for place in places]


def _without_doubles(members: Sequence[Member]) -> tuple[list[Member], list[Member]]:
    first: dict[str, Member] = {}
    doubles = [member for member in members if first.setdefault(member.ext, member) is not member]
    return list(first.values()), doubles
