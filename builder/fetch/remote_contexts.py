"""Build contexts that are not a directory: git repositories, and archives at a URL or on standard input.

Each becomes a snapshot whose key covers its content. Steps copy files from it as from a stage (ignore
files do not apply, owners are kept).
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

FILE_NAME = "Dockerfile"  # the name of a file that is not an archive
_CHUNK = 1 << 20


def context_of_url(url: str, environment: Environment, keep_git_dir: bool) -> Files:
    """Return the files of a URL: of a repository, of an archive, or one file called Dockerfile.

    Raises BuildError or CacheError.
    """
    if (git := context_git_ref(url)) is not None:
        op = git.op(keep_git_dir or git.keep_git_dir is True)
        return Files(*fetch_git(op, environment, fresh=environment.no_cache))
    fetched = fetch_url(FetchUrl(url, FILE_NAME, ""), environment, fresh=environment.no_cache)
    return _unpacked(Files(*fetched), environment)


def context_of_stream(read: Callable[[int], bytes], environment: Environment) -> tuple[Files, bool]:
    """Return the files of a stream, as for a URL, and True if it was an archive.

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
    """Return a context without files."""
    key = derive("empty", {})
    snapshot = _known(key, environment)
    if not snapshot:
        with draft(environment.store, ()) as made:
            snapshot = commit(made, [])
    return _remember(Files(key, snapshot), environment)


def _unpacked(files: Files, environment: Environment) -> Files:
    """Return the files of the archive that is the only file of *files*; *files* if it is not an archive."""
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
