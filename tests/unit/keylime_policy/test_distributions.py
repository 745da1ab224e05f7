"""The exclude sets match what package managers make, and nothing where programs are."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.ima.allowlist import read_excludes
from keylime.ima.excludes import compile_excludes
from keylime_policy.distributions import DISTRIBUTIONS, EXCLUDES, exclude_lines

MACHINE = "0123456789abcdef0123456789abcdef"
SEQUENCE = "0000000000000001-000601f2a3b4c5d6"
PROGRAMS = (
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/share",
    "/lib/modules/6.1.0",
    "/opt/app/bin",
    "/root",
    "/home/me",
    "/tmp",  # noqa: S108 - no file is made
    "/var/lib/snapd/snaps",
    "/boot",
    "/usr/lib/sysimage",
    "/etc/cron.daily",
    "/etc/init.d",
)
TEMPORARY = (
    "",
    ".dpkg-new",
    ";5f3e2a1b",
    ".rpmnew",
    ".journal",
    ".log",
    ".lock",
    ".gz",
    ".list",
    ".solv",
    "~",
)
COMMON = (
    f"/var/log/journal/{MACHINE}/system.journal",
    f"/var/log/journal/{MACHINE}/user-1000.journal",
    f"/var/log/journal/{MACHINE}/system@{MACHINE}-{SEQUENCE}.journal",
    f"/var/log/journal/{MACHINE}/system@000601f2a3b4c5d6-0123456789abcdef.journal~",
    "/var/log/wtmp",
    "/var/log/lastlog",
    "/var/log/audit/audit.log.1",
    "/etc/.#passwd0123456789abcdef",
    "/etc/.#resolv.conf0123456789abcdef",
    "/etc/systemd/.#machine-info0123456789abcdef",
    "/etc/passwd+",
    "/etc/shadow.4711",
    "/etc/group.lock",
    "/etc/.pwd.lock",
    "/etc/ld.so.cache~",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/timers/stamp-apt-daily.timer",
)
DPKG = (
    "/etc/default/keyboard.dpkg-new",
    "/etc/ssh/sshd_config.dpkg-old",
    "/var/lib/dpkg/status-new",
    "/var/lib/dpkg/updates/0003",
    "/var/lib/dpkg/updates/tmp.i",
    "/var/lib/dpkg/info/libc6:amd64.list-new",
    "/var/lib/dpkg/info/bash.conffiles",
    "/var/lib/dpkg/tmp.ci/control",
    "/var/lib/dpkg/triggers/Unincorp.new",
    "/var/lib/apt/lists/mirror.example_debian_dists_bookworm_InRelease",
    "/var/lib/apt/lists/partial/mirror.example_debian_dists_bookworm_main_binary-amd64_Packages.xz",
    "/var/lib/apt/extended_states.Ab3dE9",
    "/var/cache/apt/pkgcache.bin.aBcDeF",
    "/var/cache/apt/archives/partial/bash_5.2_amd64.deb",
    "/var/cache/debconf/config.dat-new",
    "/var/log/dpkg.log.1",
    "/var/log/apt/term.log",
    "/var/log/syslog.2.gz",
)
RPM = (
    "/etc/ssh/sshd_config;65a1b2c3",
    "/etc/yum.conf.rpmnew",
    "/var/tmp/rpm-tmp.aB3xYz",  # noqa: S108 - no file is made
    "/usr/lib/sysimage/rpm/rpmdb.sqlite-wal",
    "/var/lib/rpm/__db.001",
    "/var/lib/rpm/.rpm.lock",
    "/var/log/messages-20260101",
    "/var/log/secure",
)
MADE = {
    "debian": (*COMMON, *DPKG),
    "ubuntu": (*COMMON, *DPKG, "/var/lib/snapd/state.json", "/var/lib/update-notifier/updates-available"),
    "fedora": (
        *COMMON,
        *RPM,
        "/var/cache/libdnf5/fedora-0123456789abcdef/repodata/repomd.xml",
        "/usr/lib/sysimage/libdnf5/packages.toml",
        "/var/log/dnf5.log",
    ),
    "rhel": (
        *COMMON,
        *RPM,
        "/var/cache/dnf/baseos-0123456789abcdef/repodata/primary.xml.gz",
        "/var/cache/dnf/baseos.solv",
        "/var/lib/dnf/history.sqlite-wal",
        "/var/log/hawkey.log",
    ),
    "opensuse": (
        *COMMON,
        *RPM,
        "/var/cache/zypp/solv/repo-oss/solv",
        "/var/log/zypp/history",
        "/var/log/zypper.log",
    ),
}
SCRIPTS = (
    "/var/lib/dpkg/info/bash.postinst",
    "/var/lib/dpkg/tmp.ci/preinst",
    "/var/lib/dpkg/tmp.ci/config",
    "/etc/init.d/ssh",
    "/etc/passwd",
    "/etc/shadow",
    "/etc/ld.so.preload",
    "/etc/ld.so.cache",
    "/usr/bin/x",
    "/usr/bin/x.dpkg-new",
    "/usr/bin/x;65a1b2c3",
    "/var/tmp/x",  # noqa: S108 - no file is made
    f"/var/log/journal/{MACHINE}/system.journal/x",
    "/var/log/dpkg.log.d/x",
)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_what_package_managers_and_daemons_make_is_excluded(distribution: str) -> None:
    excludes = compile_excludes(read_excludes("\n".join(exclude_lines(distribution))))
    assert [path for path in MADE[distribution] if not excludes.match(path)] == []
    assert excludes.warnings == ()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("path", SCRIPTS)
def test_programs_scripts_and_accounts_are_not(distribution: str, path: str) -> None:
    assert not compile_excludes(read_excludes("\n".join(exclude_lines(distribution)))).match(path)


MATCHERS = {name: compile_excludes(read_excludes("\n".join(exclude_lines(name)))) for name in DISTRIBUTIONS}


@given(
    st.sampled_from(PROGRAMS),
    st.text("abz09._-+/#;~@", min_size=1, max_size=20),
    st.sampled_from(TEMPORARY),
)
@settings(max_examples=100)
def test_nothing_where_programs_are_is_excluded(directory: str, name: str, ending: str) -> None:
    path = f"{directory}/{name}{ending}"
    if path.startswith("/etc/") and re.search(r"[.;~]|#", path):
        return  # configuration has such names, and a directory for programs in /etc may hold it
    assert not any(matcher.match(path) for matcher in MATCHERS.values())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_each_expression_names_files_to_the_end_of_their_path_and_says_why(distribution: str) -> None:
    for one in EXCLUDES[distribution]:
        assert one.reason
        for expression in one.expressions:
            assert expression.endswith("$")
            assert expression.startswith(("/", "(/var/lib/rpm|/usr/lib/sysimage/rpm)/"))
