"""One run directory, one process that writes: a lock that the kernel gives back when its holder dies.

The lock is held by flock(2) on `.lock` in the run directory, which names the holder for the message and is removed at
the end. A killed process leaves the file but not the lock, so nothing that died ever blocks. Readers (`eval`,
`predict`, `merge`) never ask for it.
"""

import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from lorakit.errors import LorakitError, RecipeError
from lorakit.runtime import disk_errors, make_directory

LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems without flock answer."""


class DirectoryLock:
    """While entered, no other process that asks can enter the same directory.

    Args:
        directory: The run directory; made where it is missing, and then removed again if it is still empty at the end.
        enabled: False for the workers of a job whose first process holds the lock for them.
        warn: Told where the file system has no locks; the run then goes on without.

    Raises:
        RecipeError: Another process holds it; names its pid and host.
        LorakitError: The directory may not be written.
    """

    def __init__(self, directory: Path, warn: Callable[[str], None], enabled: bool = True) -> None:
        self.directory, self.enabled = directory, enabled
        self._file, self._warn = directory / LOCK, warn
        self._handle = -1
        self._made = False

    def __enter__(self) -> "DirectoryLock":
        """Take the lock."""
        if not self.enabled:
            return self
        with disk_errors(self.directory):
            self._made = not self.directory.exists()
            while self._handle < 0:
                make_directory(self.directory)
                handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    self._take(handle)
                    if _same(handle, self._file):  # else its holder has just ended, and removed the file
                        self._handle = handle
                finally:
                    if self._handle != handle:
                        os.close(handle)
            self._sign()
        return self

    def _sign(self) -> None:
        """Say who holds the lock."""
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        except OSError:
            self.__exit__(None, None, None)  # a full disk: nobody else will
            raise

    def _take(self, handle: int) -> None:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                f"{self.directory}: {_holder(handle)} trains in this directory now; wait for it, stop it, or choose "
                "another --out"
            ) from None
        except (ImportError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            self._warn(
                f"warning: {self.directory}: this file system has no locks; see to it that no other process trains "
                "in this directory"
            )

    def check(self) -> None:
        """Whether the directory is still the one that was entered.

        Raises:
            LorakitError: It was deleted or moved, or another one has taken its place.
        """
        with disk_errors(self.directory):
            if self._handle >= 0 and not _same(self._handle, self._file):
                raise LorakitError(
                    f"{self.directory}: the run directory, or its {LOCK}, was deleted, moved or replaced while this "
                    "run was writing to it; nothing more is written"
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        if self._handle < 0:
            return
        try:
            if _same(self._handle, self._file):
                self._file.unlink()
                if self._made:
                    self.directory.rmdir()  # which fails, as it should, where something has been written
        except OSError:
            pass  # files are in it, or the disk refuses: a lock file that nobody has locked harms nobody
        finally:
            os.close(self._handle)
            self._handle = -1


def _same(handle: int, file: Path) -> bool:
    """Whether an open file is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return False
        raise


def _holder(handle: int) -> str:
    try:
        found = json.loads(os.pread(handle, 1000, 0))
        return f"process {int(found['pid'])} on {str(found['host'])[:200]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # which has not written its name yet
