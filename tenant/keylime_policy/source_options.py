"""The flags that name packages and images as sources of a policy, and what is given with them. Pure."""

from dataclasses import dataclass

IMAGE_OPTION = "--oci-image"
DPKG_OPTION, RPM_OPTION = "--dpkg-database", "--rpm-database"
DEB_OPTIONS = ("--local-deb-repo", "--remote-deb-repo")
RPM_OPTIONS = ("--local-rpm-repo", "--remote-rpm-repo")
DEFAULT_WORKERS = 8
MAX_WORKERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSource:
    """A flag with what was given, and how repositories are to be read."""

    option: str
    where: str
    keys: tuple[str, ...] = ()
    unsigned: bool = False
    workers: int = DEFAULT_WORKERS
    suite: str | None = None
    components: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
