"""From a tar's members to samples: which of them belong together.

WebDataset's rule: neighbours whose names agree up to the first dot of the last part are one sample. Names as people
write them may have more dots. Where the neighbours hold one record it is theirs (`7.input.png`, `7.output.json`);
where they hold several, or the record's own picture stands beside those of other names, the last dot parts the names
instead (`scan 2.0.png`, `scan 2.0.json`, `scan 2.1.png` ...), if each record then has pictures or none has; else a
plain `.json` is the record (`7.json`, `7.meta.json`, `7.png`).

Pictures of names that differ in a number alone are in its order (`7.0.png` ... `7.10.png`), others in that of the tar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import itemgetter

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
        self._apart = False  # of the key were so many that the first of them are settled already
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
        self._members, self._bytes, self._apart = [], 0, False
        if members:
            yield from self._settle(members, apart, cut)

    def _make_room(self) -> Iterator[Group | Fault]:
        last = _stem(self._members[-1])
        rest = [member for member in self._members if _stem(member) == last]
        done = [member for member in self._members if _stem(member) != last]
        size = sum(len(member.data) for member in rest)
        several = sum(member.kind == self._record for member in self._members) > 1
        if several and size <= MAX_SAMPLE // 2 and len(rest) <= MAX_TOGETHER // 2:
            self._members, self._bytes, self._apart = rest, size, True
            yield from self._settle(done, True, False)
            return
        first, held = self._members[0], len(self._members)
        self._passed = first.key
        self._members, self._bytes, self._apart = [], 0, False
        most = f"{MAX_TOGETHER} members" if held > MAX_TOGETHER else f"{MAX_SAMPLE} bytes"
        detail = f"key {first.key!r} has more than {most}; all of it is passed over"
        yield Fault(self._shard, first.header, "incomplete", detail)

    def _settle(self, members: list[Member], apart: bool, cut: bool) -> Iterator[Group | Fault]:
        first, last = members[0], members[-1]
        if len(members) == 2 and first.ext == self._record and last.ext in self._pictures:  # nearly all there is
            yield from self._group(first, members, cut)
            return
        members, doubles = _without_doubles(members)
        for double in doubles:
            yield self._fault(double, "order", f"key {double.key!r} has a second {double.ext}")
        parts: dict[str, list[Member]] = {}
        for member in members:
            parts.setdefault(_stem(member), []).append(member)
        records = [member for member in members if member.kind == self._record]
        if not records:
            yield from self._without_record(parts)
            return
        if len(records) == 1 and not apart and not self._has_own(records[0], parts):
            yield from self._group(records[0], members, cut)
            return
        plain = [record for record in records if record.ext == self._record]
        come_apart = apart or self._come_apart(parts)
        if plain and not come_apart:
            yield from self._group(plain[0], members, cut)
            return
        for stem, part in parts.items():
            record = next((member for member in part if member.kind == self._record), None)
            if record is None:
                yield from self._without_record({stem: part})
            elif come_apart or self._pictures_of(part):
                yield from self._group(record, part, cut and part[-1] is members[-1])
            else:
                yield self._fault(record, "incomplete", f"key {stem!r} has no picture, others of its name have")

    def _has_own(self, record: Member, parts: dict[str, list[Member]]) -> bool:
        """Whether a record of a dotted name has pictures of its name, and others are there too."""
        with_pictures = {stem for stem, part in parts.items() if self._pictures_of(part)}
        return _stem(record) != record.key and _stem(record) in with_pictures and len(with_pictures) > 1

    def _come_apart(self, parts: dict[str, list[Member]]) -> bool:
        """Whether each part is a record with pictures, or each without."""
        kinds = {
            (any(member.kind == self._record for member in part), bool(self._pictures_of(part)))
            for part in parts.values()
            if any(member.kind in self.read for member in part)
        }
        return len(kinds) == 1

    def _group(self, record: Member, members: list[Member], cut: bool) -> Iterator[Group | Fault]:
        pictures = self._pictures_of(members)
        stems = {_stem(record), *map(_stem, pictures)}
        key = stems.pop() if len(stems) == 1 else record.key
        if key in self._seen:
            yield self._comes_again(key, members[0])
            return
        self._seen.add(key)
        used = {record.ext, *[picture.ext for picture in pictures]}
        extra = {member.ext: self._unread(member) for member in members if member.ext not in used}
        yield Group(key, record, tuple(pictures), next(iter(extra.values()), ""), cut)
        for member in members:
            if member.ext in extra:
                yield self._fault(member, "extra", extra[member.ext])

    def _without_record(self, parts: dict[str, list[Member]]) -> Iterator[Fault]:
        first = next(iter(parts.values()))[0]
        wanted = {stem: part for stem, part in parts.items() if any(m.kind in self.read for m in part)}
        for stem, part in (wanted or {first.key: [first]}).items():
            if again := {stem, first.key} & self._seen:
                yield self._comes_again(min(again), part[0], "order" if wanted else "extra")
            elif wanted:
                yield self._fault(part[0], "incomplete", f"key {stem!r} has no {self._record}")
            else:
                yield self._fault(first, "member", self._unread(first))
        self._seen.update(parts)

    def _unread(self, member: Member) -> str:
        if member.kind in self.read:
            return f"member {_name(member)!r} is not asked for beside the others of its key"
        return unread(_name(member), self._said)

    def _pictures_of(self, members: Sequence[Member]) -> list[Member]:
        pictures = [member for member in members if member.kind in self._pictures]
        if self._patterns:
            numbered = [[one for one in pictures if fnmatchcase(one.ext, pattern)] for pattern in self._patterns]
            return list({one.ext: one for group in numbered for one in _by_number(group)}.values())
        return _by_number(pictures)

    def _comes_again(self, key: str, member: Member, reason: str = "order") -> Fault:
        return self._fault(member, reason, f"key {key!r} comes again; its members must be adjacent")

    def _fault(self, member: Member, reason: str, detail: str) -> Fault:
        return Fault(self._shard, member.header, reason, detail)


def _name(member: Member) -> str:
    return f"{member.key}.{member.ext}"


def _stem(member: Member) -> str:
    """The name up to its last dot."""
    return member.key if member.ext == member.kind else _name(member).rpartition(".")[0]


def _by_number(pictures: list[Member]) -> list[Member]:
    """In the order of the number by which alone their names differ; else as they are."""
    if len(pictures) < 2:
        return pictures
    numbered = [match for picture in pictures if (match := _NUMBERED.fullmatch(picture.ext))]
    if len(numbered) < len(pictures) or len({match[1] for match in numbered}) > 1:
        return pictures
    return [
        picture
        for _, picture in sorted(zip([int(match[2]) for match in numbered], pictures, strict=True), key=itemgetter(0))
    ]


def _without_doubles(members: Sequence[Member]) -> tuple[list[Member], list[Member]]:
    first: dict[str, Member] = {}
    doubles = [member for member in members if first.setdefault(member.ext, member) is not member]
    return list(first.values()), doubles
