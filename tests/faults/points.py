"""Faults at the calls by which a process changes files: it dies there, the disk refuses there, half of it is written.

Everything is patched from outside, in a child of the fork server that is thrown away afterwards: `os` and `io.open`
are what lorakit, pathlib, tempfile and shutil call. Calls on files outside the run directory pass untouched.
"""

import builtins
import errno
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

DIED = 137
REFUSALS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS}
KINDS = ("die", "torn", *REFUSALS, "torn ENOSPC")
_TEMPORARY = re.compile(r"\.([^/]+)\.[a-z0-9_]{8}(?=/|$)")
_NEEDS_NO_SPACE = ("unlink", "rmdir", "chmod")


class Points:
    """Counts the points of a run, and lets a fault happen at one of them.

    Args:
        root: The run directory.
        at: The index of the point; None: nothing happens.
        kind: One of `KINDS`. A disk that is full (ENOSPC) or read-only (EROFS) stays so; EIO comes once.
        count: Told of the number of points so far.

    Attributes:
        seen: Every point so far: what is done, and to which file (temporary names without their random part).
    """

    def __init__(self, root: Path, at: int | None, kind: str, count: Callable[[int], None]) -> None:
        self.root, self.at, self.kind = str(root.resolve()), at, kind
        self.seen: list[tuple[str, str]] = []
        self.struck, self.count = False, count

    def pass_(self, what: str, path: Any, half: Callable[[], None] | None = None) -> None:
        """Called before something is done to a file; `half` does a part of it."""
        place = os.path.abspath(os.fsdecode(path))
        if place != self.root and not place.startswith(self.root + os.sep):
            return
        index = len(self.seen)
        self.seen.append((what, _TEMPORARY.sub(r"<\1>", os.path.relpath(place, self.root))))
        self.count(index + 1)
        if self.struck and not (self.kind.endswith("ENOSPC") and what in _NEEDS_NO_SPACE):
            self._refuse(place)
        if index == self.at:
            if half is not None and self.kind.startswith("torn"):
                half()
            if self.kind in ("die", "torn"):
                os._exit(DIED)
            self.struck = self.kind != "EIO"
            self._refuse(place)

    def _refuse(self, place: str) -> NoReturn:
        code = REFUSALS[self.kind.removeprefix("torn ")]
        raise OSError(code, os.strerror(code), place)

    def install(self) -> None:
        """Patch what changes files; for a process that ends soon."""
        for name in ("mkdir", "rmdir", "unlink", "remove", "chmod", "replace", "rename", "truncate"):
            self._patch(name)
        for name in ("fsync", "ftruncate", "pwrite"):
            self._patch_handle(name)
        self._patch_open()

    def _patch(self, name: str) -> None:
        real = getattr(os, name)

        def patched(path: Any, *rest: Any, dir_fd: int | None = None, **options: Any) -> Any:
            where = path if dir_fd is None else os.path.join(_path_of(dir_fd), path)
            # Of a rename, the new name says more.
            self.pass_(name, rest[0] if name in ("replace", "rename") else where)
            return real(path, *rest, **options) if dir_fd is None else real(path, *rest, dir_fd=dir_fd, **options)

        setattr(os, name, patched)

    def _patch_handle(self, name: str) -> None:
        real = getattr(os, name)

        def patched(handle: int, *rest: Any) -> Any:
            self.pass_(name, _path_of(handle))
            return real(handle, *rest)

        setattr(os, name, patched)

    def _patch_open(self) -> None:
        real_open, real = os.open, io.open

        def open_handle(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                self.pass_("create", path)
            return real_open(path, flags, *rest, **options)

        def open_file(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+"):
                return real(file, mode, *rest, **options)
            path = _path_of(file) if isinstance(file, int) else file
            if not isinstance(file, int):
                self.pass_("open", path)
            return _Watched(real(file, mode, *rest, **options), path, self)

        os.open, io.open, builtins.open = open_handle, open_file, open_file


class _Watched:
    """A file whose writes are points."""

    def __init__(self, file: Any, path: Any, points: Points) -> None:
        self._file, self._path, self._points = file, path, points

    def write(self, content: Any) -> Any:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._points.pass_("write", self._path, half)
        return self._file.write(content)

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _path_of(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")
