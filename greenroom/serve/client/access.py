"""Where the service is, and the key that opens it: as given, or from the environment."""

import ipaddress
import os

import httpx2

from ...domain.errors import ValidationError

URL_VARIABLE = "GREENROOM_URL"
KEY_VARIABLE = "GREENROOM_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"

_LOCALHOST = "localhost"


def service_url(given: str | None) -> httpx2.URL:
    """The address of the service. ValidationError for what is none, and for one with a user name or a query in it."""
    text = given or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as exc:
        raise _refused("url", f"is no address: {exc}") from exc
    if url.scheme not in {"http", "https"} or not url.host:
        raise _refused("url", "must begin with http:// or https:// and name a host")
    if url.userinfo or url.query or url.fragment:
        raise _refused("url", "must be a plain address; give the key as `key`")
    return url


def service_key(given: str | None) -> str:
    """The key. ValidationError, which never repeats it, for none and for what is not one printable word."""
    key = given or os.environ.get(KEY_VARIABLE) or ""
    if not key:
        raise _refused("key", f"is missing; give one that `greenroom keys create` printed, or set {KEY_VARIABLE}")
    if not is_header_value(key) or " " in key:
        raise _refused("key", "is not one word of printable ASCII; copy it as `greenroom keys create` printed it")
    return key


def is_header_value(text: str) -> bool:
    """Whether it arrives in a header as it is: printable ASCII, without spaces around it."""
    return bool(text) and text.isascii() and text.isprintable() and text == text.strip()


def is_loopback(url: httpx2.URL) -> bool:
    """Whether it leads to this machine."""
    if url.host == _LOCALHOST or url.host.endswith(f".{_LOCALHOST}"):
        return True
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return False


def _refused(field: str, reason: str) -> ValidationError:
    return ValidationError(f"{field} {reason}.", details={"field": field})
