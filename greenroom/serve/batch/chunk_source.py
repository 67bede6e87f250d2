"""Chunks of files as a source of Ray Data: one block each, read where it is worked on. Loads Ray Data."""

from collections.abc import Iterable, Sequence
from typing import Any

import ray.data
from ray.data.block import BlockMetadata

from ...adapters.batch.own_columns import Columns, table_of
from ...adapters.batch.source_files import Chunk, read_chunk


class ChunkSource(ray.data.Datasource):
    """The rows of chunks, with these columns."""

    def __init__(self, chunks: Sequence[Chunk], columns: Columns) -> None:
        self._chunks = chunks
        self._columns = columns

    def get_name(self) -> str:
        return "Rows"

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(chunk.length for chunk in self._chunks)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[Any]:
        return [_read_task(chunk, self._columns, per_task_row_limit) for chunk in self._chunks]


def _read_task(chunk: Chunk, columns: Columns, limit: int | None) -> Any:
    def read() -> Iterable[Any]:
        return [table_of(read_chunk(chunk), columns)]

    metadata: Any = BlockMetadata(
        num_rows=chunk.rows, size_bytes=chunk.length or None, exec_stats=None, input_files=(chunk.path,)
    )
    return ray.data.ReadTask(read, metadata, per_task_row_limit=limit)


def dataset_of(chunks: Sequence[Chunk], columns: Columns, *, fused: bool) -> Any:
    """The rows as a Dataset, a block for each chunk. `fused`: it is read in the process of the stage that runs the
    rows, which asks for no CPU either; a stage of its own would have as many processes as it could start."""
    read: Any = ray.data.read_datasource  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return read(ChunkSource(chunks, columns), override_num_blocks=max(1, len(chunks)), num_cpus=0 if fused else None)
