"""Opens a bundle: reads the manifest and checks that the files are those it describes.

Directory and files are opened once. All that is read later is read through these descriptors, so a bundle that takes
the place of this one meanwhile changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.folder import CHAT_TEMPLATE_FOLDER
from ..errors import BundleError
from ..files import MOST_TEXT_BYTES, Directory, OpenedFile, TextFile
from ..progress import ProgressCallback, silent
from ..specs import TOKENIZER_FILE
from .hashing import Hashing, Span
from .manifest import MANIFEST_FILE, Manifest

_AGAIN = "copy the bundle again, with all its files"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """An open bundle whose files have the sizes that its manifest gives."""

    folder: Directory
    manifest: Manifest
    manifest_sha256: str
    """SHA-256 of the content of bundle.json, in lower-case hexadecimal digits."""
    files: Mapping[str, OpenedFile]
    """Every file that the manifest names, by its path in the bundle."""

    @classmethod
    def open(cls, directory: Path) -> Bundle:
        """Read the manifest, open all files and compare their sizes. `verify_hashes` compares hashes.

        Raises: BundleError naming the file that is missing, damaged or of another schema.
        """
        folder = Directory(directory, error=BundleError, advice="a bundle is the directory that `build` writes")
        if not folder.has(MANIFEST_FILE):
            raise BundleError(f"{directory} has no {MANIFEST_FILE}: it is not a bundle")
        text = TextFile.read(folder.open(MANIFEST_FILE))
        manifest = Manifest.from_json(text.content, str(text.path))
        listed = {entry.path: entry.bytes for entry in manifest.files}
        if manifest.weights.included:
            listed |= {file.path: file.bytes for file in manifest.weights.files}
        files = {name: _open_listed(folder, name, size) for name, size in listed.items()}
        return cls(folder=folder, manifest=manifest, manifest_sha256=text.sha256, files=files)

    @property
    def directory(self) -> Path:
        """The path that was opened, for messages."""
        return self.folder.path

    @property
    def descriptor(self) -> int:
        """Descriptor of the directory, open as long as the bundle is."""
        return self.folder.descriptor

    def file(self, name: str) -> OpenedFile:
        """The open file of this path in the bundle, which the manifest names."""
        return self.files[name]

    def read(self, name: str, limit: int = MOST_TEXT_BYTES) -> TextFile:
        """Read a file of at most `limit` bytes, but none of the weights, and compare its hash.

        Raises: BundleError if its content is not what was built.
        """
        file = self.file(name)
        content = TextFile(file.path, file.read_all(limit))
        (sha256,) = (entry.sha256 for entry in self.manifest.files if entry.path == name)
        _require_hash(str(file), file.remembered(0, file.size), sha256)
        return content

    def text_files(self) -> dict[str, TextFile]:
        """Read the files of the tokenizer, by their paths in the folder of texts, and compare their hashes.

        Returns: no file at all if the bundle was built from a checkpoint without a tokenizer.
        Raises: BundleError naming a file whose content is not what was built.
        """
        if not any(Path(name).name == TOKENIZER_FILE for name in self.manifest.text):
            return {}
        return {_name_of_text(name): self.read(name) for name in self.manifest.text}

    def verify_hashes(self, on_progress: ProgressCallback = silent) -> None:
        """Compare the hash of every file, and of every tensor in the weight files.

        Raises: BundleError naming the first file or tensor whose content is not what was built.
        """
        self._verify({**self._file_spans(), **self._tensor_spans()}, on_progress)

    def verify_files(self) -> None:
        """Compare the hash of every file but those of the weights. Raises: as `verify_hashes`."""
        self._verify(self._file_spans(), silent)

    def require_tensor(self, name: str, sha256: str | None) -> None:
        """Compare the SHA-256 of a tensor, as it was read, with the manifest's. Raises: as `verify_hashes`."""
        tensor = self.manifest.weights.tensors.get(name)
        if tensor is None:
            raise BundleError(f"{self.directory / MANIFEST_FILE} does not list {name} among its tensors: {_AGAIN}")
        _require_hash(f"{name} in {self.file(tensor.file)}", sha256, tensor.sha256)

    def _file_spans(self) -> dict[str, tuple[Span, str]]:
        """Where each file is and its hash, by what messages call it."""
        entries = [(self.file(entry.path), entry) for entry in self.manifest.files]
        return {str(file): (Span(file, 0, entry.bytes), entry.sha256) for file, entry in entries}

    def _tensor_spans(self) -> dict[str, tuple[Span, str]]:
        """The same of each tensor."""
        weights, found = self.manifest.weights, {}
        for name, tensor in weights.tensors.items() if weights.included else ():
            file = self.file(tensor.file)
            found[f"{name} in {file}"] = (Span(file, tensor.offset, tensor.bytes), tensor.sha256)
        return found

    def _verify(self, expected: Mapping[str, tuple[Span, str]], on_progress: ProgressCallback) -> None:
        with Hashing({what: span for what, (span, _) in expected.items()}) as hashing:
            found = hashing.result(on_progress)
        for what, (_, sha256) in expected.items():
            _require_hash(what, found[what], sha256)


def _open_listed(folder: Directory, name: str, size: int) -> OpenedFile:
    """Open a file that has this size in bytes by the manifest."""
    file = folder.open(name, advice=_AGAIN)
    if file.size != size:
        raise BundleError(f"{file} has {file.size} bytes, {MANIFEST_FILE} says {size}: {_AGAIN}")
    return file


def _name_of_text(path: str) -> str:
    """The path of a text in a checkpoint: files lie flat there, but for templates with names."""
    parent, name = Path(path).parent.name, Path(path).name
    return f"{parent}/{name}" if parent == CHAT_TEMPLATE_FOLDER else name


def _require_hash(what: str, found: str | None, expected: str) -> None:
    if found != expected:
        raise BundleError(
            f"{what} has another SHA-256 than {MANIFEST_FILE} says: it was changed or damaged, copy the bundle again"
        )
