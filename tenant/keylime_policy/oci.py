"""Container images in OCI directories (https://github.com/opencontainers/image-spec): files of all layers."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from keylime.documents.strict_json import load_document
from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime_policy.compression import MalformedArchive, unpacked
from keylime_policy.file_tree import Digests, add_digest, new_hash
from keylime_policy.files import unusable
from keylime_policy.messages import Messages
from keylime_policy.source_options import IMAGE_OPTION
from keylime_policy.sources import blaming
from keylime_policy.tar_archives import tar_files

_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]{64}|[0-9a-f]{128})")
_INDICES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MAX_DOCUMENT = 16 << 20
_MAX_DEPTH = 8
_PIECE = 1 << 20
_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"


def image_digests(directory: Path, algorithm: HashAlgorithm, messages: Messages) -> Digests:
    """Digests of the files that containers of an image see, by their path inside. Raises ConfigError.

    Of an image for several platforms the files of all; every blob must be what its name says.
    """
    if not (directory / "oci-layout").is_file():
        raise ConfigError(f"{IMAGE_OPTION} {directory}: has no file oci-layout: it is no OCI directory")
    manifests = list(_manifests(directory, _document(directory, "index.json", None), 0))
    if not manifests:
        raise ConfigError(f"{IMAGE_OPTION} {directory}: its index.json lists no image")
    digests: Digests = {}
    images: list[dict[bytes, str]] = [{} for _ in manifests]
    layers = [
        (files, directory / name)
        for files, manifest in zip(images, manifests, strict=True)
        for name in _layers(directory, manifest)
    ]
    for one in messages.progress([[layer] for layer in layers], len(layers), "Reading layers"):
        for files, blob in one:
            with blaming(IMAGE_OPTION, blob):
                _apply(files, blob, algorithm)
    for files in images:
        for path, digest in files.items():
            add_digest(digests, b"/" + path, digest, messages)
    return digests


def _manifests(directory: Path, index: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{IMAGE_OPTION} {directory}: its indices name each other too deeply")
    for entry in _list(directory, index, "manifests"):
        # What builders say about an image, instead of an image.
        platform = entry.get("platform")
        if isinstance(platform, dict) and platform.get("architecture") == "unknown":
            continue
        name = _blob(directory, entry)
        document = _document(directory, name, entry)
        if "manifests" in document or entry.get("mediaType") in _INDICES:
            yield from _manifests(directory, document, depth + 1)
        else:
            yield document


def _layers(directory: Path, manifest: dict[str, Any]) -> list[str]:
    return [_blob(directory, layer) for layer in _list(directory, manifest, "layers")]


def _list(directory: Path, document: dict[str, Any], member: str) -> list[dict[str, Any]]:
    found = document.get(member)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ConfigError(f"{IMAGE_OPTION} {directory}: an index or manifest has no list {member!r}")
    return found


def _blob(directory: Path, descriptor: dict[str, Any]) -> str:
    digest = descriptor.get("digest")
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise ConfigError(f"{IMAGE_OPTION} {directory}: {str(digest)[:100]!a} is no digest of a blob")
    return f"blobs/{match[1]}/{match[2]}"


def _document(directory: Path, name: str, descriptor: dict[str, Any] | None) -> dict[str, Any]:
    path = directory / name
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_DOCUMENT)
    except OSError as error:
        raise unusable(IMAGE_OPTION, path, error) from error
    with blaming(IMAGE_OPTION, path):
        if descriptor is not None:
            _check(hashlib.new(path.parent.name, content).hexdigest(), path)
        document = load_document(content, "the file")
        if not isinstance(document, dict):
            raise MalformedArchive("expected a JSON object")
    return document


def _check(digest: str, path: Path) -> None:
    if digest != path.name:
        raise MalformedArchive(
            f"its content has the digest {digest}, and not that of its name: it is damaged"
        )


def _apply(files: dict[bytes, str], path: Path, algorithm: HashAlgorithm) -> None:
    """Puts a layer over the files of those below."""
    try:
        with open(path, "rb") as file:
            _check(hashlib.file_digest(file, path.parent.name).hexdigest(), path)
            file.seek(0)
            below = set(files)
            for member in tar_files(unpacked(_pieces(file)), lambda: new_hash(algorithm)):
                directory, name = os.path.split(member.name)
                if name == _OPAQUE:
                    _remove(files, directory, below, itself=False)
                elif name.startswith(_WHITEOUT):
                    _remove(files, os.path.join(directory, name.removeprefix(_WHITEOUT)), below, itself=True)
                elif member.digest is not None:
                    files[member.name] = member.digest
                    below.discard(member.name)
                elif member.name in below:
                    files.pop(member.name, None)  # now a link, or a directory
    except OSError as error:
        raise unusable(IMAGE_OPTION, path, error) from error


def _remove(files: dict[bytes, str], path: bytes, below: set[bytes], *, itself: bool) -> None:
    """Takes away what lower layers have at and below `path`."""
    prefix = path + b"/" if path else b""
    gone = [name for name in below if name.startswith(prefix) or (itself and name == path)]
    for name in gone:
        files.pop(name, None)
        below.discard(name)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_PIECE), b"")
