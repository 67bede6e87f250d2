"""The servers that have something of a shared actor's, slots or permits: it comes back when they fall silent."""

import asyncio
from collections.abc import Callable

from ..adapters.logs import get_logger

_log = get_logger(__name__)

_WATCHES = 4


class Holders:
    """Whoever has something says so at least once in `lease_s`. Who does not is dropped."""

    def __init__(self, lease_s: float, drop: Callable[[str], None]) -> None:
        self._lease_s = lease_s
        self._drop = drop
        self._loop = asyncio.get_running_loop()
        self._heard: dict[str, float] = {}
        self._watching = self._loop.create_task(self._watch(), name="greenroom-holders")

    def heard(self, holder: str) -> None:
        """It is alive."""
        self._heard[holder] = self._loop.time()

    def gone(self, holder: str) -> None:
        """It is not."""
        self._heard.pop(holder, None)
        self._drop(holder)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _WATCHES)
            now = self._loop.time()
            for holder in [one for one, heard in self._heard.items() if now - heard > self._lease_s]:
                _log.warning("silent_holder_dropped", holder=holder)
                self.gone(holder)
