"""What the runs in the log have used, by the scopes of budgets."""

from typing import TYPE_CHECKING

from ..domain.amount import Amount
from ..domain.budget_scopes import scopes_of

if TYPE_CHECKING:
    from .store_shards import StoreShards

_SPENT = """
    SELECT sessions.metadata->>'tenant' AS tenant, sessions.metadata->>'project' AS project,
           sum(usage.cost_usd)::DOUBLE AS cost_usd, sum(usage.total_tokens)::BIGINT AS tokens
    FROM usage JOIN sessions USING (session_id) GROUP BY ALL
"""
_MAX_GROUPS = 1_000_000


async def spending(stores: "StoreShards") -> dict[str, Amount]:
    """By scope, over all runs that have ended and whose session is still there."""
    from ..adapters.query_rows import unpack_rows  # noqa: PLC0415  only where there are budgets

    if not (await stores.counts())["runs"]:  # there may be nothing to query yet
        return {}
    paths = await stores.ask_all("refresh_mirror")
    answer = await stores.ask_first("query", paths, _SPENT, None, _MAX_GROUPS, None)
    spent: dict[str, Amount] = {}
    for row in unpack_rows(*answer):
        used = Amount.of(row["cost_usd"] or 0.0, row["tokens"] or 0)
        for scope in scopes_of(row["tenant"], row["project"]):
            known = spent.get(scope, Amount(0, 0))
            spent[scope] = Amount(
                (known.micro_usd or 0) + (used.micro_usd or 0), (known.tokens or 0) + (used.tokens or 0)
            )
    return spent
