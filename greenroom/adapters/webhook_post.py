"""One delivery of a webhook: signed as the Standard Webhooks specification wants it."""

import asyncio
import json
import os
from datetime import UTC, datetime
from importlib.metadata import version

import httpx2
from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError

from ..domain.errors import ValidationError
from ..domain.event import Event
from ..domain.webhook import WebhookTarget

_TIMEOUT_S = 15.0


class WebhookPost:
    """Sends events to one target. The id of a delivery is the event's: a receiver that sees one again drops it."""

    def __init__(self, target: WebhookTarget) -> None:
        """ValidationError when there is no usable secret."""
        self._url = target.url
        try:
            self._signer = Webhook(os.environ[target.secret_env])
        except (KeyError, ValueError, RuntimeError, EmptyWebhookSecretError):
            raise ValidationError(
                f"webhooks.{target.name}.secret_env: {target.secret_env} must hold `whsec_` and base64.",
                details={"field": f"http.webhooks.{target.name}.secret_env"},
            ) from None
        self._client = httpx2.AsyncClient(
            timeout=_TIMEOUT_S, headers={"User-Agent": f"greenroom/{version('greenroom')}"}, follow_redirects=False
        )

    async def send(self, event: Event) -> str | None:
        """None once it was taken; else what went wrong."""
        body = json.dumps(event.to_dict())
        now = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": event.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(event.id, now, body),
        }
        try:
            async with (
                asyncio.timeout(_TIMEOUT_S),
                self._client.stream("POST", self._url, content=body, headers=headers) as response,
            ):  # what it says beside its status is not read
                return None if response.is_success else f"status {response.status_code}"
        except (httpx2.HTTPError, TimeoutError) as exc:
            return type(exc).__name__

    async def aclose(self) -> None:
        await self._client.aclose()
