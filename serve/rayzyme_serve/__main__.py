"""`python -m rayzyme_serve [PORT]`: the endpoint on this machine's loopback, until Ctrl-C."""

from __future__ import annotations

import signal
import sys

from rayzyme_actors.connection import connect


def main() -> None:
    """Start or join Ray, serve, and say where."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    connect()
    from ray import serve

    from rayzyme_serve.app import build

    # Serve's own default in configuration files is every interface; there are no tokens yet, so loopback only.
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 120})
    serve.run(build(), name="rayzyme")
    sys.stdout.write(f"Rayzyme answers at http://127.0.0.1:{port} (documentation: /docs); Ctrl-C ends it\n")
    sys.stdout.flush()
    try:
        signal.pause()
    except KeyboardInterrupt:
        serve.shutdown()


if __name__ == "__main__":
    main()
