"""Build contexts that are no folder: git repositories, archives behind a URL or on standard input.

Each becomes a snapshot, whose key is what it holds; the plan takes files from it as from a stage
(ignore files do not apply, owners stay).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from builder.copy.archives import is_archive
from builder.copy.place import copy_files
from builder.copy.sources import Selection, TreeSource
from builder.environment import Environment
from builder.fetch.git import fetch_git
from builder.fetch.url import fetch_url
from builder.plan.ops import CopyFiles, FetchUrl, Files, Picked
from builder.plan.remote import context_git_ref
from cache.digest import SnapshotId
from cache.entry import FILE, Entry
from cache.keys import CacheKey, derive
from cache.layer.snapshots import commit, draft, tree_of

FILE_NAME = "Dockerfile"  # what a file that is no archive is called
_CHUNK = 1 << 20


def context_of_url(url: str, environment: Environment, keep_git_dir: bool) -> Files:
    """What a URL holds: a repository's files, an archive's, or one file called Dockerfile.

    Raises BuildError or CacheError.
    """
    if (git := context_git_ref(url)) is not None:
        op = git.op(keep_git_dir or git.keep_git_dir is True)
        return Files(*fetch_git(op, environment, fresh=environment.no_cache))
    fetched = fetch_url(FetchUrl(url, FILE_NAME, ""), environment, fresh=environment.no_cache)
    return _unpacked(Files(*fetched), environment)


def context_of_stream(read: Callable[[int], bytes], environment: Environment) -> tuple[Files, bool]:
    """What a stream holds, as for a URL, and whether it was an archive.

    Raises BuildError or CacheError.
    """
    with draft(environment.store, ()) as made:
        sha = hashlib.sha256()
        size = 0
        with open(os.path.join(made.upper, FILE_NAME), "xb") as file:
            while data := read(_CHUNK):
                sha.update(data)
                size += file.write(data)
        digest = sha.hexdigest()
        key = derive("stream", {"digest": digest})
        snapshot = _known(key, environment) or commit(
            made, [Entry(FILE_NAME, FILE, 0o600, size=size, mtime=0, digest=digest)]
        )
    files = _remember(Files(key, snapshot), environment)
    unpacked = _unpacked(files, environment)
    return unpacked, unpacked is not files


def empty_context(environment: Environment) -> Files:
    """No files at all."""
    key = derive("empty", {})
    snapshot = _known(key, environment)
    if not snapshot:
        with draft(environment.store, ()) as made:
            snapshot = commit(made, [])
    return _remember(Files(key, snapshot), environment)


def _unpacked(files: Files, environment: Environment) -> Files:
    """The files of an archive that is the one file of *files*; these where it is none."""
    source = TreeSource(tree_of(environment.store, (files.snapshot,)))
    item = Picked(FILE_NAME, 0, literal=True, unpack=True)
    (selected,) = source.select(item, ())
    if not is_archive(source, selected):
        return files
    key = derive("unpacked", {}, [files.key])
    snapshot = _known(key, environment)
    if not snapshot:
        with draft(environment.store, ()) as made:
            snapshot = copy_files(CopyFiles((item,), "/"), made, [Selection(item, source, [selected])])
    return _remember(Files(key, snapshot), environment)


def _known(key: CacheKey, environment: Environment) -> SnapshotId | None:
    return environment.store.memos.context(key) if not environment.no_cache else None


def _remember(files: Files, environment: Environment) -> Files:
    environment.store.memos.set_context(files.key, files.snapshot)
    return files
