"""Named policies before they are kept: what is refused, what is kept as it came, and their names."""

import base64
import functools

import pytest

from keylime.errors import MalformedMessage, PolicyError
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.measured_boot.boot_policy import built_in_policies, compile_measured_boot_policy
from keylime.messages.verifier import MeasuredBootPolicyRequest, RuntimePolicyRequest
from keylime_verifier.agents.refusals import NotApproved
from keylime_verifier.api.enrolment import policy_name
from keylime_verifier.policies.checks import PolicyContent, check_boot_policy, check_runtime_policy

COMPILE = functools.partial(
    compile_measured_boot_policy, policy_name="accept-all", registry=built_in_policies()
)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_runtime_policy_is_kept_as_it_came() -> None:
    spaced = EMPTY_POLICY.replace(", ", " ,  ")
    request = RuntimePolicyRequest(runtime_policy=b64(spaced), tpm_policy='{"mask": "0x0"}')
    kept = check_runtime_policy(request, signature_required=False)
    assert (kept.text, kept.tpm_policy) == (spaced, '{"mask": "0x0"}')
    assert "judges nothing" in (kept.remark or "")
    without = RuntimePolicyRequest(runtime_policy=b64(spaced), tpm_policy="")
    assert check_runtime_policy(without, signature_required=False).tpm_policy is None


@pytest.mark.parametrize(
    ("policy", "tpm_policy", "named"),
    [
        ("***", None, "runtime_policy"),
        ("", None, "JSON"),
        (b64('{"digests": {}, "digests": {}}'), None, "digests"),
        (b64(EMPTY_POLICY), "{", "tpm_policy"),
        (b64(EMPTY_POLICY), '{"30": ["00"]}', "tpm_policy"),
    ],
)
def test_a_runtime_policy_that_cannot_be_used_is_refused(
    policy: str, tpm_policy: str | None, named: str
) -> None:
    request = RuntimePolicyRequest(runtime_policy=policy, tpm_policy=tpm_policy)
    with pytest.raises((MalformedMessage, PolicyError), match=named):
        check_runtime_policy(request, signature_required=False)


def test_l1_a_named_policy_is_signed_when_signatures_are_required() -> None:
    with pytest.raises((PolicyError, NotApproved)):
        check_runtime_policy(RuntimePolicyRequest(runtime_policy=b64(EMPTY_POLICY)), signature_required=True)


def test_a_reference_state_is_kept_as_it_came() -> None:
    assert check_boot_policy(MeasuredBootPolicyRequest("{ }"), COMPILE) == PolicyContent("{ }")


@pytest.mark.parametrize("text", ["", "{", "null", "[" * 100_000, '{"a": 1, "a": 1}'])
def test_a_reference_state_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="mb_policy"):
        check_boot_policy(MeasuredBootPolicyRequest(text), COMPILE)


@pytest.mark.parametrize("name", ["a", "A", "fleet 1", "'; DROP TABLE policies --", "日本", "...", "a" * 255])
def test_n22_names_are_taken_exactly(name: str) -> None:
    assert policy_name(name, "name") == name


@pytest.mark.parametrize("name", ["a/b", ".", "..", "a\n", "\0", "a\x7f", "a" * 256])
def test_n22_what_could_mean_something_else_is_no_name(name: str) -> None:
    with pytest.raises(MalformedMessage, match="name"):
        policy_name(name, "name")
