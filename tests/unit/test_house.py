"""The shape of the house: what must never appear, and what must always work from its root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_folder_platform_never_becomes_a_package(repository: Path) -> None:
    assert not (repository / "platform" / "__init__.py").exists(), "it would shadow the standard library's platform"


def test_the_standard_library_platform_is_found_from_the_root(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip()


def test_the_ground_floor_loads_without_ray_torch_or_rdkit(repository: Path) -> None:
    code = "import sys, rayzyme.settings, rayzyme.models, rayzyme.errors; print({*sys.modules} & {'ray', 'torch', 'rdkit'} or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
