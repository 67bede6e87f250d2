"""The actor that sends events to webhooks: every event of a target's tenant at least once, in the feed's order."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

from ..adapters.logs import get_logger, log_to_stderr
from ..adapters.webhook_file import WebhookFile
from ..adapters.webhook_post import WebhookPost
from ..domain.errors import GreenroomError, InvalidCursor, ResyncRequired
from ..domain.event import Event
from ..domain.webhook import GIVE_UP_AFTER_S, WebhookTarget, pause_s
from .store_shards import StoreShards
from .tenant_feed import FeedItem, TenantFeed

_log = get_logger(__name__)

_SAVE_S = 1.0
_RETRY_S = 10.0


class WebhookSender:
    """Started anew it goes on from what it has written down, at most so much as a second has brought: a receiver may
    see that again. One target that does not answer holds up nobody but itself."""

    def __init__(self, data_dir: str, stores: StoreShards) -> None:
        log_to_stderr()
        self._file = WebhookFile(Path(data_dir))
        self._stores = stores
        self._targets, self._cursors = self._file.read()
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._is_dirty = asyncio.Event()
        self._configuring = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._saving = asyncio.get_running_loop().create_task(self._save_on())
        self._start()

    async def configure(self, targets: Sequence[WebhookTarget]) -> None:
        """These and no others, from now on: a new one begins with what is new. ValidationError for a secret that is
        not there; nothing is changed then."""
        for target in targets:
            await WebhookPost(target).aclose()
        async with self._configuring:
            if list(targets) == self._targets:
                return
            now = str(await TenantFeed(self._stores, "", None).now())
            await self._stop()
            try:
                cursors = {target.name: self._cursors.get(target.name, now) for target in targets}
                await self._write(targets, cursors)
                self._targets, self._cursors = list(targets), cursors
            finally:
                self._start()

    def _start(self) -> None:
        for target in self._targets:
            self._sending[target.name] = asyncio.get_running_loop().create_task(self._send_on(target))

    async def _stop(self) -> None:
        sending, self._sending = list(self._sending.values()), {}
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)

    async def _send_on(self, target: WebhookTarget) -> None:
        while True:
            try:
                async with contextlib.aclosing(WebhookPost(target)) as post, aclosing(self._items(target)) as items:
                    async for item in items:
                        if item.event is not None:
                            await self._deliver(target, post, item.event)
                        self._came_to(target, str(item.cursor))
            except (ResyncRequired, InvalidCursor) as exc:
                _log.error("webhook_starts_anew", target=target.name, reason=exc.message)
                self._came_to(target, str(await TenantFeed(self._stores, target.tenant, None).now()))
            except GreenroomError as exc:
                _log.error("webhook_stopped", target=target.name, code=exc.code, reason=exc.message)
                await asyncio.sleep(_RETRY_S)

    def _came_to(self, target: WebhookTarget, cursor: str) -> None:
        if cursor != self._cursors.get(target.name):  # an idle feed tells its cursor too
            self._cursors[target.name] = cursor
            self._is_dirty.set()

    async def _items(self, target: WebhookTarget) -> AsyncGenerator[FeedItem]:
        feed = TenantFeed(self._stores, target.tenant, target.wanted)
        async with aclosing(feed.follow(await feed.checked(self._cursors[target.name]))) as items:
            async for item in items:
                yield item

    async def _deliver(self, target: WebhookTarget, post: WebhookPost, event: Event) -> None:
        failures = 0
        began_at = time.monotonic()
        while (failure := await post.send(event)) is not None:
            failures += 1
            if time.monotonic() - began_at > GIVE_UP_AFTER_S:
                _log.error("webhook_given_up", target=target.name, event_id=event.id, failure=failure)
                return
            if failures == 1:
                _log.warning("webhook_failed", target=target.name, event_id=event.id, failure=failure)
            await asyncio.sleep(pause_s(failures, random.random()))  # noqa: S311  it spreads load

    async def _write(self, targets: Sequence[WebhookTarget], cursors: Mapping[str, str]) -> None:
        async with self._writing:
            await asyncio.to_thread(self._file.write, list(targets), dict(cursors))

    async def _save_on(self) -> None:
        while True:
            await self._is_dirty.wait()
            self._is_dirty.clear()
            try:
                await self._write(self._targets, self._cursors)
            except OSError:
                _log.exception("webhook_cursors_not_kept")  # with the next event they are tried again
            await asyncio.sleep(_SAVE_S)
