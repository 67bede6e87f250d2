"""The Messages API through the anthropic SDK. The SDK is loaded at the first attempt, not with this module."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from ....domain.capability import Capability, CapabilityType
from ....domain.errors import CapabilityNotSupported, InvalidOperation
from ....domain.provider import ProviderEvent, ProviderLevels, ProviderOutcome, ProviderRequest
from .options import DEFAULT_MODEL, AnthropicOptions, check_anthropic_options, read_api_key

if TYPE_CHECKING:  # the SDK costs 72 MB
    from anthropic import AsyncAnthropic

    from .attempt import Attempt


class AnthropicProvider:
    """Claude over HTTP, with the tool loop run here. An attempt keeps nothing: what it knows is in its request.

    One client, and so one pool of connections, serves all attempts with the same address and key; an attempt with
    others gets a client of its own, closed at its end.
    """

    RUNS_IN_PROCESS = True
    DEFAULT_MODEL = DEFAULT_MODEL
    PRICE_LIST = "anthropic"

    def __init__(self, name: str) -> None:
        self.name = name
        self._client: AsyncAnthropic | None = None
        self._client_of: tuple[str | None, str] | None = None
        self._attempts: dict[str, Attempt] = {}

    @staticmethod
    def check_options(options: Mapping[str, Any], *, field: str) -> AnthropicOptions:
        """The parsed options; ValidationError names the field that is wrong."""
        return check_anthropic_options(options, field=field)

    def capabilities(self) -> tuple[Capability, ...]:
        return (
            Capability(name="streaming", type=CapabilityType.SAMPLING),
            Capability(name="thinking", type=CapabilityType.SAMPLING),
            Capability(name="tool_use", type=CapabilityType.TOOL),
            Capability(name="system_prompts", type=CapabilityType.PROMPT),
        )

    async def execute(
        self, request: ProviderRequest
    ) -> AsyncGenerator[ProviderEvent | ProviderLevels | ProviderOutcome, None]:
        """Carry out one attempt. When it is cancelled or closed the HTTP stream is closed at once."""
        options = self.check_options(request.options, field="options")
        api_key = read_api_key(options)
        # Loading takes 1-2 s the first time; in a thread the other runs of the process go on meanwhile.
        sdk = await asyncio.to_thread(_load_attempts)
        async with self._connected(options.base_url, api_key) as client:
            attempt = sdk.Attempt(client, request, options, api_key)
            self._attempts[request.run_id] = attempt
            try:
                async with aclosing(attempt.run()) as steps:
                    async for step in steps:
                        yield step
            finally:
                del self._attempts[request.run_id]

    async def interrupt(self, run_id: str) -> None:
        raise CapabilityNotSupported("A call of the Messages API cannot be interrupted politely; cancel the run.")

    async def steer(self, run_id: str, message: str) -> bool:
        """The model hears it with its next turn; one is added if it would have been done."""
        attempt = self._attempts.get(run_id)
        if attempt is None:
            raise InvalidOperation(f"Run {run_id} has not begun to talk to the model.", details={"run_id": run_id})
        attempt.steer(message)
        return False

    def processes(self, run_id: str) -> list[dict[str, int]]:
        return []

    async def aclose(self) -> None:
        client, self._client, self._client_of = self._client, None, None
        if client is not None:
            await client.close()

    @asynccontextmanager
    async def _connected(self, base_url: str | None, api_key: str) -> "AsyncGenerator[AsyncAnthropic, None]":
        sdk = _load_attempts()
        if self._client is None:
            self._client, self._client_of = sdk.new_client(base_url, api_key), (base_url, api_key)
        shared = self._client
        if self._client_of == (base_url, api_key):
            yield shared
            return
        async with sdk.new_client(base_url, api_key) as client:
            yield client


def _load_attempts():  # the return type is inferred: ModuleType would lose what is in the module
    from . import attempt  # noqa: PLC0415  # loads the SDK

    return attempt
