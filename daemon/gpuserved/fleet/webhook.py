"""Crash cards to a URL of the operator's (a chat room, a pager). It never delays anything and never says what the URL is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp
import msgspec

from gpuserved.api.crash import CrashCard
from gpuserved.host.tasks import Tasks

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
PAUSES_S = (1.0, 5.0, 25.0)
"""Before each further try."""
WAITING_MAX = 32
"""Cards that wait for a receiver that is slow or gone; in a crash loop the next ones say the same."""


class Webhook:
    """Posts cards one after the other."""

    def __init__(self, url: Callable[[], str | None], pauses_s: tuple[float, ...] = PAUSES_S) -> None:
        """:param url: where cards go now; None: nowhere."""
        self._url = url
        self._pauses_s = pauses_s
        self._waiting: asyncio.Queue[CrashCard] = asyncio.Queue(WAITING_MAX)
        self._tasks = Tasks(log)
        self._task: asyncio.Task[None] | None = None

    def post(self, card: CrashCard) -> None:
        """Send this card as soon as may be. Never blocks."""
        if self._url() is None:
            return
        try:
            self._waiting.put_nowait(card)
        except asyncio.QueueFull:
            log.warning("webhook: too many cards wait; the one of %s is left out", card.replica)
            return
        if self._task is None or self._task.done():
            self._task = self._tasks.start(self._run(), "posting crash cards")

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while not self._waiting.empty():
                await self._deliver(session, self._waiting.get_nowait())

    async def _deliver(self, session: aiohttp.ClientSession, card: CrashCard) -> None:
        body = msgspec.json.encode({"text": card.headline, **msgspec.to_builtins(card)})
        said = "no URL"
        for pause_s in (0.0, *self._pauses_s):
            await asyncio.sleep(pause_s)
            url = self._url()
            if url is None:
                return
            try:
                async with session.post(
                    url, data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
                ) as answer:
                    if answer.status < 300:
                        return
                    said = f"status {answer.status}"
                    if 400 <= answer.status < 500 and answer.status not in {408, 429}:
                        break  # the same again would be refused again
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                said = type(error).__name__
        host = urlsplit(self._url() or "").hostname
        log.warning("webhook at %s did not take the card of %s: %s", host, card.replica, said)

    async def close(self) -> None:
        """Stop sending; what waits is in the files."""
        await self._tasks.close()
