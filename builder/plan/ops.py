"""What a step does, as data: expanded, absolute, without behaviour."""

from __future__ import annotations

from builder.request import Sandbox
from cache.digest import DiffId, Digest, SnapshotId
from grammar.structs import field, struct

# Where files come from, if not from the step's sources, which are numbered from 0.
CONTEXT = -1
NOWHERE = -2  # an empty stage


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

    The hash of the commit must start with ``checksum``. Files get the time of the checkout; with
    ``commit_time``, the time of the commit.
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
    """Files that were fetched before planning: a ``snapshot``, and the ``key`` of its content."""

    key: str
    snapshot: SnapshotId


@struct
class Picked:
    """Files of ``origin``: a build context (``context`` is its name), or the source of that number.

    ``pattern`` is as written; with ``literal`` its wildcards are ordinary characters. With ``unpack``
    archives are unpacked. With ``parents`` the files are those below ``pattern`` that match one of them.
    """

    pattern: str
    origin: int
    literal: bool = False
    unpack: bool = False
    parents: tuple[str, ...] = ()
    context: str = ""


@struct
class Inline:
    """A file whose content is in the Dockerfile."""

    name: str
    content: str
    mode: int = 0o644


@struct
class CopyFiles:
    """COPY and ADD. ``dest`` is absolute; a trailing slash says that it is a directory.

    ``exclude`` are patterns relative to each source. With ``link`` the layer does not depend on the layers
    below. ``epoch`` is the time of the directories that it makes, in seconds; 0 for the default.
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
    """WORKDIR: make ``path`` and its missing parents, owned by ``user``."""

    path: str
    user: str
    epoch: int = 0


@struct
class BindMount:
    """``path`` of a step's source, mounted at ``target``. Changes are discarded."""

    target: str
    origin: int
    path: str
    read_only: bool


@struct
class CacheMount:
    """A directory that pybuild keeps between builds. A new one is a copy of ``path`` of the source."""

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
    """A tmpfs; ``size`` is in bytes, 0 for the kernel's default."""

    target: str
    size: int
    read_only: bool = False


@struct
class SecretMount:
    """A secret of the command line as the file ``target``, as the variable ``env``, or both; "" for none."""

    id: str
    target: str
    env: str
    required: bool
    mode: int
    uid: int
    gid: int


@struct
class SshMount:
    """The socket of the SSH agent that the command line names ``id``."""

    id: str
    target: str
    required: bool
    mode: int
    uid: int
    gid: int


Mount = BindMount | CacheMount | TmpfsMount | SecretMount | SshMount


@struct
class RunCommand:
    """RUN: a command. ``proxies`` are variables that it gets, and that its key does not cover.

    ``scripts`` are files in its /dev/pipes. ``security`` is "" or "insecure". ``foreign`` is the image's
    architecture if the machine has another one, else "".
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
