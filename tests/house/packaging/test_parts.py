"""Which package a file belongs to; what an agent needs has no database."""

import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SITE = "usr/lib/keylime/lib/python3.11/site-packages"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parts", ROOT / "packaging" / "tools" / "parts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parts = _load()


@pytest.mark.parametrize(
    ("path", "package"),
    [
        ("usr/bin/keylime_verifier", "keylime-verifier"),
        ("usr/bin/keylime_ima_emulator", "keylime-agent"),
        ("usr/bin/keylime-policy", "keylime-tenant"),
        ("usr/bin/keylime_push_model_agent", "keylime-agent"),
        ("usr/share/man/man8/keylime_agent.8", "keylime-agent"),
        ("usr/share/man/man1/keylime_create_policy.1", "keylime-tenant"),
        ("usr/share/zsh/site-functions/_keylime_registrar", "keylime-registrar"),
        ("usr/share/fish/vendor_completions.d/keylime_tenant.fish", "keylime-tenant"),
        ("usr/share/bash-completion/completions/keylime_tenant", "keylime-tenant"),
        ("usr/etc/keylime/verifier.conf", "keylime-verifier"),
        ("usr/etc/keylime/ca.conf", "keylime-common"),
        ("etc/keylime/agent.conf.d", "keylime-agent"),
        ("etc/keylime/logging.conf.d", "keylime-common"),
        ("etc/logrotate.d/keylime", "keylime-common"),
        ("lib/systemd/system/keylime_registrar.service", "keylime-registrar"),
        ("lib/systemd/system/keylime_push_model_agent.service", "keylime-agent"),
        ("lib/systemd/system/var-lib-keylime-secure.mount", "keylime-agent"),
        ("lib/systemd/system/ima-policy.service", "keylime-ima-policy"),
        ("etc/ima/ima-policy", "keylime-ima-policy"),
        ("usr/lib/firewalld/services/keylime.xml", "keylime-firewalld"),
        ("usr/lib/sysusers.d/keylime.conf", "keylime-common"),
        ("usr/libexec/keylime", "keylime-agent"),
        ("usr/share/doc/keylime/docs/adr/0001-verdicts-are-pure.md", "keylime-doc"),
        ("usr/lib/keylime/pyvenv.cfg", "keylime-common"),
        (f"{SITE}/keylime/ima/rules.py", "keylime-common"),
        (f"{SITE}/keylime_policy/main.py", "keylime-tenant"),
        (f"{SITE}/keylime_agent/main.py", "keylime-agent"),
        (f"{SITE}/sqlalchemy/engine/base.py", "keylime-database"),
        (f"{SITE}/unknown.py", "keylime-common"),
    ],
)
def test_each_file_has_its_package(path: str, package: str) -> None:
    sites = {"sqlalchemy/engine/base.py": "keylime-database"}
    assert parts.package_of(PurePosixPath(path), PROJECT["scripts"], sites) == package


def test_no_library_of_databases_is_in_what_an_agent_needs() -> None:
    metadata = {
        parts.plain(each.metadata["Name"]): list(each.requires or ())
        for each in importlib.metadata.distributions()
        if parts.plain(each.metadata["Name"]) not in ("keylime",)
    }
    owners = parts.distributions(PROJECT["dependencies"], PROJECT["optional-dependencies"], metadata)
    database = {name for name, package in owners.items() if package == "keylime-database"}
    assert {"sqlalchemy", "alembic", "psycopg", "psycopg-binary", "greenlet"} <= database
    assert {owners[name] for name in ("rich", "zstandard")} == {"keylime-tenant"}
    assert {owners[name] for name in ("tpm2-pytss", "aiohttp", "cryptography", "httptools")} == {
        "keylime-common"
    }
    lock = (ROOT / "requirements" / "runtime.txt").read_text("utf-8")
    pinned = {parts.plain(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    assert pinned <= set(owners), "nobody needs what is pinned; run `make lock`"
    agent = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["agent"]]
    assert not parts.closure(agent, metadata) & database


def test_extras_of_distributions_are_followed_and_others_are_not() -> None:
    metadata = {
        "a": ["b[fast]>=1 ; python_version < '4'", "c ; extra == 'slow'"],
        "b": ["d ; extra == 'fast'", "e ; extra == 'other'", "gone"],
        "c": [],
        "d": ["a"],
        "e": [],
    }
    assert parts.closure(["A>=2"], metadata) == {"a", "b", "d"}


def test_every_role_has_an_extra_and_all_is_all() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(parts.ROLES) <= set(extras)
    assert extras["all"] == [f"keylime[{','.join(sorted(parts.ROLES))}]"]
    assert extras["verifier"] == ["keylime[database]", "httptools>=0.6.4,<1"]
