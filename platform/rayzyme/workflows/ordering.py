"""The order of a workflow's tasks: levels of what depends on what, within a level by priority, then as they were added."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rayzyme.errors import InvalidInput


class Node(NamedTuple):
    """A task as far as its place in the order goes."""

    depends_on: Sequence[str]
    priority: int


def levels(nodes: Mapping[str, Node]) -> list[list[str]]:
    """Names by level; a task is one level above the highest of those that it depends on.

    Args:
        nodes: In the order in which they were added.

    Raises:
        InvalidInput: A task depends on one that there is not, or on itself in a circle, which is named.
    """
    waits_for = {name: len(set(node.depends_on)) for name, node in nodes.items()}
    dependents = dependents_of(nodes)
    ready = [name for name, count in waits_for.items() if count == 0]
    added = {name: number for number, name in enumerate(nodes)}
    ordered: list[list[str]] = []
    while ready:
        ordered.append(sorted(ready, key=lambda name: (-nodes[name].priority, added[name])))
        following: list[str] = []
        for name in ready:
            for dependent in dependents[name]:
                waits_for[dependent] -= 1
                if waits_for[dependent] == 0:
                    following.append(dependent)
        ready = following
    left = {name for name, count in waits_for.items() if count > 0}
    if left:
        raise InvalidInput(f"the tasks depend on each other in a circle: {' -> '.join(_circle(nodes, left))}")
    return ordered


def dependents_of(nodes: Mapping[str, Node]) -> dict[str, list[str]]:
    """Who depends on each, directly.

    Raises:
        InvalidInput: A task depends on one that there is not.
    """
    dependents: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        for dependency in dict.fromkeys(node.depends_on):
            if dependency not in dependents:
                near = difflib.get_close_matches(dependency, nodes, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InvalidInput(f"task {name!r} depends on {dependency!r}, which is no task of this workflow{hint}")
            dependents[dependency].append(name)
    return dependents


def _circle(nodes: Mapping[str, Node], left: set[str]) -> list[str]:
    # Whatever is left waits for something that is left, so following that comes back to where it was.
    path = [next(name for name in nodes if name in left)]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in nodes[path[-1]].depends_on if name in left))
    return path[path.index(path[-1]) :]
