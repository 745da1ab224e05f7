"""Which package each installed file belongs to. Debian packages and RPMs are split by the same rules.

    python packaging/tools/parts.py STAGE PYPROJECT OWNERS [DIRECTORY]

prints one line for each file and empty directory below STAGE: package, blank, path; or moves each into the
folder of its package in DIRECTORY. OWNERS is what stage.py wrote down about files of Python distributions.
"""

import importlib.metadata
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

COMMON, DATABASE = "keylime-common", "keylime-database"
ROLES = ("agent", "registrar", "tenant", "verifier")
PACKAGES = (
    *(f"keylime-{role}" for role in ROLES),
    COMMON,
    DATABASE,
    "keylime-doc",
    "keylime-firewalld",
    "keylime-ima-policy",
)
_MODULES = {**{f"keylime_{role}": f"keylime-{role}" for role in ROLES}, "keylime_policy": "keylime-tenant"}
_PROGRAM_PLACES = (
    "bin",
    "man",
    "completions",
    "vendor-completions",
    "site-functions",
    "vendor_completions.d",
)


def plain(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: Iterable[str], metadata: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The distributions that `requirements` bring, themselves included; `metadata` has what each requires.

    Extras of distributions are asked for in their names ("sqlalchemy[asyncio]"); markers about anything else
    than extras are taken to hold, because what they leave out is not in `metadata`.
    """
    found: set[str] = set()
    waiting = list(requirements)
    seen: set[str] = set()
    while waiting:
        text = waiting.pop()
        if text in seen:
            continue
        seen.add(text)
        match = re.match(r"\s*([\w.-]+)\s*(?:\[([^]]*)\])?", text)
        if match is None:
            raise ValueError(f"{text!r} is no requirement")
        name, extras = plain(match[1]), [each.strip() for each in (match[2] or "").split(",")]
        if name not in metadata:
            continue
        found.add(name)
        waiting += [one for one in metadata[name] if _applies(one, extras)]
    return frozenset(found)


def _applies(requirement: str, extras: Sequence[str]) -> bool:
    wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
    return wanted is None or plain(wanted[1]) in map(plain, extras)


def distributions(
    base: Sequence[str], extras: Mapping[str, Sequence[str]], metadata: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """The package of each distribution: that of the only role that needs it, else a shared one."""
    everywhere = closure(base, metadata)
    roles = {role: closure(_flat(extras, role), metadata) for role in ROLES}
    database = closure(extras["database"], metadata)
    owners = {}
    for name in everywhere.union(*roles.values()):
        users = [role for role in ROLES if name in roles[role]]
        if name in everywhere:
            owners[name] = COMMON
        elif len(users) == 1:
            owners[name] = f"keylime-{users[0]}"
        else:
            owners[name] = DATABASE if name in database else COMMON
    return owners


def _flat(extras: Mapping[str, Sequence[str]], extra: str) -> Iterator[str]:
    """The requirements of an extra, with those of the project's own extras in place of their names."""
    for requirement in extras[extra]:
        own = re.fullmatch(r"keylime\[([\w,]+)\]", requirement)
        if own is None:
            yield requirement
        else:
            for name in own[1].split(","):
                yield from _flat(extras, name)


def package_of(path: PurePosixPath, scripts: Mapping[str, str], sites: Mapping[str, str]) -> str:
    """The package of an installed file; `scripts` are those of pyproject.toml, `sites` of libraries."""
    parts = path.parts
    if "site-packages" in parts:
        inside = parts[parts.index("site-packages") + 1 :]
        if inside[0] in _MODULES:
            return _MODULES[inside[0]]
        return sites.get(PurePosixPath(*inside).as_posix(), COMMON)
    program = re.sub(r"(^_|\.[18]$|\.fish$)", "", path.name)
    if program in scripts and any(place in parts for place in _PROGRAM_PLACES):
        return _MODULES.get(scripts[program].partition(".")[0], COMMON)
    if "doc" in parts:
        return "keylime-doc"
    if "firewalld" in parts:
        return "keylime-firewalld"
    if "ima" in path.name or "ima" in parts:
        return "keylime-ima-policy"
    return _system_file(path)


def _system_file(path: PurePosixPath) -> str:
    """Units, configuration and directories are their role's, if their name has one."""
    if path.name == "var-lib-keylime-secure.mount" or path.parts[-2:] == ("libexec", "keylime"):
        return "keylime-agent"
    role = re.match(r"(?:keylime_(?:push_model_)?)?(agent|registrar|tenant|verifier)\b", path.name)
    return COMMON if role is None else f"keylime-{role[1]}"


def installed_metadata(site: Path) -> dict[str, list[str]]:
    """What the distributions in a site-packages directory require."""
    found = importlib.metadata.distributions(path=[str(site)])
    return {plain(each.metadata["Name"]): list(each.requires or ()) for each in found}


def installed_files(site: Path) -> dict[str, str]:
    """The distribution of each file in a site-packages directory, by its path below it."""
    return {
        file.as_posix(): plain(each.metadata["Name"])
        for each in importlib.metadata.distributions(path=[str(site)])
        for file in each.files or ()
    }


def staged(stage: Path) -> Iterator[PurePosixPath]:
    """Files, links and empty directories below `stage`, from its root."""
    for directory, names, files in os.walk(stage):
        here = PurePosixPath(directory).relative_to(stage)
        names.sort()
        links = [name for name in names if (Path(directory) / name).is_symlink()]
        if not names and not files:
            yield here
        yield from (here / name for name in sorted([*files, *links]))


def main() -> None:
    stage, pyproject, owners, *rest = map(Path, sys.argv[1:])
    scripts = tomllib.loads(pyproject.read_text("utf-8"))["project"]["scripts"]
    sites = json.loads(owners.read_text("utf-8"))
    for path in list(staged(stage)):
        package = package_of(path, scripts, sites)
        if rest:
            target = rest[0] / package / path
            target.parent.mkdir(parents=True, exist_ok=True)
            (stage / path).rename(target)
        else:
            print(package, f"/{path}")


if __name__ == "__main__":
    main()
