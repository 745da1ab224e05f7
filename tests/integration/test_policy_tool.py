"""The policy programs as an operator runs them: exit status, stdout, one line on stderr."""

import functools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from keylime.ima.measurement_list import split_lines
from keylime.measured_boot.event_types import EventType
from keylime_policy.json_documents import DOCUMENTS
from tests import printed_documents
from tests.captures import Capture, capture, captures
from tests.fakes import forked_programs
from tests.fakes.event_logs import build_log, take_apart
from tests.fakes.forked_programs import Order
from tests.fakes.pe_images import pe_image

demand_schema = functools.partial(printed_documents.demand_schema, "keylime-policy", DOCUMENTS)

ONE = capture("direct-efistub")
CLEAN, TAMPERED = ONE.stage("s1-clean"), ONE.stage("s2-tampered")
LIST = CLEAN.path / "ascii_runtime_measurements"
BOOT_LOG = ONE.path / "binary_bios_measurements"
BIOS_LOG = capture("seabios-no-uefi").path / "binary_bios_measurements"
SECURE_BOOT_LOG = capture("grub-secureboot").path / "binary_bios_measurements"


def run(
    program: str, *arguments: str | Path, cwd: Path | None = None, status: int = 0
) -> subprocess.CompletedProcess[str]:
    done = forked_programs.run(
        Order(program, tuple(map(str, arguments)), os.environ.copy(), str(cwd or Path.cwd()))
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def policy(*arguments: str | Path, cwd: Path | None = None, status: int = 0) -> str:
    return run("keylime-policy", *arguments, cwd=cwd, status=status).stdout


def refused(program: str, *arguments: str | Path, status: int, cwd: Path | None = None) -> str:
    """The last line on stderr."""
    done = run(program, *arguments, status=status, cwd=cwd)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"{program}: error: ")
    return lines[-1]


def check(*arguments: str | Path, status: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(policy("check", "--json", *arguments, status=status))
    demand_schema("check", document)
    return document


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    policy("create", "runtime", "-m", LIST, "-o", path)
    return path


@pytest.mark.parametrize("one", captures(), ids=lambda one: one.name)
def test_check_accepts_the_clean_stage_and_names_the_tampered_files(one: Capture, tmp_path: Path) -> None:
    own = tmp_path / "policy.json"
    clean, tampered = one.stage("s1-clean"), one.stage("s2-tampered")
    policy("create", "runtime", "-k", "-b", "-m", clean.path / "binary_runtime_measurements", "-o", own)
    boot = ("--boot-log", one.path / "binary_bios_measurements", "--runtime-policy", own)
    signed_by = ("--ak", one.path / "ak_ecdsa.tpm2b_public")
    findings: list[dict[str, Any]] = []
    for stage, status, verdict in ((clean, 0, "accepted"), (tampered, 1, "rejected")):
        quote = ("--quote", stage.path / "quote_ecdsa_sha256", "--nonce", stage.nonce, *signed_by)
        document = check(*boot, "--ima-log", stage.path / "ascii_runtime_measurements", *quote, status=status)
        assert document["verdict"] == verdict
        assert document["ima"]["entries"] == stage.entries
        assert document["ima"]["pcr10"]["sha256"] == stage.pcrs("sha256")[10].hex()
        assert document["boot"]["pcrs"]["sha256"]["0"] == stage.pcrs("sha256")[0].hex()
        binary = check(*boot, "--ima-log", stage.path / "binary_runtime_measurements", *quote, status=status)
        assert binary == document
        findings = document["findings"]
    known = json.loads(own.read_text())["digests"]
    added = {line.split(b" ")[4].decode() for line in split_lines(tampered.ascii_list)[clean.entries :]}
    assert {finding["path"] for finding in findings} == {
        path for path in added if path not in known or path == "/usr/local/bin/hello.sh"
    }


def test_every_form_of_quote_and_key_gives_the_same_answer(own: Path, tmp_path: Path) -> None:
    wire = tmp_path / "quote"
    wire.write_text(TAMPERED.quote("rsapss", "sha256").text)
    evidence = (
        *("--ima-log", TAMPERED.path / "ascii_runtime_measurements"),
        *("--runtime-policy", own, "--nonce", TAMPERED.nonce),
    )
    keys = {suffix: ONE.path / f"ak_rsapss.{suffix}" for suffix in ("tpm2b_public", "pem")}
    prefix = TAMPERED.path / "quote_rsapss_sha256"
    answers = {
        (suffix, form): check(*evidence, "--quote", form, "--ak", key, status=1)
        for suffix, key in keys.items()
        for form in (wire, prefix)
    }
    assert answers["tpm2b_public", wire] == answers["tpm2b_public", prefix]
    assert answers["pem", wire] == answers["pem", prefix]
    assert answers["pem", wire]["findings"] == answers["tpm2b_public", wire]["findings"]
    more = set(answers["pem", wire]["not_checked"]) - set(answers["tpm2b_public", wire]["not_checked"])
    assert len(more) == 1
    assert "attributes" in more.pop()


def test_a_rejected_machine_is_answered_by_an_update_of_its_policy(own: Path, tmp_path: Path) -> None:
    """From findings to a policy that accepts, and what is different then, in each form."""
    log = ("--ima-log", TAMPERED.path / "ascii_runtime_measurements")
    failure, new, merged = tmp_path / "failure.json", tmp_path / "new.json", tmp_path / "merged.json"
    failure.write_text(json.dumps(check(*log, "--runtime-policy", own, status=1)))
    done = run("keylime-policy", "update", own, "--from-failure", failure, "-o", new)
    assert "/usr/local/bin/hello.sh" in done.stderr
    assert f"written to {new}" in done.stderr.splitlines()[-1]
    assert check(*log, "--runtime-policy", new, status=0)["verdict"] == "accepted"
    shown = policy("diff", own, new, status=1)
    assert {line[0] for line in shown.splitlines()} == {"+"}
    policy("merge", own, new, "-o", merged)
    assert policy("diff", new, merged) == ""
    assert shown.splitlines()[0].removeprefix("+ ") in policy("show", merged)
    policy("lint", merged)


def test_people_get_blocks_and_a_summary(own: Path) -> None:
    shown = policy(
        "check", "--ima-log", TAMPERED.path / "ascii_runtime_measurements", "--runtime-policy", own, status=1
    )
    assert "/usr/local/bin/hello.sh" in shown
    assert "\x1b" not in shown
    assert shown.splitlines()[-1].startswith("REJECTED: ")
    accepted = policy("check", "--ima-log", LIST, "--runtime-policy", own)
    assert accepted.splitlines()[-1] == "ACCEPTED as far as logs alone can tell"


def unversioned(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The findings of a report, but for the version of the policy that has the rules."""
    return [{**finding, "policy": None} for finding in report["findings"]]


def test_an_allowlist_is_judged_like_the_policy_made_of_it(own: Path, tmp_path: Path) -> None:
    allowlist, excludes = tmp_path / "allowlist.txt", tmp_path / "exclude.txt"
    policy("create", "runtime", "-m", LIST, "--show-legacy-allowlist", "-o", allowlist)
    log = ("--ima-log", TAMPERED.path / "ascii_runtime_measurements")
    by_policy = check(*log, "--runtime-policy", own, status=1)
    by_allowlist = check(*log, "--allowlist", allowlist, status=1)
    assert unversioned(by_allowlist) == unversioned(by_policy)
    excludes.write_text("# the lab\n/usr/local/bin/\n")
    excluded = check(*log, "--allowlist", allowlist, "--exclude", excludes, status=1)
    left = [f for f in unversioned(by_policy) if not f["path"].startswith("/usr/local/bin/")]
    assert unversioned(excluded) == left
    converted = tmp_path / "converted.json"
    run("keylime_convert_runtime_policy", "-a", allowlist, "-e", excludes, "-o", converted)
    assert unversioned(check(*log, "--runtime-policy", converted, status=1)) == left


@pytest.mark.parametrize("backend", ["ecdsa", "x509"])
@pytest.mark.parametrize("program", ["keylime-policy", "keylime_sign_runtime_policy"])
def test_a_signed_policy_is_checked_with_its_key(
    own: Path, tmp_path: Path, backend: str, program: str
) -> None:
    signed, key, certificate = tmp_path / "signed", tmp_path / "key", tmp_path / "crt"
    files: tuple[str | Path, ...] = ("-r", own, "-o", signed, "-p", key, "-b", backend)
    command = ("sign", "runtime") if program == "keylime-policy" else ()
    trusted = tmp_path / "key.pub"
    if backend == "x509":
        files, trusted = (*files, "-c", certificate), certificate
    run(program, *command, *files)
    judged = ("--ima-log", LIST, "--runtime-policy", signed)
    assert check(*judged, "--runtime-policy-sig-key", trusted, status=0)["verdict"] == "accepted"
    assert "is not checked" in run("keylime-policy", "check", *judged).stderr
    envelope = json.loads(signed.read_text())
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    signed.write_text(json.dumps(envelope))
    text = refused("keylime-policy", "check", *judged, "--runtime-policy-sig-key", trusted, status=2)
    assert "does not hold" in text or "not signed by" in text
    text = refused("keylime-policy", "check", *judged[:3], own, "--runtime-policy-sig-key", trusted, status=2)
    assert "is not signed" in text


def test_a_reference_state_is_made_and_holds(tmp_path: Path) -> None:
    state = tmp_path / "refstate.json"
    policy("create", "measured-boot", "-e", SECURE_BOOT_LOG, "-o", state)
    rules = ("--mb-policy", state, "--mb-policy-name", "example")
    assert check("--boot-log", SECURE_BOOT_LOG, *rules, status=0)["verdict"] == "accepted"
    other = check("--boot-log", BOOT_LOG, *rules, status=1)
    assert [finding["event_id"] for finding in other["findings"]] == ["measured_boot.policy_example"]
    text = refused("keylime-policy", "create", "measured-boot", "-e", BOOT_LOG, status=1)
    assert "--without-secureboot" in text
    made = run("keylime-policy", "create", "measured-boot", "-e", BOOT_LOG, "-i")
    assert json.loads(made.stdout)["has_secureboot"] is False
    assert made.stderr == ""
    bios = run("keylime-policy", "create", "measured-boot", "-e", BIOS_LOG, "-i")
    assert "no initrd is measured" in bios.stderr


def test_the_next_boot_is_added_to_a_policy_by_boot_chain(tmp_path: Path) -> None:
    state, kernel = tmp_path / "refstate.json", tmp_path / "kernel"
    made = run(
        "keylime-policy",
        "create",
        "measured-boot",
        "--policy",
        "shim-grub",
        "-e",
        SECURE_BOOT_LOG,
        "-o",
        state,
    )
    assert "boot chain shim-grub" in made.stderr
    kernel.write_bytes(pe_image({".text": b"next"}))
    line = "/boot/vmlinuz-6.1.0-57-amd64 ro"
    files = ("--kernel", kernel, "--initrd", kernel, "--command-line", line, "--name", "57")
    text = policy("update-reference", state, *files)
    assert list(json.loads(text)["components"]["boot"]) == ["6.1.0-56-amd64", "57"]
    state.write_text(text)
    rules = ("--mb-policy", state, "--mb-policy-name")
    assert check("--boot-log", SECURE_BOOT_LOG, *rules, "components", status=0)["verdict"] == "accepted"
    other = check("--boot-log", BOOT_LOG, *rules, "shim-grub", status=1)
    assert [finding["event_id"] for finding in other["findings"]] == ["measured_boot.policy_shim-grub"]
    assert "nothing to do" in refused("keylime-policy", "update-reference", state, status=2)


def test_a_policy_that_does_not_accept_its_source_is_made_with_a_status_of_its_own(tmp_path: Path) -> None:
    records = take_apart(SECURE_BOOT_LOG.read_bytes())
    log, state = tmp_path / "log", tmp_path / "refstate.json"
    log.write_bytes(
        build_log([item for item in records if (item.pcr, item.type_code) != (3, EventType.SEPARATOR)])
    )
    done = run("keylime-policy", "create", "measured-boot", "-e", log, "-o", state, status=3)
    assert "PCR 3 has no separator" in done.stderr
    rules = ("--mb-policy", state, "--mb-policy-name", "example")
    assert check("--boot-log", log, *rules, status=1)["verdict"] == "rejected"
    lines = LIST.read_bytes().splitlines(keepends=True)
    (tmp_path / "list").write_bytes(b"".join((*lines[:5], lines[5].replace(b"/", b"//", 1), *lines[6:])))
    done = run("keylime-policy", "create", "runtime", "-m", tmp_path / "list", status=3)
    assert "the template hash" in done.stderr
    assert json.loads(done.stdout)["digests"]


def test_the_older_program_makes_the_same_policy(own: Path, tmp_path: Path) -> None:
    made = json.loads(run("keylime_create_policy", "-m", LIST).stdout)
    expected = json.loads(own.read_text())
    assert {**made, "meta": None} == {**expected, "meta": None}
    bare = run("keylime_create_policy", "-m", LIST, "--no-hashes", "-B", own, "-i", "*")
    assert json.loads(bare.stdout)["digests"] == expected["digests"]
    assert json.loads(bare.stdout)["ima"]["ignored_keyrings"] == ["*"]


def test_files_of_a_tree_and_the_algorithm_asked_for(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only files of root are hashed")
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/a b").write_text("x")
    lines = policy("create", "runtime", "--rootfs", tmp_path, "--algo", "sha384", "--show-legacy-allowlist")
    digest, _, path = lines.rstrip("\n").partition("  ")
    assert (len(digest), path) == (96, "/usr/a_b")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("check",), "nothing to check"),
        (("check", "--ima-log", LIST, "--exclude", LIST), "--exclude needs --allowlist"),
        (("check", "--ima-log", LIST, "--tpm-policy", "{}"), "--tpm-policy needs --quote"),
        (("check", "--boot-log", BOOT_LOG, "--runtime-policy", LIST), "--runtime-policy needs --ima-log"),
        (("check", "--ima-log", LIST, "--mb-policy", LIST), "--mb-policy needs --boot-log"),
        (("check", "--quote", LIST, "--ak", LIST), "--quote needs --nonce"),
        (("check", "--quote", LIST, "--nonce", "n"), "--quote needs --ak"),
        (("check", "--ima-log", "/nowhere"), "--ima-log /nowhere: No such file or directory"),
        (("check", "--ima-log", LIST, "--runtime-policy", LIST), "--runtime-policy .*not valid JSON"),
        (("check", "--ima-log", LIST, "--ima-key", LIST), "--ima-key .*holds no certificate"),
        (("check", "--boot-log", BOOT_LOG, "--mb-policy", LIST), "--mb-policy .*not valid JSON"),
        (("check", "--boot-log", BOOT_LOG, "--mb-policy-name", "x", "--mb-policy", LIST), "invalid choice"),
        (("create",), "must be given"),
        (("diff", LIST, "/nowhere"), "OLD .*not valid JSON"),
        (("lint", "/nowhere"), "No such file"),
        (("sign", "runtime", "-r", LIST, "-b", "x509"), "--cert-outfile"),
        (("sign", "runtime", "-r", LIST, "-k", LIST, "-p", LIST), "not allowed with"),
    ],
)
def test_unusable_input_and_usage_exit_with_2(arguments: tuple[str | Path, ...], text: str) -> None:
    told = refused("keylime-policy", *arguments, status=2)
    assert re.search(text, told)
    if arguments[0] in DOCUMENTS:
        done = run("keylime-policy", *arguments, "--json", status=2)
        document = json.loads(done.stdout)
        demand_schema(str(arguments[0]), document, failed=True)
        assert told == f"keylime-policy: error: {document['error']}"


def test_every_document_is_one_of_the_published_schema(own: Path, tmp_path: Path) -> None:
    wide, state, other = (tmp_path / name for name in ("wide.json", "state.json", "other.json"))
    wide.write_text(json.dumps({**json.loads(own.read_text()), "excludes": ["/usr", "/var/[a-z]+$"]}))
    for path, log in ((state, SECURE_BOOT_LOG), (other, BIOS_LOG)):
        policy("create", "measured-boot", "-e", log, "-i", "--policy", "components", "-o", path)
    printed = {
        ("check", "--ima-log", LIST): 0,  # `check` by other tests, with policies, boot logs and quotes
        ("show", own): 0,
        ("show", state): 0,
        ("diff", own, own): 0,
        ("diff", own, wide): 1,
        ("diff", state, other): 1,
        ("lint", own): 0,
        ("lint", wide): 1,
        ("lint", other): 1,
    }
    for arguments, status in printed.items():
        document = json.loads(policy(*arguments, "--json", status=status))
        demand_schema(str(arguments[0]), document)
    assert {arguments[0] for arguments in printed} == set(DOCUMENTS)
    failed = json.loads(run("keylime-policy", "show", "/nowhere", "--json", status=1).stdout)
    demand_schema("show", failed, failed=True)
    assert json.loads(policy("show", own, "--json")) == json.loads(own.read_text())
    changes = json.loads(policy("diff", own, wide, "--json", status=1))
    assert changes["added"] == {"excludes": ["/usr", "/var/[a-z]+$"]}


def test_a_tpm_policy_that_is_none_is_unusable() -> None:
    quote = ("--quote", CLEAN.path / "quote_ecdsa_sha256", "--ak", ONE.path / "ak_ecdsa.pem")
    arguments = ("check", *quote, "--nonce", CLEAN.nonce, "--tpm-policy")
    assert "--tpm-policy: " in refused("keylime-policy", *arguments, '{"99": "00"}', status=2)
    value = CLEAN.pcrs("sha256")[7].hex()
    policy(*arguments, json.dumps({"7": value}))
    policy(*arguments, json.dumps({"7": [value], "mask": "0x80"}))
    policy(*arguments, json.dumps({"7": "00"}), status=1)


@pytest.mark.parametrize(
    ("program", "arguments", "status"),
    [
        ("keylime-policy", ("create", "runtime", "-a", "/nowhere"), 1),
        ("keylime-policy", ("create", "runtime"), 1),
        ("keylime_convert_runtime_policy", ("-o", "/dev/null"), 1),
        ("keylime_convert_runtime_policy", ("-a", LIST, "-r", LIST, "-o", "/dev/null"), 1),
        ("keylime_convert_runtime_policy", ("-a", LIST), 2),
        ("keylime_create_policy", ("-m", "/nowhere"), 1),
        ("keylime_create_policy", ("-m", "/dev/null", "-r", "http://repository"), 1),
        ("keylime_sign_runtime_policy", ("-r", LIST), 2),
        ("keylime_sign_runtime_policy", ("-r", LIST, "-o", "/dev/null", "-k", LIST), 1),
    ],
)
def test_failures_are_one_line(program: str, arguments: tuple[str | Path, ...], status: int) -> None:
    assert refused(program, *arguments, status=status)


def test_without_arguments_there_is_help() -> None:
    for program in ("keylime-policy", "keylime_convert_runtime_policy"):
        assert run(program).stdout.startswith("usage: ")
    groups = policy().split("\n\n")
    assert [group.split(":")[0] for group in groups[2:6]] == [
        "make a policy",
        "change one",
        "look at one",
        "try one",
    ]
