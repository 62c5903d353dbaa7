"""A load generator in a process of its own: clients that each wait for an answer before they ask again.

`python -m benchmarks.http_load URL CLIENTS SECONDS < BODIES` takes JSON bodies, one a line, and prints statuses and latencies.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

import numpy as np


def load(url: str, clients: int, seconds: float, bodies: Sequence[str]) -> dict[str, Any]:
    """Run the generator; `{"per_second", "p50_s", "p99_s", "statuses"}` of what was answered within the time."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.http_load", url, str(clients), str(seconds)],
        input="\n".join(bodies), capture_output=True, text=True, check=True,
    )  # fmt: skip
    told: dict[str, Any] = json.loads(done.stdout)
    return told


async def _client(url: str, bodies: Sequence[str], end: float, first: int) -> list[tuple[int, float]]:
    target = urlsplit(url)
    requests = [
        f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        for body in bodies
    ]
    answers = []
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    for request in cycle(requests[first:] + requests[:first]):
        begin = time.perf_counter()
        if begin > end:
            break
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        answers.append((int(head.split()[1]), time.perf_counter() - begin))
    writer.close()
    return answers


async def _main(url: str, clients: int, seconds: float) -> None:
    bodies = [line.strip() for line in sys.stdin if line.strip()]
    begin = time.perf_counter()
    parts = await asyncio.gather(
        *(_client(url, bodies, begin + seconds, number * len(bodies) // clients) for number in range(clients))
    )
    elapsed = time.perf_counter() - begin
    answers = [answer for part in parts for answer in part]
    good = [latency for status, latency in answers if status == 200]
    told = {
        "per_second": len(good) / elapsed,
        "p50_s": float(np.percentile(good, 50)) if good else float("nan"),
        "p99_s": float(np.percentile(good, 99)) if good else float("nan"),
        "statuses": {str(status): count for status, count in Counter(status for status, _ in answers).items()},
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
