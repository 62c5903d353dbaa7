"""Screen reactions as a job of the platform, and print the best enzyme of each; made to be sent to a cluster:

ray job submit --working-dir examples -- python screen_on_cluster.py well_known_reactions.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

from rayzyme.chemistry import read_reactions
from rayzyme.workflows import create_screening_workflow
from rayzyme_actors import DispatcherAPI


def main(reactions_file: Path) -> int:
    """Submit, wait, print."""
    # The reactions themselves, not the file: tasks may run on machines that do not have it.
    reactions = read_reactions(reactions_file).records
    workflow = create_screening_workflow("baseline", reactions, top_k=1, build_screening_set=False)
    with DispatcherAPI() as dispatcher:
        job_id = dispatcher.submit_workflow(workflow, name=f"screening of {reactions_file.name}")
        print(f"submitted as {job_id}", flush=True)
        result = dispatcher.wait_for_job(job_id)
    if not result.success:
        print(f"failed: {result.error}", file=sys.stderr)
        return 1
    for answered in result.get_task_result("run_screening").output["results"]:
        best = answered["hits"][0]
        print(f"{answered['reaction_id']}: {best['protein_id']} ({best['score']:.4f})")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
