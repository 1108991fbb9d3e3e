"""A bounded queue that is fair between those who ask: everybody's oldest request in turn, however many one has. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Round robin over tenants, first come first served within each. Items must be hashable by identity.

    A full queue takes from the tenant that holds most (longest queue drop, as in stochastic fair queueing, McKenney 1990),
    so that one tenant's flood is that tenant's own 429.
    """

    def __init__(self) -> None:
        self._front: deque[T] = deque()
        self._turns: OrderedDict[str, deque[T]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, tenant: str, item: T) -> None:
        """Behind the tenant's others."""
        self._turns.setdefault(tenant, deque()).append(item)
        self._size += 1

    def push_front(self, item: T) -> None:
        """Before everybody: it was served before, and its replica failed."""
        self._front.appendleft(item)
        self._size += 1

    def head(self) -> T | None:
        """Whose turn it is; None: nobody waits."""
        if self._front:
            return self._front[0]
        for waiting in self._turns.values():
            return waiting[0]
        return None

    def pop(self) -> T:
        """Take the head; the next turn is another tenant's.

        :raises IndexError: nobody waits.
        """
        if self._front:
            item = self._front.popleft()
        elif self._turns:
            tenant, waiting = self._turns.popitem(last=False)
            item = waiting.popleft()
            if waiting:
                self._turns[tenant] = waiting
        else:
            raise IndexError("nobody waits")
        self._size -= 1
        return item

    def remove(self, tenant: str, item: T) -> bool:
        """It waits no longer; False: it did not wait."""
        waiting = self._turns.get(tenant)
        try:
            if waiting is not None and item in waiting:
                waiting.remove(item)
                if not waiting:
                    del self._turns[tenant]
            else:
                self._front.remove(item)
        except ValueError:
            return False
        self._size -= 1
        return True

    def displace(self, tenant: str) -> T | None:
        """Make room for one more of `tenant`: the newest item of whoever holds most is taken out; None: `tenant` itself would
        then hold most, so it is the one to wait outside.
        """
        if not self._turns:
            return None
        longest = max(self._turns, key=lambda name: len(self._turns[name]))
        waiting = self._turns[longest]
        if longest == tenant or len(waiting) <= len(self._turns.get(tenant, ())) + 1:
            return None
        item = waiting.pop()
        self._size -= 1
        return item
