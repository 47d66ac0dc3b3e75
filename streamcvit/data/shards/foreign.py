"""Shards of others, indexed where they lie: what of them is a sample, what is lost, and how much of that is borne."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, count

import numpy as np

from streamcvit.data import locations
from streamcvit.data.formats import BAD_SHARE, FORMATS, Ids
from streamcvit.data.sample import TaskSpec
from streamcvit.data.shards.check import check_tasks
from streamcvit.data.shards.index import EVAL_FOLDER, INDEX_NAME, LOSSES, StreamIndex, build_index
from streamcvit.data.shards.labels import LABELS
from streamcvit.data.shards.records import OWN, Reading, Records
from streamcvit.data.shards.scan import Shard, ShardScan, scan_shards
from streamcvit.data.shards.tar import Fault
from streamcvit.errors import UserError

_SHOWN = 3


def index_shards(
    shards: Sequence[str | os.PathLike],
    folder: str | os.PathLike,
    tasks: Mapping[str, TaskSpec],
    *,
    test_shards: Sequence[str | os.PathLike] = (),
    format: str = OWN,
    task: str | Sequence[str] = "",
    test_task: str | Sequence[str] = "",
    readings: Mapping[str, Reading] | None = None,
    pictures: Sequence[str] = (),
    test_samples: int = 0,
    seed: int = 0,
    samples_per_chunk: int | None = None,
    keep_whole: bool = False,
    bad_share: float = BAD_SHARE,
    replace: bool = True,
) -> StreamIndex:
    """Index WebDataset shards of others (a record and its pictures a sample) where they lie.

    Args:
        shards: paths or URLs, in stream order; files that lie outside `folder` are linked into it.
        folder: where `index.parquet` goes; may be the shards' own folder.
        tasks: every task that the samples name.
        test_shards: the same for the test sets.
        format: a name in `FORMATS`: how to read the `.json` members; or in `LABELS`.
        task: the task of samples whose record names none; or one a shard.
        test_task: the same for `test_shards`; empty: `task`, which then is one for all.
        readings: by task, what it adds to the records.
        pictures: which members are pictures, in their order (see `scan_groups`).
        test_samples: so many samples of each task, drawn by `seed`, become its test set; not beside `test_shards`.
        seed: of that draw; noted in the index.
        samples_per_chunk: length of a chunk; without it each shard is one chunk, an empty one if it has no samples.
        keep_whole: of a damaged shard index the samples before the damage, instead of refusing it.
        bad_share: so large a share of lost samples is borne.
        replace: whether the index of another stream in the folder may be replaced.

    Raises:
        UserError: a shard is no tar or damaged (the message gives the byte), there is no sample, or too many are lost.
    """
    check_tasks(tasks)
    records = Records(format, _checked(format, readings or {}, tasks))
    folder = os.path.abspath(folder)
    if not shards:
        raise UserError("no shards are given", fix="Name the tars, in stream order")
    if test_samples and test_shards:
        raise UserError("test sets are both drawn and given", fix="Name test shards, or how many samples to draw")
    scanning = (records, pictures, keep_whole, bad_share)
    named, links = _named(shards, folder, _each(task, len(shards)))
    tests, test_links = None, links
    if test_shards:
        default = _each(test_task or (task if isinstance(task, str) else ""), len(test_shards))
        test_named, test_links = _named(test_shards, f"{folder}/{EVAL_FOLDER}", default)
        tests = _scan(test_named, *scanning)
    scan = _scan(named, *scanning)
    if test_samples:
        scan, tests = _drawn(scan, tasks, test_samples, seed)
        again, test_links = _named(shards, f"{folder}/{EVAL_FOLDER}", _each(task, len(shards)))
        tests.shards = [{**note, "path": shard.name} for note, shard in zip(scan.shards, again, strict=True)]
    evaluation = None
    if tests is not None:
        where = f"{folder}/{EVAL_FOLDER}"
        evaluation = build_index(where, tests, np.full(len(tests), -1), tasks, seed=seed, records=records)
    places = np.arange(len(scan)) // samples_per_chunk if samples_per_chunk else np.array(scan.columns["shard"])
    chunks = None if samples_per_chunk else len(named)
    index = build_index(folder, scan, places, tasks, seed=seed, n_chunks=chunks, records=records, evaluation=evaluation)
    if not replace and os.path.exists(f"{folder}/{INDEX_NAME}") and StreamIndex.open(folder).digest != index.digest:
        fix = f"Choose another folder, or remove its {INDEX_NAME} first"
        raise UserError("another stream is indexed here", where=folder, fix=fix)
    if evaluation:
        _link(evaluation.folder, test_links)
        evaluation.save()
    _link(folder, links)
    index.save()
    return index


def _checked(format: str, readings: Mapping[str, Reading], tasks: Mapping[str, TaskSpec]) -> dict[str, Reading]:
    """What tasks add to the records, or UserError."""
    if format not in {*FORMATS, *LABELS}:
        raise UserError(f"unknown format {format!r}", fix=f"Choose one of {', '.join([*FORMATS, *LABELS])}")
    if unknown := sorted(set(readings) - set(tasks)):
        raise UserError(
            f"there is no task {unknown[0]!r:.80}",
            fix="Name every task (`streamcvit index` takes them by --task or --tasks FILE)",
        )
    checked = {task: readings.get(task, Reading()) for task in tasks} if format in LABELS else dict(readings)
    for task, reading in checked.items():
        try:
            reading.check(format)
        except ValueError as fault:
            raise UserError(f"task {task!r:.80}: {fault}", fix="Mend its settings") from None
    return checked


def _each(task: str | Sequence[str], shards: int) -> list[str]:
    tasks = [task] * shards if isinstance(task, str) else list(task)
    if len(tasks) != shards:
        raise UserError(f"{len(tasks)} tasks are named for {shards} shards", fix="Name one a shard, or one for all")
    return tasks


def _named(
    shards: Sequence[str | os.PathLike], folder: str, tasks: Sequence[str]
) -> tuple[list[Shard], dict[str, str]]:
    """The shards under their names in the index, and the links to make: name -> local file outside the folder.

    An index names local files in its own folder only, so that one that came from elsewhere cannot lead out of it.
    """
    named: list[Shard] = []
    links: dict[str, str] = {}
    for path, task in zip(shards, tasks, strict=True):
        given = locations.check_location(os.fspath(path))
        if locations.is_url(given):
            named.append(Shard(given, given, task, given))
            continue
        location = os.path.abspath(given)
        if location.startswith(folder + os.sep):
            named.append(Shard(os.path.relpath(location, folder), location, task, given))
            continue
        base = os.path.basename(location)
        names = chain([base], (f"{number}-{base}" for number in count(2)))
        name = next(name for name in names if _free(folder, name, location, links))
        links[name] = location
        named.append(Shard(name, location, task, given))
    return named, links


def _free(folder: str, name: str, location: str, links: Mapping[str, str]) -> bool:
    path = os.path.join(folder, name)
    if os.path.lexists(path):
        return os.path.realpath(path) == os.path.realpath(location)
    return links.get(name, location) == location


def _link(folder: str, links: Mapping[str, str]) -> None:
    os.makedirs(folder, exist_ok=True)
    for name, location in links.items():
        if not os.path.lexists(path := os.path.join(folder, name)):
            os.symlink(location, path)


def _scan(
    named: Sequence[Shard], records: Records, pictures: Sequence[str], keep_whole: bool, bad_share: float
) -> ShardScan:
    scan = scan_shards(named, records, pictures)
    given = {shard.name: shard.given for shard in named}
    fatal = next((fault for fault in scan.faults if fault.fatal), None)
    if fatal and fatal.reason == "packed":
        raise UserError(fatal.detail, where=given[fatal.shard], fix="Index the unpacked .tar")
    if fatal and not keep_whole:
        raise UserError(
            f"damaged: {fault_line(fatal)}; {len(scan)} whole samples were found in all shards",
            where=given[fatal.shard],
            fix="Fetch the shard again, or ask for the whole samples only (--keep-whole)",
        )
    scan.columns["sample_id"] = list(map(Ids().take, scan.columns["sample_id"]))  # those of others need not be unique
    _check_share(scan, bad_share, given)
    return scan


def _check_share(scan: ShardScan, bad_share: float, given: Mapping[str, str]) -> None:
    """UserError where there are no samples, or too many are lost or have pictures that are not read."""
    lost = [fault for fault in scan.faults if fault.reason in LOSSES]
    broken = scan.broken
    bad, there = len(lost) + len(broken), len(scan) + len(lost)
    if len(scan) and bad <= bad_share * there:
        return
    kinds = Counter([fault.reason for fault in lost] + ["image"] * len(broken))
    shown = [str(fault) for fault in lost[:_SHOWN]]
    shown += [f"{scan.columns['sample_id'][place]}: {fault}" for place, fault in broken[: _SHOWN - len(shown)]]
    fix = "Check the format and how the members are named"
    if kinds.get("task"):
        fix = "Name the task of the samples that name none (--task)"
    elif kinds and kinds.most_common(1)[0][0] == "order":
        fix = "Sort the members of the shards by name (tar --sort=name)"
    where = given[lost[0].shard if lost else scan.shards[0]["path"]]
    if not bad:
        raise UserError("no samples in the shards", where=where, fix=fix)
    said = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    raise UserError(
        f"{bad} samples cannot be used beside {there - bad} good ones ({said}); the first: {'; '.join(shown)}",
        where=where,
        fix=f"{fix}; at most {bad_share:.0%} may be bad",
    )


def _drawn(scan: ShardScan, tasks: Mapping[str, TaskSpec], size: int, seed: int) -> tuple[ShardScan, ShardScan]:
    """The stream without its test samples, and these, task by task."""
    broken = {place for place, _ in scan.broken}
    drawn: list[int] = []
    of_task: dict[str, list[int]] = {task: [] for task in tasks}
    for place, task in enumerate(scan.columns["task"]):
        if place not in broken:
            of_task.setdefault(task, []).append(place)
    for task, places in of_task.items():
        if places and len(places) <= size:
            what = f"task {task!r:.80} has {len(places)} samples, of which {size} shall be test samples"
            raise UserError(what, fix="Draw fewer (--test-samples), or name test shards")
        draw = np.random.default_rng([seed, zlib.crc32(task.encode())]).permutation(len(places))[:size]
        drawn += [places[place] for place in sorted(draw)]
    rest = np.setdiff1d(np.arange(len(scan)), drawn)
    tests = scan.pick(drawn)
    tests.faults = []
    return scan.pick(rest), tests


def fault_line(fault: Fault) -> str:
    """A fault's place and detail in words."""
    return f"byte {fault.offset}: {fault.detail}"
