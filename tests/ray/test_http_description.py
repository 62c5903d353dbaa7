"""The HTTP API keeps to its own description, whatever it is sent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.ray.dispatching import dispatcher_of_its_own
from tests.support.http_server import served

from rayzyme_serve.api import create_api


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The API on a socket, as its description has it, and the id of a job that it has completed."""
    with dispatcher_of_its_own(home=str(tmp_path_factory.mktemp("home")), serve={"auth": "open"}) as dispatcher:
        api = create_api(dispatcher.settings)
        api.state.service.store, api.state.service.dispatcher = dispatcher._store, dispatcher
        with served(api) as address:
            body = {"workflow": "screening", "parameters": {"reactions": ["OO.OO>>O=O.O.O"]}}
            job_id = httpx.post(f"{address}/v1/jobs", json=body).json()["job_id"]
            assert dispatcher.wait_for_job(job_id, timeout=120).success
            yield schemathesis.openapi.from_url(f"{address}/openapi.json"), job_id


CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def test_every_answer_is_one_that_is_described(description: Any, subtests: pytest.Subtests) -> None:
    """P1, P2: whether or not a request is as it should be, and no answer is a 5xx but 503"""
    schema, job_id = description
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 9
    for operation, mode in itertools.product(operations, GenerationMode):
        with subtests.test(operation.label, mode=mode.value):
            ask(operation, mode, job_id)


def ask(operation: Any, mode: GenerationMode, job_id: str) -> None:
    """Send an operation what its description allows, or what it does not; half of it about a job that there is."""

    @hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @hypothesis.given(operation.as_strategy(generation_mode=mode), hypothesis.strategies.booleans())
    def check(case: schemathesis.Case, is_known: bool) -> None:
        if is_known and "job_id" in case.path_parameters:
            case.path_parameters["job_id"] = job_id
        response = case.call()
        checks = CHECKS if response.status_code == 503 else [not_a_server_error, *CHECKS]
        case.validate_response(response, checks=checks)

    try:
        check()
    except hypothesis.errors.Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # nothing that one could get wrong
