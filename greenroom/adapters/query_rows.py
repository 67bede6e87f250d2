"""The rows of a query on their way to whoever asked."""

from collections.abc import Sequence
from typing import Any

import msgpack

DEFAULT_QUERY_LIMIT = 10_000


def unpack_rows(columns: Sequence[str], packed_rows: bytes, truncated: bool) -> list[dict[str, Any]]:
    """The rows as JSON-safe values. That there were more than the limit shows in their number."""
    rows = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
    rows.feed(packed_rows)
    return [dict(zip(columns, row, strict=True)) for row in rows]
