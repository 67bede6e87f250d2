"""Many prompts from a file through an agent, as often as it takes and each once.

    python examples/batch_prompts.py

A job that was killed goes on where it was when it is started again with the same output. For a real provider, declare
one in greenroom.toml and give its name.
"""

import json
import tempfile
from pathlib import Path

import greenroom


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="greenroom-example-"))
    prompts = [{"id": n, "city": city} for n, city in enumerate(["Oslo", "Rome", "Lima", "Oslo"])]
    (folder / "cities.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompts))

    summary = greenroom.batch(
        folder / "cities.jsonl",
        folder / "answers.jsonl",
        template="What is {{ city }} known for?",
        options={"provider_options": {"echo": True}},
        concurrency=8,
    )

    for line in (folder / "answers.jsonl").read_text().splitlines():
        row = json.loads(line)
        print(row["city"], "->", row["output"])  # noqa: T201
    print(f"{summary.statuses['completed']} of {summary.total} completed, {summary.found} done before")  # noqa: T201


if __name__ == "__main__":
    main()
