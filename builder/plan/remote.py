"""Remote sources of ADD and remote contexts: HTTP URLs and git repositories."""

from __future__ import annotations

import posixpath
import re

from builder.errors import BuildError
from builder.plan.ops import FetchGit
from grammar.redact import redacted as redacted
from grammar.redact import without_credentials as without_credentials
from grammar.structs import struct

_SCHEME = re.compile(r"([a-zA-Z0-9]+)://")
# user@host:path, as scp and git write it.
_SCP = re.compile(r"[a-zA-Z0-9_-]+@([a-zA-Z0-9][a-zA-Z0-9.-]*):([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_TRUTHS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@struct
class GitRef:
    """A git source: the repository, the files of it, and how to check them out.

    ``ref`` is "" for the default branch. ``checksum`` is the expected commit hash, or its first digits.
    """

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool | None = None
    submodules: bool = True
    commit_time: bool = False

    def op(self, keep_git_dir: bool, checksum: str = "") -> FetchGit:
        """Return the operation that fetches it. *checksum* is the value of the flag."""
        checksum = checksum or self.checksum
        return FetchGit(
            self.remote, self.ref, self.subdir, checksum, keep_git_dir, self.submodules, self.commit_time
        )


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def context_git_ref(text: str) -> GitRef | None:
    """Return the repository that the context *text* names, or None. Raises BuildError."""
    try:
        return parse_git_ref(text, context=True)
    except ValueError as error:
        raise BuildError(f"the context {redacted(text)}: {error}") from None


def is_remote(text: str) -> bool:
    """Return True if a context is a URL or a git repository. Raises BuildError."""
    return is_url(text) or context_git_ref(text) is not None


def url_name(url: str) -> str:
    """Return the name of the file at *url*: always one component."""
    from urllib.parse import unquote, urlsplit

    try:
        name = posixpath.basename(unquote(urlsplit(url).path.rstrip("/")))
    except ValueError:
        return "__unnamed__"
    return name if name not in ("", ".", "..") and "\0" not in name else "__unnamed__"


def parse_git_ref(source: str, context: bool = False) -> GitRef | None:
    """Return the git repository that *source* names, or None.

    A *context* may also be github.com/owner/name. Raises ValueError for a repository with invalid options.
    """
    if source.startswith(("./", "../")):
        return None
    if context and source.startswith("github.com/"):
        source = f"https://{source}"
        bare = True
    else:
        bare = False
    found, match = _SCHEME.match(source), _SCP.fullmatch(source)
    if found is None and match is None:
        return None
    from urllib.parse import unquote, urlsplit

    if found is not None:
        scheme = found[1].lower()
        if scheme not in ("http", "https", "ssh", "git"):
            return None
        parts = urlsplit(source)
        if scheme in ("http", "https") and not parts.path.endswith(".git") and not bare:
            return None
        if (parts.hostname or "-").startswith("-"):
            raise ValueError(f"{redacted(source)!r} names no host")
        remote, query, fragment = source.partition("#")[0].partition("?")[0], parts.query, parts.fragment
    elif match is not None:
        remote, query, fragment = source.partition("#")[0].partition("?")[0], match[3] or "", match[4] or ""
    return _with_query(GitRef(remote), unquote(fragment), query)


def _with_query(git: GitRef, fragment: str, query: str) -> GitRef:
    ref, _, subdir = fragment.partition(":")
    from urllib.parse import parse_qsl

    asked: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in asked:
            raise ValueError(f'query "{key}" has multiple values')
        if not value and key not in ("submodules", "keep-git-dir", "fetch-by-commit"):
            raise ValueError(f'query "{key}" has no value')
        asked[key] = value
    checksum = asked.pop("checksum", "") or asked.pop("commit", "")
    keep = _truth(asked, "keep-git-dir")
    submodules = _truth(asked, "submodules")
    _truth(asked, "fetch-by-commit")  # pybuild always fetches the commit if the server allows it
    mtime = asked.pop("mtime", "checkout")
    if mtime not in ("checkout", "commit"):
        raise ValueError(f'invalid mtime value: "{mtime}"')
    subdir = _agreed("subdir", subdir, asked.pop("subdir", ""))
    ref = _agreed("ref", ref, asked.pop("ref", ""))
    tag, branch = asked.pop("tag", ""), asked.pop("branch", "")
    if tag and branch:
        raise ValueError("branch conflicts with tag")
    for name, prefix in ((tag, "refs/tags/"), (branch, "refs/heads/")):
        if name:
            ref = _agreed("ref", ref, name if name.startswith(prefix) else prefix + name)
    if asked:
        raise ValueError(f'unexpected query "{next(iter(asked))}"')
    ref = ref or checksum
    if ref.startswith("-") or re.search(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.", ref):
        raise ValueError(f"{ref!r} is not the name of a branch, tag or commit")
    return GitRef(git.remote, ref, subdir, checksum, keep, submodules is not False, mtime == "commit")


def _truth(asked: dict[str, str], key: str) -> bool | None:
    """Return the value of a switch, True without a value."""
    if key not in asked:
        return None
    text = asked.pop(key)
    if text.lower() not in ("", *_TRUTHS):
        raise ValueError(f'invalid {key} value: "{text}"')
    return _TRUTHS.get(text.lower(), True)


def _agreed(what: str, first: str, second: str) -> str:
    if first and second and first != second:
        raise ValueError(f'{what} conflicts: "{first}" vs "{second}"')
    return first or second


def is_commit(ref: str) -> bool:
    """Return True if *ref* is a full commit hash, which the server need not resolve."""
    return _COMMIT.fullmatch(ref) is not None
