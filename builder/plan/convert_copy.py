"""Convert COPY and ADD to steps that copy files (T1 to T28)."""

from __future__ import annotations

import posixpath

from builder.errors import PlanError
from builder.plan.context import StageContext, number
from builder.plan.modes import Mode
from builder.plan.ops import (
    CONTEXT,
    CopyFiles,
    FetchGit,
    FetchUrl,
    Inline,
    Picked,
)
from builder.plan.remote import is_url, parse_git_ref, redacted, url_name
from builder.plan.state import StageState, check_heredoc_name, clean, expand
from cache.digest import digest
from cache.errors import CacheError
from grammar import ast
from grammar.structs import replace


def convert_copy(node: ast.Copy | ast.Add, state: StageState, context: StageContext) -> StageState:
    written = expand(node.dest, state, context, node.span)
    chown = expand(node.chown, state, context, node.span)
    chmod = expand(node.chmod, state, context, node.span)
    if chmod:
        try:
            Mode(chmod)
        except ValueError as error:
            raise PlanError(str(error), node.span) from None
    shown, parents = [type(node).__name__.upper()], isinstance(node, ast.Copy) and node.parents
    shown += ["--parents"] * parents + [f"--chown={chown}"] * bool(chown) + [f"--chmod={chmod}"] * bool(chmod)
    check_from(node)
    place = node.from_ if isinstance(node, ast.Copy) else ""
    origin, name, sources = number(context.find_source(place, node.span, False), ())
    items: list[Picked | Inline] = []
    for text in node.sources:
        source = expand(text, state, context, node.span)
        shown.append(redacted(source))
        if (remote := _remote(node, source, state, context)) is not None:
            path = remote.name if isinstance(remote, FetchUrl) else "/"
            unpack = isinstance(node, ast.Add) and node.unpack is True and isinstance(remote, FetchUrl)
            items.append(Picked(path, len(sources), literal=True, unpack=unpack))
            sources = (*sources, context.new_source(remote, f"ADD {redacted(source)}", node.span))
            continue
        if isinstance(node, ast.Add) and node.checksum:
            raise PlanError("checksum requires HTTP(S) or Git sources", node.span)
        unpack = isinstance(node, ast.Add) and node.unpack is not False
        if origin == CONTEXT and not name:
            context.linter.copied(type(node).__name__, source, node.span)
        item = Picked(source, origin, unpack=unpack, context=name)
        items.append(_below_pivot(item) if parents else item)
    for heredoc in node.heredocs:
        check_heredoc_name(heredoc, node.span)
        shown.append(f"<<{heredoc.name}")
        body = heredoc.content
        if heredoc.expand:
            body = expand(body, state, context, node.span, True)
        items.append(Inline(heredoc.name, body))
    # With --chmod BuildKit makes an ordinary layer of a linked one.
    link = node.link and not chmod
    op = CopyFiles(
        tuple(items), _destination(written, state), chown, chmod, node.exclude, link, context.epoch
    )
    step = context.new_step(op, state.root, sources, node.span)
    return replace(state, root=step).noted(" ".join([*shown, written, "# buildkit"]), step)


def _remote(
    node: ast.Copy | ast.Add, source: str, state: StageState, context: StageContext
) -> FetchUrl | FetchGit | None:
    """Return the operation that fetches a remote source of ADD; None for another source."""
    try:
        git = parse_git_ref(source)
        if isinstance(node, ast.Copy):
            if git is not None:
                raise ValueError("source can't be a git ref for COPY")
            if is_url(source):
                raise ValueError("source can't be a URL for COPY")
            return None
        checksum = expand(node.checksum, state, context, node.span)
        if checksum and len(node.sources) + len(node.heredocs) > 1:
            raise ValueError("checksum can't be specified for multiple sources")
        if git is None:
            if not is_url(source):
                return None
            return FetchUrl(source, url_name(source), digest(checksum) if checksum else "")
        if checksum and git.checksum and checksum != git.checksum:
            raise ValueError(f'checksum mismatch "{checksum}" != "{git.checksum}"')
        kept = {keep for keep in (node.keep_git_dir, git.keep_git_dir) if keep is not None}
        if len(kept) > 1:
            raise ValueError("inconsistent keep-git-dir configuration")
    except (ValueError, CacheError) as error:
        hint = "use ADD for URLs and git repositories" if isinstance(node, ast.Copy) else ""
        raise PlanError(str(error), node.span, hint) from None
    return git.op(True in kept, checksum)


def check_from(node: ast.Copy | ast.Add) -> None:
    """Raise PlanError if --from has a variable."""
    if isinstance(node, ast.Copy) and "$" in node.from_:
        raise PlanError(
            "variable expansion is not supported for --from, "
            "define a new stage with FROM using ARG from global scope as a workaround",
            node.span,
        )


def _below_pivot(item: Picked) -> Picked:
    """Return a source of ``--parents`` split at its first ``/./``: the paths after it are kept (T25)."""
    top, pivot, pattern = item.pattern.partition("/./")
    if not pivot:
        top, pattern = "/", item.pattern
    return replace(item, pattern=top, parents=(clean("/" + pattern).removeprefix("/"),))


def _destination(written: str, state: StageState) -> str:
    """Return the absolute destination. Empty, "." and a trailing slash mean a directory (T3, T5)."""
    here = state.config.settings.get("WorkingDir") or "/"
    path = clean(posixpath.join("/", here, written))
    if written in ("", ".") or written.endswith(("/", "/.")):
        path = path.rstrip("/") + "/"
    return path
