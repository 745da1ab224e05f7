"""Several runtime policies for an agent, and versions of policies: package updates without a false alarm."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from keylime.ima.runtime_policy import EMPTY_POLICY
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.running_verifier import RunningVerifier, enrolment
from tests.fakes.tenant_program import tenant
from tests.integration.test_administration_log import encoded
from tests.integration.test_verifier_policies import scene

LIST, AGENT = "/v2.6/allowlists", "/v2.6/agents/agent-1"
END_S = 20  # long enough for a machine with other work to judge a list of a few lines
CONTROL = """Package: tool
Version: {version}
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: for a test
"""


def package(directory: Path, version: str) -> dict[str, bytes]:
    """The files of a real package with this version, by the paths at which they are installed."""
    source, unpacked = directory / f"source-{version}", directory / f"unpacked-{version}"
    (source / "DEBIAN").mkdir(parents=True)
    (source / "DEBIAN/control").write_text(CONTROL.format(version=version))
    (source / "usr/bin").mkdir(parents=True)
    (source / "usr/bin/tool").write_text(f"#!/bin/sh\necho {version}\n")
    built = directory / f"tool_{version}_all.deb"
    for command in (
        ["dpkg-deb", "--root-owner-group", "--build", str(source), str(built)],
        ["dpkg-deb", "--extract", str(built), str(unpacked)],
    ):
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - of the system
    return {
        f"/{path.relative_to(unpacked)}": path.read_bytes() for path in unpacked.rglob("*") if path.is_file()
    }


async def store(verifier: RunningVerifier, name: str, files: dict[str, bytes], method: str = "POST") -> None:
    assert (await verifier.admin(method, f"{LIST}/{name}", encoded(policy_of(files)))).code == 201


def named(agent: AttestingAgent, *parts: dict[str, object], name: str = "new") -> dict[str, object]:
    return enrolment(agent, runtime_policy="", runtime_policy_name=name, runtime_policies=list(parts))


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb makes the packages")
def test_l12_a_package_is_updated_without_a_false_alarm(tmp_path: Path) -> None:
    old, new = package(tmp_path, "1.0"), package(tmp_path, "1.1")
    assert old.keys() == new.keys() == {"/usr/bin/tool"}
    assert old != new

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        system = dict(agent.files)
        await store(verifier, "old", system | old)
        await store(verifier, "new", system | new)
        end = int(time.time()) + END_S
        union = named(agent, {"name": "old", "until": end}, {"name": "new"})
        assert (await verifier.admin("POST", AGENT, union)).code == 200
        agent.machine.measure(*next(iter(old.items())))
        await verifier.until_passing(agent, 2)
        # The package manager replaces it while both hold.
        agent.machine.measure(*next(iter(new.items())))
        status = await verifier.until_passing(agent, 2)
        assert status["runtime_policies"] == [{"name": "old", "until": end}, {"name": "new"}]
        refused = await verifier.admin("DELETE", f"{LIST}/old")
        assert (refused.code, "in use by agent agent-1" in refused.status) == (409, True)
        # "old" ends by itself: nothing is asked for again, though the list still begins with the old package.
        agent.questions.clear()
        status = await verifier.until(agent, lambda one: one["runtime_policies"][0].get("has_ended"))
        await verifier.until_passing(agent, 3)
        assert 0 not in [question.entry for question in agent.questions]
        # And is not accepted any more when somebody brings it back.
        agent.machine.measure(*next(iter(old.items())))
        failed = await verifier.until_failed(agent)
        assert [one["path"] for one in failed["last_findings"]] == ["/usr/bin/tool"]

    scene(tmp_path / "verifier", act)


def test_l14_l15_what_several_policies_must_fulfil(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await store(verifier, "base", agent.files)
        await store(verifier, "app", {"/opt/app": b"app"})
        await verifier.admin("POST", f"{LIST}/nothing", encoded(EMPTY_POLICY))
        soon = int(time.time()) + 3600
        base: dict[str, object] = {"name": "base"}
        app: dict[str, object] = {"name": "app", "until": soon}
        for parts, name, words in (
            ([app, {"name": "base", "until": soon}], "base", "runtime_policy_name must be one of them"),
            ([app, base], "app", "runtime_policy_name must be one of them"),
            ([base, base], "base", "expected different names"),
            ([base, {"name": "none"}], "base", "Could not find IMA policy with name none"),
            ([base, {"name": "app", "until": 1}], "base", "'app' has ended already"),
            ([base, {"name": "app", "until": -1}], "base", "the end of 'app'"),
            ([base, {"name": "nothing"}], "base", "judges nothing"),
        ):
            answer = await verifier.admin("POST", AGENT, named(agent, *parts, name=name))
            assert answer.code in (400, 404), (parts, answer)
            assert words in answer.status
        whole = named(agent, app, base, name="base")
        both = await verifier.admin("POST", AGENT, {**whole, **encoded(policy_of({}))})
        assert (both.code, "leave runtime_policy out" in both.status) == (400, True)
        assert (await verifier.admin("POST", AGENT, whole)).code == 200
        agent.machine.measure("/opt/app", b"app")
        await verifier.until_passing(agent, 2)
        # A part that could not hold with the others is not stored.
        wrong = policy_of({"/x": b"x"}).replace('"log_hash_alg": "sha1"', '"log_hash_alg": "sha256"')
        answer = await verifier.admin("PUT", f"{LIST}/app", encoded(wrong))
        assert (answer.code, "log_hash_alg" in answer.status) == (409, True)
        await store(verifier, "app", {"/opt/app": b"app", "/opt/more": b"more"}, "PUT")
        events = (await verifier.admin("GET", f"{AGENT}/history")).results["events"]
        assert [one["policy"] for one in events if one["policy"]] == ["runtime/app"]
        shown = (await tenant(verifier, "-o", "table", "history", "-u", "agent-1")).stdout
        assert "together with others: base\n" in shown
        assert "together with others: app until 20" in shown
        # Another update leaves them, a name of its own takes their place.
        await verifier.admin("PUT", AGENT, {"accept_tpm_hash_algs": ["sha256", "sha384"]})
        assert [one["name"] for one in (await verifier.status(agent))["runtime_policies"]] == ["app", "base"]
        answer = await verifier.admin("PUT", AGENT, {"runtime_policy_name": "base"})
        assert [one["name"] for one in answer.results["before"]["runtime_policies"]] == ["app", "base"]
        assert "runtime_policies" not in answer.results["after"]
        failed = await verifier.until_failed(agent)
        assert [one["path"] for one in failed["last_findings"]] == ["/opt/app"]
        assert "runtime_policies" not in failed

    scene(tmp_path, act)


def test_versions_are_kept_and_gone_back_to_and_the_list_is_gone_on_with(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        more = agent.files | {"/opt/a": b"a"}
        await store(verifier, "fleet", agent.files)
        assert (await verifier.admin("POST", AGENT, named(agent, name="fleet"))).code == 200
        await verifier.until_passing(agent, 2)
        agent.questions.clear()
        await store(verifier, "fleet", more, "PUT")
        agent.machine.measure("/opt/a", b"a")
        await verifier.until_passing(agent, 3)
        asked = [question.entry for question in agent.questions]
        assert 0 not in asked, "what accepts more than before judges only what is new"
        await store(verifier, "fleet", more, "PUT")  # says the same
        found = (await verifier.admin("GET", f"{LIST}/fleet/versions")).results
        assert [(one["version"], one["is_current"]) for one in found["versions"]] == [(2, True), (1, False)]
        assert (found["agents"], found["left_off"]) == (["agent-1"], 0)
        assert all("(serial number" in one["actor"] and one["at"] for one in found["versions"])
        first = await verifier.admin("GET", f"{LIST}/fleet/versions/1")
        assert first.results == {"name": "fleet", "version": 1, "text": policy_of(agent.files)}
        assert (await verifier.status(agent))["runtime_policy_version"] == 2
        for path, code in (("none/versions", 404), ("fleet/versions/9", 404), ("fleet/versions/x", 400)):
            assert (await verifier.admin("GET", f"{LIST}/{path}")).code == code
        assert (await verifier.admin("POST", f"{LIST}/fleet/versions/9/restore")).code == 404
        # The way back allows less: everything is judged again.
        flags = ("--runtime-policy-name", "fleet")
        shown = (await tenant(verifier, "-o", "table", "policyversions", *flags)).stdout.splitlines()
        assert [line.strip() for line in shown if "version " in line] == ["version 2  in force", "version 1"]
        assert f"   sha256  {found['versions'][1]['sha256']}" in shown
        assert shown[-2:] == ["used by 1 agent", "   agent-1"]
        await tenant(verifier, "restorepolicy", *flags, "--policy-version", "1")
        failed = await verifier.until_failed(agent)
        assert [one["path"] for one in failed["last_findings"]] == ["/opt/a"]
        assert failed["runtime_policy_version"] == 3
        events = (await verifier.admin("GET", f"{AGENT}/history")).results["events"]
        changes = [one["details"] for one in events if one["kind"] == "policy_replaced"]
        assert [(one["was_version"], one["version"], one.get("restored")) for one in changes] == [
            (1, 2, None),
            (2, 2, None),
            (2, 3, 1),
        ]
        for number in range(3):
            await store(verifier, "fleet", {"/x": bytes([number])}, "PUT")
        found = (await verifier.admin("GET", f"{LIST}/fleet/versions")).results
        assert [one["version"] for one in found["versions"]] == [6, 5, 4], "as many as are to be kept"
        assert verifier.rows("SELECT count(*) FROM policy_texts") == [(3,)]
        assert (await verifier.admin("DELETE", AGENT)).code == 200
        assert (await verifier.admin("DELETE", f"{LIST}/fleet")).code == 204
        assert verifier.rows("SELECT count(*) FROM policy_texts") == [(0,)]

    scene(tmp_path, act, KEYLIME_VERIFIER_POLICY_VERSIONS="3")
