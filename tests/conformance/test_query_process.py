"""SQL of users, each in a real process over a real mirror: what it may not do, what it cannot do, what comes back."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgpack
import psutil
import pytest

from greenroom.adapters.duckdb import query_process, query_runner
from greenroom.adapters.duckdb.query_mirror import QueryMirror
from greenroom.adapters.duckdb.query_process import FUNCTIONS, VIEWS, checked
from greenroom.adapters.duckdb.query_runner import MAX_LIMIT, ask
from greenroom.domain.errors import StorageConnectionFailed, StorageReadFailed, Timeout, ValidationError
from greenroom.domain.event import EventType

from ..waiting import wait_until
from .test_query_mirror import Log, created, event, whole_run

ENDLESS = "SELECT count(*) FROM range(300000) a(i), range(300000) b(j) WHERE hash(i, j) = 1"

MINE, THEIRS = "mine-9d1c", "theirs-77ab"


async def run_query(path: Path, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
    """The rows of one query over one mirror."""
    return (await ask([path], *arguments, **options)).to_dicts()


class Files(NamedTuple):
    folder: Path
    mirror: Path
    secret: Path
    """A CSV file with something that no query may see."""


def _fill(path: Path) -> None:
    log = Log()
    for session_id, tenant, text in (("ses_a", "A", MINE), ("ses_b", "B", THEIRS)):
        log.append(session_id, [created(tenant, metadata={"note": text}, agent_id=text)])
        log.append(session_id, whole_run(f"run_{tenant}", text))
    failed = {"tool_call_id": "c2", "tool_name": "grep", "tool_input": {"a": [1]}, "tool_output": None}
    call: dict[str, Any] = {"tool_call_id": "c3", "tool_name": "grep", "tool_input": {}}
    log.append(
        "ses_a",
        [
            event(EventType.RUN_QUEUED, {"options": {}}, "run_2", 70),
            event(EventType.TOOL_CALL_STARTED, failed, "run_2", 1_000_000),
            event(EventType.TOOL_CALL_FAILED, failed | {"outcome": "denied"}, "run_2", 3_500_000),
            event(EventType.TOOL_CALL_STARTED, call, "run_2", 4_000_000),
        ],
    )
    mirror = QueryMirror.open(path)
    mirror.catch_up(log.batches, log.newest)
    mirror.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("query")
    secret = folder / "secret.csv"
    secret.write_text("a,b\nhidden,2\n")
    _fill(folder / "it's a mirror.duckdb")
    return Files(folder, folder / "it's a mirror.duckdb", secret)


@pytest.fixture
def unchanged(files: Files) -> Iterator[None]:
    """Nothing in the folder is another file, or another content, after the test."""
    before = _contents(files.folder)
    yield
    assert before == _contents(files.folder)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def processes() -> list[int]:
    """Query processes of this one that run."""
    found: list[int] = []
    for child in psutil.Process().children(recursive=True):
        try:
            if query_runner.PROGRAM in child.cmdline():
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


# What a query may not do

FORBIDDEN = """
    INSERT INTO events VALUES (1)
    DELETE FROM events
    UPDATE events SET seq = 1
    TRUNCATE events
    CREATE TABLE t AS SELECT 1
    CREATE TEMP TABLE t (x INTEGER)
    CREATE OR REPLACE VIEW events AS SELECT 1
    CREATE MACRO f(x) AS x
    CREATE SEQUENCE s
    CREATE SECRET s (TYPE http, BEARER_TOKEN 'x')
    CREATE TYPE t AS ENUM ('a')
    DROP VIEW events
    ALTER TABLE events ADD COLUMN x INTEGER
    MERGE INTO events USING sessions ON true WHEN MATCHED THEN DELETE
    COPY events TO '{folder}/out.csv'
    COPY (SELECT 1) TO '{folder}/out.parquet'
    COPY events FROM '{secret}'
    COPY FROM DATABASE mirror TO memory
    EXPORT DATABASE '{folder}/out'
    IMPORT DATABASE '{folder}'
    ATTACH '{folder}/other.duckdb' AS other
    ATTACH ':memory:' AS other
    ATTACH '{mirror}' AS again (READ_ONLY)
    DETACH mirror
    USE mirror
    USE mirror.main
    INSTALL httpfs
    LOAD httpfs
    LOAD '{folder}/x.duckdb_extension'
    UPDATE EXTENSIONS
    SET threads = 8
    SET memory_limit = '10GB'
    SET enable_external_access = true
    SET lock_configuration = false
    SET python_enable_replacements = true
    SET VARIABLE x = 1
    RESET memory_limit
    SET search_path = 'mirror.main'
    PRAGMA threads = 8
    PRAGMA database_list
    PRAGMA show_tables
    PRAGMA table_info('events')
    PRAGMA json_execute_serialized_sql('')
    CALL pragma_version()
    CALL enable_logging()
    CALL checkpoint()
    CHECKPOINT
    FORCE CHECKPOINT
    CHECKPOINT mirror
    VACUUM
    ANALYZE
    BEGIN
    COMMIT
    ROLLBACK
    PREPARE p AS SELECT 1
    EXECUTE p
    DEALLOCATE p
    EXPLAIN SELECT 1
    EXPLAIN ANALYZE FROM events
    DESCRIBE events
    DESCRIBE SELECT 1
    DESC mirror.main.events
    SHOW TABLES
    SHOW ALL TABLES
    SHOW DATABASES
    SHOW threads
    SUMMARIZE events
    SUMMARIZE mirror.main.events
    FROM (DESCRIBE events)
    FROM (SHOW TABLES)
    FROM (SUMMARIZE mirror.main.events)
    SELECT * FROM (DESCRIBE mirror.main.events)
    PIVOT events ON type USING count(*)
    PIVOT mirror.main.events ON type IN ('a') USING count(*)
    UNPIVOT mirror.main.sessions ON tenant INTO NAME n VALUE v
    SELECT 1; SELECT 2
    SELECT 1; DROP VIEW events
    SELECT 1) t; DROP VIEW events; SELECT * FROM (SELECT 1
    SELECT 1) AS t, mirror.main.events, (SELECT 1
    WITH d AS (DELETE FROM events RETURNING *) SELECT * FROM d
    WITH d AS (INSERT INTO events VALUES (1) RETURNING *) SELECT * FROM d
    WITH d AS (UPDATE events SET seq = 1 RETURNING *) SELECT * FROM d
    FROM '{secret}'
    SELECT * FROM '{secret}'
    SELECT * FROM "{secret}"
    SELECT * FROM '{mirror}'
    SELECT * FROM "{mirror}"
    TABLE '{secret}'
    WITH a AS (FROM '{secret}') FROM a
    SELECT (SELECT a FROM '{secret}')
    FROM events WHERE session_id IN (SELECT a FROM '{secret}')
    SELECT 1 ORDER BY (SELECT a FROM '{secret}')
    SELECT 1 LIMIT (SELECT count(*) FROM '{secret}')
    VALUES ((SELECT a FROM '{secret}'))
    SELECT 1 UNION ALL SELECT a FROM '{secret}'
    SELECT list_transform([1], lambda x: (SELECT a FROM '{secret}'))
    SELECT count(*) FILTER (WHERE EXISTS (FROM '{secret}')) FROM events
    SELECT sum(seq) OVER (ORDER BY (SELECT count(*) FROM '{secret}')) FROM events
    SELECT CASE WHEN EXISTS (FROM '{secret}') THEN 1 END
    SELECT 1 GROUP BY (SELECT a FROM '{secret}')
    SELECT 1 HAVING EXISTS (FROM '{secret}')
    SELECT 1 QUALIFY row_number() OVER () = (SELECT count(*) FROM '{secret}')
    SELECT DISTINCT ON ((SELECT a FROM '{secret}')) 1
    SELECT CAST(1 AS DECIMAL((SELECT 5 FROM '{secret}'), 1))
    FROM events JOIN '{secret}' ON true
    FROM events, LATERAL (FROM '{secret}')
    FROM 'https://127.0.0.1:1/x.parquet'
    FROM 's3://bucket/x.parquet'
    FROM 'sqlite:{secret}'
    FROM read_csv('{secret}')
    FROM read_csv_auto('{secret}')
    FROM read_json('{secret}')
    FROM read_ndjson_objects('{secret}')
    FROM read_parquet('{secret}')
    FROM parquet_scan('{secret}')
    FROM read_text('{secret}')
    FROM read_blob('{mirror}')
    FROM read_blob('/proc/self/environ')
    FROM read_duckdb('{mirror}')
    FROM glob('{folder}/*')
    FROM sniff_csv('{secret}')
    FROM parquet_metadata('{secret}')
    FROM parquet_schema('{secret}')
    FROM pandas_scan(1)
    FROM arrow_scan(1, 2, 3)
    FROM python_map_function()
    FROM query('FROM mirror.main.events')
    FROM query_table('events')
    FROM query_table(['mirror.main.events'])
    FROM seq_scan('events')
    FROM json_execute_serialized_sql(json_serialize_sql('FROM mirror.main.events'))
    SELECT json_serialize_plan('FROM mirror.main.events')
    SELECT json_serialize_sql('SELECT 1')
    SELECT json_deserialize_sql('x')
    FROM repeat_row(1)
    FROM test_all_types()
    FROM summary((FROM events))
    FROM checkpoint()
    FROM force_checkpoint('mirror')
    FROM duckdb_settings()
    FROM duckdb_tables()
    FROM duckdb_secrets()
    FROM duckdb_logs()
    FROM duckdb_functions()
    FROM duckdb_views()
    FROM duckdb_table_sample('mirror.main.events')
    FROM histogram('mirror.main.events', 'tenant')
    FROM histogram_values(events, type)
    FROM pragma_storage_info('mirror.main.events')
    FROM pragma_table_info('events')
    FROM pragma_database_size()
    FROM enable_logging()
    FROM register_external_resource('a')
    FROM generate_series(1, 2) AS t, mirror.main.events
    SELECT unnest((SELECT list(data) FROM mirror.main.events))
    FROM range((SELECT max(seq) FROM mirror.main.events))
    FROM mirror.main.events
    FROM mirror.events
    FROM main.events
    FROM memory.main.events
    FROM memory.events
    FROM temp.events
    FROM "mirror"."main"."events"
    SELECT * FROM mirror . main . events
    FROM tool_events
    FROM meta
    FROM progress
    FROM duckdb_settings
    FROM duckdb_tables
    FROM duckdb_columns
    FROM sqlite_master
    FROM sqlite_schema
    FROM pg_tables
    FROM pg_class
    FROM pg_catalog.pg_settings
    FROM pg_settings
    FROM information_schema.tables
    FROM information_schema.columns
    FROM system.information_schema.tables
    FROM system.main.duckdb_tables
    FROM pragma_database_list
    FROM events AT (VERSION => 1)
    FROM json_each('[1]') j, read_text('{secret}')
    FROM (WITH duckdb_tables AS (SELECT 1) FROM duckdb_tables) a, duckdb_tables
    WITH a AS (FROM duckdb_tables), duckdb_tables AS (SELECT 1) FROM a
    WITH duckdb_tables AS (FROM duckdb_tables) FROM duckdb_tables
    WITH duc\u212adb_tables AS (SELECT 1) FROM duckdb_tables
    WITH RECURSIVE r AS (SELECT 1 UNION ALL FROM duckdb_tables) FROM r
    WITH RECURSIVE r(n) USING KEY (n) AS (SELECT 1 UNION FROM recurring.r) FROM r
    WITH events AS (FROM mirror.main.events) FROM events
    SELECT (WITH a AS (SELECT 1) FROM a) FROM a
    FROM \uff45vents
    FROM "events "
    SELECT getenv('HOME')
    SELECT current_setting('memory_limit')
    SELECT getvariable('x')
    SELECT nextval('s')
    SELECT currval('s')
    SELECT setseed(0.5)
    SELECT stats(data) FROM events
    SELECT "stats"(data) FROM events
    SELECT data.stats() FROM events
    SELECT STATS(data) FROM events
    SELECT main.sum(1)
    SELECT system.main.current_setting('threads')
    SELECT pg_catalog.pg_get_viewdef('events')
    SELECT pg_get_viewdef('events')
    SELECT current_query()
    SELECT current_database()
    SELECT current_schemas(true)
    SELECT in_search_path('memory', 'main')
    SELECT txid_current()
    SELECT sleep_ms(100000)
    SELECT pg_sleep(100)
    SELECT write_log('x')
    SELECT error(data) FROM events
    SELECT get_block_size('mirror')
    SELECT index_key('main', 'events', 'x', 1)
    SELECT alias(1)
    SELECT vector_type(seq) FROM events
    SELECT __internal_compress_string_utinyint('a')
    SELECT nosuchfunction(1)
    SELECT CAST('a' AS mirror.main.t)
    SELECT CAST('a' AS main.VARCHAR)
    SELECT * FROM events ORDER BY stats(data)
    SELECT count(*) OVER (PARTITION BY stats(data)) FROM events
    SELECT columns(lambda c: stats(c) IS NULL) FROM events
    SELECT {{'a': stats(data)}} FROM events
    SELECT [stats(x) FOR x IN [1]]
    SELECT row_number(ORDER BY stats(data)) OVER () FROM events
    FROM ''
    FROM files
    FROM sys.modules
    SELECT 1 INTO OUTFILE 'x'
    SELECT
    -- nothing
    ;
    FROM events;;;FROM events
    SELECT '
    SELECT /*
    LOCK TABLE events
    LISTEN x
    .tables
"""
FORBIDDEN_STATEMENTS = [line.strip() for line in FORBIDDEN.splitlines() if line.strip()]


def filled_in(template: str, files: Files) -> str:
    mirror = str(files.mirror).replace("'", "''")
    return template.format(folder=files.folder, secret=files.secret, mirror=mirror)


_ALL_IN_ONE = """
import sys, msgpack
import greenroom.adapters.duckdb.query_process as process
path, statements = msgpack.unpackb(sys.stdin.buffer.read())
query = process.Query([path], "", None, 5, "A")
connection = process.opened(query)
answers = []
for sql in statements:
    query = query._replace(sql=sql)
    answers.append(process.answered(query, lambda: process.run(connection, query)))
sys.stdout.buffer.write(msgpack.packb(answers))
"""


@pytest.fixture(scope="module")
def refusals(files: Files) -> dict[str, dict[str, Any]]:
    """What became of each forbidden statement. All in one locked process: one each would take 50 s."""
    before = _contents(files.folder)
    still = "SELECT count(*) FROM events"
    statements = [still, *(filled_in(template, files) for template in FORBIDDEN_STATEMENTS), still]

    done = subprocess.run(
        [sys.executable, "-c", _ALL_IN_ONE],
        input=msgpack.packb([str(files.mirror), statements]),
        capture_output=True,
        check=True,
    )

    first, *refused, last = msgpack.unpackb(done.stdout)
    assert first == last
    assert not last["truncated"]
    assert before == _contents(files.folder)
    return dict(zip(FORBIDDEN_STATEMENTS, refused, strict=True))


@pytest.mark.parametrize("template", FORBIDDEN_STATEMENTS)
def test_what_is_no_select_over_the_views_is_refused_and_does_nothing(
    refusals: dict[str, dict[str, Any]], template: str
) -> None:
    refused = refusals[template].get("error", {})

    assert "validation_error" == refused.get("code"), refusals[template]
    assert {"field": "sql"} == refused["details"]
    assert "hidden" not in refused["message"]


@pytest.mark.parametrize("template", FORBIDDEN_STATEMENTS)
def test_the_check_of_the_statement_alone_refuses_it(files: Files, template: str) -> None:
    with duckdb.connect() as connection, pytest.raises((ValidationError, duckdb.ParserException)):
        checked(connection, filled_in(template, files), 5)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("template", FORBIDDEN_STATEMENTS[::25])
async def test_a_refusal_comes_back_as_a_typed_error(files: Files, template: str) -> None:
    with pytest.raises(ValidationError) as refused:
        await run_query(files.mirror, filled_in(template, files))

    assert "sql" == refused.value.details["field"]


async def test_a_variable_of_the_process_is_no_table(files: Files) -> None:
    for name in ("files", "query", "connection", "sys", "VIEWS", "__name__"):
        with pytest.raises(ValidationError, match="may not use the table"):
            await run_query(files.mirror, f"SELECT * FROM {name}")


def test_every_function_allowed_is_one_that_computes_from_its_arguments() -> None:
    volatile = {"gen_random_uuid", "random", "uuid", "uuidv4", "uuidv7"}
    with duckdb.connect() as connection:
        known = connection.execute(
            "SELECT lower(function_name), bool_or(stability = 'VOLATILE'), list(DISTINCT function_type)"
            " FROM duckdb_functions() GROUP BY 1"
        ).fetchall()
    stability = {name: is_volatile for name, is_volatile, _ in known}
    named = {name for name in FUNCTIONS if name[0].isalpha()}

    assert set() == {name for name in named if stability.get(name)} - volatile
    assert {"unnest"} | (named - stability.keys()) == {"unnest"} | (named - stability.keys()) & {
        "cume_dist", "dense_rank", "fill", "first_value", "lag", "last_value", "lead", "nth_value", "ntile",
        "percent_rank", "rank", "rank_dense", "row_number", "if", "coalesce",
    }  # fmt: skip
    assert {"error", "stats", "current_setting", "getvariable", "query", "sleep_ms", "read_text"}.isdisjoint(named)


ALLOWED = """
    SELECT 1
    SELECT 1;
    SELECT 1 -- and no more
    /* first */ SELECT 1 ; ;
    FROM events
    TABLE events
    VALUES (1, 'a'), (2, 'b')
    SELECT * FROM "EVENTS" AS e
    SELECT count(*), count(DISTINCT session_id) FILTER (WHERE seq > 1) FROM events
    SELECT e.*, s.tags[1] FROM events e JOIN sessions s USING (session_id) LEFT JOIN runs r USING (run_id)
    SELECT * FROM events e ASOF JOIN runs r ON e.session_id = r.session_id AND e.timestamp >= r.created_at
    SELECT row_number() OVER w, lag(seq) OVER w, sum(seq) OVER (ROWS 1 PRECEDING) FROM events WINDOW w AS (ORDER BY seq)
    WITH a AS (FROM events), b AS MATERIALIZED (FROM a) SELECT * FROM b, b c
    WITH events AS (SELECT * FROM events WHERE seq > 1) SELECT count(*) FROM events
    WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT sum(n) FROM r
    SELECT * FROM events WHERE seq IN (SELECT seq FROM runs, events) AND EXISTS (FROM sessions)
    SELECT data->>'content', data->'a'->0, data.content, json_extract(data, '$.a[1]'), data['content'] FROM events
    SELECT j.key, j.value FROM events, json_each(data) j
    SELECT unnest(tags), t.x FROM sessions, unnest(tags) t(x)
    SELECT * FROM range(3) a(i), generate_series(1, 2) b(j)
    PIVOT events ON type IN ('run_queued', 'run_started') USING count(*) GROUP BY session_id
    UNPIVOT (SELECT seq, attempt FROM events) ON seq, attempt
    SELECT * EXCLUDE (data) REPLACE (seq + 1 AS seq) FROM events
    SELECT columns('s.*'), columns(lambda c: c LIKE 'a%') FROM events
    SELECT list_transform([1, 2], lambda x: x + 1), [x * 2 FOR x IN [1, 2] IF x > 1]
    SELECT CASE WHEN seq > 1 THEN 'a' END, coalesce(run_id, 'x'), seq BETWEEN 1 AND 2, NOT (seq IS NULL) FROM events
    SELECT date_trunc('day', timestamp), timestamp - INTERVAL 1 DAY, extract(year FROM timestamp) FROM events
    SELECT current_date, now(), current_timestamp, timestamp AT TIME ZONE 'UTC' FROM events
    SELECT seq FROM events UNION ALL BY NAME SELECT attempt FROM runs ORDER BY ALL LIMIT 5 OFFSET 1
    SELECT DISTINCT ON (session_id) * FROM events ORDER BY seq LIMIT 50%
    SELECT session_id, type, grouping(type), count(*) FROM events GROUP BY ROLLUP (session_id, type) HAVING count(*) > 0
    SELECT * FROM events TABLESAMPLE reservoir(5 ROWS)
    SELECT array_agg(seq ORDER BY seq DESC), string_agg(type, ','), arg_max(type, seq), median(seq) FROM events
    SELECT (SELECT max(seq) FROM events), array(SELECT seq FROM events), 1 = ANY (SELECT seq FROM events)
    SELECT TRY_CAST('a' AS INTEGER), TRY(CAST('a' AS INTEGER)), 'A' COLLATE NOCASE = 'a', 'x' LIKE '%' , 'a' GLOB '*'
    SELECT 5 // 2, 2 ** 3, 1 << 2, -seq, {'a': 1}.a, map {'a': 1}['a'], (1, 2), 'abc'[1:2] FROM events
    SELECT tool_name, count(*), avg(duration_s) FROM tool_calls GROUP BY ALL ORDER BY ALL
    SELECT model, sum(total_tokens), sum(cost_usd), max(ended_at) - min(ended_at) FROM usage GROUP BY model
"""


@pytest.mark.parametrize("statement", [line.strip() for line in ALLOWED.splitlines() if line.strip()])
async def test_the_whole_language_of_select_is_there(files: Files, statement: str) -> None:
    found = await run_query(files.mirror, statement, limit=100)

    assert found


# What a query cannot do, even if its statement were not looked at

_UNCHECKED = """
import sys
import greenroom.adapters.duckdb.query_process as process
process.check = lambda part, names: None
if sys.argv[1] == "no kernel":
    process.resource.setrlimit = lambda *limits: None
try:
    import numpy
    process.leaked = {"x": numpy.array(["hidden"])}
except ImportError:
    pass
process.main()
"""


def asked_unchecked(request: dict[str, Any], variant: str) -> dict[str, Any]:
    """The answer of a process that walks no statement, and in one variant limits nothing at the kernel."""
    with subprocess.Popen(
        [sys.executable, "-c", _UNCHECKED, variant], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgpack.packb(request))
        process.stdin.flush()
        return msgpack.unpackb(process.stdout.read())


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("variant", ["all walls", "no kernel"])
@pytest.mark.parametrize(
    "template",
    [
        "FROM '{secret}'",
        "FROM '{mirror}'",
        "FROM read_csv('{secret}')",
        "FROM read_text('/proc/self/environ')",
        "FROM read_blob('{mirror}')",
        "FROM glob('{folder}/*')",
        "FROM 'https://127.0.0.1:1/x.parquet'",
        "FROM leaked",
        "FROM enable_logging()",
    ],
)
def test_behind_the_check_of_the_statement_the_process_is_locked(files: Files, template: str, variant: str) -> None:
    request = {
        "paths": [str(files.mirror)],
        "sql": filled_in(template, files),
        "params": None,
        "limit": 5,
        "tenant": None,
    }

    answer = asked_unchecked(request, variant)

    assert "error" in answer
    assert "hidden" not in str(answer)


@pytest.mark.parametrize(
    "part",
    [
        {"class": "TELEPATHY", "type": "TELEPATHY"},
        {"type": "TELEPATHY_NODE", "modifiers": []},
        {"type": "SELECT_NODE", "modifiers": [{"type": "TELEPATHY_MODIFIER"}]},
    ],
)
def test_what_a_later_version_of_duckdb_may_add_to_the_language_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="TELEPATHY"):
        query_process.check({"node": [part]}, frozenset(VIEWS))


def test_the_process_itself_can_open_and_write_nothing_any_more(files: Files) -> None:
    program = f"""
import os, socket, sys
import greenroom.adapters.duckdb.query_process as process
query = process.Query([{str(files.mirror)!r}], "FROM events", None, 5, None)
connection = process.opened(query)
def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
print(refused(lambda: open({str(files.secret)!r})), refused(lambda: socket.socket()), refused(os.pipe))
print(len(process.run(connection, query)["rows"]) > 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ["True", "True", "True", "True"] == done.stdout.split()


# Tenants


async def test_a_tenant_sees_its_own_rows_in_every_view(files: Files) -> None:
    for view, key, of_a, of_all in (
        ("events", "session_id", {"ses_a"}, {"ses_a", "ses_b"}),
        ("sessions", "agent_id", {MINE}, {MINE, THEIRS}),
        ("runs", "run_id", {"run_A", "run_2"}, {"run_A", "run_2", "run_B"}),
        ("usage", "run_id", {"run_A"}, {"run_A", "run_B"}),
        ("tool_calls", "session_id", {"ses_a"}, {"ses_a", "ses_b"}),
    ):
        own = await run_query(files.mirror, f"SELECT * FROM {view}", tenant="A")
        everything = await run_query(files.mirror, f"SELECT * FROM {view}")
        assert of_a == {row[key] for row in own}
        assert of_all == {row[key] for row in everything}
        assert own == [row for row in everything if row["session_id"] == "ses_a"]


@pytest.mark.parametrize("tenant", ["", "C", "A' OR '1'='1", "a", "A ", "\\", "' UNION ALL SELECT", "ü\n"])
async def test_a_tenant_of_another_name_sees_nothing(files: Files, tenant: str) -> None:
    assert [{"n": 0}] == await run_query(files.mirror, "SELECT count(*) AS n FROM events", tenant=tenant)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM events WHERE CAST(data->>'content' AS INTEGER) = 1",
        "SELECT CAST(agent_id AS INTEGER) FROM sessions WHERE agent_id LIKE 'theirs%'",
        "SELECT * FROM sessions WHERE CASE WHEN agent_id LIKE 'theirs%' THEN CAST(agent_id AS INTEGER) = 1 END",
        "SELECT * FROM sessions WHERE strptime(agent_id, '%Y') IS NULL",
        "SELECT * FROM sessions WHERE agent_id::DATE IS NULL OR true",
        "SELECT * FROM sessions a LEFT JOIN sessions b ON CAST(b.agent_id AS INTEGER) = 1",
        'SELECT * FROM events WHERE seq = 1 OR json_transform_strict(data, \'{"agent_id": "INTEGER"}\').agent_id = 1',
        "SELECT DISTINCT agent_id FROM sessions UNION SELECT data->>'agent_id' FROM events",
        "SELECT max(agent_id), histogram(agent_id), approx_top_k(agent_id, 9) FROM sessions",
        "FROM sessions TABLESAMPLE reservoir(1000 ROWS)",
        "SELECT * FROM sessions WHERE agent_id = 'theirs-77ab' OR 1 = 1",
        "SELECT * FROM tool_calls FULL JOIN runs ON true FULL JOIN usage ON true FULL JOIN events ON true",
        "WITH sessions AS (FROM sessions) FROM sessions",
        "WITH RECURSIVE r AS (FROM sessions UNION FROM sessions) FROM r",
        "SELECT sessions FROM sessions",
        "SELECT to_json(e) FROM events e",
        "PIVOT sessions ON agent_id IN ('theirs-77ab', 'mine-9d1c') USING count(*)",
        "SELECT tenant FROM events",
        "SELECT rowid FROM events",
        "SELECT mirror.main.events.data FROM events",
        "SELECT * FROM mirror.main.sessions",
        "SELECT * FROM main.sessions",
        "SELECT * FROM query_table('mirror.main.sessions')",
        "SELECT stats(agent_id) FROM sessions",
        "SUMMARIZE mirror.main.sessions",
    ],
)
async def test_a_tenant_learns_nothing_of_another(files: Files, sql: str) -> None:
    try:
        shown = json.dumps(await run_query(files.mirror, sql, tenant="A"))
    except ValidationError as exc:
        shown = exc.message
    # the name of a column may say what the query itself said
    assert THEIRS not in shown.replace(f'"{THEIRS}": 0', "")
    assert "ses_b" not in shown
    assert "run_B" not in shown


def test_a_value_of_another_tenant_is_null_even_before_its_row_is_filtered_out() -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE all_t (tenant VARCHAR, x VARCHAR)")
        connection.execute("INSERT INTO all_t VALUES ('A', 'mine'), ('B', 'theirs'), (NULL, 'nobodys')")
        view = query_process.view_of("v", "t", "x", "A")

        unfiltered = view.partition(" AS ")[2].partition(" WHERE ")[0]

        assert "WHERE" in view
        assert {("mine",), (None,)} == set(connection.execute(unfiltered).fetchall())


# Limits


async def test_a_query_that_takes_too_long_is_stopped_and_leaves_no_process(files: Files) -> None:
    with pytest.raises(Timeout) as stopped:
        await run_query(files.mirror, ENDLESS, timeout_s=0.5)

    assert ("timeout_s", 0.5) == (stopped.value.details["field"], stopped.value.details["timeout_s"])
    assert "timeout_s" in stopped.value.message
    assert [] == processes()


async def test_a_recursion_without_end_is_stopped(files: Files) -> None:
    endless = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r"

    with pytest.raises(Timeout):
        await run_query(files.mirror, endless, timeout_s=0.5)


async def test_a_cancelled_query_leaves_no_process(files: Files) -> None:
    task = asyncio.create_task(run_query(files.mirror, ENDLESS))
    await asyncio.to_thread(wait_until, processes, what="the process runs")

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == processes()


async def test_a_process_that_hears_nothing_is_killed_all_the_same(files: Files) -> None:
    task = asyncio.create_task(run_query(files.mirror, ENDLESS))
    (pid,) = await asyncio.to_thread(wait_until, processes, what="the process runs")
    os.kill(pid, signal.SIGSTOP)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == processes()


async def test_a_process_that_is_killed_is_an_error_that_says_so(files: Files) -> None:
    task = asyncio.create_task(run_query(files.mirror, ENDLESS))
    (pid,) = await asyncio.to_thread(wait_until, processes, what="the process runs")

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(StorageReadFailed) as died:
        await task
    assert -signal.SIGKILL == died.value.details["exit_status"]


def test_the_process_ends_with_its_parent(files: Files) -> None:
    program = f"""
import asyncio
from greenroom.adapters.duckdb.query_runner import ask
asyncio.run(ask([{str(files.mirror)!r}], {ENDLESS!r}, timeout_s=3600))
"""
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        child = wait_until(lambda: psutil.Process(parent.pid).children(), what="the process runs")[0]

        parent.kill()

        child.wait(timeout=60)


async def test_its_cpu_time_is_bounded_too(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_runner, "_CPU_SLACK_S", -99)

    with pytest.raises(Timeout, match="CPU"):
        await run_query(files.mirror, ENDLESS, timeout_s=100)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(DISTINCT i) FROM range(100000000) t(i)",
        "SELECT list(repeat('x', 1000)) FROM range(10000000)",
        "SELECT length(repeat('x', 3000000000))",
        "SELECT i FROM range(300000000) t(i) ORDER BY hash(i) OFFSET 100000000",
        "SELECT format('{:1000000000}', 1)",
    ],
)
async def test_a_query_that_needs_too_much_memory_is_refused_with_the_limit_named(files: Files, sql: str) -> None:
    with pytest.raises(StorageReadFailed) as refused:
        await run_query(files.mirror, sql, memory_limit="64MB")

    assert {"field": "memory_limit", "memory_limit": "64MB"} == refused.value.details


async def test_an_answer_that_is_too_large_is_refused_with_a_remedy(files: Files) -> None:
    with pytest.raises(ValidationError, match="lower limit") as refused:
        await run_query(files.mirror, "SELECT repeat('x', 1000) FROM range(100000)", limit=100_000)

    assert "limit" == refused.value.details["field"]


async def test_at_most_limit_rows_come_back_and_the_answer_tells_that_there_were_more(files: Files) -> None:
    sql = "SELECT i FROM range(5000) t(i) ORDER BY i DESC"

    cut, whole = await ask([files.mirror], sql, limit=2500), await ask([files.mirror], sql, limit=5000)

    assert [{"i": i} for i in range(4999, 2499, -1)] == cut.to_dicts()
    assert (True, False) == (cut.truncated, whole.truncated)
    assert 5000 == len(whole.to_dicts())
    assert ["i"] == whole.columns


async def test_a_process_that_answers_more_than_it_may_is_stopped(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_runner, "MAX_ANSWER_BYTES", 0)
    monkeypatch.setattr(query_runner, "_ENVELOPE_BYTES", 100)

    with pytest.raises(StorageReadFailed, match="more than it may"):
        await run_query(files.mirror, "SELECT repeat('x', 3000000)")

    assert [] == processes()


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("sql", {"sql": ""}),
        ("sql", {"sql": " \n"}),
        ("sql", {"sql": None}),
        ("sql", {"sql": "SELECT '\0'"}),
        ("sql", {"sql": "SELECT '\ud800'"}),
        ("sql", {"sql": "SELECT '" + "x" * 100_000 + "'"}),
        ("sql", {"sql": "SELECT " + "(" * 20_000 + "1" + ")" * 20_000}),
        ("sql", {"sql": "SELECT " + "+".join(["1"] * 20_000)}),
        ("sql", {"sql": "SELECT " + "NOT " * 20_000 + "true"}),
        ("sql", {"sql": "SELECT (" * 5_000 + "1" + ")" * 5_000}),
        ("sql", {"sql": "SELECT nope FROM events"}),
        ("sql", {"sql": "SELECT CAST('a' AS INTEGER)"}),
        ("sql", {"sql": "SELECT [now()]"}),
        ("sql", {"sql": "SELECT CAST('12:00:00+02' AS TIMETZ)"}),
        ("params", {"params": "x"}),
        ("params", {"params": 1}),
        ("params", {"params": [b"x"]}),
        ("params", {"params": [float("nan")]}),
        ("params", {"params": {"a": object()}}),
        ("params", {"params": {1: 1}}),
        ("params", {"params": ["x" * 2_000_000]}),
        ("params", {"params": [1]}),
        ("params", {"params": {"a": 1}}),
        ("params", {"sql": "SELECT ?"}),
        ("params", {"sql": "SELECT ?", "params": []}),
        ("params", {"sql": "SELECT ?", "params": [1, 2]}),
        ("params", {"sql": "SELECT $a", "params": {}}),
        ("params", {"sql": "SELECT $a", "params": {"a": 1, "b": 2}}),
        ("params", {"sql": "SELECT $a", "params": [1]}),
        ("limit", {"limit": 0}),
        ("limit", {"limit": MAX_LIMIT + 1}),
        ("limit", {"limit": True}),
        ("limit", {"limit": 1.0}),
        ("timeout_s", {"timeout_s": 0}),
        ("timeout_s", {"timeout_s": float("nan")}),
        ("timeout_s", {"timeout_s": float("inf")}),
        ("memory_limit", {"memory_limit": "much"}),
        ("memory_limit", {"memory_limit": 256}),
        ("memory_limit", {"memory_limit": "-1MB"}),
        ("tenant", {"tenant": 1}),
        ("tenant", {"tenant": "\0"}),
    ],
)
async def test_a_bad_argument_is_named(files: Files, field: str, arguments: dict[str, Any]) -> None:
    arguments = {"sql": "SELECT 1", **arguments}

    with pytest.raises(ValidationError) as refused:
        await run_query(files.mirror, **arguments)

    assert field == refused.value.details["field"]


# What comes back


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1", 1),
        ("NULL", None),
        ("true", True),
        ("18446744073709551615::UBIGINT", (1 << 64) - 1),
        ("sum(9223372036854775807) FROM range(4)", str(9223372036854775807 * 4)),
        ("sum(1)", 1),
        ("1.50::DECIMAL(9, 2)", 1.5),
        ("'nan'::DOUBLE", None),
        ("'infinity'::DOUBLE", None),
        ("['nan'::DOUBLE, 2.5]", [None, 2.5]),
        ("'ü'", "ü"),
        ('\'{"a": [1, null, {"b": "c"}]}\'::JSON', {"a": [1, None, {"b": "c"}]}),
        ("NULL::JSON", None),
        ("'null'::JSON", None),
        ("'[1]'", "[1]"),
        ("'123456789012345678901234567890'::JSON", "123456789012345678901234567890"),
        ("['{\"a\": 1}'::JSON]", [{"a": 1}]),
        ("{'j': '[1]'::JSON, 'k': 2}", {"j": [1], "k": 2}),
        ("json_object('a', 1)", {"a": 1}),
        ("'2026-01-02 03:04:05.678901'::TIMESTAMP", "2026-01-02T03:04:05.678901+00:00"),
        ("'2026-01-02 03:04:05+02'::TIMESTAMPTZ", "2026-01-02T01:04:05+00:00"),
        ("['2026-01-02'::TIMESTAMP]", ["2026-01-02T00:00:00+00:00"]),
        ("'290000-01-02'::TIMESTAMP", "290000-01-02 00:00:00"),
        ("'2026-01-02'::DATE", "2026-01-02"),
        ("'03:04'::TIME", "03:04:00"),
        ("INTERVAL 90 MINUTES", 5400.0),
        ("'\\xFF\\x00'::BLOB", "ff00"),
        ("'6f1cbb8e-5b0e-4a43-9a3e-0c2c0e3b7a51'::UUID", "6f1cbb8e-5b0e-4a43-9a3e-0c2c0e3b7a51"),
        ("{'a': 1, 'b': [1, 2]}", {"a": 1, "b": [1, 2]}),
        ("row(1, 'x')", [1, "x"]),
        ("array_value(1, 2)", [1, 2]),
        ("map {1: '2026-01-02'::DATE}", {"1": "2026-01-02"}),
        ("'a'::ENUM ('a', 'b')", "a"),
        ("union_value(x := 1)", 1),
        ("'101'::BIT", "101"),
    ],
)
def test_values_come_back_json_safe(connection: duckdb.DuckDBPyConnection, expression: str, value: Any) -> None:
    query = query_process.Query([], f"SELECT {expression}", None, 10, None)

    packed = query_process.run(connection, query)["rows"]

    (found,) = msgpack.unpackb(packed, strict_map_key=False)
    assert (value, type(value)) == (found, type(found))
    json.dumps(found, allow_nan=False)


async def test_the_second_column_of_a_name_gets_a_suffix(files: Files) -> None:
    assert [{"a": 1, "a_1": 2, "A_2": 3}] == await run_query(files.mirror, 'SELECT 1 AS a, 2 AS a, 3 AS "A"')


async def test_parameters_are_values_and_never_sql(files: Files) -> None:
    nasty = "x'; DROP VIEW events; --"

    assert [{"a": nasty, "b": [{"c": None}]}] == await run_query(
        files.mirror, "SELECT ? AS a, ? AS b", [nasty, [{"c": None}]]
    )
    assert [{"n": 12}] == await run_query(
        files.mirror, "SELECT count(*) AS n FROM events WHERE session_id = $session", {"session": "ses_a"}
    )


async def test_the_views_have_the_columns_that_are_promised(files: Files) -> None:
    for view, columns in VIEWS.items():
        found = await ask([files.mirror], f"SELECT * FROM {view}")
        assert columns.split() == found.columns
        assert found.to_dicts()


async def test_a_tool_call_shows_how_it_went(files: Files) -> None:
    found = await run_query(files.mirror, "SELECT * FROM tool_calls WHERE run_id = 'run_2' ORDER BY tool_call_id")

    same = {"session_id": "ses_a", "run_id": "run_2", "attempt": 1, "tool_name": "grep", "output": None}
    assert [
        same
        | {"tool_call_id": "c2", "input": {"a": [1]}, "status": "failed", "outcome": "denied", "duration_s": 2.5}
        | {"started_at": "1970-01-01T00:00:01+00:00", "ended_at": "1970-01-01T00:00:03.500000+00:00"},
        same
        | {"tool_call_id": "c3", "input": {}, "status": "running", "outcome": None, "duration_s": None}
        | {"started_at": "1970-01-01T00:00:04+00:00", "ended_at": None},
    ] == found


async def test_usage_has_one_row_for_each_run_that_ended(files: Files) -> None:
    found = await run_query(files.mirror, "SELECT * FROM usage", tenant="A")

    assert [
        {"session_id": "ses_a", "run_id": "run_A", "provider": "scripted", "model": "m-2", "input_tokens": 3}
        | {"output_tokens": 4, "cache_read_tokens": 0, "cache_write_tokens": 0, "total_tokens": 7, "cost_usd": 0.25}
        | {"ended_at": "1970-01-01T00:00:00.000060+00:00"}
    ] == found


# The file


async def test_a_mirror_that_is_being_written_is_told_from_one_that_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "mirror.duckdb"
    mirror = QueryMirror.open(path)

    with pytest.raises(StorageConnectionFailed) as busy:
        await run_query(path, "SELECT 1")

    assert busy.value.retryable
    mirror.close()
    assert [{"n": 0}] == await run_query(path, "SELECT count(*) AS n FROM events")


@pytest.mark.parametrize("content", [None, b"", b"no database" * 1000])
async def test_a_mirror_that_cannot_be_read_is_an_error_of_storage(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mirror.duckdb"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(StorageReadFailed):
        await run_query(path, "SELECT 1")


async def test_a_mirror_of_another_version_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mirror.duckdb"
    QueryMirror.open(path).close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE meta SET layout_version = 99")

    with pytest.raises(StorageReadFailed, match="another version"):
        await run_query(path, "SELECT 1")


async def test_a_crashed_writers_wal_is_read_too(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "mirror.duckdb"
    mirror = QueryMirror.open(path)
    log = Log()
    log.append("ses_a", [created()])
    mirror.catch_up(log.batches, 1)
    copy = tmp_path / "copy.duckdb"
    copy.write_bytes(path.read_bytes())
    copy.with_name("copy.duckdb.wal").write_bytes(path.with_name("mirror.duckdb.wal").read_bytes())
    mirror.close()

    assert [{"n": 1}] == await run_query(copy, "SELECT count(*) AS n FROM events")


def test_the_process_gets_nothing_of_the_environment_but_what_python_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("HOME", "/home/somebody")

    environment = query_runner.scrubbed_environment()

    assert {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LANG"} == environment.keys() - {"LD_LIBRARY_PATH"}


def test_the_process_imports_neither_ray_nor_what_takes_long() -> None:
    program = "import sys, greenroom.adapters.duckdb.query_process; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert {"ray", "pydantic", "anthropic", "structlog", "numpy", "pandas", "asyncio"}.isdisjoint(loaded)


def test_what_is_checked_is_what_is_run() -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE events (seq INTEGER)")

        assert "SELECT * FROM (FROM events -- all\n) LIMIT 8" == checked(connection, "FROM events -- all ; ", 7)
