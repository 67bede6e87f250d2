"""Giving orders to the maintenance process."""

import asyncio
import contextlib
import json
import os
import sys
from typing import Any

from ...domain.errors import StorageError, error_from_record

_MODULE = "greenroom.adapters.duckdb.maintenance_process"
_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


async def run_maintenance(task: str, order: dict[str, Any]) -> Any:
    """The answer of a process that carries the order out. StorageError if it refuses or dies; killed when cancelled."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", _MODULE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps({"task": task, "order": order}).encode() + b"\n")
        await process.stdin.drain()
        output = await process.stdout.read()
        await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    finally:
        process.stdin.close()
    if process.returncode != 0 or not output:
        raise StorageError(f"The maintenance process ended with status {process.returncode} during {task}.")
    answer = json.loads(output)
    if "error" in answer:
        raise error_from_record(answer["error"])
    return answer["answer"]
