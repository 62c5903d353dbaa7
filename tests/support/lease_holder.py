"""A process that holds leases, for tests that kill it, freeze it or let several compete.

`python lease_holder.py URL hold` allocates for the task "dynamics", prints the indices and waits for a line on stdin.
`python lease_holder.py URL compete SEED ROUNDS` waits for a line, then takes and returns leases at random, and prints as
JSON how often it got some and every moment at which more was promised than there is. `URL` may be `settings`.
"""

from __future__ import annotations

import json
import random
import socket
import sys
from contextlib import ExitStack

from rayzyme.database import open_database
from rayzyme.resources.account import Account
from rayzyme.resources.allocation import gpu_resource
from rayzyme.resources.devices import FakeGPUs
from rayzyme.resources.gpu import GPUManager

FREE = [20000, 9000, 24000]
NEEDS = {"prediction": 16000, "dynamics": 8000, "analysis": 3000}


def tell(news: object) -> None:
    """Print a line of JSON, now."""
    sys.stdout.write(json.dumps(news) + "\n")
    sys.stdout.flush()


def hold(manager: GPUManager) -> None:
    """Allocate and wait."""
    tell(manager.allocate_gpus("dynamics"))
    sys.stdin.readline()


def compete(manager: GPUManager, account: Account, seed: int, rounds: int) -> None:
    """Take and return leases at random, and look after each step at what everybody holds."""
    rng, granted, broken = random.Random(seed), 0, []
    room = {gpu_resource(socket.gethostname(), device): device.memory_free for device in FakeGPUs(FREE).devices()}
    tell("ready")
    sys.stdin.readline()
    for _ in range(rounds):
        with ExitStack() as stack:
            for _ in range(rng.randint(1, 3)):
                granted += bool(stack.enter_context(manager.lease(rng.choice(list(NEEDS)))))
                held = dict.fromkeys(room, 0.0)
                for lease in account.live(list(room)):
                    held[lease.resource] += lease.amount
                broken += [(name, amount) for name, amount in held.items() if amount > room[name]]
    tell({"granted": granted, "broken": broken})


if __name__ == "__main__":
    store = None if sys.argv[1] == "settings" else open_database(sys.argv[1])
    with GPUManager(NEEDS, provider=FakeGPUs(FREE), store=store) as manager:
        if sys.argv[2] == "hold":
            hold(manager)
        else:
            compete(manager, Account(store), int(sys.argv[3]), int(sys.argv[4]))
