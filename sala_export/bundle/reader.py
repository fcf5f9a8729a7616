"""Opens a bundle: reads the manifest and checks that the files are those it describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from ..progress import ProgressCallback, silent
from ..specs import TOKENIZER_FILE
from .hashing import Hashing, Span
from .manifest import MANIFEST_FILE, Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle on disk whose files exist with the sizes that its manifest gives."""

    directory: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: Path) -> Bundle:
        """Read the manifest and compare sizes. `verify_hashes` compares hashes.

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
        listed_sizes = {entry.path: entry.bytes for entry in manifest.files}
        if manifest.weights.included:
            listed_sizes |= {file.path: file.bytes for file in manifest.weights.files}
        for name, size in listed_sizes.items():
            file = directory / name
            if not file.is_file():
                raise BundleError(f"{file} is missing: copy the bundle again, with all its files")
            if file.stat().st_size != size:
                raise BundleError(
                    f"{file} has {file.stat().st_size} bytes, {MANIFEST_FILE} says {size}: copy the bundle again"
                )
        return cls(directory=directory, manifest=manifest)

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder of the tokenizer's files; None if the bundle was built from a checkpoint without them."""
        files = [self.directory / name for name in self.manifest.text]
        return next((file.parent for file in files if file.name == TOKENIZER_FILE), None)

    def verify_hashes(self, on_progress: ProgressCallback = silent) -> None:
        """Compare the hash of every file, and of every tensor in the weight files.

        Raises: BundleError naming the first file or tensor whose content is not what was built.
        """
        self._verify({**self._files(), **self._tensors()}, on_progress)

    def verify_files(self) -> None:
        """Compare the hash of every file but those of the weights. Raises: as `verify_hashes`."""
        self._verify(self._files(), silent)

    def verify_tensors(self) -> None:
        """Compare the hash of every tensor of the weights, if the bundle has them. Raises: as `verify_hashes`."""
        self._verify(self._tensors(), silent)

    def _files(self) -> dict[str, tuple[Span, str]]:
        """Where each file is and its hash, by what messages call it."""
        found = {}
        for entry in self.manifest.files:
            path = self.directory / entry.path
            found[str(path)] = (Span(path, 0, entry.bytes), entry.sha256)
        return found

    def _tensors(self) -> dict[str, tuple[Span, str]]:
        """The same of each tensor."""
        weights, found = self.manifest.weights, {}
        for name, tensor in weights.tensors.items() if weights.included else ():
            path = self.directory / tensor.file
            found[f"{name} in {path}"] = (Span(path, tensor.offset, tensor.bytes), tensor.sha256)
        return found

    def _verify(self, expected: Mapping[str, tuple[Span, str]], on_progress: ProgressCallback) -> None:
        with Hashing({what: span for what, (span, _) in expected.items()}) as hashing:
            found = hashing.result(on_progress)
        for what, (_, sha256) in expected.items():
            if found[what] != sha256:
                raise BundleError(
                    f"{what} has another SHA-256 than {MANIFEST_FILE} says: it was changed or damaged, copy the bundle "
                    "again"
                )
