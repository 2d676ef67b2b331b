"""What a step does, as data: expanded, absolute, without behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from cache.digest import Digest


@dataclass(frozen=True, slots=True)
class FromImage:
    """The root of a base image. ``diff_ids`` are its layers from the bottom up."""

    name: str
    image: Digest
    diff_ids: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class RunCommand:
    """A process. ``proxies`` are variables that reach it without being part of its key."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    user: str
    network: str
    hostname: str
    proxies: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class CopyFiles:
    """COPY. ``dest`` is absolute and keeps a trailing slash where one was meant.

    Sources are as written; ``from_context`` says whether they name files of the context or
    of the second input.
    """

    sources: tuple[str, ...]
    dest: str
    from_context: bool
    chown: str = ""
    chmod: str = ""


@dataclass(frozen=True, slots=True)
class MakeDir:
    """WORKDIR: make ``path`` and its parents, owned by ``user``, where they are missing."""

    path: str
    user: str


Op = FromImage | RunCommand | CopyFiles | MakeDir
