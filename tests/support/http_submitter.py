"""A replica of the HTTP API in a process of its own, for tests that let several compete: no Ray, the same database.

`python http_submitter.py KEY COUNT` waits for a line, then posts the same job under each of the keys KEY-0, KEY-1, ..; prints
statuses and ids as JSON.
"""

from __future__ import annotations

import json
import sys

from starlette.testclient import TestClient

from rayzyme.settings import get_settings
from rayzyme_actors import DispatcherAPI
from rayzyme_serve.api import create_api


def main(key: str, count: str) -> None:
    """Post."""
    api = create_api(get_settings())
    api.state.service.dispatcher = DispatcherAPI(auto_start=False)
    body = {"workflow": "screening", "parameters": {"reactions": ["OO.OO>>O=O.O.O"], "top_k": 1}}
    with TestClient(api, base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        answers = [
            client.post("/v1/jobs", json=body, headers={"Idempotency-Key": f"{key}-{number}"})
            for number in range(int(count))
        ]
    sys.stdout.write(json.dumps([[answer.status_code, answer.json().get("job_id")] for answer in answers]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
