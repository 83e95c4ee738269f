"""The life of one engine: what it does next, and how its death or its hanging is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from common.errors import BrokenEngineError, EngineError
from common.types import GenerationRequest, LoadedWeights, WeightManifest
from rollout.exchange.messages import DamagedUpdate
from rollout.fleet.batch import Batch
from rollout.fleet.board import Board, make_foreign_error
from rollout.fleet.member import LIFELINE, Member, Stream
from rollout.fleet.patience import LostError, wait_for
from rollout.spec import EngineInfo

BEAT_S = 0.5  # between two looks at an engine that samples
FRESH_S = 120.0  # its first steps may compile kernels
LEAST_S = {"cpu": 10.0, "cuda": 60.0}  # a machine may be busy with something else, a GPU compile for a new shape
SLOWER = 20.0  # times as slow as it ever was: it hangs


async def live(board: Board, member: Member) -> None:
    """Return once an engine has done its last work and is to leave. Raises whatever it is lost by."""
    await finish_first(_work(board, member), _await_death(member), _await_verdict(member), _watch(board, member))


async def finish_first(*work: Coroutine[Any, Any, None]) -> None:
    """Run coroutines side by side until one of them is done. Raises what it raises."""
    parts = [asyncio.create_task(part) for part in work]
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
    for part in done:
        part.result()


async def _work(board: Board, member: Member) -> None:
    """Come up, then do one job after the other."""
    rollout = board.config.rollout
    info: EngineInfo = await wait_for(member.handle.info.remote(), rollout.start_timeout_s, "was not up")
    member.info = info
    member.state = "serving"
    member.settled.set()
    board.event("engine_up", engine=member.id, pid=info.pid, seconds=round(info.startup_seconds, 2))
    await board.tell()

    while (job := await _find_job(board, member)) is not None:
        if isinstance(job, WeightManifest):
            await _load(board, member, job)
        else:
            await _sample(board, member, *job)


async def _find_job(board: Board, member: Member) -> WeightManifest | tuple[Batch, Sequence[GenerationRequest]] | None:
    """Wait for something to do: weights to load, or a batch and what is sent of it at once. None: leave."""
    while True:
        member.news.clear()
        if member.broadcast:
            return member.broadcast
        if member.state == "draining":
            return None
        if member.copies:
            copies, member.copies = member.copies, None
            return copies
        for batch in board.batches:  # the oldest first
            if batch.unsent:
                return batch, ()
        newest = board.newest
        if newest and newest is not member.held and not newest.by_nccl:
            return newest
        await member.news.wait()


async def _load(board: Board, member: Member, manifest: WeightManifest) -> None:
    """Let an engine hold these weights, if they are wanted still. Raises EngineError where it reports others."""
    import ray

    wanted = manifest
    if manifest.by_nccl and manifest is not member.broadcast:
        copy = await board.get_copy(manifest.version)
        if copy is None:
            return
        manifest = copy
    again, member.held = member.held is not None, None
    timeout_s = _limit_load(board) if again else board.config.weights.timeout_s
    began = time.monotonic()
    what = f"did not load version {manifest.version} of the weights"
    try:
        answer: LoadedWeights = await wait_for(member.handle.load.remote(manifest), timeout_s, what)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, BrokenEngineError) or not isinstance(error.cause, EngineError):
            raise
        board.event("weights_damaged", engine=member.id, version=manifest.version, why=str(error.cause.got))
        answer = await wait_for(member.handle.load.remote(manifest), timeout_s, what)  # fetched once more

    if answer.version != manifest.version:
        raise make_foreign_error(member, answer.version, f"published {manifest.version}")
    if answer.note:
        board.event("weights_load_slow", engine=member.id, why=answer.note)
    if again and not manifest.by_nccl:
        board.slowest_load = max(board.slowest_load or 0.0, time.monotonic() - began)
    member.held, member.checksum = wanted, answer.checksum
    if member.broadcast is wanted:
        member.broadcast = None
    await board.report_load(member)


def _limit_load(board: Board) -> float:
    """Return the seconds that an engine may take for other weights: 20 times as long as any of them ever took.

    The first weights of an engine are no measure: they may be a hundred times what changes in a step.
    """
    most = board.config.weights.timeout_s
    if board.slowest_load is None:
        return most
    return min(most, max(LEAST_S[board.config.cluster.device], SLOWER * board.slowest_load))


async def _sample(board: Board, member: Member, batch: Batch, first: Sequence[GenerationRequest]) -> None:
    """Sample what an engine gets of a batch, and hand on groups as they finish."""
    wanted = board.choose_weights(batch)
    if wanted is not member.held:
        await _load(board, member, wanted)
    first = [request for request in first if request.prompt_id in batch.open]
    if wanted is not member.held or not (first or batch.unsent):
        return  # others have done it meanwhile

    member.streams += 1
    stream = member.stream = Stream(number=member.streams, batch=batch)
    first = first or board.deal(member)
    member.longest_wait, member.heard = None, time.monotonic()
    board.note_sent(member, first)
    serve = member.handle.serve.options(num_returns="streaming")
    source = serve.remote(wanted.version, stream.number, tuple(first))
    board.update(member)
    board.attend(member)
    async for ref in source:
        for outcome in await ref:
            if isinstance(outcome, LoadedWeights | DamagedUpdate):
                await board.note_update(member, outcome)
            else:
                board.answer(member, outcome)
        board.attend(member)
    if stream.owed:
        raise LostError(f"ended its stream owing {len(stream.owed)} groups")
    member.stream = None


async def _await_death(member: Member) -> None:
    """Raise what Ray says of an engine's process once it is gone, whatever the engine was doing."""
    await member.call("hold_lifeline", group=LIFELINE)
    raise LostError("its process let go of its lifeline")


async def _await_verdict(member: Member) -> None:
    """Raise LostError once somebody else has found a fault in an engine."""
    await member.condemned.wait()
    raise LostError(member.fault)


async def _watch(board: Board, member: Member) -> None:
    """Raise LostError when an engine that samples stands still, even if others have answered all it owes.

    It may take 20 times as long as it ever took between two steps, and never more than `rollout.step_timeout_s`.
    """
    steps, silent = -1, 0.0
    slowest: float | None = None  # seconds between two steps; None until two were seen
    while True:
        began = time.monotonic()
        await asyncio.sleep(BEAT_S)
        if member.stream is None or began <= member.heard:
            silent, member.seen = 0.0, time.monotonic()
            continue

        longest = FRESH_S if slowest is None else max(LEAST_S[board.config.cluster.device], SLOWER * slowest)
        limit = min(board.config.rollout.step_timeout_s, longest)
        if member.stream.updates:
            limit = max(limit, _limit_load(board))
        found = await wait_for(member.call("count_steps"), limit, "gave no sign of life")
        silent += min(time.monotonic() - began, 2 * BEAT_S)  # what this process slept is not the engine's fault
        if found != steps:
            if steps >= 0:
                slowest = max(slowest or 0.0, silent)
            steps, silent, member.seen = found, 0.0, time.monotonic()
            member.steps = steps
        elif silent > limit:
            raise LostError(f"made no step for {limit:.3g} s")
