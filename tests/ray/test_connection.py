"""Connecting to Ray from a program."""

from __future__ import annotations

import os
import subprocess
import sys

import ray

LISTENING_PROGRAM = """
import threading
from ray._private import utils, worker
from rayzyme_actors.connection import connect

heard, original = threading.Event(), worker.print_to_stdstream

def listening(data, ignore_prefix):
    original(data, ignore_prefix)
    if "THE NODE IS BUSY" in str(data):
        heard.set()

worker.print_to_stdstream = listening
connect()
while not heard.wait(0.2):
    utils.publish_error_to_driver("busy", "THE NODE IS BUSY", worker.global_worker.gcs_client)
print("ANSWER")
"""


def test_a_nodes_warnings_do_not_stand_among_a_programs_answers(ray_session: None) -> None:
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", LISTENING_PROGRAM], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "RAY_ADDRESS": address},
    )  # fmt: skip
    assert done.stdout == "ANSWER\n", done.stderr
