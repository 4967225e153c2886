"""One run at a time in an output folder."""

import errno
import json
import os
import socket
from datetime import datetime, timezone
from pathlib import Path

from accelerate.logging import get_logger

from ..errors import ConfigError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


logger = get_logger(__name__)

# With an underscore, which Trainer and `puma_trl.hub` leave out when they push
LOCK = "_puma_lock"
# What systems say of file systems that have no locks
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)

# (device, inode) of each lock file that this process holds → its descriptor
_held: dict[tuple[int, int], int] = {}


def _let_go() -> None:
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    # a data-loader worker that outlives a killed run must not hold its lock
    os.register_at_fork(after_in_child=_let_go)


def hold_lock(folder: str | Path) -> None:
    """
    Takes the lock of an output folder, for as long as this process lives: the system releases it, also after a kill.

    On file systems without locks it says so and goes on. In a process that holds the lock already nothing happens.

    Raises:
        ConfigError: if another process holds the lock; it is named.
    """
    path = Path(folder) / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) in _held:
        os.close(descriptor)
        return
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no file locks on this system")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read_holder(descriptor)
        os.close(descriptor)
        raise ConfigError(
            f"`output_dir: {folder}` is in use by {holder}. Two runs there would overwrite each other's checkpoints: "
            f"wait for that one, stop it, or choose another folder. If its machine is gone, delete {path}."
        ) from None
    except OSError as error:
        os.close(descriptor)
        if error.errno not in WITHOUT_LOCKS:
            raise
        logger.warning(
            f"The file system of {folder} has no locks ({error.strerror}), so nothing keeps a second run out of it."
        )
        return
    _held[status.st_dev, status.st_ino] = descriptor
    since = datetime.now(timezone.utc).isoformat(" ", "seconds")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())


def _read_holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.read(descriptor, 4096))
        return f"another run: process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it is being written
        return "another run"
