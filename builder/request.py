"""The request for a build: everything that it depends on except the content of files."""

from __future__ import annotations

from cache.digest import Digest
from grammar.structs import field, struct


@struct
class Annotation:
    """An annotation: ``place`` is manifest, manifest-descriptor, index or index-descriptor.

    ``platform`` limits the first two to the image for that platform; "" means all images.
    """

    place: str
    platform: str
    key: str
    value: str


@struct
class Output:
    """An ``-o``. ``dest`` is a file, a directory, or "-" for standard output.

    ``kind``: "oci" and "docker" write an archive of the image, "registry" pushes it, "image" names it in the
    store, "tar" and "local" write its files. With ``rewrite_timestamp`` new layers have no time later than
    SOURCE_DATE_EPOCH. ``names`` are canonical, and replace those of the build. With ``by_digest`` the image
    is pushed without a tag; with ``insecure`` the registry may use plain HTTP. ``split`` puts the files into
    a directory for each platform (None: if there are several). ``delete`` removes all other files of the
    directory. ``notes`` are notices about options without effect. The other fields are those of
    builder.export.image.ImageFormat.
    """

    kind: str
    dest: str
    rewrite_timestamp: bool = False
    names: tuple[str, ...] = ()
    compression: str = "gzip"
    level: int = 0
    force: bool = False
    docker_types: bool = False
    annotations: tuple[Annotation, ...] = ()
    folder: bool = False
    by_digest: bool = False
    insecure: bool = False
    split: bool | None = None
    delete: bool = False
    notes: tuple[str, ...] = ()

    def marks(self, place: str, platform: str = "") -> dict[str, str]:
        """Return the annotations of one *place*. Those for the *platform* override those for all."""
        found = [item for item in self.annotations if item.place == place]
        chosen = sorted(
            (one for one in found if one.platform in ("", platform)), key=lambda one: one.platform
        )
        return {item.key: item.value for item in chosen}


@struct
class CachePlace:
    """A ``--cache-from`` or ``--cache-to``.

    ``kind`` is "local" (``place`` is an absolute path), "registry" (a reference) or "inline". ``mode`` "max"
    exports all steps, "min" those of the image's own layers. ``mounts`` are IDs of cache mounts to export.
    With ``ignore_error`` a failure causes a warning.
    """

    kind: str
    place: str = ""
    tag: str = "latest"
    digest: str = ""
    mode: str = "min"
    mounts: tuple[str, ...] = ()
    all_mounts: bool = False
    compression: str = "zstd"
    ignore_error: bool = False


_LONGEST_SILENCE = 60.0  # seconds


@struct
class ClientOptions:
    """How pybuild connects to servers.

    ``insecure`` are the registries (``host[:port]``) that may use plain HTTP or any certificate.
    ``timeout`` is the longest time of one request without progress, with all attempts, in seconds.
    """

    insecure: frozenset[str] = frozenset()
    timeout: float = 120.0

    @property
    def silence(self) -> float:
        """The longest time in one attempt in which a server sends nothing, in seconds."""
        return min(_LONGEST_SILENCE, self.timeout / 2)

    def trusting(self, registry: str) -> ClientOptions:
        """Return the same options with *registry* among the insecure ones."""
        return ClientOptions(self.insecure | {registry}, self.timeout)


@struct
class Secret:
    """The source of a ``--secret``: a file, or a variable of the environment."""

    file: str = ""
    env: str = ""


@struct
class Ssh:
    """An ``--ssh``: the socket of an agent, or key files that pybuild starts an agent for."""

    socket: str = ""
    keys: tuple[str, ...] = ()


STDIN = "-"


@struct
class NamedContext:
    """A ``--build-context``. ``kind``: "local" (an absolute path), "image", "layout", "url", "target"."""

    kind: str
    value: str


@struct
class Limits:
    """Resource limits of a container; 0 or "" for no limit.

    ``memory`` is in bytes, ``cpu_quota`` in microseconds per 100 ms, ``cpuset`` a list of processors,
    ``pids`` a number of processes. ``parent`` is the parent cgroup.
    """

    memory: int = 0
    cpu_quota: int = 0
    cpuset: str = ""
    pids: int = 0
    parent: str = ""


HOST_GATEWAY = "host-gateway"  # docker's word for the host's address, as containers reach it


@struct
class Sandbox:
    """The sandbox options of the command line.

    ``hosts`` are names and addresses (HOST_GATEWAY: this machine's), ``ulimits`` are names with soft and hard
    limits (-1: none), ``devices`` are paths on this machine and in the container. ``any_syscall`` disables
    the seccomp filter; ``system_paths`` disables the masks of /proc and /sys. ``shm_size`` is in bytes, 0 for
    the default.
    """

    hosts: tuple[tuple[str, str], ...] = ()
    dns: tuple[str, ...] = ()
    shm_size: int = 0
    ulimits: tuple[tuple[str, tuple[int, int]], ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    devices: tuple[tuple[str, str], ...] = ()
    no_new_privileges: bool = False
    any_syscall: bool = False
    system_paths: bool = False
    limits: Limits = field(factory=Limits)


@struct
class BuildRequest:
    """A build, as the command line states it. Paths are absolute.

    ``context`` is a directory, or "" if ``remote`` is set: to a URL, or to STDIN. ``dockerfile`` is then a
    path in that context. The keys of ``contexts`` are normalised names. ``pull`` says when registries are
    asked for base images: always, missing, never or newer. ``platforms`` are empty for this machine's.
    ``tags`` are canonical references. ``jobs`` is the largest number of steps that run at once. ``epoch`` is
    SOURCE_DATE_EPOCH in seconds: the time of everything that the build makes. With ``quiet`` only the image
    ID is printed. ``sbom`` is the format of the SBOM, ``provenance`` its mode; "" for none
    (builder.attest.options).
    """

    context: str
    dockerfile: str
    remote: str = ""
    tags: tuple[str, ...] = ()
    target: str = ""
    build_args: dict[str, str] = field(factory=dict)
    labels: dict[str, str] = field(factory=dict)
    outputs: tuple[Output, ...] = ()
    network: str = "default"
    no_cache: bool = False
    platforms: tuple[str, ...] = ()
    pull: str = "missing"
    no_cache_stages: frozenset[str] = frozenset()
    iidfile: str = ""
    quiet: bool = False
    metadata_file: str = ""
    jobs: int = 8
    client: ClientOptions = field(factory=ClientOptions)
    secrets: dict[str, Secret] = field(factory=dict)
    allow: frozenset[str] = frozenset()
    ssh: dict[str, Ssh] = field(factory=dict)
    contexts: dict[str, NamedContext] = field(factory=dict)
    epoch: int | None = None
    sandbox: Sandbox = field(factory=Sandbox)
    cache_from: tuple[CachePlace, ...] = ()
    cache_to: tuple[CachePlace, ...] = ()
    sbom: str = ""
    provenance: str = ""
    builder_id: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the image gets in the store: from ``tags``, and from outputs of kind "image"."""
        more = (name for output in self.outputs if output.kind == "image" for name in output.names)
        return tuple(dict.fromkeys((*self.tags, *more)))


@struct
class BuildResult:
    """The result of a build, with its warnings.

    ``image`` is the image ID. For several platforms it is the digest of the exported image index, None if no
    index was made; ``images`` are then the platforms and the IDs of their images. ``descriptor`` describes
    the image in a registry or an archive, as JSON; None if it was not exported.
    """

    image: Digest | None
    unused_args: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    declared_args: tuple[str, ...] = ()
    images: tuple[tuple[str, str], ...] = ()
    descriptor: dict[str, object] | None = None
