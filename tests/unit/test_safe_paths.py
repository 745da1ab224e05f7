"""Who else may change a file: owners, modes, directories, links. Root really gives files away here."""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keylime import safe_paths
from keylime.errors import ConfigError
from keylime.safe_paths import (
    Names,
    Owners,
    find_looseness,
    require_safe_directory,
    require_safe_file,
    require_safe_module,
    require_safe_store,
)

US, KEYLIME, STRANGER = 1000, 990, 65534
OWNERS = Owners(frozenset({0, US, KEYLIME}), frozenset({0, 100, 990}), US)
NAMES = Names(lambda number: f"user{number}", lambda number: f"group{number}")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def status(mode: int, user: int = US, group: int = 100) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, user, group, 0, 0, 0, 0))


FILE, DIRECTORY, LINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK


def judge(mode: int, user: int = US, group: int = 100, *, sticky_helps: bool = True) -> str | None:
    found = find_looseness(status(mode, user, group), OWNERS, NAMES, sticky_helps=sticky_helps)
    return None if found is None else f"{found.phrase}: {found.command}"


@pytest.mark.parametrize(
    ("mode", "user", "group"),
    [
        (FILE | 0o600, US, 100),
        (FILE | 0o644, 0, 0),
        (FILE | 0o640, KEYLIME, 12345),
        (FILE | 0o660, 0, 0),
        (FILE | 0o660, US, 990),
        (DIRECTORY | 0o755, 0, 12345),
        (DIRECTORY | 0o1777, 0, 0),
        (LINK | 0o777, US, 12345),
    ],
)
def test_h1_what_only_we_may_change(mode: int, user: int, group: int) -> None:
    assert judge(mode, user, group) is None


@pytest.mark.parametrize(
    ("mode", "user", "group", "said"),
    [
        (FILE | 0o600, STRANGER, 100, "belongs to user65534: chown user1000"),
        (LINK | 0o777, STRANGER, 100, "belongs to user65534: chown -h user1000"),
        (FILE | 0o666, US, 100, "may be written by everybody (mode 0666): chmod o-w"),
        (FILE | 0o602, 0, 0, "may be written by everybody (mode 0602): chmod o-w"),
        (FILE | 0o660, US, 12345, "may be written by group group12345 (mode 0660): chmod g-w"),
        (FILE | 0o666, US, 12345, "may be written by everybody (mode 0666): chmod go-w"),
        (DIRECTORY | 0o777, 0, 0, "may be written by everybody (mode 0777): chmod o-w"),
        (DIRECTORY | 0o1777, STRANGER, 0, "belongs to user65534: chown user1000"),
        (FILE | 0o1666, US, 100, "may be written by everybody (mode 1666): chmod o-w"),
    ],
)
def test_h1_what_others_may_change_and_how_to_mend_it(mode: int, user: int, group: int, said: str) -> None:
    assert judge(mode, user, group) == said


def test_h1_a_sticky_bit_does_not_keep_files_out() -> None:
    assert judge(DIRECTORY | 0o1777, 0, 0, sticky_helps=False) is not None


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory below one that everybody may write, as all temporary ones are."""
    directory = Path(tempfile.mkdtemp(prefix="keylime-test-"))
    yield directory
    shutil.rmtree(directory)


def written(path: Path, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    path.chmod(mode)
    return path


def test_h1_a_file_of_ours_below_a_sticky_directory_is_fine(place: Path) -> None:
    require_safe_file(written(place / "etc" / "cacert.crt"))
    require_safe_directory(place / "etc")
    place.chmod(0o1777)
    with pytest.raises(ConfigError, match=r"may be written by everybody \(mode 1777\); run: chmod o-w"):
        require_safe_directory(place)


@pytest.mark.parametrize("loose", ["cacert.crt", "etc", "deep"])
def test_h1_the_path_that_others_may_write_is_named_with_the_command(place: Path, loose: str) -> None:
    file = written(place / "deep" / "etc" / "cacert.crt")
    wrong = {"cacert.crt": file, "etc": file.parent, "deep": file.parent.parent}[loose]
    mode = wrong.stat().st_mode & 0o777 | 0o002
    wrong.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        require_safe_file(file)
    expected = f"{wrong} may be written by everybody (mode {mode:04o}); run: chmod o-w {wrong}"
    assert str(caught.value) == expected
    os.system(expected.split("; run: ")[1])  # noqa: S605 - the remedy as an operator would type it
    require_safe_file(file)


@as_root
@pytest.mark.parametrize("given", ["cacert.crt", "etc"])
def test_h1_a_strangers_file_or_directory(place: Path, given: str) -> None:
    file = written(place / "etc" / "cacert.crt")
    wrong = {"cacert.crt": file, "etc": file.parent}[given]
    os.chown(wrong, STRANGER, STRANGER)
    with pytest.raises(ConfigError, match=rf"{wrong} belongs to nobody; run: chown root {wrong}$"):
        require_safe_file(file)
    require_safe_file(file, Owners.of_service((STRANGER, STRANGER)))


@as_root
def test_h1_a_home_further_up_may_be_somebodys(place: Path) -> None:
    file = written(place / "home" / "keylime" / "cacert.crt")
    os.chown(place / "home", STRANGER, STRANGER)
    require_safe_file(file)
    (place / "home").chmod(0o777)
    with pytest.raises(ConfigError, match="may be written by everybody"):
        require_safe_file(file)


def archive(place: Path) -> Path:
    """A certificate as certbot leaves it: a link in one directory to a file in another."""
    written(place / "archive" / "site" / "cert3.pem")
    live = place / "live" / "site" / "cert.pem"
    live.parent.mkdir(parents=True)
    live.symlink_to("../../archive/site/cert3.pem")
    return live


@pytest.mark.parametrize("loose", ["archive/site", "archive/site/cert3.pem", "live/site", "live", None])
def test_h2_a_link_is_as_safe_as_all_that_it_leads_through(place: Path, loose: str | None) -> None:
    link = archive(place)
    if loose is None:
        require_safe_file(link)
        return
    (place / loose).chmod(0o777)
    with pytest.raises(ConfigError, match=rf"{place / loose} may be written by everybody"):
        require_safe_file(link)


@as_root
def test_h2_a_strangers_link_is_refused(place: Path) -> None:
    link = archive(place)
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(ConfigError, match=rf"{link} belongs to nobody; run: chown -h root {link}"):
        require_safe_file(link)


def test_h2_a_directory_behind_a_link_and_links_in_a_circle(place: Path) -> None:
    written(place / "real" / "cacert.crt")
    (place / "cv_ca").symlink_to(place / "real")
    require_safe_file(place / "cv_ca" / "cacert.crt")
    (place / "real").chmod(0o770 if os.getegid() else 0o777)
    if not os.getegid():
        with pytest.raises(ConfigError, match=r"/real may be written"):
            require_safe_file(place / "cv_ca" / "cacert.crt")
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    with pytest.raises(ConfigError, match="too many symbolic links"):
        require_safe_file(place / "a")


def test_h1_what_is_absent_is_as_safe_as_its_directory(place: Path) -> None:
    require_safe_file(place / "no" / "such" / "file")
    place.chmod(0o777)
    with pytest.raises(ConfigError):
        require_safe_file(place / "no such file")


def test_h1_every_file_of_a_store_counts(place: Path) -> None:
    written(place / "store" / "a.pem")
    other = written(place / "store" / "b.pem", 0o644)
    require_safe_store(place / "store")
    other.chmod(0o646)
    with pytest.raises(ConfigError, match=r"b\.pem may be written"):
        require_safe_store(place / "store")


def test_where_nothing_can_be_written_modes_do_not_matter(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(place / "config", 0o666)
    monkeypatch.setattr(safe_paths, "_is_read_only", lambda _: True)
    require_safe_file(file)
    monkeypatch.undo()
    with pytest.raises(ConfigError):
        require_safe_file(file)


def test_a_path_with_blanks_is_quoted_in_the_command(place: Path) -> None:
    file = written(place / "my ca.crt", 0o666)
    with pytest.raises(ConfigError, match=rf"chmod o-w '{file}'$"):
        require_safe_file(file)


@pytest.fixture
def module(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a module in a package that can be imported; its file."""
    monkeypatch.syspath_prepend(place)

    def make(package: str) -> Path:
        monkeypatch.delitem(sys.modules, package, raising=False)
        written(place / package / "__init__.py", 0o644)
        return written(place / package / "rules.py", 0o644)

    return make


@pytest.mark.parametrize("loose", ["rules.py", "__init__.py", "__pycache__", "."])
def test_h1_a_module_that_others_may_change(module: Callable[[str], Path], loose: str) -> None:
    file = module("boot_rules")
    (file.parent / "__pycache__").mkdir(exist_ok=True)
    require_safe_module("boot_rules.rules")
    wrong = file.parent / loose
    wrong.chmod(0o777)
    with pytest.raises(ConfigError, match=rf"{wrong} may be written by everybody"):
        require_safe_module("boot_rules.rules")


@pytest.mark.parametrize("name", ["os", "sys", "no.such.module", "/tmp/x.py", "", "..x"])  # noqa: S108
def test_modules_that_are_ours_or_not_there(name: str) -> None:
    require_safe_module(name)
