"""Opening a bundle: the manifest, and the proof that the files are those it describes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from ..progress import Progress, silent
from .files import hash_files
from .manifest import MANIFEST_FILE, FileEntry, Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle on disk whose files exist with the sizes that its manifest gives."""

    directory: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: Path) -> Bundle:
        """Read the manifest and compare sizes; hashes are left to `verify_hashes`.

        Raises: BundleError naming the file that is missing, damaged or of another schema.
        """
        path = directory / MANIFEST_FILE
        if not directory.is_dir():
            raise BundleError(f"{directory} is not a directory: a bundle is the directory that `build` writes")
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise BundleError(f"{directory} has no {MANIFEST_FILE}: it is not a bundle") from None
        manifest = Manifest.from_json(text, str(path))
        listed = {entry.path for entry in manifest.files}
        for name in manifest.needed_files():
            if name not in listed:
                raise BundleError(f"{path} needs {name!r}, which is not among its files: build the bundle again")
        for entry in manifest.files:
            file = directory / entry.path
            if not file.is_file():
                raise BundleError(f"{file} is missing: copy the bundle again, with all its files")
            if file.stat().st_size != entry.bytes:
                raise BundleError(
                    f"{file} has {file.stat().st_size} bytes, {MANIFEST_FILE} says {entry.bytes}: copy the bundle again"
                )
        return cls(directory=directory, manifest=manifest)

    def verify_hashes(self, on_progress: Progress = silent) -> None:
        """Hash every file.

        Raises: BundleError naming the first file whose content is not what was built.
        """
        paths = [self.directory / entry.path for entry in self.manifest.files]
        expected: dict[str, FileEntry] = {entry.path: entry for entry in self.manifest.files}
        for entry in hash_files(self.directory, paths, on_progress, "hash"):
            if entry.sha256 != expected[entry.path].sha256:
                raise BundleError(
                    f"{self.directory / entry.path} has another SHA-256 than {MANIFEST_FILE} says: it was changed or "
                    "damaged, copy the bundle again"
                )
