"""The description of the HTTP API, which programs are made from: a change of it is a change for them."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rayzyme.settings import load_settings
from rayzyme_serve.api import create_api


@pytest.fixture
def description() -> dict[str, Any]:
    return dict(create_api(load_settings()).openapi())


def operations(description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{method} {path}": told for path, item in description["paths"].items() for method, told in item.items()}


def test_the_description_is_the_one_that_was_looked_at(description: dict[str, Any], repository: Path) -> None:
    """P1: `WRITE_GOLDENS=1` writes it anew."""
    golden = repository / "tests" / "goldens" / "openapi.json"
    text = json.dumps(description, indent=1) + "\n"
    if os.environ.get("WRITE_GOLDENS"):
        golden.write_text(text)
    before = golden.read_text()
    if text != before:
        changes = difflib.unified_diff(before.splitlines(), text.splitlines(), "looked at", "now", lineterm="", n=5)
        pytest.fail("\n".join(changes), pytrace=False)


def test_every_error_is_described_with_its_body(description: dict[str, Any]) -> None:
    """P1, P2"""
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    for name, told in operations(description).items():
        errors = {status: answer for status, answer in told["responses"].items() if status >= "400"}
        assert {"401", "403", "429", "503"} <= errors.keys() or not name.split()[1].startswith("/v1"), name
        assert all(answer["content"] == body for answer in errors.values()), name


def test_whatever_creates_something_takes_an_idempotency_key(description: dict[str, Any]) -> None:
    """D13"""
    creating = [told for told in operations(description).values() if "201" in told["responses"]]
    assert creating
    for told in creating:
        assert "Idempotency-Key" in [parameter["name"] for parameter in told["parameters"]]


def test_requests_have_examples_that_they_accept(description: dict[str, Any]) -> None:
    """P1"""
    from pydantic import TypeAdapter

    from rayzyme_serve.job_requests import EXAMPLES, JobRequest

    content = description["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert content["examples"] == EXAMPLES
    for example in EXAMPLES.values():
        TypeAdapter(JobRequest).validate_python(example["value"])
