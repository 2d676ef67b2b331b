"""Walk the DAG: ask the cache for each step, execute on a miss. As many at once as allowed.

A step's key comes from its op and its inputs' keys, except that a COPY's sources enter by
their content: a stage that was rebuilt to equal files is a hit (T99). The
content a stage had under a key is remembered, so that a stage that is itself cached need
not be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from builder.copy.place import copy_files, make_dir
from builder.copy.sources import InlineSource, Selected, Selection, Source, TreeSource
from builder.environment import Workshop
from builder.errors import BuildError, Cancelled, LayerLost, StepError
from builder.events import (
    Event,
    SolveStarted,
    StepCached,
    StepFailed,
    StepFinished,
    StepOutput,
    StepStarted,
)
from builder.images.lazy_layers import is_packed
from builder.plan.graph import Plan, Step
from builder.plan.identity import identity
from builder.plan.ops import (
    CONTEXT,
    BindMount,
    CacheMount,
    CopyFiles,
    Fetch,
    FetchGit,
    FetchUrl,
    Files,
    FromImage,
    Inline,
    MakeDir,
    Mount,
    Picked,
    RunCommand,
)
from builder.run.mounts import empty_caches
from builder.shared_cache.content_names import Alias, chained
from builder.steps.run import run_command
from cache.digest import DiffId, SnapshotId, digest, layer_of
from cache.errors import CacheError
from cache.index import StepResult
from cache.keys import derive
from cache.layer.merged_tree import Tree
from cache.layer.snapshots import Draft, draft, manifest, tree_of, withdraw
from grammar.structs import field, struct

if TYPE_CHECKING:
    from builder.shared_cache.imports import Imports

_LOOK_AHEAD = 2000  # steps that are looked at to choose one of several results
_PATIENCE = 1.0  # seconds that a cancelled build waits for what is going on


@struct
class Solved:
    """A step's result: its key, the layers of its root (bottom first), when they were made (ns).

    Layers that are not unpacked go by their diff IDs (builder.images.lazy_layers). ``layer`` is the one
    that the step made, as the index names it; ``run`` those of the RUNs, bottom first: the same keys
    may give others, and a diff fits only what it was made on.
    """

    key: str
    stack: tuple[str, ...]
    created: int
    run: tuple[str, ...] = ()
    layer: str = ""


_NOTHING = Solved("scratch", (), 0)


@struct(frozen=False)
class _Shared:
    """State of one solve that its threads share, under ``lock``; it tells when one ends."""

    ready: list[Step]
    waiting: dict[int, int]
    users: dict[int, list[Step]]
    jobs: int
    threads: int = 0
    lock: threading.Condition = field(factory=threading.Condition)
    failure: BaseException | None = None


class Solver:
    """One solve of one plan."""

    def __init__(
        self,
        plan: Plan,
        workshop: Workshop,
        sink: Callable[[Event], None],
        no_cache: bool,
        imports: Imports | None = None,
        first: int = 1,
    ) -> None:
        """*first* is the number that the first step is shown with."""
        self._plan = plan
        self._workshop = workshop
        self._store = workshop.store
        self._imports = imports
        self._sink = sink
        self._no_cache = no_cache
        self._numbers = {id(step): number for number, step in enumerate(plan.steps, first)}
        self.results: dict[int, Solved] = {}
        self.contents: dict[Alias, str] = {}

    def run(self, jobs: int) -> None:
        """Solve every step. Raises the first failure after every running step has ended."""
        steps = self._plan.steps
        self._sink(SolveStarted(len(steps)))
        for step in steps:
            if isinstance(step.op, RunCommand) and self._is_fresh(step):
                empty_caches(step.op.mounts, None, self._workshop)
        waiting = {id(step): len(step.inputs) for step in steps}
        users: dict[int, list[Step]] = {id(step): [] for step in steps}
        for step in steps:
            for needed in step.inputs:
                users[id(needed)].append(step)
        ready = [step for step in reversed(steps) if not step.inputs]
        shared = _Shared(ready, waiting, users, jobs)
        with shared.lock:
            self._hire(shared, len(ready))
            try:
                while shared.threads:
                    shared.lock.wait()
            except BaseException:  # Ctrl-C arrives here, in the main thread
                self._fail(shared, Cancelled())
                # Steps end at once; who waits for a silent server ends with this process.
                shared.lock.wait_for(lambda: not shared.threads, _PATIENCE)
                raise
        if shared.failure is not None:
            raise shared.failure

    def _hire(self, shared: _Shared, steps: int) -> None:
        """Start a thread for each of *steps* more ready steps, as far as ``--jobs`` allows."""
        for _ in range(min(steps, shared.jobs - shared.threads)):
            shared.threads += 1
            threading.Thread(target=self._work, args=(shared,), daemon=True).start()

    def _work(self, shared: _Shared) -> None:
        """Take ready steps until there are none; who makes others ready starts threads for them."""
        while True:
            with shared.lock:
                if not shared.ready or shared.failure is not None:
                    shared.threads -= 1
                    shared.lock.notify_all()
                    return
                step = shared.ready.pop()
            try:
                result = self._solve(step)
            except BaseException as error:
                with shared.lock:
                    self._fail(shared, error)
                continue
            with shared.lock:
                self.results[id(step)] = result
                before = len(shared.ready)
                for user in shared.users[id(step)]:
                    shared.waiting[id(user)] -= 1
                    if not shared.waiting[id(user)]:
                        shared.ready.append(user)
                self._hire(shared, len(shared.ready) - before - 1)

    def _fail(self, shared: _Shared, error: BaseException) -> None:
        if shared.failure is None:
            shared.failure = error
        if not isinstance(error, LayerLost):  # then the build goes on, with what runs now
            self._workshop.cancel()

    # -- one step --------------------------------------------------------------------------

    def _solve(self, step: Step) -> Solved:
        parent = self.results[id(step.parent)] if step.parent is not None else _NOTHING
        sources = [self.results[id(source)] for source in step.sources]
        if isinstance(step.op, FromImage):
            return self._base(step, step.op)
        if isinstance(step.op, Files):
            self._sink(StepCached(self._numbers[id(step)], step.name))
            return Solved(derive(*identity(step.op)), (step.op.snapshot,), 0)
        try:
            if isinstance(step.op, Fetch):
                return self._fetch(step, step.op)
            kind, fields = identity(step.op)
            selection = None
            linked = isinstance(step.op, CopyFiles) and step.op.link
            below = _NOTHING if linked else parent
            inputs = [below.key]
            if isinstance(step.op, CopyFiles):
                alias = None
                if sources and not step.op.reads_context:
                    alias = _alias(kind, fields, [below.key], sources)
                content = self._known_content(alias)
                if not content:
                    selection = self._select(step.op, sources)
                    content = _content(selection)
                    self._remember_content(alias, content)
                inputs.append(content)
            elif isinstance(step.op, RunCommand):
                inputs += [self._bound(mount, step, sources) for mount in step.op.mounts]
            key = derive(kind, fields, inputs)
            with self._store.making(key):
                fresh = self._is_fresh(step)
                described = json.dumps([kind, fields, inputs, chained(below.run)])
                found = None if fresh else self._found(step, parent, key, described, below.run)
                if found is not None:
                    self._sink(StepCached(self._numbers[id(step)], step.name))
                    layer, created = found
                    if isinstance(step.op, RunCommand):
                        self._workshop.pass_over_run()
                else:
                    if selection is None and isinstance(step.op, CopyFiles):
                        selection = self._select(step.op, sources)
                    layer = made = self._execute(step, below, sources, selection)
                    created = time.time_ns()
                    try:
                        self._store.index.record(key, StepResult(made, created, described))
                    except CacheError:
                        withdraw(self._store, made)
                        raise
            return self._solved(step, parent, key, layer, created)
        except (StepError, Cancelled, LayerLost):
            raise
        except (BuildError, CacheError) as error:
            raise StepError(error.message, step.name, step.span, error.hint) from error

    def _is_fresh(self, step: Step) -> bool:
        """Whether the cache is not to be asked for a step."""
        return self._no_cache or id(step) in self._plan.fresh

    def _solved(self, step: Step, parent: Solved, key: str, layer: str, created: int) -> Solved:
        """The result of a step that gave *layer*. Raises LayerLost."""
        run = (*parent.run, layer) if isinstance(step.op, RunCommand) else parent.run
        top = self._named(DiffId(digest(layer))) if is_packed(layer) else layer
        return Solved(key, (*parent.stack, top), created, run, layer)

    def _found(
        self, step: Step, parent: Solved, key: str, described: str, run: tuple[str, ...]
    ) -> tuple[str, int] | None:
        """The layer, and the time, of a result that the store or a shared cache has.

        Of several, the one that most of the other steps were made on: a result fits only what it was
        made on, and each machine has made its own.
        """
        known = self._known_results(key, described, run)
        if not known:
            return None
        best = known[0]
        if len(known) > 1:
            budget = [_LOOK_AHEAD]
            best = max(known, key=lambda item: self._covered(step, parent, key, item, {}, budget))
        here = self._store.index.find(key)
        if here is None or (here.layer, here.created, here.identity) != (*best, described):
            result = StepResult(layer_of(best[0]), best[1], described)
            self._store.index.record(key, result)  # it counts once the layer is here
        return best

    def _known_results(self, key: str, described: str, run: tuple[str, ...]) -> list[tuple[str, int]]:
        """Layers and times of the results of a step, the store's own first."""
        here = self._store.index.find(key)
        found: dict[str, int] = {}
        if here is not None and here.identity == described:
            found[here.layer] = here.created
        if self._imports is not None:
            for layer, created in self._imports.find(key, run, pack=not found):
                found.setdefault(layer, created)
        return list(found.items())

    def _covered(
        self,
        step: Step,
        parent: Solved,
        key: str,
        result: tuple[str, int],
        assumed: dict[int, Solved],
        budget: list[int],
    ) -> int:
        """How many more steps have results if *step* had this one, and those before it what is *assumed*.

        Only what needs no files of layers is looked at; *budget* bounds how many steps are.
        """
        assumed = {**assumed, id(step): self._solved(step, parent, key, *result)}
        count, passed = 0, False
        for user in self._plan.steps:
            passed = passed or user is step
            needed = [assumed.get(id(one)) or self.results.get(id(one)) for one in user.inputs]
            solved = [one for one in needed if one is not None]
            if not passed or id(user) in assumed or id(user) in self.results or len(solved) < len(needed):
                continue
            budget[0] -= 1
            if budget[0] < 0:
                break
            above = solved.pop(0) if user.parent is not None else _NOTHING
            described = self._described_ahead(user, above, solved)
            if described is None:
                continue
            run = () if isinstance(user.op, CopyFiles) and user.op.link else above.run
            known = self._known_results(*described, run)
            if len(known) > 1:
                more = (self._covered(user, above, described[0], one, assumed, budget) for one in known)
                return count + 1 + max(more)
            if known:
                count += 1
                assumed[id(user)] = self._solved(user, above, described[0], *known[0])
        return count

    def _described_ahead(self, step: Step, parent: Solved, sources: list[Solved]) -> tuple[str, str] | None:
        """The key of a step and what it is made of, as ``_solve`` has them; None where files of layers
        would have to be read.
        """
        op = step.op
        if not isinstance(op, RunCommand | CopyFiles | MakeDir) or self._is_fresh(step):
            return None
        kind, fields = identity(op)
        below = _NOTHING if isinstance(op, CopyFiles) and op.link else parent
        inputs = [below.key]
        if isinstance(op, CopyFiles) and not sources:
            try:
                inputs.append(_content(self._select(op, [])))
            except (BuildError, CacheError):
                return None  # which is said when its turn comes
        elif isinstance(op, CopyFiles):
            if op.reads_context:
                return None
            inputs.append(self._content_ahead(_alias(kind, fields, [below.key], sources)))
        elif isinstance(op, RunCommand):
            for mount in op.mounts:
                if not isinstance(mount, BindMount | CacheMount) or mount.origin < 0:
                    inputs.append("")
                elif isinstance(step.sources[mount.origin].op, FromImage):
                    inputs.append(f"{sources[mount.origin].key} {mount.path}")
                else:
                    alias = _alias("bound", {"path": mount.path}, [], [sources[mount.origin]])
                    inputs.append(self._content_ahead(alias) or "unknown")
        if not all(inputs[1:]) and isinstance(op, CopyFiles):
            return None
        return derive(kind, fields, inputs), json.dumps([kind, fields, inputs, chained(below.run)])

    def _content_ahead(self, alias: Alias) -> str:
        content = self._store.memos.content(alias.local()) or ""
        return content or (self._imports.content(alias) if self._imports is not None else "")

    def _bound(self, mount: Mount, step: Step, sources: list[Solved]) -> str:
        """What a mount adds to the key of a RUN: the content of bound files, and of what a cache
        begins with (T99); else nothing.
        """
        if not isinstance(mount, BindMount | CacheMount) or mount.origin < 0:
            return ""
        source = sources[mount.origin]
        if isinstance(step.sources[mount.origin].op, FromImage):
            return f"{source.key} {mount.path}"
        alias = _alias("bound", {"path": mount.path}, [], [source])
        content = self._known_content(alias)
        if not content:
            tree = tree_of(self._store, self._workshop.layers.unpacked(source.stack))
            try:
                node = tree.lookup(mount.path)
            except OSError as error:
                raise BuildError(f"the mount's source {mount.path}: {error.strerror}") from None
            content = TreeSource(tree).digest(Selected("", node.path)) if node is not None else "nothing"
            self._remember_content(alias, content)
        return content

    def _known_content(self, alias: Alias | None) -> str:
        """The content digest remembered of a stage whose key is the same as then."""
        if alias is None or self._no_cache:
            return ""
        content = self._store.memos.content(alias.local()) or ""
        if not content and self._imports is not None:
            content = self._imports.content(alias)
        if content:
            self.contents[alias] = content
        return content

    def _remember_content(self, alias: Alias | None, content: str) -> None:
        if alias is not None:
            self._store.memos.set_content(alias.local(), content)
            self.contents[alias] = content

    def _base(self, step: Step, op: FromImage) -> Solved:
        """A base image: its layers are there already, or known to be elsewhere; the resolver saw to it."""
        stack = tuple(map(self._named, op.diff_ids))
        self._sink(StepCached(self._numbers[id(step)], step.name))
        kind, fields = identity(op)
        return Solved(derive(kind, fields), stack, 0)

    def _named(self, layer: DiffId) -> str:
        """The layer as a stack holds it. Raises LayerLost where nobody has it any more."""
        if name := self._workshop.layers.named(layer):
            return name
        raise LayerLost(f"layer {layer} is gone from the store", "build, load or pull the image again")

    def _fetch(self, step: Step, op: Fetch) -> Solved:
        """What is elsewhere; its key is what it is, so that all who use it hit if it is unchanged."""
        fresh = self._is_fresh(step)
        with self._shown(step):
            if isinstance(op, FetchUrl):
                from builder.fetch.url import fetch_url  # HTTP takes 40 ms to import

                key, snapshot = fetch_url(op, self._workshop, fresh)
            else:
                from builder.fetch.git import fetch_git

                key, snapshot = fetch_git(op, self._workshop, fresh)
        return Solved(key, (snapshot,), 0)

    def _select(self, op: CopyFiles, sources: list[Solved]) -> list[Selection]:
        out = []
        for item in op.items:
            source: Source
            if isinstance(item, Inline):
                source = InlineSource(item, op.epoch)
            elif item.origin == CONTEXT:
                source = self._workshop.contexts[item.context]
            else:
                layers = (
                    self._workshop.layers.unpacked(sources[item.origin].stack) if item.origin >= 0 else ()
                )
                source = TreeSource(tree_of(self._store, layers) if layers else Tree((self._store.empty,)))
            out.append(Selection(item, source, source.select(item, op.exclude)))
        return out

    def _execute(
        self, step: Step, parent: Solved, sources: list[Solved], selection: list[Selection] | None
    ) -> SnapshotId:
        below = self._workshop.layers.unpacked(parent.stack)
        with self._shown(step) as used, draft(self._store, below) as made:
            match step.op:
                case RunCommand():
                    number = self._numbers[id(step)]
                    unpacked = [self._workshop.layers.unpacked(source.stack) for source in sources]
                    if self._is_fresh(step):
                        empty_caches(step.op.mounts, unpacked, self._workshop)
                    snapshot, outcome = run_command(
                        step.op,
                        step,
                        made,
                        unpacked,
                        self._workshop,
                        lambda data: self._sink(StepOutput(number, data)),
                    )
                    used += [outcome.user_seconds + outcome.system_seconds, outcome.peak]
                    return snapshot
                case CopyFiles():
                    assert selection is not None
                    return self._copy(step.op, made, selection)
                case MakeDir():
                    return make_dir(step.op, made)
                case FromImage() | Files() | FetchUrl() | FetchGit():
                    raise AssertionError("what comes from outside is not executed")

    @contextlib.contextmanager
    def _shown(self, step: Step) -> Iterator[list[Any]]:
        """Say that a step started, and how it ended; with the CPU time and memory put into the list."""
        number = self._numbers[id(step)]
        self._sink(StepStarted(number, step.name))
        started = time.monotonic()
        used: list[Any] = []
        try:
            yield used
        except BaseException:
            self._sink(StepFailed(number, step.name, time.monotonic() - started))
            raise
        self._sink(StepFinished(number, step.name, time.monotonic() - started, *used))

    def _copy(self, op: CopyFiles, made: Draft, selection: list[Selection]) -> SnapshotId:
        """Execute a COPY; what the last COPY of the same place made may lend its files."""
        used = {item.context for item in op.items if isinstance(item, Picked) and item.origin == CONTEXT}
        names = [self._workshop.contexts[name].name for name in sorted(used)]
        place = derive("place", identity(op)[1], names)
        last = self._store.memos.last_copy(place) if op.reads_context else None
        old = manifest(self._store, last) if last else None
        previous = (self._store.path("snapshots", last), old) if last and old is not None else None
        snapshot = copy_files(op, made, selection, previous, self._workshop.packer)
        if op.reads_context:
            self._store.memos.set_last_copy(place, snapshot)
        return snapshot


def _alias(kind: str, fields: dict[str, object], keys: list[str], sources: list[Solved]) -> Alias:
    """What a digest of files of *sources* is remembered under."""
    layers = tuple(layer for source in sources for layer in source.stack)
    lengths = [len(source.stack) for source in sources]
    return Alias(kind, fields, (*keys, *(source.key for source in sources), *map(str, lengths)), layers)


def _content(selection: list[Selection]) -> str:
    """The content part of a COPY's key: every match by name (T97) and what it holds."""
    sha = hashlib.sha256()
    for picked in selection:
        for selected in picked.chosen:
            line = f"{selected.name}\0{picked.source.digest(selected)}\0"
            sha.update(line.encode("utf-8", "surrogateescape"))
        sha.update(b"\0")
    return sha.hexdigest()
