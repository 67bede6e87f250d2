"""Values from outside that must be JSON, refused in Greenroom's own words. Option parsing would load pydantic."""

from ..domain.errors import ValidationError
from ..domain.json_values import MAX_DEPTH, check_json_safe


def require_json_safe(value: object, *, field: str) -> None:
    """Raise ValidationError unless the value can be stored and written as standard JSON; see check_json_safe."""
    try:
        check_json_safe(value, MAX_DEPTH // 2)  # an event nests it deeper
    except ValueError as exc:
        raise ValidationError(
            f"{field} is not JSON-safe ({exc}); use text, numbers, booleans, lists and mappings with text keys.",
            details={"field": field},
        ) from None
