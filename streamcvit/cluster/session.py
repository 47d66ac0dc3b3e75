"""Start a private Ray on this machine, or join a cluster; check first that what a run asks for is there."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from streamcvit.cluster.placing import check_there, cpus
from streamcvit.config import MonitorConfig, RunConfig
from streamcvit.errors import UserError
from streamcvit.monitoring.exporter import is_loopback

SOCKET_BYTES = 107 if sys.platform == "linux" else 103  # of the path of a socket
SOCKET = (
    "/scv-12345678/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"  # Ray's longest below a folder
)
ROOTS = ("/tmp", "/var/tmp", "/dev/shm")  # for where the temporary folder's path is too long
KNOCK_SECONDS = 5.0  # that a cluster's head may take to answer
INLINE_BYTES = 1 << 20
ACTOR_MIB = 450  # a process with torch, transformers and peft, before its model (measured: 330-400 MiB USS)
STORE_MIB = 256  # object store of a private Ray: look-ahead batches and a few snapshots


def needed_mib(config: RunConfig, base_bytes: int) -> int:
    """Memory that a run's actors need together, MiB."""
    with_model = config.cluster.learners + config.cluster.evaluators
    return (with_model + config.cluster.ingest_actors) * ACTOR_MIB + with_model * base_bytes // 2**20 + STORE_MIB


def check_memory(config: RunConfig, base_bytes: int) -> None:
    """Fail in a moment, not in the middle of a run.

    Raises:
        UserError: less memory is available than the actors need.
    """
    need, free = needed_mib(config, base_bytes), psutil.virtual_memory().available // 2**20
    if free < need:
        raise UserError(
            f"too little memory: the actors need about {need} MiB, {free} MiB are free",
            fix="Close programs, lower cluster.ingest_actors or cluster.evaluators, or use --local",
        )


def check_address(address: str) -> None:
    """Knock at a cluster's head; Ray itself tries for minutes, and then ends the process.

    Raises:
        UserError: no address, or nobody answers there.
    """
    if address == "auto":
        return  # Ray looks on this machine, and says at once where there is none
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        fix = "Give HOST:PORT of a cluster's head, auto for one on this machine, or local for a Ray of the run's own"
        raise UserError("is no address of a cluster", where=f"cluster.address {address}", fix=fix)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        fix = "Start a head there (ray start --head), mend the address, or use cluster.address=local"
        raise UserError(f"no cluster answers there ({reason})", where=f"cluster.address {address}", fix=fix) from None


@contextlib.contextmanager
def metrics_token(config: MonitorConfig) -> Iterator[tuple[str, str]]:
    """What a reader of the metrics must show, and the file it is in; both empty where they stay on this machine.

    Raises:
        UserError: the token's file is missing, empty, or readable by everyone.
    """
    if config.token_file:
        path = Path(config.token_file)
        try:
            token, mode = path.read_text(encoding="utf-8").strip(), path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot be read ({error})", where="monitor.token_file", fix="Give a file") from None
        if not token or mode & 0o007:
            reason = "is open to every user of this machine" if token else "is empty"
            raise UserError(reason, where=str(path), fix=f"Put a long random token in it, and chmod 600 {path}")
        yield token, str(path)
    elif is_loopback(config.host):
        yield "", ""
    else:
        with tempfile.NamedTemporaryFile("w", prefix="streamcvit-token-", encoding="ascii") as file:  # mode 0600
            token = secrets.token_urlsafe(32)
            file.write(token)
            file.flush()
            yield token, file.name


def _ray() -> Any:
    """The `ray` module, with the environment's settings as they are now."""
    imported = "ray" in sys.modules
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed", fix="Run `pip install ray`, or add --local") from None
    if imported:  # as in a notebook: Ray reads its settings and its token once, when it is imported
        compiled: Any = importlib.import_module("ray._raylet")
        compiled.Config.initialize("")
        compiled.AuthenticationTokenLoader.instance().reset_cache()
    return ray


@contextlib.contextmanager
def session(config: RunConfig, base_bytes: int = 0) -> Iterator[Any]:
    """The `ray` module, connected; a private Ray goes with the context.

    Ray's own processes bind to all interfaces whatever one asks, so a private Ray always runs with token
    authentication, the token in a file of mode 0600.

    Raises:
        UserError: Ray is missing, does not start, or lacks what the run asks for.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    # Ray makes its workers yield to everything else (niceness 15): beside one busy process a run would stand still.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    local = config.cluster.address == "local"
    # A cluster that is joined is asked for a token too, unless the user has told Ray otherwise.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Ray ends a driver without a head after 60 s, in its own words; ours (`Head`) come first.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(60 + math.ceil(config.cluster.silent_seconds)))
    if local:
        check_memory(config, base_bytes)
    else:
        check_address(config.cluster.address)
    with _private_folder(_short_root() if local else Path(tempfile.gettempdir())) as private:
        if local:
            token = private / "token"
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32), encoding="ascii")
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
            # A batch of small pictures goes with the answer itself, not by way of the object store.
            os.environ.setdefault("RAY_max_direct_call_object_size", str(INLINE_BYTES))
            if config.cluster.learners > 1:  # torch warns of every second that a rank waits
                os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        ray = _ray()
        asked = cpus(config)
        settings: dict[str, Any] = {
            "logging_level": "error",
            "log_to_driver": False,
            "namespace": f"streamcvit-{secrets.token_hex(4)}",
        }
        if local:
            settings |= {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": max(asked, os.cpu_count() or 1),
                "object_store_memory": STORE_MIB * 2**20,
                "_temp_dir": str(private / "r"),
            }
        else:
            settings["address"] = config.cluster.address
        try:
            ray.init(**settings)
        except Exception as error:  # a node that does not start in 30 s is a bare one
            raise _start_error(error, config.cluster.address) from None
        try:
            check_there(config, ray.cluster_resources())
            yield ray
        finally:
            ray.shutdown()


def _start_error(error: Exception, address: str) -> UserError:
    reason, where = " ".join(str(error).split()), "" if address == "local" else f"cluster.address {address}"
    name = type(error).__name__
    if name == "AuthenticationError":
        fix = (
            "Give the cluster's token with RAY_AUTH_TOKEN_PATH=FILE; where its head was started without one, "
            "run with RAY_AUTH_MODE=disabled"
        )
        return UserError(f"Ray was not let in: {reason}", where=where, fix=fix)
    if where and isinstance(error, ConnectionError):
        fix = "Start one (ray start --head), give its HOST:PORT, or use cluster.address=local"
        return UserError("there is no Ray cluster on this machine", where=where, fix=fix)
    return UserError(f"Ray does not start: {reason or name}", where=where, fix="Add --local to run without Ray")


def _short_root() -> Path:
    """The temporary folder, or another one where its path leaves no room for the names of Ray's sockets.

    Raises:
        UserError: there is none.
    """
    usual, longest = tempfile.gettempdir(), SOCKET_BYTES - len(SOCKET)
    for root in (usual, *ROOTS):
        if len(os.fsencode(root)) <= longest and os.path.isdir(root) and os.access(root, os.W_OK | os.X_OK):
            return Path(root)
    raise UserError(
        f"TMPDIR is too long for the sockets of Ray: {len(os.fsencode(usual))} bytes, at most {longest} are possible",
        where=usual,
        fix="Set TMPDIR to a folder with a shorter path, or add --local",
    )


@contextlib.contextmanager
def _private_folder(root: Path) -> Iterator[Path]:
    """A folder of this process alone; those that killed processes left behind are removed on the way."""
    prefix = "scv-"  # short: see SOCKET
    for lock in root.glob(f"{prefix}*/lock"):
        with (
            contextlib.suppress(OSError),
            open(os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file,
        ):
            if os.fstat(file.fileno()).st_uid == os.getuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its process lives
                shutil.rmtree(lock.parent)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        with open(folder / ".lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (folder / ".lock").rename(folder / "lock")  # locked before anybody can find it
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
