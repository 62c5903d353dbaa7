"""Two programs to read, run and copy from: a screen as a job, and two jobs at once with live figures.

Both take the bundled model and its reference set, so they need no download and no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from rayzyme.jobs.job import TaskPriority
from rayzyme.workflows import Workflow, WorkflowResult
from rayzyme.workflows.ready_made import create_screening_workflow
from rayzyme_actors.dispatcher import Dispatcher

Tell = Callable[[str], Any]

HYDROLYSES: Final = {
    "acetylcholinesterase (EC 3.1.1.7)": "CC(=O)OCC[N+](C)(C)C.O>>C[N+](C)(C)CCO.CC(=O)O",
    "urease (EC 3.5.1.5)": "NC(=O)N.O>>N.NC(=O)O",
}
OTHERS: Final = {
    "fumarase (EC 4.2.1.2)": "OC(=O)/C=C/C(=O)O.O>>OC(=O)C[C@H](O)C(=O)O",
    "catalase (EC 1.11.1.6)": "OO.OO>>O=O.O.O",
}
_TOP_K = 10
_HITS_TOLD = 3
_LOOK_S = 0.5


def demo_simple(output_dir: str | Path = "results/demo_simple", tell: Tell = print) -> WorkflowResult:
    """Screen two reactions as one job, wait for it, and say what was found.

    Args:
        output_dir: Folder of the results.
        tell: Given each line of what happens.
    """
    with Dispatcher() as dispatcher:
        job_id = dispatcher.submit_workflow(_screening(HYDROLYSES, output_dir), name="demo_simple")
        tell(f"{job_id} was accepted; it would outlive this program")
        result = dispatcher.wait_for_job(job_id)
    _tell_result("demo_simple", result, tell)
    return result


def demo_advanced(output_dir: str | Path = "results/demo_advanced", tell: Tell = print) -> dict[str, WorkflowResult]:
    """Run two jobs at once, an urgent one and another, and tell how they get on until both have ended.

    Args:
        output_dir: Folder of the results, one below it for each job.
        tell: Given each line of what happens.

    Returns:
        The result of each job, by name.
    """
    wanted = {"urgent": (HYDROLYSES, TaskPriority.HIGH), "other": (OTHERS, TaskPriority.NORMAL)}
    with Dispatcher() as dispatcher:
        job_ids = {
            name: dispatcher.submit_workflow(_screening(reactions, Path(output_dir) / name), name, priority)
            for name, (reactions, priority) in wanted.items()
        }
        for name, job_id in job_ids.items():
            tell(f"{job_id} ({name}, {wanted[name][1].name}) was accepted")
        results = _followed(dispatcher, job_ids, tell)
    for name, result in results.items():
        _tell_result(name, result, tell)
    return results


def _screening(reactions: Mapping[str, str], output_dir: str | Path) -> Workflow:
    return create_screening_workflow(
        checkpoint_name="baseline",
        reactions=[{"reaction_id": name, "reaction": reaction} for name, reaction in reactions.items()],
        top_k=_TOP_K,
        output_dir=output_dir,
        build_screening_set=False,
    )


def _followed(dispatcher: Dispatcher, job_ids: Mapping[str, str], tell: Tell) -> dict[str, WorkflowResult]:
    """Wait for all, and tell what has changed whenever it has."""
    results: dict[str, WorkflowResult] = {}
    told = ""
    while len(results) < len(job_ids):
        for name in [name for name in job_ids if name not in results]:
            try:
                results[name] = dispatcher.wait_for_job(job_ids[name], timeout=_LOOK_S)
            except TimeoutError:
                continue
        line = _figures(dispatcher.get_stats())
        if line != told:
            told = line
            tell(line)
    return results


def _figures(stats: Mapping[str, Any]) -> str:
    queue, scheduler = stats["queue"], stats["scheduler"]
    return (
        f"{queue['queued']} queued, {queue['running']} running (at most {scheduler['max_concurrent_jobs']}), "
        f"{queue['completed']} completed"
    )


def _tell_result(name: str, result: WorkflowResult, tell: Tell) -> None:
    tell(f"{name}: {result.status.value} after {result.duration:.2f} s")
    if result.error is not None:
        tell(f"  {result.error}")
    screening = result.get_task_result("run_screening")
    if screening is None or not screening.success:
        return
    for found in screening.output["results"]:
        best = ", ".join(f"{hit['protein_id']} ({hit['metadata']['ec']})" for hit in found["hits"][:_HITS_TOLD])
        tell(f"  {found['reaction_id']}: {best}, ...")
    tell(f"  written: {', '.join(screening.output['files'])}")
