"""SQL of users over the query mirror, each query in a process of its own that is killed at its time."""

import asyncio
import math
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from ...domain.errors import StorageReadFailed, Timeout, ValidationError, error_from_record
from ...domain.json_values import check_json_safe
from ..query_rows import DEFAULT_QUERY_LIMIT, unpack_rows
from .query_process import DEFAULT_MEMORY_LIMIT, MAX_ANSWER_BYTES, MAX_SQL_CHARACTERS, MEMORY_LIMIT

MAX_LIMIT = 1_000_000
DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 3_600.0
MAX_PARAMS_BYTES = 1 << 20

PROGRAM = "greenroom.adapters.duckdb.query_process"
_ROOT = Path(__file__).parents[3]
_ENVELOPE_BYTES = 1 << 20  # what an answer has beside its rows: the names of the columns
_CPU_SLACK_S = 5


class QueryAnswer(NamedTuple):
    """The rows as they came from the process: who only hands them on need not unpack them."""

    columns: list[str]
    packed_rows: bytes
    truncated: bool
    """Whether there were more rows than the limit."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as JSON-safe values."""
        return unpack_rows(*self)


async def ask(
    paths: Sequence[Path],
    sql: str,
    params: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    limit: int = DEFAULT_QUERY_LIMIT,
    tenant: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    memory_limit: str = DEFAULT_MEMORY_LIMIT,
) -> QueryAnswer:
    """Run one SELECT over the views sessions, runs, events, tool_calls and usage of mirrors that nobody writes.

    Several mirrors (of the shards of one store) are read as one.

    `params` are the values of `?` or `$1` (a list) or of `$name` (a mapping). `tenant` None is everybody. Values come
    back JSON-safe: times as ISO 8601 in UTC, intervals as seconds, decimals as floats, JSON columns parsed, bytes as
    hex, NaN and infinities as None; of two columns of one name the second gets a suffix (`a_1`).

    ValidationError names the field: "sql" for what is wrong or forbidden, "params", "limit" (also when the answer would
    have more than 64 MiB), "timeout_s", "memory_limit", "tenant". Timeout when it takes longer than `timeout_s`;
    StorageConnectionFailed while the mirror is written; StorageReadFailed when the memory does not do, or the mirror
    cannot be read. Nothing of the process is left when this returns or raises, also when it is cancelled.
    """
    _check_sql(sql)
    _check_bounds(limit, tenant, timeout_s, memory_limit)
    request = {
        "paths": [os.fspath(path) for path in paths],
        "sql": sql,
        "params": _checked_params(params),
        "limit": limit,
        "tenant": tenant,
        "memory_limit": memory_limit,
        "cpu_limit_s": math.ceil(timeout_s) + _CPU_SLACK_S,
    }
    try:
        async with asyncio.timeout(timeout_s), _started() as process:
            reply, status = await _exchange(process, msgpack.packb(request))
    except TimeoutError:
        raise Timeout(
            f"The query took longer than {timeout_s:g} s and was stopped; ask for less, or raise timeout_s.",
            details={"field": "timeout_s", "timeout_s": timeout_s},
        ) from None
    return _unpacked(reply, status, timeout_s)


def _check_sql(sql: str) -> None:
    if not isinstance(sql, str) or not sql.strip():  # pyright: ignore[reportUnnecessaryIsInstance]  # callers from outside
        raise _invalid("sql", "sql is empty; give one SELECT over the views.")
    if len(sql) > MAX_SQL_CHARACTERS:
        raise _invalid("sql", f"sql has {len(sql)} characters; at most {MAX_SQL_CHARACTERS} are read. Use params.")
    try:
        sql.encode()
    except UnicodeEncodeError as exc:
        raise _invalid("sql", f"sql is no valid text ({exc.reason}).") from None
    if "\0" in sql:
        raise _invalid("sql", "sql has a NUL character; give it in params.")


def _check_bounds(limit: int, tenant: str | None, timeout_s: float, memory_limit: str) -> None:
    if not _is_number(limit, int) or not 1 <= limit <= MAX_LIMIT:
        raise _invalid("limit", f"limit is {limit!r}; give a whole number from 1 to {MAX_LIMIT}.")
    if not _is_number(timeout_s, int | float) or not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise _invalid("timeout_s", f"timeout_s is {timeout_s!r}; give more than 0 and at most {MAX_TIMEOUT_S:g} s.")
    if not isinstance(memory_limit, str) or not MEMORY_LIMIT.fullmatch(memory_limit):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _invalid("memory_limit", f"memory_limit is {memory_limit!r}; give one such as '256MB' or '2GB'.")
    if tenant is not None and (not isinstance(tenant, str) or "\0" in tenant):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _invalid("tenant", f"tenant is {tenant!r}; give a name, or None for all.")


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _checked_params(params: Any) -> list[Any] | dict[str, Any] | None:
    if params is None:
        return None
    if isinstance(params, str | bytes) or not isinstance(params, Sequence | Mapping):
        raise _invalid("params", f"params is a {type(params).__name__}; give a list or a mapping of values.")
    values: Any = dict(params) if isinstance(params, Mapping) else list(params)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    try:
        check_json_safe(values)
    except ValueError as exc:
        raise _invalid("params", f"params cannot be used ({exc}); give JSON-safe values.") from None
    if len(msgpack.packb(values)) > MAX_PARAMS_BYTES:
        raise _invalid("params", f"params has more than {MAX_PARAMS_BYTES} bytes; give less.")
    return values


def _invalid(field: str, message: str) -> ValidationError:
    return ValidationError(message, details={"field": field})


@asynccontextmanager
async def _started() -> AsyncGenerator[asyncio.subprocess.Process]:
    """The process, in a session of its own; killed and waited for at the end of the block, whatever happened."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", PROGRAM),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # errors come in the answer
        env=scrubbed_environment(),
        cwd="/",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        await _ended(process)


def scrubbed_environment() -> dict[str, str]:
    """Only what Python needs: keys and tokens of the runtime stay out of reach of a query."""
    passed = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return passed | {"PYTHONPATH": str(_ROOT), "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    if process.stdout is not None:
        while await process.stdout.read(1 << 20):  # what was in the pipe, for it to be closed
            pass
    await process.wait()


async def _exchange(process: asyncio.subprocess.Process, request: bytes) -> tuple[bytes, int | None]:
    """What the process answers, and its exit status; more than an answer may have is not read."""
    if process.stdin is None or process.stdout is None:
        raise StorageReadFailed("The query process has no pipes.")
    process.stdin.write(request)
    with suppress(BrokenPipeError, ConnectionResetError):  # it died: its status says how
        await process.stdin.drain()
    reply = bytearray()
    while data := await process.stdout.read(1 << 20):
        reply += data
        if len(reply) > MAX_ANSWER_BYTES + _ENVELOPE_BYTES:
            raise StorageReadFailed("The query process answered more than it may; nothing of it was used.")
    return bytes(reply), await process.wait()


def _unpacked(reply: bytes, status: int | None, timeout_s: float) -> QueryAnswer:
    if status == -signal.SIGXCPU:
        raise Timeout(
            "The query used up its CPU time and was stopped; ask for less, or raise timeout_s.",
            details={"field": "timeout_s", "timeout_s": timeout_s},
        )
    if status != 0:
        raise StorageReadFailed(
            f"The query process died (exit status {status}) and gave no answer; ask for less.",
            details={"exit_status": status},
        )
    answer = msgpack.unpackb(reply, strict_map_key=False)
    if "error" in answer:
        raise error_from_record(answer["error"])
    return QueryAnswer(answer["columns"], answer["rows"], answer["truncated"])
