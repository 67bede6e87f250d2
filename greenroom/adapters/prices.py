"""What tokens cost, from the price list that genai-prices ships; never fetched from the network."""

from genai_prices import Usage, calc_price

from ..domain.token_usage import TokenUsage
from .logs import get_logger

_log = get_logger(__name__)


def price_usd(model: str, usage: TokenUsage, provider: str | None = "anthropic") -> float | None:
    """The price of ONE request in US dollars; None for a model that is not in the list of that provider (of any, if
    none is given). Never raises.

    Prices may rise with the size of a request, so several requests are priced one by one and added where they are
    known, never as a sum of their tokens.
    """
    try:
        return float(calc_price(_billed(usage), model_ref=model, provider_id=provider).total_price)
    except LookupError:
        return None
    except Exception as exc:  # noqa: BLE001  # a fault in a price list must not fail a run that has succeeded
        _log.warning("price_unknown", model=model, provider=provider, error=repr(exc))
        return None


def million_token_price_usd(model: str, provider: str | None) -> float | None:
    """What a million tokens in and as many out cost, in requests of a thousand each."""
    price = price_usd(model, TokenUsage(input_tokens=1_000, output_tokens=1_000), provider)
    return None if price is None else price * 1_000


def _billed(usage: TokenUsage) -> Usage:
    """Under the names of genai-prices, whose input tokens include what came from or went to a cache."""
    return Usage(
        input_tokens=usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
