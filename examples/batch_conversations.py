"""Rows of several turns, with a tool; and rows that share a session.

python examples/batch_conversations.py
"""

import greenroom


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def main() -> None:
    script = [
        {"tool_calls": [{"name": "add", "input": {"a": 2, "b": 3}}], "reply": "5"},
        {"reply": "You asked me to add."},
    ]
    conversations = greenroom.batch(
        [{"id": "a", "turns": ["What is 2 + 3?", "What did I ask?"]}],
        tools=[add],
        options={"provider_options": {"script": script}},
    )
    for row in conversations.rows or []:
        print(row["id"], row["turn_outputs"])  # noqa: T201

    messages = [{"id": n, "customer": f"c{n % 2}", "prompt": f"Message {n}"} for n in range(6)]
    shared = greenroom.batch(messages, session="customer", options={"provider_options": {"echo": True}})
    for row in shared.rows or []:
        print(row["customer"], row["session_id"][-4:], row["output"])  # noqa: T201


if __name__ == "__main__":
    main()
