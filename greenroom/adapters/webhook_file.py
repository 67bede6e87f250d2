"""webhooks.json in the data_dir: where deliveries go, and how far they have come."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..domain.errors import InvalidFormat
from ..domain.webhook import WebhookTarget
from .duckdb.duckdb_files import write_whole

FILE_NAME = "webhooks.json"


class WebhookFile:
    """For one process at a time."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME

    def read(self) -> tuple[list[WebhookTarget], dict[str, str]]:
        """The targets, and the cursor of each by its name. InvalidFormat if it is not what this wrote."""
        try:
            content = json.loads(self._path.read_text())
            return [WebhookTarget.from_record(record) for record in content["targets"]], content["cursors"]
        except FileNotFoundError:
            return [], {}
        except (ValueError, KeyError, TypeError) as exc:
            raise InvalidFormat(
                f"{self._path} cannot be read: restore it from a backup, or remove it; deliveries then begin with what"
                " is new.",
                details={"path": str(self._path)},
            ) from exc

    def write(self, targets: Sequence[WebhookTarget], cursors: Mapping[str, str]) -> None:
        """Keep these; durable when it returns."""
        content = {"targets": [target.to_record() for target in targets], "cursors": dict(cursors)}
        write_whole(self._path, json.dumps(content, indent=1).encode())
