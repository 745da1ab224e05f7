"""A program that is installed alone finds all that it imports: the extra of its role brings it."""

import importlib.metadata
import sys

import grimp
import pytest

from tests.house.packaging.test_parts import PROJECT, parts

PROGRAMS = {
    "agent": ("keylime_agent",),
    "registrar": ("keylime_registrar",),
    "tenant": ("keylime_policy", "keylime_tenant"),
    "verifier": ("keylime_verifier",),
}
OURS = frozenset({"keylime", *(one for names in PROGRAMS.values() for one in names)})
# Keys in tokens and TPMs sign policies where these are installed, and a line says so where they are not.
ON_DEMAND = {"tenant": {"python-pkcs11", "tpm2-pytss"}}


def imported(graph: grimp.ImportGraph, roots: tuple[str, ...]) -> set[str]:
    """The packages of others that some of our programs import, by themselves or through each other."""
    waiting = [module for module in graph.modules if module.partition(".")[0] in roots]
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            if module.partition(".")[0] in OURS:
                waiting += graph.find_modules_directly_imported_by(module)
    return {one.partition(".")[0] for one in seen} - OURS - sys.stdlib_module_names


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*sorted(OURS), include_external_packages=True)


@pytest.mark.parametrize("role", PROGRAMS)
def test_a_role_brings_what_its_programs_import(graph: grimp.ImportGraph, role: str) -> None:
    metadata = {
        parts.plain(each.metadata["Name"]): list(each.requires or ())
        for each in importlib.metadata.distributions()
    }
    extras = PROJECT["optional-dependencies"]
    brought = parts.closure([*PROJECT["dependencies"], *parts._flat(extras, role)], metadata)
    known = importlib.metadata.packages_distributions()
    wanted = imported(graph, PROGRAMS[role])
    assert {"cryptography", "msgspec"} <= wanted
    missing = {
        package
        for package in wanted
        if not {parts.plain(one) for one in known[package]} & (brought | ON_DEMAND.get(role, set()))
    }
    assert missing == set()
