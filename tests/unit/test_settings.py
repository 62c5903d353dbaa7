"""Settings: which source wins, and how faults are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayzyme.errors import ValidationError
from rayzyme.settings import load_settings


def write(folder: Path, text: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(text)
    return file


def test_defaults_need_no_file(home: Path) -> None:
    settings = load_settings()
    assert settings.home == home
    assert settings.device == "auto"
    assert settings.tasks.screening.top_k == 100
    assert settings.resources.memory.reserve_ratio == 0.2


def test_overrides_beat_environment_beats_file_beats_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "tasks: {screening: {top_k: 1, batch_size: 1, mode: batched}}")
    monkeypatch.setenv("RAYZYME_TASKS__SCREENING__TOP_K", "2")
    monkeypatch.setenv("RAYZYME_TASKS__SCREENING__BATCH_SIZE", "2")
    screening = load_settings(file, {"tasks": {"screening": {"batch_size": 3}}}).tasks.screening
    assert (screening.mode, screening.top_k, screening.batch_size) == ("batched", 2, 3)


def test_the_file_in_the_home_folder_is_read_without_being_named(home: Path) -> None:
    home.mkdir()
    (home / "config.yaml").write_text("device: cpu")
    assert load_settings().device == "cpu"


def test_a_file_named_by_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYZYME_CONFIG", str(write(tmp_path, "device: cpu")))
    assert load_settings().device == "cpu"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"settings file .*absent\.yaml does not exist; create it or leave out"):
        load_settings(tmp_path / "absent.yaml")


def test_all_faults_come_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    file = write(
        tmp_path, "devise: cpu\ntasks: {screening: {top_k: true, batchsize: 2, mode: fast}}\nlogging: {level: LOUD}\n"
    )
    with pytest.raises(ValidationError) as caught:
        load_settings(file, {"resources": {"memory": {"reserve_ratio": 1.5}}})
    message = str(caught.value)
    assert message.startswith(f"6 invalid setting(s) (file {file}):")
    assert "devise: unknown setting; did you mean 'device'?" in message
    assert "tasks.screening.top_k: must be a number, not a boolean (got True)" in message
    assert "tasks.screening.batchsize: unknown setting; did you mean 'tasks.screening.batch_size'?" in message
    assert "tasks.screening.mode: Input should be 'interactive' or 'batched' (got 'fast')" in message
    assert "logging.level: " in message
    assert "resources.memory.reserve_ratio: Input should be less than or equal to 1 (got 1.5)" in message


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ({"scheduler": {"priority_strategy": "fairshare"}}, "(got 'fairshare'); did you mean 'fair_share'?"),
        ({"logging": {"level": "warn"}}, "(got 'warn'); did you mean 'WARNING'?"),
        ({"scheduler": {"priority_strategy": "quickest"}}, "(got 'quickest')"),
        ({"device": "CPU"}, "(got 'CPU'); did you mean 'cpu'?"),
        ({"device": 3}, "(got 3)"),
    ],
)
def test_of_a_closed_set_of_words_the_nearest_is_told(overrides: dict[str, Any], fault: str) -> None:
    """D41, D73"""
    with pytest.raises(ValidationError) as caught:
        load_settings(overrides=overrides)
    assert str(caught.value).endswith(fault)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not valid YAML"), ("- a\n- b", "must hold a mapping of sections, not a list")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        load_settings(write(tmp_path, text))


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().device = "cuda"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("RAYZYME_SHEDULER__MAX_CONCURRENT_JOBS", "4", "MAX_CONCURRENT_JOBS: unknown setting; did you mean RAYZYME_SCHEDULER"),
        ("RAYZYME_SCHEDULER", '{"x', "an environment variable RAYZYME_... cannot be read"),
        ("RAYZYME_LEASES__TTL", "inf", "leases.ttl"),
        ("RAYZYME_LEASES__RENEW", "40", "renew (40 s) must be below ttl (30 s)"),
    ],
)  # fmt: skip
def test_faults_in_the_environment_are_told(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    """D73"""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError) as caught:
        load_settings()
    assert message in str(caught.value)


def test_names_of_settings_are_texts(tmp_path: Path) -> None:
    """D73"""
    with pytest.raises(ValidationError, match="1 is no name of a setting"):
        load_settings(write(tmp_path, "1: 2"))
    with pytest.raises(ValidationError, match="1 is no name of a setting"):
        load_settings(overrides={1: 2})  # type: ignore[dict-item]


def test_a_database_password_is_never_shown(tmp_path: Path) -> None:
    """D11"""
    with pytest.raises(ValidationError) as caught:
        load_settings(overrides={"database": {"host": "a", "url": "postgresql://u:planted@h/d", "port": "planted"}})
    assert "planted" not in str(caught.value)
