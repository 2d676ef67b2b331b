"""ADD of a git repository, with the machine's git and as few of its features as possible.

A repository is untrusted (SRC-12 to SRC-15): git reads only pybuild's configuration, runs no hooks, prompts
for nothing, and uses the protocols http, https, ssh and git only.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import resource
import selectors
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from urllib.parse import unquote, urlsplit

from builder.environment import Environment
from builder.errors import BuildError, FetchError
from builder.plan.ops import FetchGit
from builder.plan.remote import is_commit, redacted, without_credentials
from builder.request import Secret, Ssh
from builder.run.secrets import find_secret, one_line
from builder.support.paths import in_home
from builder.support.tethered import Tethered
from cache.digest import SnapshotId
from cache.fs import remove_tree
from cache.keys import CacheKey, derive
from cache.layer.landlock import confined
from cache.layer.snapshots import Draft, commit, draft

_PASSED = ("PATH", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.symlinks": "true",
    "core.logAllRefUpdates": "false",
    "protocol.file.allow": "never",
    "protocol.ext.allow": "never",
    "advice.detachedHead": "false",
    "init.defaultBranch": "main",
    "gc.auto": "0",
    "http.lowSpeedLimit": "20",  # bytes per second: less than the progress messages of a working server
    "fetch.fsckObjects": "true",
}
_OUTPUT_LIMIT = 16 << 20  # bytes of each of git's outputs
_MEMORY_LIMIT = 4 << 30  # bytes that git may allocate: an object may be a decompression bomb
_TICK = 0.2
# Prints the credentials of a URL to git, which runs it when a server requires them.
_HELPER = (
    """!f() { test "$1" = get && """
    """printf 'username=%s\\npassword=%s\\n' "$PYBUILD_USER" "$PYBUILD_PASSWORD"; }; f"""
)


def fetch_git(op: FetchGit, environment: Environment, fresh: bool) -> tuple[CacheKey, SnapshotId]:
    """Return the key and the snapshot of the repository of *op*. A commit in the store is not fetched again.

    Raises BuildError, and Cancelled.
    """
    if shutil.which("git") is None:
        raise FetchError(f"{redacted(op.remote)} needs git, and this machine has none", "install git")
    with draft(environment.store, ()) as made:
        git = _Git(op, environment, made.folder)
        # Whatever a server sends, the programs that git runs can write only here.
        where, hashes = confined([made.folder, os.devnull], git.resolve)
        if op.checksum and not any(value.startswith(op.checksum) for value in hashes):
            raise FetchError(f"expected checksum to match {op.checksum}, got {hashes[0]}")
        wanted = hashes[-1]
        fields: dict[str, object] = {
            "commit": wanted,
            "subdir": op.subdir,
            "keep": op.keep_git_dir and [redacted(op.remote), where, hashes[0]],
            "submodules": op.submodules,
            "commit_time": op.commit_time,
        }
        key = derive("git", fields)
        environment.store.memos.set_commit(key, wanted)  # for builder.attest.provenance
        if not fresh and (last := environment.store.memos.checkout(key)):
            return key, last
        confined([made.folder, os.devnull], lambda: git.check_out(made, where, hashes))
        snapshot = commit(made)
        environment.store.memos.set_checkout(key, snapshot)
    return key, snapshot


class _Git:
    """Runs git for one repository."""

    def __init__(self, op: FetchGit, environment: Environment, folder: str) -> None:
        self._op = op
        self._cancellation = environment.cancellation
        self._client = environment.client
        self._remote, self._environment = _environment(op.remote, folder, environment)

    def resolve(self) -> tuple[str, list[str]]:
        """Return the full name of the ref and its hashes: that of an annotated tag first, its commit last."""
        ref = self._op.ref
        if is_commit(ref):
            return ref, [ref]
        wanted = ref or "HEAD"
        found = {}
        arguments = ["ls-remote", "--symref", "--", self._remote, wanted, f"{wanted}^{{}}"]
        for line in self._run(arguments).split("\n"):
            value, _, name = line.partition("\t")
            if is_commit(value):
                found[name] = value
            elif name == "HEAD" and not ref and value.startswith("ref: refs/heads/"):
                wanted = value.removeprefix("ref: ")  # the default branch
        if not ref and "HEAD" in found:
            return wanted, [found["HEAD"]]
        whole = [f"{space}{ref.removeprefix(space)}" for space in ("refs/", "refs/heads/", "refs/tags/")]
        for name in (*whole, wanted):  # branches before tags, as in git
            if name in found:
                return name, list(dict.fromkeys((found[name], found.get(f"{name}^{{}}", found[name]))))
        raise FetchError(
            f"repository {redacted(self._op.remote)} does not contain ref {wanted}",
            "a commit is named by its whole hash",
        )

    def check_out(self, made: Draft, where: str, hashes: list[str]) -> None:
        """Check out the last of *hashes*, which are those of the ref *where*, into the draft."""
        here, wanted = made.upper, hashes[-1]
        self._run(["init", "-q"], here)
        self._run(["remote", "add", "origin", without_credentials(self._op.remote)], here)
        self._fetch(where, hashes if self._op.keep_git_dir else [wanted], here)
        self._run(["checkout", "-q", "-f", "--detach", wanted], here)
        if self._op.submodules and os.path.lexists(os.path.join(here, ".gitmodules")):
            self._run(["submodule", "update", "--init", "--recursive", "--depth=1", "--progress"], here)
        when = int(self._run(["show", "-s", "--format=%ct", wanted], here)) if self._op.commit_time else None
        try:
            if self._op.keep_git_dir:
                self._tidy(here, where, hashes[0])
            else:
                _forget(here)
            if self._op.subdir:
                _only(made, self._op.subdir)
            _normalise(here, when)
        except RecursionError:
            raise FetchError(f"{redacted(self._op.remote)} has directories nested too deeply") from None

    def _tidy(self, here: str, where: str, value: str) -> None:
        """Make .git independent of this machine: keep only the requested ref, and remove inodes and times
        from each index.
        """
        folder = os.path.join(here, ".git")
        for name in ("heads", "tags", "remotes"):
            remove_tree(os.path.join(folder, "refs", name))
        for name in ("packed-refs", "ORIG_HEAD"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
        os.mkdir(os.path.join(folder, "refs/heads"))
        if where.startswith("refs/"):
            self._run(["update-ref", where, value], here)
        for repository, _names, files in os.walk(folder):
            if "FETCH_HEAD" in files:
                os.unlink(os.path.join(repository, "FETCH_HEAD"))
            if "index" in files and "HEAD" in files:
                os.unlink(os.path.join(repository, "index"))
                self._run([f"--git-dir={repository}", "read-tree", "HEAD"], here)

    def _fetch(self, where: str, hashes: list[str], here: str) -> None:
        """Fetch the first of *hashes*, which includes the others; everything if the server refuses that."""
        begun = time.monotonic()
        try:
            self._run(["fetch", "--progress", "--depth=1", "--no-tags", "--", self._remote, hashes[0]], here)
            return
        except BuildError:
            if time.monotonic() - begun >= self._client.silence:
                raise  # another failure than a refused hash
        try:
            everything = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
            if where.startswith("refs/") and not where.startswith(("refs/heads/", "refs/tags/")):
                everything.append(where)
            self._run(["fetch", "--progress", "--no-tags", "--", self._remote, *everything], here)
            self._run(["cat-file", "-e", f"{hashes[-1]}^{{commit}}"], here)
        except BuildError as error:
            raise FetchError(
                f"fetching {hashes[-1]} of {redacted(self._op.remote)}: {error.message}"
            ) from None

    def _run(self, arguments: Sequence[str], folder: str | None = None) -> str:
        """Return the output of git. Raises BuildError with its last message, and Cancelled."""
        process = Tethered(
            ["git", *arguments],
            cwd=folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            umask=0o022,
        )
        what = f"git {arguments[0]} of {redacted(self._op.remote)}"
        try:
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (_MEMORY_LIMIT, _MEMORY_LIMIT))
        except (ProcessLookupError, PermissionError):
            pass  # it has ended already
        try:
            out, said = self._listen(process, what)
            process.wait()
        except BaseException:  # also Ctrl-C in the main thread
            process.kill()
            process.wait()
            raise
        finally:
            process.release()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        if process.returncode:
            text = said.decode("utf-8", "replace").replace("\r", "\n")
            lines = [line for line in text.split("\n") if line.strip()]
            reason = redacted(lines[-1]) if lines else f"it ended with {process.returncode}"
            raise FetchError(f"{what}: {reason}")
        return out.decode("utf-8", "surrogateescape")

    def _listen(self, process: subprocess.Popen[bytes], what: str) -> tuple[bytes, bytes]:
        """Return the output of git. Its progress messages show that the server works.

        Raises BuildError and Cancelled.
        """
        heard: dict[int, bytearray] = {}
        with selectors.DefaultSelector() as waiting:
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                waiting.register(pipe.fileno(), selectors.EVENT_READ)
                heard[pipe.fileno()] = bytearray()
            last = time.monotonic()
            while waiting.get_map():
                self._cancellation.check()
                for key, _events in waiting.select(_TICK):
                    data = os.read(key.fd, 65536)
                    last = time.monotonic()
                    if not data:
                        waiting.unregister(key.fd)
                    heard[key.fd] += data
                    if len(heard[key.fd]) > _OUTPUT_LIMIT:
                        raise FetchError(f"{what}: the server says more than {_OUTPUT_LIMIT >> 20} MiB")
                if time.monotonic() - last > self._client.timeout:
                    why = f"the server gave nothing of use for {self._client.timeout:.0f} seconds"
                    raise FetchError(f"{what}: {why}", "build again, perhaps with a longer --timeout")
        out, said = heard.values()
        return bytes(out), bytes(said)


def _environment(remote: str, folder: str, environment: Environment) -> tuple[str, dict[str, str]]:
    """Return the repository's address for git, and git's environment, with only pybuild's configuration.

    Credentials are in the environment only, never in arguments.
    """
    out = {name: os.environ[name] for name in _PASSED if name in os.environ}
    out |= {name: os.environ[name] for name in map(str.upper, _PASSED) if name in os.environ}
    given = environment.ssh.get("default")
    config = {**_CONFIG, "http.lowSpeedTime": f"{max(1, round(environment.client.silence))}"}
    parts = urlsplit(remote if "://" in remote else f"ssh://{remote.replace(':', '/', 1)}")
    if parts.scheme in ("http", "https"):
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"
        if header := _credentials(parts.hostname or "", environment.secrets):
            config["http.followRedirects"] = "false"  # git would send the header to any host
            config[f"http.{place}.extraheader"] = header
        if parts.username is not None:
            config[f"credential.{place}.helper"] = _HELPER
            out["PYBUILD_USER"] = unquote(parts.username)
            out["PYBUILD_PASSWORD"] = unquote(parts.password or "")
            remote = without_credentials(remote)
    elif parts.password is not None:  # neither ssh nor git's own protocol uses the header
        remote = without_credentials(remote).replace("://", f"://{parts.username}@", 1)
    for number, (key, value) in enumerate(config.items()):
        out[f"GIT_CONFIG_KEY_{number}"], out[f"GIT_CONFIG_VALUE_{number}"] = key, value
    return remote, out | {
        "GIT_CONFIG_COUNT": str(len(config)),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TEMPLATE_DIR": "",  # no template files of this machine's git
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "GIT_ALLOW_PROTOCOL": "http:https:ssh:git",
        "GIT_SSH_COMMAND": _ssh_command(given),
        "SSH_AUTH_SOCK": given.socket if given is not None else "",
        "HOME": folder,
        "LC_ALL": "C",
    }


def _ssh_command(given: Ssh | None) -> str:
    """Return the command of ssh with only the keys of ``--ssh``, and with the user's known hosts."""
    known = in_home(".ssh/known_hosts")
    command = ["ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]
    command += ["-o", f"UserKnownHostsFile={known}"]
    if given is None or given.keys:
        command += ["-o", "IdentitiesOnly=yes", "-o", "IdentityFile=none"]
    for key in given.keys if given is not None else ():
        command += ["-i", key]
    return shlex.join(command)


def _credentials(host: str, secrets: Mapping[str, Secret]) -> str:
    """Return the header that the secrets GIT_AUTH_HEADER and GIT_AUTH_TOKEN give for *host*, else ""."""
    for name in (f"GIT_AUTH_HEADER.{host}", "GIT_AUTH_HEADER"):
        if header := find_secret(secrets, name):
            return f"Authorization: {one_line(header, name)}"
    for name in (f"GIT_AUTH_TOKEN.{host}", "GIT_AUTH_TOKEN"):
        if token := find_secret(secrets, name):
            pair = base64.b64encode(f"x-access-token:{token}".encode()).decode()
            return f"Authorization: basic {pair}"
    return ""


def _forget(here: str) -> None:
    """Remove git's own files, here and in submodules."""
    for folder, names, files in os.walk(here):
        if ".git" in names:
            remove_tree(os.path.join(folder, ".git"))
            names.remove(".git")
        if ".git" in files:
            os.unlink(os.path.join(folder, ".git"))


def _only(made: Draft, subdir: str) -> None:
    """Keep only the content of *subdir*. Each component must be a directory, not a symlink (SRC-12)."""
    path = made.upper
    for name in [part for part in re.split("/+", subdir) if part not in ("", ".")]:
        path = os.path.join(path, name)
        if name == ".." or not os.path.lexists(path) or not stat.S_ISDIR(os.lstat(path).st_mode):
            raise FetchError(f"invalid subdir {subdir!r} in the repository: not a directory")
    if path == made.upper:
        return
    aside, rest = os.path.join(made.folder, "subdir"), os.path.join(made.folder, "rest")
    os.rename(path, aside)
    os.rename(made.upper, rest)
    os.rename(aside, made.upper)
    remove_tree(rest)


def _normalise(here: str, when: int | None) -> None:
    """Set modes as git means them, whatever the umask; set the time *when* on each file unless it is None."""
    for folder, names, files in os.walk(here, topdown=False):
        for name in (*files, *names):
            path = os.path.join(folder, name)
            found = os.lstat(path)
            if stat.S_ISDIR(found.st_mode):
                os.chmod(path, 0o755)
            if when is not None:
                os.utime(path, (when, when), follow_symlinks=False)
