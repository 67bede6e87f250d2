"""Commands that are written to, as clients that speak by pipes are."""

import asyncio

import pytest

from greenroom.adapters.supervised_process import SupervisedProcess, scrubbed_environment

LARGE = b"x" * 3_000_000 + b"\n"


async def started(*command: str, with_stdin: bool = True) -> SupervisedProcess:
    return await SupervisedProcess.start(command, env=scrubbed_environment({}), with_stdin=with_stdin)


async def read_all(process: SupervisedProcess) -> bytes:
    pieces: list[bytes] = []
    while piece := await process.stdout.read(65_536):
        pieces.append(piece)
    return b"".join(pieces)


async def write_again_and_again(stdin: asyncio.StreamWriter) -> None:
    for _ in range(100):
        stdin.write(b"anybody there?\n")
        await stdin.drain()
        await asyncio.sleep(0.01)


async def test_a_command_reads_what_is_written_to_it_while_it_answers() -> None:
    process = await started("cat")
    assert process.stdin is not None
    process.stdin.write(b"hello\n")
    await process.stdin.drain()
    assert b"hello\n" == await process.stdout.readline()

    reading = asyncio.create_task(read_all(process))
    process.stdin.write(LARGE)
    await process.stdin.drain()
    process.stdin.close()

    assert LARGE == await reading
    assert 0 == await process.wait()
    await process.aclose()


async def test_whoever_writes_to_a_command_that_has_ended_hears_of_it() -> None:
    process = await started("true")
    assert process.stdin is not None
    await process.wait()

    with pytest.raises((ConnectionError, RuntimeError)):
        await write_again_and_again(process.stdin)
    await process.aclose()


async def test_a_command_that_waits_for_input_ends_when_its_process_is_closed() -> None:
    process = await started("cat")
    await process.aclose()

    assert await process.wait() != 0


async def test_without_being_asked_for_there_is_nothing_to_read() -> None:
    process = await started("cat", with_stdin=False)

    assert (b"", 0, None) == (await read_all(process), await process.wait(), process.stdin)
    await process.aclose()
