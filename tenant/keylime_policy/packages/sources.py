"""Packages and images as sources of a policy: what the flags say, and who reads it."""

import datetime
from pathlib import Path

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime_policy import oci
from keylime_policy.file_tree import Digests
from keylime_policy.messages import Messages
from keylime_policy.packages.databases import dpkg_database, rpm_database
from keylime_policy.packages.places import without_password
from keylime_policy.packages.repositories import (
    RepositoryOrder,
    deb_repository,
    make_place,
    rpm_repository,
)
from keylime_policy.source_options import (
    DPKG_OPTION,
    IMAGE_OPTION,
    RPM_OPTION,
    RPM_OPTIONS,
    PackageSource,
)


def package_digests(
    source: PackageSource, algorithm: HashAlgorithm, messages: Messages, now: datetime.datetime
) -> Digests:
    """The digests that a source gives. Raises ConfigError, also when it gives none."""
    digests = _digests(source, algorithm, messages, now)
    if not digests:
        raise ConfigError(f"{source.option} {without_password(source.where)}: gave no digest of any file")
    return digests


def _digests(
    source: PackageSource, algorithm: HashAlgorithm, messages: Messages, now: datetime.datetime
) -> Digests:
    match source.option:
        case option if option == DPKG_OPTION:
            return dpkg_database(Path(source.where), algorithm, messages)
        case option if option == RPM_OPTION:
            return rpm_database(Path(source.where), algorithm, messages)
        case option if option == IMAGE_OPTION:
            return oci.image_digests(Path(source.where), algorithm, messages)
    order = RepositoryOrder(
        place=make_place(source.option, source.where),
        keys=source.keys,
        unsigned=source.unsigned,
        workers=source.workers,
        suite=source.suite,
        components=source.components,
        architectures=source.architectures,
    )
    if source.option in RPM_OPTIONS:
        return rpm_repository(order, algorithm, messages)
    return deb_repository(order, algorithm, messages, now)
