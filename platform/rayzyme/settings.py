"""Settings of everything: defaults < YAML file < environment < overrides, merged deeply.

The environment names a setting by its path, `RAYZYME_TASKS__SCREENING__TOP_K=50`; `RAYZYME_CONFIG` names the file, which
otherwise is `config.yaml` in `RAYZYME_HOME`. Faults are reported together, each with its path and the nearest known name or word.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from rayzyme.errors import ValidationError
from rayzyme.settings_sections import (
    CancelSettings,
    CheckpointSettings,
    DatabaseSettings,
    Device,
    EsmSettings,
    LeaseSettings,
    LoggingSettings,
    QuotaSettings,
    RaySettings,
    ResourceSettings,
    SchedulerSettings,
    ServeSettings,
    TaskSettings,
)

_PREFIX = "RAYZYME_"
# Variables of that prefix that are no settings.
_OTHER_VARIABLES = frozenset({"CONFIG", "CLIPZYME_CHECKPOINT"})


class Settings(BaseSettings):
    """Every setting of Rayzyme. Build one with `load_settings`.

    Attributes:
        home: Where checkpoints, screening sets, caches and logs live (`RAYZYME_HOME`).
        device: Where models and shards go; "auto" takes a GPU where there is one.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Path = Path("~/.rayzyme")
    device: Device = "auto"
    ray: RaySettings = RaySettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    esm: EsmSettings = EsmSettings()
    tasks: TaskSettings = TaskSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    quotas: QuotaSettings = QuotaSettings()
    cancel: CancelSettings = CancelSettings()
    resources: ResourceSettings = ResourceSettings()
    database: DatabaseSettings = DatabaseSettings()
    leases: LeaseSettings = LeaseSettings()
    serve: ServeSettings = ServeSettings()
    logging: LoggingSettings = LoggingSettings()

    def model_post_init(self, _context: Any, /) -> None:
        # Frozen for callers; this only makes the path full, once, at birth: actors work in other folders.
        object.__setattr__(self, "home", self.home.expanduser().absolute())

    @property
    def screening_sets(self) -> Path:
        """Folder of the screening sets that are known by name."""
        return self.home / "screening_sets"

    @property
    def runs(self) -> Path:
        """Folder of what the tasks of jobs write and print, by job."""
        return self.home / "runs"

    @property
    def results(self) -> Path:
        """Folder of what jobs give that were submitted over HTTP, a folder each."""
        return self.home / "results"

    @property
    def cache(self) -> Path:
        """Folder of everything that may be deleted at any time."""
        return self.home / "cache"


def load_settings(config_file: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Merge defaults, file, environment and overrides.

    Args:
        config_file: YAML file; None takes `RAYZYME_CONFIG`, else `$RAYZYME_HOME/config.yaml` where it exists.
        overrides: Nested mapping that beats every other source.

    Raises:
        FileNotFoundError: `config_file` (or `RAYZYME_CONFIG`) does not exist.
        ValidationError: Lists every fault: unknown keys with the nearest known one, values out of range.
    """
    file = _config_file(config_file)
    file_values = _read_yaml(file) if file is not None else {}

    class SourcedSettings(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=file_values)

    if overrides is not None and not isinstance(overrides, Mapping):
        raise ValidationError(f"overrides must be a nested mapping of settings, not {overrides!r}")
    for key in overrides or {}:
        if not isinstance(key, str):
            raise ValidationError(f"overrides: {key!r} is no name of a setting; names are texts")
    _refuse_unknown_variables()
    try:
        sourced = SourcedSettings(**(overrides or {}))
    except SettingsError as error:
        raise ValidationError(
            f"an environment variable RAYZYME_... cannot be read: {error.__cause__ or error}"
        ) from None
    except PydanticValidationError as error:
        faults = "\n".join(f"  {_describe(fault)}" for fault in error.errors())
        where = f" (file {file})" if file is not None else ""
        raise ValidationError(f"{error.error_count()} invalid setting(s){where}:\n{faults}") from None
    return Settings.model_construct(**{name: getattr(sourced, name) for name in Settings.model_fields})


_current: list[Settings] = []


def get_settings() -> Settings:
    """The settings of this process: those given to `use_settings`, else `load_settings()`, once."""
    if not _current:
        _current.append(load_settings())
    return _current[0]


def use_settings(settings: Settings | None) -> None:
    """Make `settings` those of this process: a command's `--config`, or in an actor those of the program that started it.

    None forgets them, so that the next `get_settings` loads them anew.
    """
    _current[:] = [] if settings is None else [settings]


def _config_file(config_file: str | Path | None) -> Path | None:
    named = config_file or os.environ.get("RAYZYME_CONFIG")
    if named is not None:
        file = Path(named).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"settings file {file} does not exist; create it or leave out --config / RAYZYME_CONFIG"
            )
        return file
    standard = Path(os.environ.get("RAYZYME_HOME", "~/.rayzyme")).expanduser() / "config.yaml"
    return standard if standard.is_file() else None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValidationError(f"settings file {file} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValidationError(f"settings file {file} must hold a mapping of sections, not a {type(values).__name__}")
    odd = [key for key in values if not isinstance(key, str)]
    if odd:
        raise ValidationError(f"settings file {file}: {odd[0]!r} is no name of a setting; names are texts")
    return values


def _refuse_unknown_variables() -> None:
    """A section that is misspelt in a file is refused; one in the environment must not be passed over either."""
    known = {name.upper() for name in Settings.model_fields} | _OTHER_VARIABLES
    for variable in sorted(os.environ):
        section = variable.upper().removeprefix(_PREFIX).partition("__")[0]
        if not variable.upper().startswith(_PREFIX) or section in known:
            continue
        near = difflib.get_close_matches(section, known, n=1)
        # What resembles no setting may be somebody's own.
        if near or "__" in variable:
            hint = f"did you mean {_PREFIX}{near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValidationError(f"environment variable {variable}: unknown setting; {hint}")


def _describe(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    path = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = _names_at(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])!r}?" if near else f"known: {', '.join(known)}"
        return f"{path}: unknown setting; {hint}"
    # What was given for the database may hold its password, and messages end up in logs.
    given = "" if location[0] == "database" else f" (got {fault['input']!r})"
    return f"{path}: {fault['msg'].removeprefix('Value error, ')}{given}{_nearest_word(fault)}"


def _nearest_word(fault: Any) -> str:
    """Of a closed set of words, the one that was probably meant."""
    if fault["type"] != "literal_error" or not isinstance(fault["input"], str):
        return ""
    # Words differ in case from set to set, and in that they are often mistaken.
    words = {word.lower(): word for word in re.findall(r"'([^']*)'", fault["ctx"]["expected"])}
    near = difflib.get_close_matches(fault["input"].lower(), words, n=1)
    return f"; did you mean {words[near[0]]!r}?" if near else ""


def _names_at(location: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    is_own_name = False
    for part in location:
        if is_own_name:  # such as an owner's, in a mapping of sections
            is_own_name = False
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [annotation, *get_args(annotation)]
        inner = next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)
        if inner is None:
            return []
        model, is_own_name = inner, get_origin(annotation) is dict
    return sorted(field.alias or name for name, field in model.model_fields.items())
