"""The whole life of a session's data: proven, deleted, moved, copied, asked."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapters.data_dir import prepare_backup
from ..adapters.query_rows import DEFAULT_QUERY_LIMIT, unpack_rows
from ..domain.batch_row import LedgerEntry
from ..domain.verification import Verification
from .runtime_connection import RuntimeConnection
from .session_handle import SessionHandle


class RuntimeData(RuntimeConnection):
    """What a runtime does with what is kept."""

    async def aledger(self, session_ids: Sequence[str]) -> dict[str, LedgerEntry]:
        """Those of the sessions that there are, with all their runs: what became of rows of a batch."""
        return await self._ask(self._stores.ledger(session_ids))

    async def arow_counts(self, tag: str) -> dict[str, int]:
        """How many of the sessions with this tag there are in each status."""
        return await self._ask(self._stores.row_counts(tag))

    async def averify_session(self, session_id: str) -> Verification:
        """Read the session's whole log from the disk and prove it; `.ok` is true only when it is intact."""
        return await self._ask(self._stores.ask(session_id, "verify_session"))

    def verify_session(self, session_id: str) -> Verification:
        """See averify_session."""
        return self._wait(self.averify_session(session_id))

    async def adelete_session(self, session_id: str) -> None:
        """Cancel the session's runs and delete every trace of it. SessionNotFound if there is none.

        When this returns nothing shows it any more, and nothing brings it back; its bytes leave the files with the next
        `compact`.
        """
        await self._ask(self._directory.delete_session.remote(session_id))

    def delete_session(self, session_id: str) -> None:
        """See adelete_session."""
        self._wait(self.adelete_session(session_id))

    async def aexport_session(self, session_id: str, path: str | Path) -> Path:
        """Write the session as it is now to one self-contained file, and return its path. SessionNotFound.

        The store's process writes it, on the store's machine. Tools given as Python objects are not in it.
        """
        target = _absolute(path)
        await self._ask(self._stores.ask(session_id, "export_session", target))
        return target

    def export_session(self, session_id: str, path: str | Path) -> Path:
        """See aexport_session."""
        return self._wait(self.aexport_session(session_id, path))

    async def aimport_session(self, path: str | Path) -> SessionHandle:
        """Take in an exported session, once its whole chain was proven. InvalidFormat if it is not what was exported,
        AlreadyExists if there is a session of its name; then nothing was changed."""
        from ..adapters.duckdb.session_archive import read_head  # noqa: PLC0415  loads DuckDB

        source = _absolute(path)
        head = await asyncio.to_thread(read_head, source)
        await self._ask(self._stores.ask(head.session_id, "import_session", source))
        return SessionHandle(head.session_id, self._address)

    def import_session(self, path: str | Path) -> SessionHandle:
        """See aimport_session."""
        return self._wait(self.aimport_session(path))

    async def acompact(self) -> None:
        """Rewrite the store's files without what was deleted or may be pruned; everything is served meanwhile."""
        await self._ask(self._stores.ask_all("compact"))

    def compact(self) -> None:
        """See acompact."""
        self._wait(self.acompact())

    async def abackup(self, path: str | Path) -> Path:
        """Copy everything as it is now to a new folder, which `greenroom restore` puts back, or which is a data_dir by
        itself; everything is served meanwhile. Each shard is a moment of its own."""
        target = _absolute(path)
        await asyncio.to_thread(prepare_backup, target, len(self._stores.actors))
        await self._ask(self._stores.ask_all("back_up", target))
        return target

    def backup(self, path: str | Path) -> Path:
        """See abackup."""
        return self._wait(self.abackup(path))

    async def aquery(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        limit: int = DEFAULT_QUERY_LIMIT,
        *,
        tenant: str | None = None,
    ) -> list[dict[str, Any]]:
        """At most `limit` rows of one SELECT over the views sessions, runs, events, tool_calls and usage.

        It sees everything that was committed before the call, and of one tenant only when `tenant` names it. It runs in
        a process of its own that can read nothing else, with bounded memory, and no longer than
        `event_store.query_timeout_s`. `params` are the values of `?` (a list) or of `$name` (a mapping). Values come
        back JSON-safe: times as ISO 8601 in UTC. ValidationError names what is wrong or forbidden; Timeout.
        """
        paths = await self._ask(self._stores.ask_all("refresh_mirror"))
        answer = await self._ask(self._stores.ask_first("query", paths, sql, params, limit, tenant))
        return unpack_rows(*answer)

    def query(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        limit: int = DEFAULT_QUERY_LIMIT,
        *,
        tenant: str | None = None,
    ) -> list[dict[str, Any]]:
        """See aquery."""
        return self._wait(self.aquery(sql, params, limit, tenant=tenant))


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()
