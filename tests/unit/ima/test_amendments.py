"""What findings may add to a runtime policy."""

from keylime.ima.amendments import amendment
from keylime.ima.findings import NOT_IN_ALLOWLIST, RUNTIME_POLICY_HASH
from keylime.messages.verifier import FindingSummary

DIGEST = "ab" * 32


def finding(
    path: str | None = "/usr/bin/new",
    *,
    event_id: str = NOT_IN_ALLOWLIST,
    rule: str | None = "digests",
    observed: str | None = DIGEST,
    explanation: str = "",
) -> FindingSummary:
    return FindingSummary(
        event_id=event_id,
        severity="emergency",
        explanation=explanation,
        path=path,
        rule=rule,
        observed=observed,
    )


def test_new_files_other_digests_keys_and_buffers_are_added_to_their_sections() -> None:
    asked = amendment(
        [
            finding(),
            finding(event_id=RUNTIME_POLICY_HASH, observed="cd" * 32),
            finding(".ima", rule="keyrings"),
            finding("kexec-cmdline", rule="ima-buf"),
        ]
    )
    assert asked.refused == ()
    assert asked.added == {
        "digests": {"/usr/bin/new": {DIGEST, "cd" * 32}},
        "keyrings": {".ima": {DIGEST}},
        "ima-buf": {"kexec-cmdline": {DIGEST}},
    }


def test_only_what_is_about_the_named_paths_is_taken() -> None:
    asked = amendment([finding(), finding("/usr/bin/other")], only=("/usr/bin/other",))
    assert asked.added == {"digests": {"/usr/bin/other": {DIGEST}}}


def test_what_no_digest_answers_is_refused_whatever_is_forced() -> None:
    refused = [
        finding(event_id="ima.validation.tomtou"),
        finding(event_id="pcr_validation.invalid_pcr_10", rule=None, path=None),
        finding("boot_aggregate", rule=None),
        finding(observed=None),
        finding(observed="sha256:" + DIGEST),
    ]
    asked = amendment(refused, force=True)
    assert asked.added == {}
    assert [one for one, _ in asked.refused] == refused


def test_a_signature_that_does_not_fit_and_another_boot_need_force() -> None:
    doubtful = [
        finding(explanation="...; its signature, by key 0badcafe, does not fit the file"),
        finding("boot_aggregate", event_id=RUNTIME_POLICY_HASH),
    ]
    asked = amendment(doubtful)
    assert asked.added == {}
    assert all("--force" in reason for _, reason in asked.refused)
    forced = amendment(doubtful, force=True)
    assert forced.refused == ()
    assert forced.added["digests"].keys() == {"/usr/bin/new", "boot_aggregate"}
