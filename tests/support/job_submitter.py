"""A process that works with the store of jobs, for tests that let several compete or kill one.

`python job_submitter.py URL submit NAME COUNT` waits for a line and submits so many jobs one by one; prints their ids as JSON.
`python job_submitter.py URL key NAME COUNT` does so with the idempotency keys 0, 1, .. of one owner.
`python job_submitter.py URL kill NAME COUNT` submits in one call, prints the ids and kills itself at once.
`python job_submitter.py URL role NAME TTL` takes the scheduler's role, prints its token and identity and waits.
`python job_submitter.py URL hold NAME TTL` submits and starts a job that holds the only slot, prints its id and waits.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

# Beside this script, which is where a script looks first unless the environment forbids it.
sys.path.append(str(Path(__file__).parent))
from job_samples import SLOT, request, start

from rayzyme.database import open_database
from rayzyme.jobs.role import process_identity
from rayzyme.jobs.store import JobStore


def tell(news: object) -> None:
    """Print a line of JSON, now."""
    sys.stdout.write(json.dumps(news) + "\n")
    sys.stdout.flush()


def main(url: str, what: str, name: str, count: str) -> None:
    """Do what is asked for."""
    store = JobStore(open_database(url), lease_ttl=float(count) if what in ("role", "hold") else 30.0)
    if what in ("submit", "key"):
        tell("ready")
        sys.stdin.readline()
        keys = [str(number) if what == "key" else None for number in range(int(count))]
        tell([store.submit([request("job", idempotency_key=key)])[0] for key in keys])
    elif what == "kill":
        tell(store.submit([request(f"{name} {number}") for number in range(int(count))]))
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "role":
        identity = process_identity()
        tell([store.take_role(identity, {"host": "here", "pid": os.getpid()}, lambda _: False), identity.to_dict()])
        sys.stdin.readline()
    else:
        (job_id,) = store.submit([request(name)])
        assert store.apply([start(job_id, lease_owner=name)], capacity={SLOT: 1.0})[0].accepted
        tell(job_id)
        sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
