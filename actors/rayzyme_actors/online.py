"""Screening for many callers at once, from one event loop: what the HTTP endpoint asks.

The long-lived actors are those of every other program, and so are the answers. A caller who hangs up takes its work with it,
requests of different callers are searched for together in the shards, and a reaction that was seen before is not encoded again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.exceptions import RayTaskError, TaskCancelledError

from rayzyme.chemistry import PreparedReaction, canonical_reaction, prepare_reactions
from rayzyme.errors import InvalidReaction, NotFound, RayzymeError, WorkerLost
from rayzyme.models.checkpoints import CheckpointRegistry
from rayzyme.monitoring import get_metrics_collector
from rayzyme.monitoring.logs import log_fields
from rayzyme.screening.answer import SCHEMA, ReactionResult, ScreeningAnswer, merge_hits
from rayzyme.screening.library import ScreeningSetLibrary
from rayzyme.settings import Settings
from rayzyme_actors.embedding_shard import waited_s
from rayzyme_actors.lanes import Lane
from rayzyme_actors.long_lived import LOST, LongLivedActor, cause_of, lost_twice
from rayzyme_actors.model_host import EncodedReactions
from rayzyme_actors.screening import Screener, as_records, note_if_clamped, result_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

_OPENED_KEPT: Final = 4
_OPENED_TOGETHER: Final = 16
_MERGED_AT_ONCE: Final = 2_000
_LOOK_EVERY_S: Final = 1.0
_TRIAL_REACTION: Final = "OO.OO>>O=O.O.O"
# A request of many reactions must not hold up those of others for longer than a scan or two.
_SEARCHED_TOGETHER: Final = 8


@dataclass(frozen=True, slots=True)
class _Encoded:
    prepared: PreparedReaction
    embedding: NDArray[np.float32]


@dataclass(slots=True)
class _Timing:
    begin: float = field(default_factory=time.perf_counter)
    queue: float = 0.0
    encode: float = 0.0
    search: float = 0.0

    def told(self) -> dict[str, float]:
        total = time.perf_counter() - self.begin
        times = {"total_s": total, "queue_s": self.queue, "encode_s": self.encode, "search_s": self.search}
        return {name: round(value, 6) for name, value in times.items()}


class OnlineScreening:
    """Screens for everybody who asks this process; all methods but the two that list in one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is started before it is asked for.

        Args:
            settings: In force; `serve.embeddings_kept` reactions are remembered.
        """
        self._settings = settings
        self._library = ScreeningSetLibrary(settings.screening_sets)
        self._checkpoints = CheckpointRegistry(settings.home, settings.checkpoints.sources)
        self._opened: OrderedDict[tuple[Any, ...], asyncio.Task[Screener]] = OrderedDict()
        self._encoded: OrderedDict[tuple[str, str], _Encoded] = OrderedDict()
        # By the canonical reaction, one of the texts that are known.
        self._texts: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._identities: dict[tuple[str, str], tuple[float, tuple[Any, ...]]] = {}
        self._trial: asyncio.Task[ScreeningAnswer] | None = None
        self._tried_at = 0.0
        self._patient = ThreadPoolExecutor(_OPENED_TOGETHER, "rayzyme-opening")
        self._mending: dict[str, asyncio.Task[None]] = {}

    async def screen(
        self,
        reactions: Sequence[str],
        *,
        top_k: int,
        screening_set: str = "reference",
        checkpoint: str = "baseline",
        filters: Mapping[str, Any] | None = None,
        lane: Lane = "online",
    ) -> ScreeningAnswer:
        """Rank the proteins of a screening set for each reaction.

        Args:
            reactions: Reaction SMILES.
            top_k: Hits per reaction; more than the set holds gives all, and `notes` says so.
            screening_set: Name; a path is not taken.
            checkpoint: Name; must be the one that made the set.
            filters: Which proteins may be hits, as in `rayzyme.screening.filters`.
            lane: "online" before all batch work, or "batch".

        Returns:
            The answer, as `rayzyme.screening.answer` describes it; `timing` has total, queue, encode and search.

        Raises:
            InvalidInput: A reaction, a filter or `top_k` that cannot be used.
            NotFound: Unknown checkpoint or set.
            CheckpointMismatch: The set was made by another checkpoint.
            WorkerLost: An actor was lost twice.
        """
        timing = _Timing()
        records = as_records(reactions)
        screener = await self._screener(checkpoint, screening_set)
        notes: list[str] = []
        k = note_if_clamped(top_k, screener.screening_set, screening_set, notes)
        encoded = await self._encode(screener, [record.reaction for record in records], lane, timing)
        results: list[ReactionResult] = []
        for first in range(0, len(records), _SEARCHED_TOGETHER):
            some = encoded[first : first + _SEARCHED_TOGETHER]
            queries = np.stack([item.embedding for item in some])
            parts = await self._search(screener, queries, k, filters, lane, timing)
            merge = partial(merge_hits, parts, len(some), k)
            # Many take long enough for other callers to notice.
            rankings = merge() if len(some) * k <= _MERGED_AT_ONCE else await asyncio.to_thread(merge)
            for record, item, hits in zip(records[first:], some, rankings, strict=False):
                results.append(result_of(record, item.prepared, hits))
        if filters and any(len(result["hits"]) < k for result in results):
            size = len(screener.screening_set)
            notes.append(f"the filter admits only {len(results[0]['hits'])} of the {size} proteins")
        return {
            "schema": SCHEMA,
            "checkpoint": screener.checkpoint.name,
            "checkpoint_digest": screener.checkpoint.digest,
            "screening_set": screening_set,
            "screening_set_size": len(screener.screening_set),
            "results": results,
            "rejected": [],
            "notes": notes,
            "timing": timing.told(),
        }

    async def try_out(self) -> ScreeningAnswer:
        """A tiny screen, at most one in a second however many ask. Errors as of `screen`."""
        trial = self._trial
        if trial is None or (trial.done() and time.monotonic() - self._tried_at > _LOOK_EVERY_S):
            trial = self._trial = asyncio.get_running_loop().create_task(self.screen([_TRIAL_REACTION], top_k=1))
            self._tried_at = time.monotonic()
        return await asyncio.shield(trial)

    def screening_sets(self) -> list[dict[str, Any]]:
        """The sets known by name; of one that cannot be opened `damaged` tells why."""
        return [{"name": name, **self._described(name)} for name in self._library.names()]

    def _described(self, name: str) -> dict[str, Any]:
        try:
            # Where it lies is the server's business.
            return {key: value for key, value in self._library.open(name).info().items() if key != "path"}
        except (RayzymeError, OSError, pa.ArrowException) as error:
            logger.warning("the screening set %s cannot be opened: %s", name, error)
            return {"damaged": "it cannot be opened; the server's log tells why"}

    def checkpoints(self) -> list[dict[str, Any]]:
        """The checkpoints known by name."""
        return [
            {"name": info.name, "present": info.present, "description": info.description}
            for info in self._checkpoints.list()
        ]

    # The actors.

    async def _screener(self, checkpoint: str, screening_set: str) -> Screener:
        """The actors of a checkpoint and a set as their files are now; opened once for all who ask meanwhile."""
        key = await self._identity(checkpoint, screening_set)
        opening = self._opened.get(key)
        if opening is None:
            work = self._patiently(partial(Screener, checkpoint, screening_set, settings=self._settings))
            opening = self._opened[key] = asyncio.get_running_loop().create_task(work)
            opening.add_done_callback(partial(self._forget_failed, key))
            while len(self._opened) > _OPENED_KEPT:
                self._opened.popitem(last=False)
        self._opened.move_to_end(key)
        # Shielded: a caller who hangs up must not cancel the opening for all.
        return await asyncio.shield(opening)

    def _forget_failed(self, key: tuple[Any, ...], opening: asyncio.Task[Screener]) -> None:
        """What could not be opened once is not kept: its cause may be gone when somebody asks again."""
        if (opening.cancelled() or opening.exception() is not None) and self._opened.get(key) is opening:
            del self._opened[key]

    async def _patiently(self, work: Callable[[], T]) -> T:
        """In a thread for what may take minutes: the few that the event loop has for the rest are not to wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._patient, work)

    async def _identity(self, checkpoint: str, screening_set: str) -> tuple[Any, ...]:
        """What the files are, looked at once in a second at most."""
        names, now = (checkpoint, screening_set), time.monotonic()
        looked_at, key = self._identities.get(names, (-_LOOK_EVERY_S, ()))
        if now - looked_at >= _LOOK_EVERY_S:
            key = await asyncio.to_thread(self._identify, *names)
            self._identities[names] = now, key
        return key

    def _identify(self, checkpoint: str, screening_set: str) -> tuple[Any, ...]:
        """Only what the server's owner has put in place by name: a path from the wire is never opened."""
        for kind, name, known in (
            ("checkpoint", checkpoint, self._checkpoints.names()),
            ("screening set", screening_set, self._library.names()),
        ):
            if name not in known:
                raise NotFound(f"unknown {kind} {name!r}; this server knows: {', '.join(known)}")
        files = self._checkpoints.resolve(checkpoint), self._library.resolve(screening_set)
        return checkpoint, screening_set, *((state.st_mtime_ns, state.st_size) for state in map(_stat, files))

    async def _call(self, actor: LongLivedActor, method: str, *arguments: Any) -> Any:
        """The answer of an actor; if it is lost meanwhile, it is asked once more when it is back."""
        for left in (1, 0):
            reference = actor.submit(method, *arguments).reference
            try:
                return await reference
            except asyncio.CancelledError:
                ray.cancel(reference)
                raise
            except TaskCancelledError:
                # Somebody else's cancelling never reaches this call; a process that ends does.
                if not left:
                    raise WorkerLost(lost_twice(actor, method, "it was ending")) from None
            except RayTaskError as error:
                raise cause_of(error) from None
            except LOST as error:
                if not left:
                    raise WorkerLost(lost_twice(actor, method, str(error))) from None
            get_metrics_collector().increment("rayzyme_online_retries_total")
            await self._mend(actor)
        raise AssertionError("it is asked twice at most")

    async def _mend(self, actor: LongLivedActor) -> None:
        """Wait until an actor is back; once for all who wait."""
        mending = self._mending.get(actor.name)
        if mending is None:
            mending = asyncio.get_running_loop().create_task(self._patiently(partial(_restart, actor)))
            self._mending[actor.name] = mending
            mending.add_done_callback(lambda _: self._mending.pop(actor.name, None))
        await asyncio.shield(mending)

    # The two steps.

    async def _encode(
        self, screener: Screener, reactions: Sequence[str], lane: Lane, timing: _Timing
    ) -> list[_Encoded]:
        begin = time.perf_counter()
        digest, metrics = screener.checkpoint.digest, get_metrics_collector()
        found = {text: item for text in reactions if (item := self._remembered(digest, text)) is not None}
        unread = list(dict.fromkeys(text for text in reactions if text not in found))
        # Reading many reactions takes long enough for other callers to notice.
        canonical = await asyncio.to_thread(_canonical_forms, unread) if unread else {}
        found |= self._written_otherwise(digest, canonical)
        missing = [text for text in unread if text not in found]
        metrics.increment("rayzyme_embeddings_remembered_total", len(found))
        if missing:
            answer: EncodedReactions = await self._call(screener.host, "encode_reactions", missing, lane, log_fields())
            rows = iter(answer.embeddings)
            metrics.increment("rayzyme_embeddings_made_total", len(missing))
            for text, prepared in zip(missing, answer.prepared, strict=True):
                if not isinstance(prepared, PreparedReaction):
                    place = reactions.index(text) + 1
                    raise InvalidReaction(f"reaction {place} {prepared}")
                # A copy: a row of the answer would keep all of it in memory.
                found[text] = _Encoded(prepared, next(rows).copy())
                if text in canonical:
                    self._remember(self._texts, (digest, canonical[text]), text)
        for text in unread:
            self._remember(self._encoded, (digest, text), found[text])
        timing.encode += time.perf_counter() - begin
        return [found[text] for text in reactions]

    def _remembered(self, digest: str, text: str) -> _Encoded | None:
        item = self._encoded.get((digest, text))
        if item is not None:
            self._encoded.move_to_end((digest, text))
        return item

    def _written_otherwise(self, digest: str, canonical: Mapping[str, str]) -> dict[str, _Encoded]:
        """Of reactions by their canonical forms, those that are known under another text, where the model maps no atoms."""
        found = {}
        for text, form in canonical.items():
            same = self._encoded.get((digest, self._texts.get((digest, form), "")))
            if same is not None and same.prepared.mapped_reaction is None:
                (prepared,) = prepare_reactions([text], needs_atom_mapping=False)
                found[text] = _Encoded(prepared, same.embedding)
        return found

    def _remember(self, memory: OrderedDict[tuple[str, str], Any], key: tuple[str, str], value: Any) -> None:
        memory[key] = value
        if len(memory) > self._settings.serve.embeddings_kept:
            memory.popitem(last=False)

    async def _search(
        self,
        screener: Screener,
        queries: NDArray[np.float32],
        k: int,
        filters: Mapping[str, Any] | None,
        lane: Lane,
        timing: _Timing,
    ) -> list[pa.Table]:
        begin = time.perf_counter()
        question = queries, k, filters, lane, log_fields()
        calls = [asyncio.ensure_future(self._call(shard, "search", *question)) for shard in screener.shards]
        try:
            parts: list[pa.Table] = await asyncio.gather(*calls)
        finally:
            # Where one has failed, nobody waits for the others.
            for call in calls:
                call.cancel()
        waited = max((waited_s(part) for part in parts), default=0.0)
        timing.queue += waited
        timing.search += time.perf_counter() - begin - waited
        return parts


def _canonical_forms(texts: Sequence[str]) -> dict[str, str]:
    """Of those that are valid; what is wrong with the others the model's host says."""
    forms = {}
    for text in texts:
        with suppress(InvalidReaction):
            forms[text] = canonical_reaction(text)
    return forms


def _stat(path: Any) -> Any:
    return path.stat()


def _restart(actor: LongLivedActor) -> None:
    actor.start()
    actor.wait_until_ready()
