"""Exclude sets by distribution: names that package managers and daemons make for a moment, or write for ever.

Whatever is excluded is not judged, also if it is executed. So each expression names one kind of file to the
end of its path, none matches anything where programs, libraries or kernel modules are kept, and scripts of
packages are judged, but for those that rpm names at random.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_ID = "[0-9a-f]"


@dataclass(frozen=True, slots=True)
class ExcludeSet:
    """Expressions that go together, and why."""

    reason: str
    expressions: tuple[str, ...]


_EVERYWHERE = (
    ExcludeSet(
        "journals of systemd: they are written while they are read",
        (
            f"/var/log/journal/{_ID}{{32}}/(system|user-[0-9]+)(@{_ID}{{16,32}}(-{_ID}{{16}}){{1,2}})?"
            r"\.journal~?$",
        ),
    ),
    ExcludeSet(
        "logs of syslog daemons and of logins, also rotated",
        (
            r"/var/log/(syslog|messages|secure|maillog|cron|[a-z]+\.log)"
            r"([.-][0-9]{1,8})?(\.(gz|xz|zst|bz2))?$",
            r"/var/log/(wtmp|btmp|lastlog)([.-][0-9]{1,8})?$",
            r"/var/log/audit/audit\.log(\.[0-9]{1,4})?$",
            r"/var/lib/logrotate/(logrotate\.)?status(\.tmp)?$",
        ),
    ),
    ExcludeSet(
        "new versions of files in /etc before systemd renames them",
        (rf"/etc/(.*/)?\.#[^/]+{_ID}{{16}}$",),
    ),
    ExcludeSet(
        "accounts while they are changed: locks, and versions before they are renamed (the files are judged)",
        (
            r"/etc/(passwd|shadow|group|gshadow|subuid|subgid)(\+|\.lock|\.[0-9]{1,10})$",
            r"/etc/\.pwd\.lock$",
        ),
    ),
    ExcludeSet(
        "state of systemd that changes with the time and each boot",
        (
            r"/var/lib/systemd/(random-seed|timesync/clock|timers/stamp-[^/]+\.timer)$",
            r"/etc/ld\.so\.cache~$",
        ),
    ),
)

_DPKG = (
    ExcludeSet(
        "configuration files as dpkg reads them before and after the choice of a version",
        (r"/etc/.*\.dpkg-(new|tmp|old|dist|bak)$",),
    ),
    ExcludeSet(
        "the database of dpkg and what describes a package; its scripts are judged",
        (
            r"/var/lib/dpkg/(status|available|diversions|statoverride|arch|cmethopt)(-new|-old)?$",
            r"/var/lib/dpkg/(lock|lock-frontend|triggers/(Lock|Unincorp|File|[^/]+)(\.new)?)$",
            r"/var/lib/dpkg/updates/(tmp\.i|[0-9]{4})$",
            r"/var/lib/dpkg/info/[^/]+\.(list|md5sums|conffiles|triggers|shlibs|symbols|templates)(-new)?$",
            r"/var/lib/dpkg/tmp\.ci/(control|md5sums|conffiles|triggers|shlibs|symbols|templates)$",
        ),
    ),
    ExcludeSet(
        "lists, archives and caches of apt and debconf",
        (
            r"/var/lib/apt/lists/((partial|auxfiles)/)?[^/]+$",
            r"/var/lib/apt/(extended_states(\.[A-Za-z0-9]{6})?|daily_lock|periodic/[a-z-]+-stamp)$",
            r"/var/cache/apt/(src)?pkgcache\.bin(\.[A-Za-z0-9]{6})?$",
            r"/var/cache/apt/archives/(lock|(partial/)?[^/]+\.deb)$",
            r"/var/cache/debconf/(config|templates|passwords)\.dat(-new|-old)?$",
            r"/var/log/apt/(history|term)\.log(\.[0-9]{1,4}(\.gz)?)?$",
        ),
    ),
)

_UBUNTU = (
    ExcludeSet(
        "what tells of updates",
        (r"/var/lib/update-notifier/(updates-available|fsck-at-reboot|[a-z-]+-stamp|dpkg-run-stamp)$",),
    ),
    ExcludeSet("state of snapd; snaps are judged", (r"/var/lib/snapd/state\.json(\.[A-Za-z0-9]+~?)?$",)),
)

_RPM = (
    ExcludeSet(
        "configuration files before rpm renames them, and those it keeps beside another version",
        (rf"/etc/.*;{_ID}{{8}}$", r"/etc/.*\.rpm(new|save|orig)$"),
    ),
    ExcludeSet(
        "scripts of packages while rpm runs them, under names made at random, which any root can use",
        (r"/var/tmp/rpm-tmp\.[A-Za-z0-9]{6}$",),  # noqa: S108 - no file is made
    ),
    ExcludeSet(
        "the database of rpm",
        (
            r"(/var/lib/rpm|/usr/lib/sysimage/rpm)/(rpmdb\.sqlite(-shm|-wal|-journal)?|(Packages|Index)\.db)$",
            r"/var/lib/rpm/(Packages|Basenames|Name|Providename|Requirename|Installtid|Sha1header|Sigmd5"
            r"|__db\.[0-9]{3})$",
            r"(/var/lib/rpm|/usr/lib/sysimage/rpm)/\.(rpm|dbenv)\.lock$",
        ),
    ),
)

_DNF = (
    ExcludeSet(
        "metadata, archives and history of dnf",
        (
            r"/var/cache/(dnf|libdnf5)/(.*/)?[^/]+\.(solv|solvx|xml|gz|xz|zst|zck|yaml|sqlite|rpm|json|asc)$",
            r"/var/cache/dnf/(expired_repos\.json|last_makecache|tempfiles\.json|packages\.db)$",
            r"/var/lib/dnf/(history\.sqlite(-shm|-wal|-journal)?|[a-z_-]+\.(toml|lock))$",
            r"/usr/lib/sysimage/libdnf5/[a-z_]+\.(toml|sqlite(-shm|-wal|-journal)?)$",
            r"/var/log/(dnf|dnf5|dnf\.librepo|dnf\.rpm|hawkey)\.log(\.[0-9]{1,4})?$",
        ),
    ),
    ExcludeSet(
        "policy modules while SELinux puts them together",
        (r"/var/lib/selinux/[a-z]+/(tmp|final)/.*\.(cil|hll|linked|pp|kern|local|homedirs|template)$",),
    ),
)

_ZYPPER = (
    ExcludeSet(
        "metadata, archives and history of zypper",
        (
            r"/var/cache/zypp/(.*/)?[^/]+\.(solv|idx|xml|gz|xz|zst|rpm|asc|key)$",
            r"/var/cache/zypp/(.*/)?(cookie|solv)$",
            r"/var/lib/zypp/(AutoInstalled|LastDistributionFlavor|AnonymousUniqueId|RequestedLocales)$",
            r"/var/log/(zypper\.log|zypp/history)([.-][0-9]{1,8}(\.(gz|xz))?)?$",
        ),
    ),
)

EXCLUDES: Mapping[str, tuple[ExcludeSet, ...]] = {
    "debian": (*_EVERYWHERE, *_DPKG),
    "ubuntu": (*_EVERYWHERE, *_DPKG, *_UBUNTU),
    "fedora": (*_EVERYWHERE, *_RPM, *_DNF),
    "rhel": (*_EVERYWHERE, *_RPM, *_DNF),
    "opensuse": (*_EVERYWHERE, *_RPM, *_ZYPPER),
}
DISTRIBUTIONS = tuple(EXCLUDES)


def exclude_lines(distribution: str) -> list[str]:
    """The sets of `distribution` as an exclude list: a comment and its expressions after each other."""
    return [line for one in EXCLUDES[distribution] for line in (f"# {one.reason}", *one.expressions)]
