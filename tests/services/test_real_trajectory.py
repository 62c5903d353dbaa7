"""A real molecular dynamics run, simulated, stored and read in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support.gromacs import ABSENT, is_installed, read_frames, simulate
from tests.support.values import same

from rayzyme.storage import DataHandler

pytestmark = pytest.mark.skipif(not is_installed(), reason=ABSENT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    return simulate(shared / "data" / "AF-P69905-F1-model_v4.cif", tmp_path_factory.mktemp("gromacs"))


@pytest.mark.parametrize("group", ["Protein", "System"])
def test_it_shrinks_by_more_than_sixty_percent_and_comes_back(tmp_path: Path, run: Path, group: str) -> None:
    """C33, C64"""
    frames, time = read_frames(run, group)
    with DataHandler(tmp_path / "data") as handler:
        key = handler.store_trajectory({"frames": frames, "time": time}, "md", {"timestep": 2.0})
        loaded = handler.load_data(key)
        assert len(frames) == 61
        assert same(loaded["frames"], frames)
        assert same(loaded["time"], time)
        assert same(handler.load_frames(key, 20, 30), frames[20:30])
        assert handler.list_entries()[0]["size"] < 0.4 * (frames.nbytes + time.nbytes)


def test_the_fixture_is_such_a_run(run: Path, repository: Path) -> None:
    """C64"""
    fixture = np.load(repository / "tests" / "fixtures" / "peptide_trajectory.npz")
    frames, time = read_frames(run, "Protein")
    assert fixture["frames"].shape == frames.shape == (61, 230, 3)
    assert same(fixture["time"], time)
    assert np.linalg.norm(fixture["frames"][0] - fixture["frames"][0].mean(0)) == pytest.approx(
        np.linalg.norm(frames[0] - frames[0].mean(0)), rel=0.1
    )
