"""List the build arguments, secrets and SSH agents that a target uses, as BuildKit's outline does."""

from __future__ import annotations

from collections.abc import Iterator

from builder.plan.graph import Argument, Need, Outline
from builder.plan.ops import Mount, SecretMount, SshMount
from builder.plan.scope import Scope
from builder.plan.stages import Stage, Stages
from grammar import ast
from grammar.lint.linter import describing
from grammar.span import Span


def outline(
    file: ast.Dockerfile,
    stages: Stages,
    scope: Scope,
    target: int,
    mounts: dict[int, list[tuple[Mount, Span]]],
) -> Outline:
    """Return the outline of the stage *target*. *mounts* are the mounts of the RUNs of each converted stage.

    The first stage that declares a name counts: the target, then its base stages, then the stages that it
    copies from. All are in the order of the file.
    """
    arguments: dict[str, tuple[int, int, Argument]] = {}
    secrets: dict[str, Need] = {}
    agents: dict[str, Need] = {}
    for stage in _from_target(stages, target):
        declared = _declared(stages, scope, stage)
        for name in _used(stages, stage, declared):
            node, value = declared[name]
            if name not in arguments:
                place = [pair.key for pair in node.pairs].index(name)
                found = Argument(name, value, describing(file, node.span, name), node.span)
                arguments[name] = (node.span.first, place, found)
        for mount, span in mounts.get(stage.index, ()):
            if isinstance(mount, SecretMount):
                secrets.setdefault(mount.id, Need(mount.id, mount.required, span))
            elif isinstance(mount, SshMount):
                agents.setdefault(mount.id, Need(mount.id, mount.required, span))
    return Outline(
        tuple(found for *_, found in sorted(arguments.values(), key=lambda item: item[:2])),
        *(tuple(sorted(kind.values(), key=lambda need: need.span.first)) for kind in (secrets, agents)),
    )


def _from_target(stages: Stages, target: int) -> Iterator[Stage]:
    """Yield the target, then its base stage, then the stages it takes files from, recursively."""
    seen: set[int] = set()
    stack = [target]
    while stack:
        index = stack.pop()
        if index in seen:
            continue
        seen.add(index)
        stage = stages.all[index]
        yield stage
        stack += sorted((source for source in stage.sources if source < index), reverse=True)
        if stage.base_index is not None:
            stack.append(stage.base_index)


def _declared(stages: Stages, scope: Scope, stage: Stage) -> dict[str, tuple[ast.Arg, str]]:
    """Return the ARG and the value of each name in a stage: the global ARGs, and the stage's own.

    An ARG without a value that only takes over a global one does not count.
    """
    out = {name: (item.node, item.value) for name, item in stages.global_args.items()}
    values = dict(stage.state.args) if stage.state is not None else {}
    for node in stage.node.instructions:
        if not isinstance(node, ast.Arg):
            continue
        for pair in node.pairs:
            if pair.value is not None or pair.key in scope.build_args or pair.key not in scope.globals:
                out[pair.key] = (node, values.get(pair.key, ""))
    return out


def _used(stages: Stages, stage: Stage, declared: dict[str, tuple[ast.Arg, str]]) -> list[str]:
    """Return the names that a stage uses: in its ARGs, in its FROM, and in the values of these."""
    todo = [pair.key for node in stage.node.instructions if isinstance(node, ast.Arg) for pair in node.pairs]
    todo += stage.used
    out: dict[str, None] = {}
    while todo:
        name = todo.pop()
        if name in out or name not in declared:
            continue
        out[name] = None
        item = stages.global_args.get(name)
        if item is not None and declared[name][0] is item.node:
            todo += item.needs
    return list(out)
