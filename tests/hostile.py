"""What the fuzzer and the replay of its finds share: targets, seeds, and a guard that sees reads and executions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from streams import TASKS, pair, picture, raw_tar, sample

from streamcvit.data import strictjson
from streamcvit.data.files.mixed import load_mixed
from streamcvit.data.files.tasks import Row, load_tasks, read_rows
from streamcvit.data.formats import FORMATS
from streamcvit.data.images import decode_image, image_fault
from streamcvit.data.instructions import Naming
from streamcvit.data.locations import is_url
from streamcvit.data.references import BadRow
from streamcvit.data.sample import Picture, Quarantined, Sample
from streamcvit.data.shards.foreign import index_shards
from streamcvit.data.shards.groups import Group, scan_groups
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.records import Reading
from streamcvit.data.shards.tar import Fault, HashingStream
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import UserError

PIXELS = 1_000_000
NAMING = Naming(("One word.",))
Image.init()  # all of Pillow's plugins now, not when the first odd picture comes


class Escape(BaseException):
    """Something was run, or a file outside the folder opened. No `except Exception` on the way can hide it."""


class _Guard:
    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []

    RUNS = {
        "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
        "subprocess.Popen", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "import", "code.__new__",
        "socket.connect", "socket.getaddrinfo", "urllib.Request", "webbrowser.open", "sqlite3.connect",
    }  # fmt: skip

    def __call__(self, event: str, args: tuple) -> None:
        if self.folder is None:
            return
        if event in self.RUNS:
            self._escape(f"{event} {args!r:.200}")
        if event in ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate"):
            for path in args[:1] if event == "open" else [one for one in args if isinstance(one, str | bytes)]:
                if not isinstance(path, str | bytes | os.PathLike):
                    continue  # a descriptor that is open already
                real = os.path.realpath(os.fsdecode(path))
                if not (real + os.sep).startswith(self.folder):
                    self._escape(f"{event} {os.fsdecode(path)!r:.200}")

    def _escape(self, what: str) -> None:
        self.seen.append(what)
        raise Escape(what)


_guard = _Guard()
_hooked = False


@contextlib.contextmanager
def guarded(folder: Path, seconds: float = 0) -> Iterator[None]:
    """Raise `Escape` where the body runs anything, connects anywhere or opens a file outside `folder`.

    Args:
        folder: the only place the body may touch.
        seconds: raise TimeoutError after so long; 0 leaves that to someone else.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_guard)
        _hooked = True

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    if seconds:
        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    _guard.seen.clear()
    _guard.folder = os.path.realpath(folder) + os.sep
    try:
        yield
    finally:
        _guard.folder = None
        if seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    if _guard.seen:
        raise Escape(_guard.seen[0])


# Checksums are mended before an input is tried, or nothing behind them would ever be reached


def mend_tar(data: bytes) -> bytes:
    """With right checksums in all blocks that look like headers."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b" " * 8
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    return bytes(blocks)


def mend_png(data: bytes) -> bytes:
    """With right checksums in all chunks."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (size,) = struct.unpack(">I", out[at : at + 4])
        end = at + 8 + size
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


# Targets: a UserError or a verdict is an answer, everything else is a find


def tar(data: bytes, folder: Path) -> None:
    """The scan: every member lies where it says, every fault inside the shard."""
    for shard in (data, mend_tar(data)):
        for record, patterns in (("json", ()), ("txt", ("*.png", "jpg"))):
            stream = HashingStream(io.BytesIO(shard))
            for found in scan_groups(stream, "x.tar", record, patterns):
                if isinstance(found, Fault):
                    assert 0 <= found.offset <= len(shard)
                    assert len(str(found)) < 10_000
                    continue
                assert isinstance(found, Group)
                assert found.record.kind == record and len(set(map(id, found.pictures))) == len(found.pictures)
                for member in (found.record, *found.pictures):
                    assert shard[member.offset : member.offset + member.size] == member.data
                    assert ".." not in found.key.split("/") and not found.key.startswith("/")
            assert stream.position <= len(shard)


def reader(data: bytes, folder: Path) -> None:
    """From shard to samples: what is indexed is read back, each at its place."""
    ways: list[dict[str, Any]] = [{}, {"format": "llava", "task": "colour"}]
    ways += [
        {"format": "cls", "task": "colour", "readings": dict.fromkeys(TASKS, Reading("What?", classes=("a", "b")))}
    ]
    for shard in (data, mend_tar(data)):
        (folder / "x.tar").write_bytes(shard)
        for how in ways:
            try:
                index_shards([folder / "x.tar"], folder, TASKS, keep_whole=True, bad_share=1.0, **how)
            except UserError as fault:
                assert "x.tar" in str(fault)
                continue
            _read_all(StreamIndex.open(folder))


def _several(folder: Path) -> Path:
    """A shard of samples with one picture, two and none."""
    two, none = (sample(n, pictures=sample(n).pictures * count).text_bytes() for n, count in ((2, 2), (3, 0)))
    more = [("b.0.png", picture(2)), ("b.1.png", picture(3)), ("b.json", two), ("c.json", none)]
    return raw_tar(folder / "x.tar", [*pair("a", 1), *more])


def index(data: bytes, folder: Path) -> None:
    """An index of someone else: raw Parquet, or metadata and columns forged with the right digest."""
    path = folder / "index.parquet"
    _several(folder)
    if data.startswith(b"PAR1"):
        path.write_bytes(data)
    else:
        good = index_shards([folder / "x.tar"], folder, TASKS)
        table = good.table
        text, _, forged = data.partition(b"\xff")
        for start in range(0, len(forged) - 9, 10):
            column, row = forged[start] % table.num_columns, forged[start + 1] % table.num_rows
            (value,) = struct.unpack("<q", forged[start + 2 : start + 10])
            table = _forge(table, column, row, value)
        try:
            digest = StreamIndex(folder, table, strictjson.loads(text)).digest.encode()
        except Exception:  # such metadata has no digest; the file may still be opened
            digest = b"?"
        pq.write_table(table.replace_schema_metadata({b"streamcvit": text, b"streamcvit_digest": digest}), path)
    try:
        found = StreamIndex.open(folder)
    except UserError as fault:
        assert str(folder) in str(fault)
        return
    for chunk in range(min(found.n_chunks, 100)):
        found.seen_tasks(chunk)
    assert all("/" not in task for task in found.tasks)
    if not any(is_url(shard) for shard in found.shards):  # that fetches; an index on this machine may name URLs
        with contextlib.suppress(UserError):  # a shard may well not be there
            _read_all(found)


def _forge(table: pa.Table, column: int, row: int, value: int) -> pa.Table:
    field = table.schema.field(column)
    values = table.column(column).to_pylist()
    values[row] = str(value) if pa.types.is_string(field.type) else value
    try:
        return table.set_column(column, field.name, pa.array(values, field.type))
    except (pa.ArrowException, OverflowError):
        return table


def _read_all(found: StreamIndex) -> None:
    with ShardReader(found, PIXELS) as shards:
        places = range(min(len(found), 1000))
        rows = shards.read(places)
        assert [row.position if isinstance(row, Quarantined) else place for place, row in enumerate(rows)] == [*places]
        assert rows == shards.read(places)
    for row in rows:
        if isinstance(row, Sample):
            json.dumps(dict(row.meta), allow_nan=False).encode()
            row.prompt.encode()
        else:
            json.dumps(row.detail).encode()
            assert row.detail == row.detail.encode().decode()


def record(data: bytes, folder: Path) -> None:
    """A sample's JSON in every format; what is accepted can be written and read again."""
    try:
        one = Sample.from_bytes(data, [Picture(b"")])
        assert Sample.from_bytes(one.text_bytes(), [Picture(b"")]) == one
    except ValueError:
        pass
    try:
        value = strictjson.loads(data)
    except ValueError:
        return
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    for read in FORMATS.values():
        try:
            found = read(value)
            question, instruction, whole, _ = found.parts(NAMING)
            texts = [found.sample_id, question, instruction, whole or "", found.system, *found.answers]
            texts += [text for turn in found.turns for text in (turn.prompt, turn.answer)]
            "".join([*texts, *(one for one in found.pictures if isinstance(one, str))]).encode()
        except (BadRow, ValueError) as fault:
            str(fault).encode()


def image(data: bytes, folder: Path) -> None:
    """A picture: RGB within the limits, or a verdict that is the same each time."""
    for encoded in (data, mend_png(data)):
        verdict = image_fault(encoded, PIXELS)
        assert verdict == image_fault(encoded, PIXELS)
        verdict.encode()
        if not verdict:
            shown = decode_image(encoded, PIXELS)
            assert shown.mode == "RGB" and 0 < shown.width * shown.height <= PIXELS
            assert image_fault(encoded, PIXELS, decode=False) == ""


def importers(data: bytes, folder: Path) -> None:
    """Files of rows in every format, beside pictures and what looks like pictures: what is accepted can be written."""
    if not (folder / "p.png").exists():
        (folder / "a.png").write_bytes(picture(1))
        os.mkfifo(folder / "p.png")
        (folder / "l.png").symlink_to("l.png")
    for name in ("x.json", "x.jsonl", "x.csv"):
        path = folder / name
        path.write_bytes(data)
        for format in FORMATS:
            good = 0
            with contextlib.suppress(UserError):
                for row in read_rows(path, format, "colour", folder, NAMING):
                    assert isinstance(row, Row | Quarantined)
                    good += isinstance(row, Row)
                    if isinstance(row, Quarantined):
                        json.dumps(row.detail).encode()
            if good:
                _import(name, format, folder)
        with contextlib.suppress(UserError):
            load_mixed(folder, [name], ["colour"], lambda record: "colour")


def _import(name: str, format: str, folder: Path) -> None:
    """One file as train and test rows of two tasks, so that ids meet; no row of them may stop the rest."""
    files = {"train": name, "test": name, "format": format, "test_format": format, "instructions": ["One word."]}
    try:
        tasks = load_tasks(folder, dict.fromkeys(TASKS, files), bad_share=1.0)
    except UserError:
        return  # the file as a whole is none
    rows = [(0, one) for task in tasks.values() for one in task.train]
    specs, tests = [task.spec for task in tasks.values()], {name: task.test for name, task in tasks.items()}
    with contextlib.chdir(folder):  # what removes a folder opens the names below it without their path
        stream = write_stream(folder / "s", rows, specs, tests, 0)
        assert [one for _, one in rows] == ShardReader(stream).read(range(len(rows)))
        shutil.rmtree(folder / "s")


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "tar": tar,
    "reader": reader,
    "index": index,
    "json": record,
    "image": image,
    "importers": importers,
}


def seeds(target: str, folder: Path) -> list[bytes]:
    """Good inputs that a fuzzer starts from."""
    if target in ("tar", "reader"):
        plain = raw_tar(folder / "s.tar", [*pair("a", 1), *pair("b", 2)]).read_bytes()
        import tarfile

        long = [raw_tar(folder / "s.tar", pair("c" * 120, 3), format).read_bytes() for format in (1, 2)]
        odd = tarfile.TarInfo("._d.json")
        odd.pax_headers = {"LIBARCHIVE.creationtime": "1", "GNU.sparse.major": "1", "size": "0"}
        dotted = [
            (odd, b""),
            *pair("v 1.0", 4),
            *pair("v 1.1", 5),
            *pair("w\\x", 6),
            ("x.cls", b"1"),
            ("x.gif", picture(1)),
        ]
        return [plain, *long, raw_tar(folder / "s.tar", dotted, 2).read_bytes(), _several(folder).read_bytes()]
    if target == "index":
        _several(folder)
        good = index_shards([folder / "x.tar"], folder, TASKS)
        text = json.dumps(good.meta, sort_keys=True).encode()
        forged = b"\xff" + bytes([5, 0]) + struct.pack("<q", 512)
        return [text, text + forged, (folder / "index.parquet").read_bytes()]
    if target == "image":
        found = [picture(1, 8, format, mode) for format, mode in PICTURES]
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        for format in ("PNG", "WEBP", "GIF"):
            buffer = io.BytesIO()
            frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
            found.append(buffer.getvalue())
        exif = Image.Exif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        frames[0].save(buffer, "JPEG", exif=exif, progressive=True)
        return [*found, buffer.getvalue()]
    if target == "json":
        return [json.dumps(row).encode() for group in ROWS for row in group]
    return [
        *(json.dumps(group).encode() for group in ROWS),
        *_tables(),
        b'image,text,answer\na.png,"What, ""this""?",red\n',
    ]


def _tables() -> list[bytes]:
    """Rows of each format as Parquet and as Arrow."""
    found = []
    for group in ROWS[:3]:
        rows = [{**row, "more": [1.5, None]} for row in group]
        table = pa.Table.from_pylist([{**row, "answer": ["red"]} if "answer" in row else row for row in rows])
        for kind in ("parquet", "stream", "file"):
            buffer = io.BytesIO()
            if kind == "parquet":
                pq.write_table(table, buffer)
            else:
                with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(buffer, table.schema) as writer:
                    writer.write_table(table)
            found.append(buffer.getvalue())
    return found


PICTURES = [
    *[("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
    *[("WEBP", mode) for mode in ("RGB", "RGBA")],
    *[("GIF", mode) for mode in ("L", "P")],
    *[("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")],
]
_turns = [{"from": "human", "value": "<image>\nWhat?\nOne word."}, {"from": "gpt", "value": "red"}]
_messages = [{"role": "user", "content": "<image>What?\nOne word."}, {"role": "assistant", "content": "red"}]
ROWS: list[list[dict[str, Any]]] = [
    [{"id": name, "image": f"{name}.png", "conversations": _turns} for name in ("a", "p", "l", "n")],
    [{"messages": _messages, "images": ["<STRCVIT_IMAGE_ROOT>/a.png"]}],
    [{"question_id": 1, "image": "a.png", "text": "What?\nOne word.", "answer": ["red", 1, 0.5], "answer_bbox": [1e3]}],
    [json.loads(sample(1).text_bytes())],
]
