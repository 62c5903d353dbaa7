"""The HTTP API on a socket of its own, without Ray Serve: streams and clients that hang up are as in earnest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI


@contextmanager
def served(api: FastAPI) -> Iterator[str]:
    """Its address for as long as the block lasts."""
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server has not started"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        # Streams that still wait would hold it up.
        server.should_exit = server.force_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server has not ended"
