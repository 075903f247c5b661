"""The manifest of a serving bundle: what is in the folder, from what it was made, and its digests.

Written by training/bundle.py, verified by whoever loads or serves the bundle.
"""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from core.digests import digest_files, digest_json
from core.errors import IntegrityError

MANIFEST_NAME = "manifest.json"
BUILD_NAME = "build.json"
"""What each step of the build took and left, for people: seconds are no part of the identity."""
MANIFEST_BYTES_MAX = 4 << 20
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """What a predictor loads. `files` maps relative paths to SHA-256; the manifest itself and
    build.json are not in it.

    Folders inside a bundle: `weights/` (merged Hugging Face model and tokenizer, safetensors),
    `openvino/` (compiled graph, tokenizer and detokenizer graphs) and `adapter/` (the LoRA weights
    as they were trained).
    """

    base_digest: str
    adapter_digest: str
    snapshot_id: str
    context_length: int
    files: dict[str, str]
    settings: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    schema_version: int = 1

    @property
    def digest(self) -> str:
        """The bundle's identity: a digest of the whole manifest, hence of every file."""
        return digest_json(msgspec.to_builtins(self))


def write_manifest(folder: Path, manifest: BundleManifest) -> None:
    """Write `manifest` into `folder`, indented for people."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST_NAME).write_bytes(text)


def read_manifest(folder: Path) -> BundleManifest:
    """Read a bundle's manifest without checking the files.

    Raises IntegrityError when the manifest is missing, too large or malformed.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file() or path.stat().st_size > MANIFEST_BYTES_MAX:
        raise IntegrityError(f"{path} is not a bundle manifest; build the bundle again")
    try:
        return msgspec.json.decode(path.read_bytes(), type=BundleManifest)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path} is malformed: {error}; build the bundle again") from error


def verify_bundle(folder: Path, expected_digest: str | None = None) -> BundleManifest:
    """Check a bundle's files against its manifest, and the manifest against `expected_digest`.

    Raises IntegrityError naming the first file that is missing, unlisted or changed.
    """
    manifest = read_manifest(folder)
    if expected_digest is not None and manifest.digest != expected_digest:
        raise IntegrityError(
            f"bundle {folder} has digest {manifest.digest[:12]}, expected {expected_digest[:12]}"
        )
    actual = digest_files(folder)
    for beside in (MANIFEST_NAME, BUILD_NAME):
        actual.pop(beside, None)
    for name in sorted(actual.keys() | manifest.files.keys()):
        if actual.get(name) != manifest.files.get(name):
            raise IntegrityError(f"bundle {folder}: file {name} is missing, unlisted or changed")
    return manifest
