"""The program that Codex runs before and after each tool call: it asks Greenroom, and ends with 2 for a no.

Codex makes the call when a hook fails in any other way, so whatever goes wrong here ends with 2 as well. It is started
as a file by a Python without site-packages: it imports nothing of Greenroom, and takes 15 ms.
"""

import json
import socket
import sys

REFUSED = 2


def main() -> int:
    """Hand stdin to the socket in the abstract namespace that the argument names; what comes back is the answer."""
    try:
        with socket.socket(socket.AF_UNIX) as gate:
            gate.connect(f"\0{sys.argv[1]}")
            gate.sendall(sys.stdin.buffer.read())
            gate.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: gate.recv(65_536), b""))
        refusal = json.loads(answer)["refusal"]
    except Exception as exc:  # noqa: BLE001  anything else than 2 would let the call pass
        refusal = f"Greenroom could not be asked ({exc})."
    if refusal is None:
        return 0
    sys.stderr.buffer.write(str(refusal).encode(errors="replace"))
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
