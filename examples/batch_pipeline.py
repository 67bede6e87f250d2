"""Agents as a stage of a Ray Data pipeline: whatever comes before, whatever comes after.

python examples/batch_pipeline.py
"""

from typing import Any

import ray.data

import greenroom


def main() -> None:
    greenroom.start()
    data: Any = ray.data
    rows = data.from_items([{"id": n, "prompt": f"Count to {n}"} for n in range(20)])
    answered = rows.map_batches(
        greenroom.BatchRunner,
        fn_constructor_kwargs={"options": {"provider_options": {"echo": True}}, "concurrency": 8},
        concurrency=1,
        batch_size=10,
    )
    completed = answered.filter(expr="status == 'completed'")
    print(completed.count(), "rows completed; the longest answer:", completed.max("output"))  # noqa: T201


if __name__ == "__main__":
    main()
