"""The artifact port: a place for what is too large for an event."""

from typing import Protocol


class ArtifactStore(Protocol):
    """Keeps bytes under the digest of their content: putting the same bytes twice keeps them once."""

    def put(self, content: bytes) -> str:
        """Keep the bytes; returns their reference once they are durable. StorageWriteFailed if they cannot be kept."""
        ...

    def get(self, reference: str) -> bytes:
        """The bytes; NotFound if there are none under this reference, StorageReadFailed if they were changed."""
        ...

    def delete(self, reference: str) -> None:
        """Forget the bytes; nothing happens when there are none."""
        ...
