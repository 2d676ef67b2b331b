"""What a target can be given: build arguments, secrets and ssh agents, as BuildKit's outline lists them."""

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
    """The outline of the stage *target*; *mounts* are those of the RUNs of each stage that was converted.

    A name goes by where it is seen first: in the target itself, in what that is made from, in what
    it copies from. All are in the order of the file.
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
    """The target, then what it is made from, then what it takes files from, and so on for these."""
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
    """The ARGs that names stand for in a stage, and their values: the global ones, and its own unless they
    only let a global one in.
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
    """The names that count in a stage: of its ARGs, of its FROM, and of what is in the values of these."""
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
