"""What tokens cost, from the price list that genai-prices ships; never fetched from the network."""

from genai_prices import Usage, calc_price

from ..domain.token_usage import TokenUsage
from .logs import get_logger

_log = get_logger(__name__)


def price_usd(model: str, usage: TokenUsage, provider: str = "anthropic") -> float | None:
    """The price of ONE request in US dollars; None for a model that is not in the list. Never raises.

    Prices may rise with the size of a request, so several requests are priced one by one and added, never as a sum of
    their tokens.
    """
    try:
        return float(calc_price(_billed(usage), model_ref=model, provider_id=provider).total_price)
    except LookupError:
        return None
    except Exception as exc:  # noqa: BLE001  # a fault in a price list must not fail a run that has succeeded
        _log.warning("price_unknown", model=model, provider=provider, error=repr(exc))
        return None


def _billed(usage: TokenUsage) -> Usage:
    """Under the names of genai-prices, whose input tokens include what came from or went to a cache."""
    return Usage(
        input_tokens=usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
