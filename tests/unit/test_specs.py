"""A workflow as JSON and back: what is stored, what is transient, what is refused."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.workflow_runs import planned
from tests.support.workflow_tasks import IMPORTABLE, Join, PlainClass, another_key, answer, double

from rayzyme.errors import DeviceUnavailable, InvalidInput, NotFound, ResourceError, TaskNotSendable, ValidationError
from rayzyme.workflows import (
    FunctionTask,
    PlanChange,
    Task,
    TaskConfig,
    Workflow,
    WorkflowBuilder,
    WorkflowConfig,
    get_registry,
)
from rayzyme.workflows.plan import Plan, PlannedTask, check_possible, plan_needs, plan_seconds
from rayzyme.workflows.specs import change_document, load_task, plan_from_spec, task_document, to_spec

TESTS = "workflow_tasks"


def through_json(document: Any) -> Any:
    return json.loads(json.dumps(document))


def workflow_of(*tasks: Task) -> Workflow:
    builder = WorkflowBuilder("w")
    for task in tasks:
        builder.add_task(task)
    return builder.build()


def test_a_task_is_its_types_path_and_its_arguments_as_json() -> None:
    """D29"""
    config = TaskConfig("join", memory_mb=10)
    task = Join(config, ["a"], Path("/x"), "b", separator="-", progress_callback=print, last="c")
    document = through_json(task_document(task))
    assert document["type"] == f"{TESTS}:Join"
    assert document["path"] == str(IMPORTABLE)
    assert document["arguments"]["folder"] == {"$": "path", "value": "/x"}
    assert "progress_callback" not in document["arguments"]
    assert document["config"] == {"memory_mb": 10}
    assert (document["cpu_capable"], document["estimated_seconds"]) == (True, 3.0)
    again = load_task(document)
    assert isinstance(again, Join)
    assert (again.texts, again.folder, again.separator) == (["a", "b", "c"], Path("/x"), "-")
    assert again.progress_callback is None
    assert again.config == config


def test_a_function_is_stored_as_its_path_and_loaded_by_another_process(tmp_path: Path) -> None:
    """D29"""
    document = through_json(task_document(FunctionTask("f", double, TaskConfig("f", task_params={"number": 4}))))
    assert document["type"] == f"{TESTS}:double"
    program = (
        "import json, sys\n"
        "from rayzyme.workflows.execution import Assignment, run_assignment\n"
        "outcome = run_assignment(Assignment('job_1', 'n', 'f', 1, 1, json.loads(sys.argv[1])))\n"
        "print(outcome.output['value'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, json.dumps(document)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.stdout, ran.stderr) == ("8\n", "")


def test_what_another_process_cannot_import_is_transient_and_says_why() -> None:
    """D29"""

    def local() -> None: ...

    fine = FunctionTask("fine", answer)
    tasks = [
        FunctionTask("lambda", lambda: 1),
        FunctionTask("local", local),
        FunctionTask("bound", fine.recorded_arguments),
        Join(TaskConfig("object"), ["a"], folder=threading.Lock()),  # type: ignore[arg-type]
        FunctionTask("params", answer, TaskConfig("params", task_params={"lock": threading.Lock()})),
        FunctionTask("key", answer, TaskConfig("key", cache_key_fn=lambda _: "x")),
    ]
    spec = to_spec(workflow_of(fine, *tasks))
    assert not spec.is_durable
    assert set(spec.transient) == {"lambda", "local", "bound", "object", "params", "key"}
    why = {task["name"]: task.get("why", "") for task in through_json(spec.document)["tasks"]}
    assert "is a lambda" in why["lambda"]
    assert "defined inside a function" in why["local"]
    assert "argument 'folder' of task 'object'" in why["object"]
    assert "task_params['lock']" in why["params"]
    assert to_spec(workflow_of(fine)).is_durable


def test_what_is_defined_in_the_program_itself_is_transient(tmp_path: Path) -> None:
    """D29"""
    program = tmp_path / "program.py"
    program.write_text(
        "from rayzyme.workflows import FunctionTask, WorkflowBuilder\nfrom rayzyme.workflows.specs import to_spec\n"
        "def work(): return 1\n"
        "print(to_spec(WorkflowBuilder('w').add_task(FunctionTask('t', work)).build()).document['tasks'][0]['why'])\n"
    )
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert "work is defined in the program itself" in ran.stdout


def test_a_transient_task_runs_while_it_is_in_memory_and_says_why_not_afterwards() -> None:
    """D29"""
    spec = to_spec(workflow_of(FunctionTask("t", lambda: 1)))
    document = through_json(spec.document)
    held = plan_from_spec(document, spec.transient).tasks[0]
    assert load_task(held.source).execute(None) == 1  # type: ignore[arg-type]
    assert not held.is_durable
    with pytest.raises(TaskNotSendable, match=r"'t' is not durable \(.*<lambda> is a lambda"):
        load_task(plan_from_spec(document).tasks[0].source)


def test_local_arguments_do_not_travel_with_a_transient_task() -> None:
    """D37"""

    class Local(Join):
        pass

    lock = threading.Lock()
    task = Local(TaskConfig("t"), ["a"], progress_callback=lock)
    workflow = workflow_of(task)
    travelling = to_spec(workflow).transient["t"]
    assert isinstance(travelling, Local)
    assert travelling.progress_callback is None
    assert task.progress_callback is lock
    assert workflow.progress_callbacks() == {"t": lock}


@pytest.mark.parametrize("where", ["attribute", "closure", "global", "parameter", "loop"])
def test_a_task_that_cannot_be_sent_at_all_is_refused_by_the_attribute_at_fault(where: str) -> None:
    """D29"""
    lock = threading.Lock()
    looped: dict[str, Any] = {}
    looped |= {"itself": looped, "lock": lock}
    task = {
        "attribute": Join(TaskConfig("t"), ["a"], folder=lock),  # type: ignore[arg-type]
        "closure": FunctionTask("t", lambda: lock),
        "global": FunctionTask("t", lambda: _LOCK),
        "parameter": FunctionTask("t", answer, TaskConfig("t", task_params={"top": 1, "screen": {"locks": [0, lock]}})),
        "loop": Join(TaskConfig("t"), ["a"], folder=looped),  # type: ignore[arg-type]
    }[where]
    named = {
        "attribute": "its attribute 'folder'",
        "closure": "its attribute 'func', variable 'lock'",
        "global": "its attribute 'func', global '_LOCK'",
        "parameter": "its task_params['screen']['locks'][1]",
        "loop": "its attribute 'folder'['lock']",
    }[where]
    with pytest.raises(TaskNotSendable, match=rf"task 't' .*: {re.escape(named)} of type _thread.lock"):
        to_spec(workflow_of(task), pickle_check=pickle.dumps)


_LOCK = threading.Lock()


def test_a_plan_has_the_order_and_dependencies_of_the_workflow() -> None:
    """D29, D32"""
    builder = WorkflowBuilder("w").set_max_parallel(2).set_timeout(5).on_workflow_complete(print)
    builder.add_task(FunctionTask("b", answer), depends_on=["a"]).add_task(
        FunctionTask("a", answer, TaskConfig("a", depends_on=["elsewhere"])), depends_on=[]
    )
    plan = plan_from_spec(through_json(to_spec(builder.build()).document))
    assert [(task.name, task.depends_on) for task in plan.tasks] == [("a", ()), ("b", ("a",))]
    assert (plan.config.name, plan.config.max_parallel_tasks, plan.config.timeout) == ("w", 2, 5)
    assert plan.config.on_workflow_complete is None
    assert (plan.ancestors("b"), plan.descendants("a"), plan.inputs_of("b")) == (["a"], ["b"], {"a": "a"})


def test_nothing_but_tasks_and_functions_is_called_from_a_stored_path() -> None:
    """D29"""
    for path in (f"{TESTS}:PlainClass", "builtins:dict", "os:environ"):
        with pytest.raises(InvalidInput, match="neither a class derived from Task nor a function"):
            load_task({"name": "t", "type": path})
    assert PlainClass is not None


def test_code_that_is_not_there_is_named() -> None:
    """D29"""
    with pytest.raises(NotFound, match="module no_such_module"):
        load_task({"name": "t", "type": "no_such_module:function", "path": "/nowhere"})
    with pytest.raises(NotFound, match="has no no_such_name"):
        load_task({"name": "t", "type": f"{TESTS}:no_such_name"})
    with pytest.raises(NotFound, match="and not the one of the task under /elsewhere"):
        load_task({"name": "t", "type": f"{TESTS}:double", "path": "/elsewhere"})


def test_a_module_that_was_edited_is_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D29"""
    module = tmp_path / "edited_tasks_module.py"
    module.write_text("def work():\n    return 1\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = {"name": "t", "type": "edited_tasks_module:work", "path": str(tmp_path)}
    assert load_task(source).execute(None) == 1  # type: ignore[arg-type]
    module.write_text("def work():\n    return 'two'\n")
    assert load_task(source).execute(None) == "two"  # type: ignore[arg-type]


def test_a_registered_name_is_a_type_too() -> None:
    """D28, D29"""
    get_registry().register_function_task("double", double)
    assert load_task({"name": "t", "type": "double", "config": {"max_retries": 0}}).config.max_retries == 0
    get_registry().clear()


def test_a_workflow_of_another_format_is_refused() -> None:
    """D29"""
    with pytest.raises(InvalidInput, match="format 99"):
        plan_from_spec({"format": 99})


def test_a_plan_change_is_stored_or_refused() -> None:
    """D39"""
    config = TaskConfig("b", depends_on=["a"], cache_key_fn=another_key)
    change = PlanChange(detour=[FunctionTask("a", answer), FunctionTask("b", double, config)])
    document = through_json(change_document(change))
    assert [(task["name"], task["depends_on"]) for task in document["detour"]] == [("a", []), ("b", ["a"])]
    assert through_json(change_document(PlanChange(stop_children=True))) == {"stop_children": True}
    with pytest.raises(TaskNotSendable, match="task 'c' of a plan change"):
        change_document(PlanChange(addition=[FunctionTask("c", lambda: 1)]))
    with pytest.raises(InvalidInput, match="changes nothing"):
        PlanChange(output=3)
    with pytest.raises(InvalidInput, match="leaves nobody"):
        PlanChange(stop_children=True, detour=[FunctionTask("a", answer)])


def plan_of(*configs: TaskConfig) -> Any:
    return plan_from_spec(
        to_spec(workflow_of(*(FunctionTask(config.name, answer, config) for config in configs))).document
    )


def test_a_job_needs_a_slot_and_the_most_that_one_task_asks_for() -> None:
    """D15, D26"""
    plan = plan_of(
        TaskConfig("a", memory_mb=100, num_cpus=2),
        TaskConfig("b", memory_mb=300, gpu_required=True),
        TaskConfig("c", min_gpus=2, max_gpus=2, gpu_memory_mb=50),
    )
    assert plan_needs(plan) == {"slot:workflow": 1, "gpu": 2, "cpu": 2, "memory_mb": 300, "gpu_memory_mb": 50}
    assert plan_needs(plan_of(TaskConfig("a"))) == {"slot:workflow": 1}


def test_a_workflow_takes_as_long_as_its_longest_chain_or_as_its_tasks_shared_out() -> None:
    """D22"""

    def seconds(most_at_once: int, *tasks: PlannedTask, **config: Any) -> float | None:
        return plan_seconds(Plan.of(WorkflowConfig("w", **config), list(tasks)), most_at_once)

    a, b, c, d = (
        replace(planned(name, *after), estimated_seconds=estimate)
        for name, after, estimate in (("a", (), 10.0), ("b", ("a",), 20.0), ("c", ("a",), 30), ("d", ("b", "c"), 0.5))
    )
    assert seconds(4, a, b, c, d) == 40.5
    assert seconds(1, a, b, c, d) == 60.5
    assert seconds(4, a, b, c, d, max_parallel_tasks=1) == 60.5
    silent = planned("silent", "a")
    assert seconds(4, a, silent) == 70.0
    assert seconds(4, planned("silent")) is None
    with pytest.raises(ValidationError, match=r"estimate_duration\(\) of task 'a' must be a number, not 'long'"):
        seconds(4, replace(a, estimated_seconds="long"))


def test_what_the_cluster_can_never_give_is_refused_with_both_figures() -> None:
    """D27"""
    plan = plan_of(TaskConfig("X", gpu_required=True))
    with pytest.raises(DeviceUnavailable, match="task X needs 1 GPU; the cluster has 0"):
        check_possible(plan, {"cpu": 4})
    with pytest.raises(DeviceUnavailable, match="needs 1 GPU"):
        check_possible(plan, {"cpu": 4}, "cpu")  # the task type cannot do without
    check_possible(plan, {"gpu": 1})
    with pytest.raises(DeviceUnavailable, match="needs 2 GPUs; the cluster has 1"):
        check_possible(plan_of(TaskConfig("X", min_gpus=2, max_gpus=2)), {"gpu": 1})
    with pytest.raises(ResourceError, match="needs 8 cpu; the cluster has 4"):
        check_possible(plan_of(TaskConfig("X", num_cpus=8)), {"cpu": 4})
    with pytest.raises(ResourceError, match="needs 500 memory_mb; the cluster has 400"):
        check_possible(plan_of(TaskConfig("X", memory_mb=500)), {"memory_mb": 400})


def test_a_task_that_can_do_without_a_gpu_may_where_the_settings_say_so() -> None:
    """D27"""
    task = Join(TaskConfig("X", gpu_required=True), ["a"])
    plan = plan_from_spec(to_spec(workflow_of(task)).document)
    check_possible(plan, {"cpu": 4}, "cpu")
    with pytest.raises(DeviceUnavailable, match=r"resources\.gpu\.on_missing=cpu"):
        check_possible(plan, {"cpu": 4}, "fail")


def test_a_task_on_actors_needs_a_gpu_in_the_cluster_but_none_of_its_own() -> None:
    """D27"""

    class OnActors(Join):
        uses_actors = True

    plan = plan_from_spec(to_spec(workflow_of(OnActors(TaskConfig("X", gpu_required=True), ["a"]))).document)
    assert plan_needs(plan) == {"slot:workflow": 1}
    check_possible(plan, {"gpu": 1})
    with pytest.raises(DeviceUnavailable, match="needs 1 GPU"):
        check_possible(plan, {})
