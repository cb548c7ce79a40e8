"""Writing to a disk or a bucket: whole files, and folders for libraries that know disks alone."""

import os
import pathlib
import tempfile

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is a URL, such as gs://bucket/run."""
    return "://" in os.fspath(path)


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Writes a file that is there as a whole or, if this is stopped, as it was before."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class Staged:
    """A folder to write into by any means: `local` is the folder itself, or stands for it.

    In place of a folder in a bucket, whose files cannot be appended to, it is a temporary one that
    `publish` copies there.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._temporary = None
        self.local = folder
        if is_remote(folder):
            self._temporary = tempfile.TemporaryDirectory(prefix="wsdl-jax-")
            self.local = epath.Path(self._temporary.name)

    def publish(self) -> None:
        """Copies all files to where they belong, over what is there."""
        if self._temporary is not None:
            for file in pathlib.Path(self.local).rglob("*"):
                if file.is_file():
                    target = self._folder / file.relative_to(self.local)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    epath.Path(file).copy(target, overwrite=True)

    def close(self) -> None:
        """Publishes, and removes what is temporary."""
        self.publish()
        if self._temporary is not None:
            self._temporary.cleanup()
