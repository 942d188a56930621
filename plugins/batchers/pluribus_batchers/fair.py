"""Tenants share the service by weight, counted in tokens.

The method is the virtual token counter of Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024. A tenant's counter is the tokens computed for it, of prompts and answers,
divided by its weight. The next generation admitted is the oldest of the waiting tenant with
the lowest counter, and nobody is admitted while that one does not fit. A tenant that begins
to wait has its counter lifted to the lowest of those who wait already, or if nobody does, to
that of who did last: time spent idle earns no credit. A chunk of a prompt counts as soon as it
is planned, so that tenants take turns within a step, and anything else once its step has been
submitted.

What this guarantees, where ``held`` is the tokens that running generations may come to, all
together (``max_batch_size`` times the longest generation; or where the KV cache promises no room
that is not there yet, what it holds if that is less):

1. While tenants i and j both have somebody waiting, the tokens served to them divided by
   their weights differ by at most ``held / weight_i + held / weight_j``, over any stretch of
   time. Nor can a tenant that waits only now and then get ahead of i by more than that, beside
   what it had running when i began to wait.
2. A tenant with nothing running whose counter is lifted when it asks for something, as a new
   one's is, waits for no more than what is running, at most ``held`` tokens, and one
   generation of each other tenant.
3. No generation is overtaken for ever: while it waits for ``ahead`` tokens of its own tenant,
   running or waiting before it, another tenant j is served ``weight_j / weight_i * ahead``
   tokens and what 1 allows beyond that, at most.

Why: the lowest counter of those who wait (the level) never falls, because counters only grow
and whoever joins is lifted to it. Tenant i is at the level whenever it is admitted, and until
it is again it can only be served what it has running, so it is never more than ``held /
weight_i`` above the level, nor is it below while it waits. The difference between two
counters thus stays within the two bounds of 1. As for 2: others are admitted before it only
from that same level, which each leaves with its first token; then everything else drains.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pluribus import Generation
from pluribus_batchers.continuous import ContinuousBatcher


@dataclass(eq=False, slots=True)
class Account:
    """A tenant.

    Attributes:
        counter: tokens served, divided by the tenant's weight, as far as they are counted.
        waiting: who of it waits, oldest first.
        running: who of it runs, each with how many of its leading tokens are counted.
    """

    counter: float
    waiting: deque[Generation] = field(default_factory=deque)
    running: dict[Generation, int] = field(default_factory=dict)

    def count(self) -> float:
        """Bring the counter up to date and return it. Counts, not values: steps may run ahead."""
        for generation, counted in self.running.items():
            if generation.num_scheduled > counted:
                self.counter += (generation.num_scheduled - counted) / generation.weight
                self.running[generation] = generation.num_scheduled
        return self.counter


class FairQueue:
    """Who waits, by tenant. The turn is with the tenant that was served least for its weight.

    What was computed is counted where tenants are compared, not in every step.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._backlogged: dict[str, Account] = {}  # in a tie, who has waited longest is first
        self._last_backlogged = Account(counter=0.0)
        self._num_waiting = 0
        self._sweep_at = 64

    def __len__(self) -> int:
        return self._num_waiting

    def add(self, generation: Generation) -> None:
        """Let a generation wait behind those of its tenant."""
        tenant = generation.tenant
        account = self._accounts.get(tenant) or self._open_account(tenant)
        if not account.waiting:
            account.counter = max(account.count(), self._level())
            self._backlogged[tenant] = account
        account.waiting.append(generation)
        self._num_waiting += 1

    def head(self) -> Generation:
        """Return the oldest of the tenant with the lowest counter."""
        accounts = list(self._backlogged.values())
        account = accounts[0] if len(accounts) == 1 else min(accounts, key=Account.count)
        return account.waiting[0]

    def remove(self, generation: Generation) -> None:
        """Let a generation leave."""
        account = self._backlogged[generation.tenant]
        account.waiting.remove(generation)
        self._num_waiting -= 1
        if not account.waiting:
            self._last_backlogged = self._backlogged.pop(generation.tenant)

    def charge(self, generation: Generation, num_tokens: int) -> None:
        """Put tokens of a prompt on their tenant's counter, before they are scheduled."""
        account = self._accounts[generation.tenant]
        account.counter += num_tokens / generation.weight
        account.running[generation] = generation.num_scheduled + num_tokens

    def forget(self, generation: Generation) -> None:
        """Note that a generation is over, and count the last of what was computed for it."""
        account = self._accounts[generation.tenant]
        counted = account.running.pop(generation, generation.num_scheduled)
        account.counter += max(0, generation.num_scheduled - counted) / generation.weight

    def _level(self) -> float:
        accounts = self._backlogged.values() or [self._last_backlogged]
        return min(account.count() for account in accounts)

    def _open_account(self, tenant: str) -> Account:
        if len(self._accounts) >= self._sweep_at:
            self._close_accounts()
        self._accounts[tenant] = account = Account(self._level())
        return account

    def _close_accounts(self) -> None:
        """Drop who is gone and would be lifted on return: tenants' names have no end."""
        level = self._level()
        self._accounts = {
            tenant: account
            for tenant, account in self._accounts.items()
            if account.waiting or account.running or account.counter > level
        }
        self._sweep_at = 64 + 2 * len(self._accounts)


class FairBatcher(ContinuousBatcher):
    """Fill every step as ``continuous`` does, admitting tenants by what they have been served.

    The module's documentation says what is guaranteed, and why.
    """

    queue_class = FairQueue
