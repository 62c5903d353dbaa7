"""A real molecular dynamics run: fifteen residues of haemoglobin in water, by GROMACS, in a few seconds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ABSENT = "gmx not installed: apt-get install gromacs"
_FIRST_RESIDUE, _LAST_RESIDUE = 3, 17
_MINIMISE = "integrator = steep\nnsteps = 100\ncutoff-scheme = Verlet\ncoulombtype = PME\n"
_EQUILIBRATE = """integrator = md
nsteps = {steps}
dt = 0.002
nstxout-compressed = {every}
cutoff-scheme = Verlet
coulombtype = PME
constraints = h-bonds
tcoupl = v-rescale
tc-grps = System
tau_t = 0.1
ref_t = 300
gen_vel = {new_velocities}
"""


def is_installed() -> bool:
    """Whether `gmx` can be called."""
    return shutil.which("gmx") is not None


def simulate(structure: Path, folder: Path, *, steps: int = 3000, every: int = 50) -> Path:
    """Solvate, minimise, equilibrate and run; gives the compressed trajectory (`.xtc`) of all atoms.

    Args:
        structure: AlphaFold's model of haemoglobin alpha (mmCIF).
        folder: Where GROMACS works.
        steps: Of 2 fs.
        every: Steps between two frames.
    """
    import gemmi

    model = gemmi.read_structure(str(structure))
    model.setup_entities()
    for chain in model[0]:
        for index in reversed(range(len(chain))):
            if not _FIRST_RESIDUE <= chain[index].seqid.num <= _LAST_RESIDUE:
                del chain[index]
    model.write_pdb(str(folder / "peptide.pdb"))
    _gmx(folder, "pdb2gmx -f peptide.pdb -o peptide.gro -ff amber99sb-ildn -water tip3p -ignh")
    _gmx(folder, "editconf -f peptide.gro -o box.gro -d 1.0 -bt cubic")
    _gmx(folder, "solvate -cp box.gro -o start.gro -p topol.top")
    for stage, parameters, begin in (
        ("em", _MINIMISE, "start.gro"),
        ("pr", _EQUILIBRATE.format(steps=250, every=0, new_velocities="yes"), "em.gro"),
        ("md", _EQUILIBRATE.format(steps=steps, every=every, new_velocities="no"), "pr.gro"),
    ):
        (folder / f"{stage}.mdp").write_text(parameters)
        _gmx(folder, f"grompp -f {stage}.mdp -c {begin} -p topol.top -o {stage}.tpr -maxwarn 5")
        _gmx(folder, f"mdrun -deffnm {stage} -ntmpi 1 -ntomp 2")
    return folder / "md.xtc"


def read_frames(trajectory: Path, group: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Frames as `gmx trjconv` writes them: coordinates in nm, float32 (frames, atoms, 3), and times in ps, float64 (frames,).

    Args:
        trajectory: `.xtc` beside its `.tpr`.
        group: GROMACS's group, such as "Protein" or "System".
    """
    text = trajectory.with_name(f"{group}.gro")
    _gmx(trajectory.parent, f"trjconv -f {trajectory.name} -s {trajectory.stem}.tpr -o {text.name}", answer=group)
    lines = text.read_text().splitlines()
    atoms = int(lines[1])
    starts = range(0, len(lines), atoms + 3)
    frames = np.array(
        [[[line[20:28], line[28:36], line[36:44]] for line in lines[start + 2 : start + 2 + atoms]] for start in starts]
    ).astype(np.float32)
    return frames, np.array([float(lines[start].split("t=")[1].split()[0]) for start in starts])


def _gmx(folder: Path, command: str, answer: str = "") -> None:
    done = subprocess.run(
        ["gmx", "-nobackup", *command.split()], cwd=folder, input=answer, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"gmx {command} failed:\n{done.stderr[-2000:]}")
