"""Posts revocation messages to an agent, with an operator's certificate. Runs on the control node.

python -m tests.demo.fence_sender AGENT_ADDRESS CERTIFICATE KEY SIGNED_MESSAGE_AS_JSON...
"""

import json
import sys
from pathlib import Path

from tests.lab.rest import Identity, Rest, client_context


def main() -> int:
    """0 when the agent took them all, which does not mean that it believes them."""
    agent, certificate, key, *messages = sys.argv[1:]
    api = Rest(agent, 9002, client_context(Identity(Path(certificate), Path(key))))
    answers = [api.request("POST", "/v2.5/notifications/revocation", json.loads(text)) for text in messages]
    return 0 if all(answer.code == 200 for answer in answers) else 1


if __name__ == "__main__":
    sys.exit(main())
