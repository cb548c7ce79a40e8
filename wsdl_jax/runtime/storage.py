"""Writing to a disk or a bucket: files and folders that are there as a whole, or as before.

On a disk something new is made under a name of its own, brought to the disk and renamed into
place, so that a process that is killed, a full disk and another process that does the same at the
same time leave what was there or what is new, and never a part of it. What a killed process leaves
under such a name is removed by the next one that writes there.
"""

import contextlib
import ctypes
import fcntl
import glob
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from wsdl_jax.runtime.errors import UserError, reason

_UNFINISHED = "unfinished"  # has made a folder in a bucket to which files are still copied
MANIFEST = ".wsdl-manifest.json"  # in a folder of output: who has made it, and its files
_PARTIAL, _OLD = "partial", "old"  # endings of temporary names
_LONGEST = 200  # bytes of the name that is meant, in a temporary one: of 255 at most


def is_remote(path: epath.PathLike) -> bool:
    """Returns whether a path is a URL, such as gs://bucket/run."""
    return "://" in os.fspath(path)


# ----- Files --------------------------------------------------------------------------------------


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file that is there as a whole or, if this is stopped, as it was before.

    A file that has this content already is not touched. Raises OSError, naming the file.
    """
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    if _has(path, data):
        return
    if is_remote(path):
        path.write_bytes(data)  # an object in a bucket appears when all of it is there
        return
    target = pathlib.Path(os.path.realpath(path))  # a link stays one
    with _naming(path):
        remove_abandoned(target.parent, target.name)
        partial, descriptor = _created(target)
        try:
            with open(descriptor, "wb") as file:  # which holds a lock as long as it is open
                if target.exists():
                    os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                partial.rename(target)
        except BaseException:
            with contextlib.suppress(OSError):  # it would hide why
                partial.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


def _has(path: epath.Path, data: bytes) -> bool:
    try:
        return path.is_file() and path.stat().length == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _stem(name: str) -> str:
    """What stands for a name in temporary ones: the name itself, or if it is long a hash of it."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST else hashlib.sha256(encoded).hexdigest()


def _temporary_name(target: pathlib.Path, ending: str) -> pathlib.Path:
    return target.with_name(f".{_stem(target.name)}.{secrets.token_hex(4)}.{ending}")


def _created(target: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A new file beside `target`, open and locked, so that nobody takes it for abandoned."""
    while True:
        partial = _temporary_name(target, _PARTIAL)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else it was removed before it was locked
            return partial, descriptor
        os.close(descriptor)


@contextlib.contextmanager
def _naming(path: epath.PathLike) -> Iterator[None]:
    """Lets errors of files whose names nobody knows name the one that was meant."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


def _sync_folder(folder: pathlib.Path) -> None:
    """Brings names in a folder to the disk. Some file systems cannot, and need not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporaries(folder: pathlib.Path, name: str | None, ending: str) -> list[pathlib.Path]:
    """What has a temporary name, of the file or folder of a name or of any."""
    quoted = "*" if name is None else glob.escape(_stem(name))
    return list(folder.glob(f".{quoted}.{'[0-9a-f]' * 8}.{ending}"))


def remove_abandoned(folder: epath.PathLike, name: str | None = None) -> None:
    """Removes what killed processes have left half-written in a folder on a disk.

    name: of the file or folder that was to be written; any by default.
    """
    if is_remote(folder):
        return
    for path in _temporaries(pathlib.Path(folder), name, _PARTIAL):
        with contextlib.suppress(OSError):
            # Some file systems lock only what may be written.
            access = os.O_RDONLY if path.is_dir() else os.O_RDWR
            descriptor = os.open(path, access | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its writer is gone
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def temporary_folder() -> Iterator[pathlib.Path]:
    """Yields a folder that is removed in the end. If that fails, no error is raised."""
    folder = tempfile.mkdtemp(prefix="wsdl-jax-")
    try:
        yield pathlib.Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_text(path: epath.PathLike) -> str:
    """Returns the text of a file. Raises UserError, naming it, for one that has none."""
    try:
        return epath.Path(path).read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: it is no text ({error.reason})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json(path: epath.PathLike) -> Any:
    """Returns what a JSON file holds. Raises UserError, naming it, for anything else."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


# ----- Folders ------------------------------------------------------------------------------------


def check_folder(out: epath.PathLike, replaces: str | None = None) -> None:
    """Raises UserError unless a folder may be written: a new or empty one, or a replaceable one.

    Args:
      out: the folder.
      replaces: what may be there already, by the name that `whole_folder` has put into its
        manifest: files that are listed there and have not changed since. None: nothing may.
    """
    out = epath.Path(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    if not is_remote(out):
        real = os.path.realpath(out)
        if os.path.ismount(real) or pathlib.Path.cwd().is_relative_to(real):
            raise UserError(f"{out} cannot be replaced as a whole: name a new folder in it")
    present = _files(out)
    if not present:
        return
    made_by, listed = _manifest(out)
    if made_by not in (replaces, _UNFINISHED) or made_by is None:
        if replaces is None:
            raise UserError(f"{out} is there already: choose another --out, or delete it")
        raise UserError(f"{out} is there and is no {replaces}: move it away, or choose another")
    what = replaces or "folder"
    for name in sorted(present - {MANIFEST}):
        if name not in listed:
            raise UserError(
                f"{out / name} is not of the {what} that {out} is: move it away, or choose another "
                "folder"
            )
        if _digest(out / name) not in listed[name]:
            raise UserError(
                f"{out / name} was changed since the {what} was made: move it away, or choose "
                "another folder"
            )


def _files(folder: epath.Path) -> set[str]:
    """Names of all files in a folder and below, relative to it; of links, and of empty folders."""
    found = set()
    for parent, folders, files in folder.walk():
        paths = [parent / name for name in files]
        # A link to a folder is somebody's own; so is a folder in which nothing was made.
        paths += [parent / name for name in folders if os.path.islink(parent / name)]
        if not files and not folders and parent != folder:
            paths.append(parent)
        found |= {os.path.relpath(os.fspath(path), os.fspath(folder)) for path in paths}
    return found


def _digest(path: epath.Path) -> str:
    """Of a file; of a link to a folder, and of a folder, nothing that a manifest has."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _manifest(folder: epath.Path) -> tuple[str | None, dict[str, list[str]]]:
    """Who has made a folder, and the SHA-256 of each of its files, or several that are right."""
    path = folder / MANIFEST
    if not path.exists():
        return None, {}
    content = read_json(path)
    try:
        return str(content["made_by"]), {n: list(d) for n, d in content["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): choose another --out") from error


def _manifest_text(made_by: str, files: dict[str, list[str]]) -> str:
    return json.dumps({"made_by": made_by, "files": files}, indent=1, sort_keys=True) + "\n"


@contextlib.contextmanager
def whole_folder(out: epath.PathLike, *, replaces: str | None = None) -> Iterator[epath.Path]:
    """Yields an empty folder on a disk, which takes the place of `out` when the block ends.

    When the block raises, or the process is killed, `out` stays as it was. In a bucket, where a
    folder cannot appear at once, files are copied one after the other, the manifest first.

    Args:
      out: where the folder is to be.
      replaces: see `check_folder`, which is asked at the start and again at the end. If given, a
        manifest is added, and the next one may replace this one.

    Raises:
      UserError: `out` is taken, or cannot be written.
    """
    out = epath.Path(out)
    with _written(out):
        if is_remote(out):
            check_folder(out, replaces)
            with temporary_folder() as temporary:
                made = epath.Path(temporary)
                yield made
                _upload(made, out, replaces)
            return
        target = pathlib.Path(os.path.realpath(out))
        with _exclusive(target):
            _recover(target)
            check_folder(out, replaces)
        made, lock = _new_folder(target)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, lock)
            stack.callback(shutil.rmtree, made, ignore_errors=True)
            with _renamed_in_errors(made, out):
                yield epath.Path(made)
                if replaces is not None:
                    folder = epath.Path(made)
                    files = {name: [_digest(folder / name)] for name in _files(folder)}
                    (made / MANIFEST).write_text(_manifest_text(replaces, files))
                _sync_below(made)
            with _exclusive(target):
                check_folder(out, replaces)
                _put(made, target)


@contextlib.contextmanager
def staging_folder(target: epath.PathLike) -> Iterator[pathlib.Path]:
    """Yields an empty folder beside a target on a disk, for what the target will be made of.

    It is removed in the end; one of a process that was killed, by the next that stages for the
    same target.
    """
    target = pathlib.Path(os.path.realpath(target))
    is_new = not target.parent.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent, target.name)
    made, lock = _new_folder(target)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)
        if is_new:
            with contextlib.suppress(OSError):  # unless there is something in it now
                target.parent.rmdir()


@contextlib.contextmanager
def _written(out: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = error.filename
        places = (out.parent, os.path.realpath(out.parent))
        if isinstance(name, str) and not any(map(pathlib.Path(name).is_relative_to, places)):
            raise  # of something else that was read or written meanwhile
        raise UserError(f"{out} cannot be written: {reason(error)}") from error


@contextlib.contextmanager
def _renamed_in_errors(made: pathlib.Path, out: epath.Path) -> Iterator[None]:
    """Lets errors of files in a temporary folder name the place where they were to be."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if isinstance(name, str) and pathlib.Path(name).is_relative_to(made):
            where = os.path.normpath(out / os.path.relpath(name, made))
            raise OSError(error.errno, error.strerror, where) from error
        raise


@contextlib.contextmanager
def _exclusive(target: pathlib.Path) -> Iterator[None]:
    """Is held while names beside `target` change, by one process of this machine at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _recover(target: pathlib.Path) -> None:
    """Finishes what a killed process has begun in the place of `target`."""
    remove_abandoned(target.parent, target.name)
    for old in _temporaries(target.parent, target.name, _OLD):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:  # killed before the new one was in its place
            old.rename(target)


def _new_folder(target: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A new folder beside `target`, and a descriptor that holds its lock."""
    while True:
        made = _temporary_name(target, _PARTIAL)
        made.mkdir()
        with contextlib.suppress(FileNotFoundError):  # taken for abandoned in this moment
            descriptor = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if made.exists():
                return made, descriptor
            os.close(descriptor)


def _sync_below(folder: pathlib.Path) -> None:
    """Brings all of a folder to the disk: its whole file system at once, not file by file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "syncfs"):
            os.sync()
        elif libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)


def _put(made: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a folder into its place; what is there goes when the new one stands."""
    old = None
    if target.exists() and any(target.iterdir()):
        old = _temporary_name(target, _OLD)
        target.rename(old)
    try:
        made.rename(target)
    except BaseException:
        if old is not None:
            old.rename(target)
        raise
    _sync_folder(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _upload(made: epath.Path, out: epath.Path, replaces: str | None) -> None:
    check_folder(out, replaces)
    new = {name: [_digest(made / name)] for name in sorted(_files(made))}
    _, old = _manifest(out)
    # Until all is there, each file may be the old or the new one, and the same command goes on.
    either = {name: old.get(name, []) + new.get(name, []) for name in old.keys() | new.keys()}
    write_whole(out / MANIFEST, _manifest_text(_UNFINISHED, either))
    for name in new:
        (made / name).copy(out / name, overwrite=True)
    for name in old.keys() - new.keys():
        (out / name).unlink(missing_ok=True)
    if replaces is not None:
        write_whole(out / MANIFEST, _manifest_text(replaces, new))
    else:
        (out / MANIFEST).unlink()


class Staged:
    """A folder to write into by any means: `local` is the folder itself, or stands for it.

    In place of a folder in a bucket, whose files cannot be appended to, it is a temporary one that
    `publish` copies there.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._closing = contextlib.ExitStack()
        self.local = folder
        if is_remote(folder):
            self.local = epath.Path(self._closing.enter_context(temporary_folder()))

    def publish(self) -> None:
        """Copies all files to where they belong, over what is there."""
        if self.local != self._folder:
            for file in pathlib.Path(self.local).rglob("*"):
                if file.is_file():
                    target = self._folder / file.relative_to(self.local)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    epath.Path(file).copy(target, overwrite=True)

    def close(self) -> None:
        """Publishes, and removes what is temporary."""
        with self._closing:
            self.publish()
