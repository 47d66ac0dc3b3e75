"""The digest of an index: of its table and metadata, wherever its shards lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from streamcvit.data.shards.scan import SCHEMA

_PART = 1 << 16  # rows whose texts are digested together


def canonical(meta: Mapping[str, Any]) -> bytes:
    """Metadata as bytes, the same whoever wrote them."""
    return json.dumps(meta, sort_keys=True, ensure_ascii=False).encode()


def table_digest(table: pa.Table, meta: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of an index; names of shards are no part of it."""
    shards = [{"bytes": shard["bytes"], "sha256": shard["sha256"]} for shard in meta["shards"]]
    digest = hashlib.sha256(canonical({**meta, "shards": shards, "faults": []}))
    for name in SCHEMA.names:
        column = table[name]
        if pa.types.is_string(column.type):
            size = (pc.sum(pc.binary_length(column)).as_py() or 0) + max(0, len(column) - 1)
            digest.update(f"\n{name} {size}\n".encode())
            for start in range(0, len(column), _PART):  # a part at a time: texts are large as Python's
                part = "\0".join(column.slice(start, _PART).to_pylist())
                digest.update((b"\0" if start else b"") + part.encode())
        else:
            raw = column.to_numpy()
            digest.update(f"\n{name} {raw.nbytes}\n".encode())
            digest.update(raw.tobytes())
    return digest.hexdigest()
