"""The process that answers one query over the mirror: `python -m greenroom.adapters.duckdb.query_process`.

It reads one msgpack map from stdin: path, sql, params (list, map or nil), limit, tenant (nil: all), and if need be
memory_limit, temp_dir, max_answer_bytes, cpu_limit_s. It writes one to stdout: {columns, rows, truncated}, where `rows`
is a byte string of the rows packed one after another, or {error: {code, message, details}}. It ends when its stdin
closes: stdin is its parent's life, not only its request.

Four walls stand between the SQL of a user and all but the five views:

1. The parsed statement is walked before it is run. Kinds of nodes, functions and tables that are not listed here are
   refused, whatever they do; so is what a later DuckDB adds.
2. The tables are in an attached database, read-only; the one that plain names lead to has only the views.
3. The configuration is locked; external access, extensions and the local file system are switched off.
4. The kernel opens no file or socket and writes no file for this process any more (RLIMIT_NOFILE, RLIMIT_FSIZE).

Files, the network and the mirror's content are safe behind 2 to 4 alone, should the first one have a hole. The rows of
other tenants are not: only the first keeps a query from naming the tables behind the views.

A view of one tenant filters by the tenant, and shows NULL where the tenant is another (see `view_of`).
"""

import datetime
import json
import math
import os
import re
import resource
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple, cast
from uuid import UUID

import duckdb
import msgpack

from ...domain.errors import (
    GreenroomError,
    InternalError,
    StorageConnectionFailed,
    StorageReadFailed,
    ValidationError,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAYOUT_VERSION = 1
"""Of the tables in the mirror, which `query_mirror` makes; another one is rebuilt there, and refused here."""

DEFAULT_MEMORY_LIMIT = "256MB"
MAX_ANSWER_BYTES = 64 << 20
"""Of packed rows; an answer that would be larger is refused."""

MAX_SQL_CHARACTERS = 100_000
MEMORY_LIMIT = re.compile(r"(\d{1,6}) ?(MB|GB)")
"""What a memory limit looks like."""

_END = re.compile(r"[\s;]+\Z")
_UNITS = {"MB": 1_000_000, "GB": 1_000_000_000}
_PROCESS_BYTES = 1 << 30  # address space of the interpreter, the libraries and what DuckDB does not count as its own
_MESSAGE_CHARACTERS = 2_000
_FETCHED_ROWS = 1_000

VIEWS: Mapping[str, str] = {
    "sessions": (
        "session_id status agent_id parent_session_id provider tags metadata context created_at updated_at epoch"
    ),
    "runs": (
        "run_id session_id status provider model attempt turn_count input output error metadata input_tokens"
        " output_tokens cache_read_tokens cache_write_tokens total_tokens cost_usd created_at queued_at started_at"
        " ended_at"
    ),
    "events": (
        "session_id seq event_id type run_id attempt timestamp recorded_at provider data metadata schema_version"
    ),
    "tool_calls": (
        "session_id run_id attempt tool_call_id tool_name input output status outcome started_at ended_at duration_s"
    ),
    "usage": (
        "session_id run_id provider model input_tokens output_tokens cache_read_tokens cache_write_tokens total_tokens"
        " cost_usd ended_at"
    ),
}
"""The views that a query may name, and their columns. Times are UTC."""

_TOOL_EVENTS = "session_id run_id attempt tool_call_id type seq timestamp data"

# One row per call and attempt. What it was given and gave comes from its last event, by a join with two numbers of
# each call in memory: aggregating the data itself needed all inputs and outputs at once.
_TOOL_CALLS = """
    CREATE VIEW tool_calls AS
    SELECT c.session_id, c.run_id, c.attempt, c.tool_call_id,
           e.data->>'tool_name' AS tool_name,
           e.data->'tool_input' AS input,
           nullif((e.data->'tool_output')::VARCHAR, 'null')::JSON AS output,
           CASE e.type WHEN 'tool_call_started' THEN 'running'
                       WHEN 'tool_call_completed' THEN 'completed' ELSE 'failed' END AS status,
           e.data->>'outcome' AS outcome,
           c.started_at, c.ended_at,
           date_diff('microsecond', c.started_at, c.ended_at) / 1e6 AS duration_s
    FROM (
        SELECT session_id, run_id, attempt, tool_call_id, max(seq) AS seq,
               min(timestamp) FILTER (type = 'tool_call_started') AS started_at,
               max(timestamp) FILTER (type <> 'tool_call_started') AS ended_at
        FROM tool_events GROUP BY ALL
    ) c JOIN tool_events e ON e.session_id = c.session_id AND e.seq = c.seq
"""
_USAGE = f"CREATE VIEW usage AS SELECT {', '.join(VIEWS['usage'].split())} FROM runs WHERE ended_at IS NOT NULL"  # noqa: S608

_EXPRESSIONS = _words(
    "BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA OPERATOR PARAMETER"
    " POSITIONAL_REFERENCE STAR SUBQUERY TYPE WINDOW"
)
"""Classes of expressions."""

_NODES = _words(
    "SELECT_NODE SET_OPERATION_NODE RECURSIVE_CTE_NODE"
    " BASE_TABLE SUBQUERY JOIN TABLE_FUNCTION EXPRESSION_LIST EMPTY PIVOT"
    " ORDER_MODIFIER LIMIT_MODIFIER LIMIT_PERCENT_MODIFIER DISTINCT_MODIFIER"
    " ORDER_DEFAULT ASCENDING DESCENDING"
)
"""Types of everything else in a statement that has a type."""

_TABLE_FUNCTIONS = _words("generate_series json_each json_tree range unnest")

FUNCTIONS = _words(
    """
    ! !~~ !~~* % & && * ** + - -> ->> / // << <-> <=> <@ = <> < > <= >= != >> @ @> ^ ^@ | || ~ ~~ ~~* ~~~ !__postfix

    abs acos acosh add age aggregate array_aggr array_aggregate array_apply array_cat array_concat array_contains
    array_cosine_distance array_cosine_similarity array_cross_product array_distance array_distinct
    array_dot_product array_extract array_filter array_grade_up array_has array_has_all array_has_any array_indexof
    array_inner_product array_intersect array_length array_negative_dot_product array_negative_inner_product
    array_position array_reduce array_resize array_reverse_sort array_select array_slice array_sort array_to_json
    array_transform array_unique array_value array_where array_zip ascii asin asinh atan atan2 atanh base64 bin
    binom bit_count bit_length bit_position bitstring cardinality cbrt ceil ceiling century char_length
    character_length chr concat concat_ws contains cos cosh cot current_date current_localtime
    current_localtimestamp damerau_levenshtein date_diff date_part date_sub date_trunc datediff datepart datesub
    datetrunc day dayname dayofmonth dayofweek dayofyear decade decode degrees divide editdist3
    element_at encode ends_with epoch epoch_ms epoch_ns epoch_us equi_width_bins era even exp factorial filter
    flatten floor format formatreadabledecimalsize formatreadablesize format_bytes from_base64 from_binary from_hex
    from_json from_json_strict gamma gcd gen_random_uuid generate_series get_bit get_current_time
    get_current_timestamp grade_up greatest greatest_common_divisor hamming hash hex hour ilike_escape instr
    isfinite isinf isnan isodow isoyear jaccard jaro_similarity jaro_winkler_similarity json_array json_array_length
    json_contains json_deep_merge json_exists json_extract json_extract_path json_extract_path_text
    json_extract_string json_insert json_keys json_merge_patch json_merge_patch_diff json_normalize json_object
    json_pretty json_quote json_remove json_replace json_set json_strip_nulls json_structure json_transform
    json_transform_strict json_type json_valid json_value julian last_day lcase lcm least least_common_multiple left
    left_grapheme len length length_grapheme levenshtein lgamma like_escape list_aggr list_aggregate list_apply
    list_cat list_concat list_contains list_cosine_distance list_cosine_similarity list_distance list_distinct
    list_dot_product list_element list_extract list_filter list_grade_up list_has list_has_all list_has_any
    list_indexof list_inner_product list_intersect list_negative_dot_product list_negative_inner_product list_pack
    list_position list_reduce list_resize list_reverse_sort list_select list_slice list_sort list_transform
    list_unique list_value list_where list_zip ln log log10 log2 lower lpad ltrim make_date make_time make_timestamp
    make_timestamp_ms make_timestamp_ns make_timestamptz map map_concat map_contains map_entries map_extract
    map_extract_value map_from_entries map_keys map_values md5 md5_number microsecond millennium millisecond minute
    mismatches mod month monthname multiply nanosecond nextafter not_ilike_escape not_like_escape now octet_length
    ord overlay parse_formatted_bytes pi position pow power prefix printf quarter radians random range reduce
    regexp_escape regexp_extract regexp_extract_all regexp_full_match regexp_matches regexp_replace
    regexp_split_to_array repeat replace reverse right right_grapheme round round_even roundbankers row rpad rtrim
    second set_bit sha1 sha256 sign signbit sin sinh split sqrt starts_with str_split str_split_regex strftime
    string_split string_split_regex string_to_array strip_accents strlen strpos strptime struct_concat
    struct_contains struct_extract struct_extract_at struct_has struct_indexof struct_insert struct_keys struct_pack
    struct_position struct_values substr substring substring_grapheme subtract suffix switch tan tanh time_bucket
    timezone timezone_hour timezone_minute to_base to_base64 to_binary to_centuries to_days to_decades to_hex
    to_hours to_json to_microseconds to_millennia to_milliseconds to_minutes to_months to_quarters to_seconds
    to_timestamp to_weeks to_years today translate trim trunc try_strptime typeof ucase unbin unhex unicode
    union_extract union_tag union_value unnest upper url_decode url_encode uuid uuid_extract_timestamp
    uuid_extract_version uuidv4 uuidv7 week weekday weekofyear xor year yearweek

    any_value approx_count_distinct approx_quantile approx_top_k arbitrary arg_max arg_max_null arg_max_nulls_last
    arg_min arg_min_null arg_min_nulls_last argmax argmin array_agg avg bit_and bit_or bit_xor bitstring_agg
    bool_and bool_or corr count count_if count_star countif covar_pop covar_samp entropy first fsum group_concat
    histogram kahan_sum kurtosis kurtosis_pop last list listagg lttb mad max max_by mean median min min_by mode product
    quantile quantile_cont quantile_disc regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx
    regr_sxy regr_syy reservoir_quantile sem skewness stddev stddev_pop stddev_samp string_agg sum sumkahan var_pop
    var_samp variance

    cume_dist dense_rank fill first_value lag last_value lead nth_value ntile percent_rank rank rank_dense row_number

    ago array_append array_pop_back array_pop_front array_prepend array_push_back array_push_front array_reverse
    array_to_string date_add days_in_month fdiv fmod geomean geometric_mean if json json_group_array json_group_object
    list_any_value list_append list_approx_count_distinct list_avg list_bit_and list_bit_or list_bit_xor list_bool_and
    list_bool_or list_count list_entropy list_first list_histogram list_kurtosis list_kurtosis_pop list_last list_mad
    list_max list_median list_min list_mode list_prepend list_product list_reverse list_sem list_skewness
    list_stddev_pop list_stddev_samp list_string_agg list_sum list_var_pop list_var_samp map_contains_entry
    map_contains_value md5_number_lower md5_number_upper nullif regexp_split_to_table split_part wavg weighted_avg
    """
)
"""The scalar functions, aggregates, window functions and macros that compute from their arguments alone.

Not among them: what reads or names things of the database (current_setting, getvariable, nextval, stats, which shows
the least and largest value of a column over all tenants), parses or runs SQL (json_serialize_plan), waits or writes
(sleep_ms, write_log), raises what it is told to (error), or is DuckDB's own (whatever begins with __).
"""

_PARAMETER_TROUBLE = ("Values were not provided", "count mismatch", "Python Conversion Failure", "named and positional")


class Query(NamedTuple):
    """What is to be done."""

    paths: list[str]
    sql: str
    params: list[Any] | dict[str, Any] | None
    limit: int
    tenant: str | None
    memory_limit: str = DEFAULT_MEMORY_LIMIT
    temp_dir: str | None = None
    """Where to spill what does not fit into memory; then the local file system and new files stay open to DuckDB."""
    max_answer_bytes: int = MAX_ANSWER_BYTES
    cpu_limit_s: int | None = None


def answer(query: Query) -> dict[str, Any]:
    """The answer to the query, as it is written to stdout. Locks this whole process down for good."""
    return answered(query, lambda: run(opened(query), query))


def answered(query: Query, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the action gives, or the error that it raises, as it is written to stdout."""
    try:
        return action()
    except GreenroomError as exc:
        return {"error": exc.to_record()}
    except duckdb.Error as exc:
        return {"error": _explained(exc, query).to_record()}
    except MemoryError:
        return {"error": _out_of_memory(query).to_record()}
    except RecursionError:
        return {"error": _bad_sql("The statement, or a value in its answer, is nested too deeply.").to_record()}
    except Exception as exc:  # noqa: BLE001  # the parent hears of it, whatever it is
        return {"error": InternalError(f"The query process failed: {exc!r}").to_record()}


# The database


def opened(query: Query) -> duckdb.DuckDBPyConnection:
    """A connection that sees the views and nothing else, in a process that is locked down from here on."""
    connection = _connected(query)
    _lock_down(connection, query)
    return connection


def _connected(query: Query) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {
        "threads": 1,  # the other cores are the sessions'
        "memory_limit": query.memory_limit,
        "temp_directory": query.temp_dir or "",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "allow_unsigned_extensions": False,
        "python_enable_replacements": False,
        "python_scan_all_frames": False,
    }
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("SET TimeZone = 'UTC'")
    for number, path in enumerate(query.paths):
        connection.execute(f"ATTACH {_quoted(path)} AS mirror_{number} (READ_ONLY)")
        found = connection.execute(f"SELECT layout_version FROM mirror_{number}.main.meta").fetchall()  # noqa: S608
        if found != [(LAYOUT_VERSION,)]:
            raise StorageReadFailed(
                "The query mirror is of another version; it is rebuilt by the runtime. Try again later."
            )
    for table in ("sessions", "runs", "events"):
        parts = [f"SELECT * FROM mirror_{number}.main.{table}" for number in range(len(query.paths))]  # noqa: S608
        connection.execute(f"CREATE VIEW all_{table} AS {' UNION ALL '.join(parts)}")
    for statement in _view_statements(query.tenant):
        connection.execute(statement)
    return connection


def _view_statements(tenant: str | None) -> list[str]:
    return [
        view_of("sessions", "sessions", VIEWS["sessions"], tenant),
        view_of("runs", "runs", VIEWS["runs"], tenant),
        view_of("events", "events", VIEWS["events"], tenant),
        view_of("tool_events", "events", _TOOL_EVENTS, tenant, "tool_call_id IS NOT NULL"),
        _TOOL_CALLS,
        _USAGE,
    ]


def view_of(name: str, table: str, columns: str, tenant: str | None, condition: str = "true") -> str:
    """The view. For a tenant, a value of another one's row is NULL even to an expression that runs before the filter.

    DuckDB was never seen to evaluate an expression before the comparison inside the scan, but promises nothing; and the
    error of a cast would show the value that it failed on. Costs 11 ms more for one session out of two million events,
    because `session_id = ..` no longer skips row groups, and nothing measurable in aggregates.
    """
    if tenant is None:
        return f"CREATE VIEW {name} AS SELECT {', '.join(columns.split())} FROM all_{table} WHERE {condition}"  # noqa: S608
    is_own = f"tenant = {_quoted(tenant)}"
    shown = ", ".join(f"CASE WHEN {is_own} THEN {column} END AS {column}" for column in columns.split())
    return f"CREATE VIEW {name} AS SELECT {shown} FROM all_{table} WHERE {is_own} AND {condition}"  # noqa: S608


def _lock_down(connection: duckdb.DuckDBPyConnection, query: Query) -> None:
    """From here on nothing can be opened: not even the mirror, which external access keeps open to all readers."""
    connection.execute("SET enable_external_access = false")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if query.temp_dir is None:
        connection.execute("SET disabled_filesystems = 'LocalFileSystem'")
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    connection.execute("SET lock_configuration = true")
    number, unit = _match(MEMORY_LIMIT, query.memory_limit)
    address_space = int(number) * _UNITS[unit] + _PROCESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    if query.cpu_limit_s is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (query.cpu_limit_s, query.cpu_limit_s + 1))  # SIGXCPU, SIGKILL


def _match(pattern: re.Pattern[str], text: str) -> Sequence[str]:
    found = pattern.fullmatch(text)
    if found is None:
        raise ValidationError(f"{text!r} does not look like {pattern.pattern}.", details={"field": "memory_limit"})
    return found.groups()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# The statement


def checked(connection: duckdb.DuckDBPyConnection, sql: str, limit: int) -> str:
    """The statement to run: the given one, cut at one row more than the limit; ValidationError if it is not allowed.

    What is walked is the very text that runs. The subquery around the given statement lets DuckDB sort no more rows
    than are asked for, and gives the second of two columns of one name a suffix: a, a_1.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise _bad_sql(f"There are {len(statements)} statements; give one SELECT.")
    kind = _kind_of(statements[0])
    if kind == "MULTI":
        raise _bad_sql("A PIVOT needs its columns named: PIVOT .. ON .. IN (..) USING ...")
    if kind != "SELECT":
        raise _bad_sql(f"This is a statement of kind {kind}; only a SELECT can be run.")
    cut = f"SELECT * FROM ({_END.sub('', sql)}\n) LIMIT {limit + 1}"  # noqa: S608  checked below
    check(_parsed(connection, cut), frozenset(VIEWS))
    return cut


def _kind_of(statement: Any) -> str:
    try:
        return statement.type.name
    except ValueError:  # UPDATE EXTENSIONS: one that the enumeration of the wheel does not know
        return "unknown"


def _parsed(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    row = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    serialized: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    if serialized["error"]:
        raise _bad_sql(
            f"{serialized.get('error_message', 'The statement cannot be read.')} Give one SELECT, with no semicolon"
            " before a comment."
        )
    return serialized["statements"]


def check(part: Any, names: frozenset[str]) -> None:
    """Refuse what is not listed, in this part of a parsed statement and below; `names` are the tables in sight."""
    if isinstance(part, list):
        for item in cast("list[Any]", part):
            check(item, names)
    elif isinstance(part, dict):
        _check_mapping(cast("dict[str, Any]", part), names)


def _check_mapping(part: dict[str, Any], names: frozenset[str]) -> None:
    _check_kind(part)
    if "cte_map" in part:
        names = _check_ctes(part["cte_map"]["map"], names)
        part = {key: value for key, value in part.items() if key != "cte_map"}
    if "table_name" in part:
        _check_table(part, names)
    if part.get("type") == "TABLE_FUNCTION":
        _check_function(part["function"], _TABLE_FUNCTIONS)
        arguments = {key: value for key, value in part["function"].items() if key != "function_name"}
        part = {**part, "function": arguments}
    if "function_name" in part:
        _check_function(part, FUNCTIONS)
    if part.get("class") == "TYPE":
        _check_unqualified(part, "type_name")
    for value in part.values():
        check(value, names)


def _check_kind(part: dict[str, Any]) -> None:
    kind = part.get("class")
    if kind is not None:
        if kind not in _EXPRESSIONS:
            raise _forbidden(f"expressions of class {kind}")
    elif "type" in part and isinstance(part["type"], str) and part["type"] not in _NODES:
        raise _forbidden(f"{part['type']}, such as DESCRIBE, SHOW or a change of data,")


def _check_ctes(ctes: Iterable[dict[str, Any]], names: frozenset[str]) -> frozenset[str]:
    """Each sees those before it, and itself if it is recursive; all are in sight of the rest of the query."""
    for cte in ctes:
        name = _folded(cte["key"])
        body = cte["value"]
        is_recursive = body["query_node"]["type"] == "RECURSIVE_CTE_NODE"
        check(body, names | {name} if is_recursive else names)
        names |= {name}
    return names


def _check_table(part: dict[str, Any], names: frozenset[str]) -> None:
    _check_unqualified(part, "table_name")
    if _folded(part["table_name"]) not in names or part.get("at_clause") is not None:
        raise _forbidden(f"the table {part['table_name']!r}")


def _check_function(part: dict[str, Any], allowed: frozenset[str]) -> None:
    _check_unqualified(part, "function_name")
    if _folded(part["function_name"]) not in allowed:
        raise _forbidden(f"the function {part['function_name']}")


def _check_unqualified(part: dict[str, Any], key: str) -> None:
    path = part["qualified_name"]["path"]
    qualifiers = [part.get(name) for name in ("schema", "catalog", "schema_name", "catalog_name")]
    if path != [part[key]] or any(qualifiers):
        raise _forbidden(f"the qualified name {'.'.join(map(str, path))}")


_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def _folded(name: str) -> str:
    """As DuckDB compares names: `str.lower` also takes the Kelvin sign for a k, and so a CTE for a table of DuckDB."""
    return name.translate(_ASCII_LOWER)


def _forbidden(what: str) -> ValidationError:
    views = ", ".join(VIEWS)
    return _bad_sql(
        f"A query may not use {what}. It reads the views {views} and its own CTEs, with functions that compute from"
        " their arguments."
    )


def _bad_sql(message: str) -> ValidationError:
    return ValidationError(message[:_MESSAGE_CHARACTERS], details={"field": "sql"})


# The rows


def run(connection: duckdb.DuckDBPyConnection, query: Query) -> dict[str, Any]:
    """Check the statement, run it, and pack what it gives."""
    statement = checked(connection, query.sql, query.limit)
    statement = _without_time_zones(connection, statement, query.params)
    connection.execute(statement, query.params)
    description = connection.description or []
    to_plain = [_converter(column[1]) for column in description]
    packed: list[bytes] = []
    size = count = 0
    while rows := connection.fetchmany(min(_FETCHED_ROWS, query.limit + 1 - count) or 1):
        count += len(rows)
        chunk = b"".join(_packed(row, to_plain) for row in rows[: len(rows) - max(0, count - query.limit)])
        packed.append(chunk)
        size += len(chunk)
        if size > query.max_answer_bytes:
            raise ValidationError(
                f"The answer is larger than {query.max_answer_bytes} bytes; give a lower limit, or select less.",
                details={"field": "limit", "max_answer_bytes": query.max_answer_bytes},
            )
    columns = [column[0] for column in description]
    return {"columns": columns, "rows": b"".join(packed), "truncated": count > query.limit}


def _without_time_zones(connection: duckdb.DuckDBPyConnection, statement: str, params: Any) -> str:
    """The statement with TIMESTAMPTZ columns as UTC TIMESTAMPs, because reading them from Python needs pytz."""
    columns = connection.execute(f"DESCRIBE {statement}", params).fetchall()
    replaced: list[str] = []
    for name, type_, *_ in columns:
        if type_ == "TIMESTAMP WITH TIME ZONE":
            quoted = '"' + name.replace('"', '""') + '"'
            replaced.append(f"timezone('UTC', {quoted}) AS {quoted}")
        elif "WITH TIME ZONE" in type_ and not type_.startswith("ENUM"):
            raise _bad_sql(f"Column {name!r} is of type {type_}; cast it to TIMESTAMP, TIME or VARCHAR.")
    if not replaced:
        return statement
    return statement.replace("SELECT *", f"SELECT * REPLACE ({', '.join(replaced)})", 1)


_Converter = Callable[[Any], Any]


def _packed(row: Sequence[Any], to_plain: Sequence[_Converter]) -> bytes:
    plain = [convert(value) for convert, value in zip(to_plain, row, strict=True)]
    try:
        return msgpack.packb(plain)
    except (OverflowError, ValueError):  # from JSON: whole numbers beyond 64 bits, halves of surrogate pairs
        return msgpack.packb(_packable(plain))


def _packable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_packable(key): _packable(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_packable(item) for item in cast("list[Any]", value)]
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return _plain(value)


def _converter(type_: Any) -> _Converter:
    """From what DuckDB gives for a column of this type to a JSON-safe value."""
    if str(type_) == "JSON":
        return _from_json
    if type_.id in {"list", "array"}:
        return partial(_plain_list, _converter(type_.children[0][1]))
    if type_.id == "struct":
        return partial(_plain_struct, [_converter(child) for _, child in type_.children])
    return _plain


def _from_json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _plain_list(convert: _Converter, values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else [convert(value) for value in values]


def _plain_struct(converters: Sequence[_Converter], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, dict):
        pairs = zip(cast("dict[str, Any]", value).items(), converters, strict=True)
        return {key: convert(item) for (key, item), convert in pairs}
    return [convert(item) for convert, item in zip(converters, value, strict=True)]


def _plain(value: Any) -> Any:
    kind = value.__class__
    if kind in _AS_THEY_ARE:
        return value
    convert = _BY_KIND.get(kind)
    return str(value) if convert is None else convert(value)


def _plain_float(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain_int(value: int) -> int | str:
    return value if -(1 << 63) <= value < 1 << 64 else str(value)


def _plain_map(value: dict[Any, Any]) -> dict[str, Any]:
    return {str(_plain(key)): _plain(item) for key, item in value.items()}


def _plain_time(value: datetime.datetime) -> str:
    return value.isoformat() + "+00:00"


def _plain_sequence(value: Sequence[Any]) -> list[Any]:
    return [_plain(item) for item in value]


_AS_THEY_ARE = frozenset({str, bool, type(None)})
_BY_KIND: dict[type, _Converter] = {
    int: _plain_int,
    float: _plain_float,
    Decimal: float,
    datetime.datetime: _plain_time,
    datetime.date: datetime.date.isoformat,
    datetime.time: datetime.time.isoformat,
    datetime.timedelta: datetime.timedelta.total_seconds,
    UUID: str,
    bytes: bytes.hex,
    bytearray: bytearray.hex,
    list: _plain_sequence,
    tuple: _plain_sequence,
    dict: _plain_map,
}


# What went wrong


def _explained(exc: duckdb.Error, query: Query) -> GreenroomError:
    text = str(exc).split("\n\nLINE ", maxsplit=1)[0][:_MESSAGE_CHARACTERS]
    if isinstance(exc, duckdb.OutOfMemoryException):
        return _out_of_memory(query)
    if isinstance(exc, duckdb.IOException):
        if "Could not set lock" in text:
            return StorageConnectionFailed("The query mirror is being brought up to date. Try again.")
        return StorageReadFailed(f"The query mirror cannot be read: {text}")
    if isinstance(exc, duckdb.FatalException | duckdb.InternalException | duckdb.SerializationException):
        return StorageReadFailed(f"DuckDB failed at this query: {text}")
    if any(trouble in text for trouble in _PARAMETER_TROUBLE):
        return ValidationError(f"{text} Give one value for each parameter.", details={"field": "params"})
    return _bad_sql(f"{text}\nCorrect the statement.")


def _out_of_memory(query: Query) -> GreenroomError:
    return StorageReadFailed(
        f"The query needs more than its memory of {query.memory_limit}; aggregate or filter more, or raise"
        " memory_limit.",
        details={"field": "memory_limit", "memory_limit": query.memory_limit},
    )


# The process


def _read_request() -> dict[str, Any]:
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
    while data := os.read(0, 1 << 16):
        unpacker.feed(data)
        for request in unpacker:
            return request
    sys.exit("no request on stdin")


def _end_with_parent() -> None:
    while os.read(0, 1 << 16):
        pass
    os._exit(1)


def main() -> None:
    """Answer the request on stdin and end."""
    query = Query(**_read_request())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reply = msgpack.packb(answer(query))
    sys.stdout.buffer.write(reply)
    sys.stdout.buffer.flush()
    os._exit(0)  # nothing is left to be done, and taking DuckDB down costs time


if __name__ == "__main__":
    main()
