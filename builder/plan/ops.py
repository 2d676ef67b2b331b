"""What a step does, as data: expanded, absolute, without behaviour."""

from __future__ import annotations

from builder.request import Sandbox
from cache.digest import DiffId, Digest, SnapshotId
from grammar.structs import field, struct

# Where files come from, besides the step's sources, which are numbered from 0.
CONTEXT = -1
NOWHERE = -2  # a stage with nothing in it


@struct
class FromImage:
    """The root of a base image. ``diff_ids`` are its layers from the bottom up."""

    name: str
    image: Digest
    diff_ids: tuple[DiffId, ...]


@struct
class FetchUrl:
    """The file behind an http or https URL, called ``name``; ``checksum`` is a digest or ""."""

    url: str
    name: str
    checksum: str


@struct
class FetchGit:
    """The files of a git repository at ``ref`` ("": its default branch), or of its ``subdir``.

    ``checksum`` begins the hash of the commit that it has to be. Files get the time of the
    checkout, with ``commit_time`` that of the commit.
    """

    remote: str
    ref: str
    subdir: str
    checksum: str
    keep_git_dir: bool
    submodules: bool
    commit_time: bool


@struct
class Files:
    """Files that were fetched before the plan was made: a ``snapshot``, and the ``key`` of what it holds."""

    key: str
    snapshot: SnapshotId


@struct
class Picked:
    """Files of ``origin``: the build context (``context`` is its name, "" the main one's), or the
    step's source of that number.

    ``pattern`` is as written; with ``literal`` its wildcards mean themselves. ``unpack``:
    archives are unpacked. With ``parents`` it is everything below ``pattern`` that matches
    one of them.
    """

    pattern: str
    origin: int
    literal: bool = False
    unpack: bool = False
    parents: tuple[str, ...] = ()
    context: str = ""


@struct
class Inline:
    """A file whose content stands in the Dockerfile."""

    name: str
    content: str
    mode: int = 0o644


@struct
class CopyFiles:
    """COPY and ADD. ``dest`` is absolute and keeps a trailing slash where one was meant.

    ``exclude`` are patterns relative to each source. With ``link`` the layer depends on
    nothing below it. ``epoch`` is the time of what it makes itself, in seconds, 0 for the usual.
    """

    items: tuple[Picked | Inline, ...]
    dest: str
    chown: str = ""
    chmod: str = ""
    exclude: tuple[str, ...] = ()
    link: bool = False
    epoch: int = 0

    @property
    def reads_context(self) -> bool:
        return any(isinstance(item, Picked) and item.origin == CONTEXT for item in self.items)


@struct
class MakeDir:
    """WORKDIR: make ``path`` and its parents, owned by ``user``, where they are missing."""

    path: str
    user: str
    epoch: int = 0


@struct
class BindMount:
    """``path`` of a step's source at ``target``; what is written there is thrown away."""

    target: str
    origin: int
    path: str
    read_only: bool


@struct
class CacheMount:
    """A directory that outlives the step. ``path`` of the source is what a new one holds."""

    target: str
    id: str
    sharing: str
    origin: int
    path: str
    read_only: bool
    mode: int
    uid: int
    gid: int


@struct
class TmpfsMount:
    """Memory; ``size`` in bytes, 0 for the kernel's default."""

    target: str
    size: int
    read_only: bool = False


@struct
class SecretMount:
    """A secret of the command line as a file ("" for none), as a variable, or both."""

    id: str
    target: str
    env: str
    required: bool
    mode: int
    uid: int
    gid: int


@struct
class SshMount:
    """The socket of an ssh agent that the command line gave as ``id``."""

    id: str
    target: str
    required: bool
    mode: int
    uid: int
    gid: int


Mount = BindMount | CacheMount | TmpfsMount | SecretMount | SshMount


@struct
class RunCommand:
    """A process. ``proxies`` are variables that reach it without being part of its key.

    ``scripts`` are files it finds in /dev/pipes. ``security`` is "" or "insecure". ``foreign`` is the
    image's architecture where that is not the machine's.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    user: str
    network: str
    hostname: str
    proxies: tuple[tuple[str, str], ...] = ()
    scripts: tuple[Inline, ...] = ()
    mounts: tuple[Mount, ...] = ()
    security: str = ""
    sandbox: Sandbox = field(factory=Sandbox)
    foreign: str = ""


Fetch = FetchUrl | FetchGit
Op = FromImage | Files | Fetch | RunCommand | CopyFiles | MakeDir
