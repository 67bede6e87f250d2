"""The artifact port: a place for what is too large for an event."""

from typing import Protocol


class ArtifactStore(Protocol):
    """Keeps bytes under the digest of their content, for owners.

    An owner is a session id: a letter or digit, then at most 127 letters, digits and . _ : -. The same bytes are kept
    once, whoever puts them and however often; they go when the last owner that refers to them is deleted. A reference
    is "sha256:" and 64 lower-case hex digits, and belongs to its owner: another owner cannot read by it.

    Every method may be called from any thread and blocks on the disk. ValidationError with `details['field']` when the
    owner or the reference is malformed.
    """

    def put(self, owner: str, content: bytes) -> str:
        """Keep the bytes for the owner; returns their reference once they are durable. Again is as once.

        StorageFull if there is no room for them or a limit of the store forbids them, StorageWriteFailed if they cannot
        be kept for another reason; then nothing of this call is to be seen.
        """
        ...

    def get(self, owner: str, reference: str) -> bytes:
        """The bytes, exactly as they were put. NotFound if the owner has none under this reference, StorageReadFailed
        if they cannot be read or are no longer those that were put.
        """
        ...

    def delete_owner(self, owner: str) -> None:
        """Forget all that the owner has, and the bytes that nobody else refers to.

        Nothing happens when there is none, so that it can be called again after a failure: StorageWriteFailed. What is
        put for this owner at the same time may stay.
        """
        ...

    def references(self, owner: str) -> list[str]:
        """What the owner has, sorted; empty for an unknown owner. StorageReadFailed if that cannot be told."""
        ...

    def total_bytes(self) -> int:
        """The size of all contents, each counted once. StorageReadFailed if that cannot be told."""
        ...
