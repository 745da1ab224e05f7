"""A package in a repository, as the repository's index describes it. Pure."""

from dataclasses import dataclass

from keylime_policy.compression import MalformedArchive

CHECKSUMS = frozenset({"sha256", "sha384", "sha512"})


@dataclass(frozen=True, slots=True)
class Package:
    """Where a package is, from the root of its repository, and what its bytes must be."""

    path: str
    algorithm: str
    checksum: str
    size: int | None
    identity: tuple[str, ...] = ()  # name, version, release and architecture, of an RPM
    header_end: int | None = None  # how many bytes of an RPM hold its headers


def checked_path(path: str) -> str:
    """`path` without "./" in front, if it stays inside of the repository. Raises MalformedArchive."""
    while path.startswith("./"):
        path = path[2:]
    if not path or path.startswith("/") or ".." in path.split("/") or "://" in path or not path.isprintable():
        raise MalformedArchive(f"the index names {path[:200]!a}, which is not inside of the repository")
    return path
