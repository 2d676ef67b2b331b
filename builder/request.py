"""What a build was asked to do: everything it depends on besides file contents."""

from __future__ import annotations

from grammar.structs import field, struct


@struct
class Annotation:
    """An annotation: ``place`` is manifest, manifest-descriptor, index or index-descriptor.

    The first two are for the image for ``platform`` alone, of all where that is "".
    """

    place: str
    platform: str
    key: str
    value: str


@struct
class Output:
    """One ``-o``. ``kind``: "oci" and "docker" are archives of the image, "registry" pushes it, "image"
    names it in the store, "tar" and "local" are its files; ``dest`` is a file, a folder, or "-" for
    standard output.

    With ``rewrite_timestamp`` new layers hold no time later than SOURCE_DATE_EPOCH. ``names`` are
    canonical, instead of the build's own; with ``by_digest`` it is pushed without a tag, ``insecure``
    says that the registry may be spoken to over HTTP. ``split`` is whether files are in folders by
    platform (None: where there are several); with ``delete`` what else is in the folder is removed.
    ``notes`` are to be said of options that change nothing. The rest is as builder.export.image.ImageFormat
    has it.
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
        """The annotations of one *place*; those that name the *platform* count more."""
        found = [item for item in self.annotations if item.place == place]
        chosen = sorted(
            (one for one in found if one.platform in ("", platform)), key=lambda one: one.platform
        )
        return {item.key: item.value for item in chosen}


@struct
class CachePlace:
    """A ``--cache-from`` or ``--cache-to``.

    ``kind`` is "local" (``place`` an absolute path), "registry" (a reference) or "inline". ``mode`` max
    is all steps, min those of the image's own layers. ``mounts`` are ids of cache mounts that are
    taken along; with ``ignore_error`` a failure is a warning.
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
    """How this program talks to servers.

    ``insecure`` are the registries (``host[:port]``) that may use plain HTTP or any certificate.
    ``timeout`` is how many seconds a server may take for one request without progress, all tries together.
    """

    insecure: frozenset[str] = frozenset()
    timeout: float = 120.0

    @property
    def silence(self) -> float:
        """How many seconds a server may send nothing in one try."""
        return min(_LONGEST_SILENCE, self.timeout / 2)

    def trusting(self, registry: str) -> ClientOptions:
        """Return the same options with *registry* among the insecure ones."""
        return ClientOptions(self.insecure | {registry}, self.timeout)


@struct
class Secret:
    """Where ``--secret`` takes its content from: a file, or a variable of the environment."""

    file: str = ""
    env: str = ""


@struct
class Ssh:
    """An ``--ssh``: the socket of an agent, or key files that one is made for."""

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
    """What a container may use: memory in bytes, processor time in microseconds per 100 ms, a list
    of processors, processes; nothing where that is 0 or "". ``parent`` is the cgroup to be in.
    """

    memory: int = 0
    cpu_quota: int = 0
    cpuset: str = ""
    pids: int = 0
    parent: str = ""


HOST_GATEWAY = "host-gateway"  # docker's word for the address at which containers find their machine


@struct
class Sandbox:
    """What the command line says of the containers that it starts.

    ``hosts`` are names and addresses (HOST_GATEWAY: this machine's), ``ulimits`` names with soft and hard
    limits (-1: none), ``devices`` paths here and there. ``any_syscall``: there is no seccomp filter;
    ``system_paths``: nothing of /proc and /sys is hidden. ``shm_size`` is in bytes, 0 for the usual.
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

    ``context`` is a folder, or "" where ``remote`` says what it is instead: a URL, or STDIN;
    ``dockerfile`` is then a path in it. ``contexts`` go by their normalised names.
    ``pull`` is when registries are asked for base images: always, missing, never or newer.
    ``platforms`` are what it is built for, this machine's without any.
    ``tags`` are canonical references. ``jobs`` is how many steps may run at once. ``epoch`` is
    SOURCE_DATE_EPOCH in seconds: when everything this build makes was made. With ``quiet`` the image's ID
    is all that is printed. ``sbom`` is its form,
    ``provenance`` its mode, "" for none (builder.attest.options).
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
        """The names that the image gets in the store: of ``tags``, and of outputs that are just that."""
        more = (name for output in self.outputs if output.kind == "image" for name in output.names)
        return tuple(dict.fromkeys((*self.tags, *more)))


@struct
class BuildResult:
    """What came out, and what deserves attention.

    ``image`` is the image ID, the digest of its config; of several platforms it is the digest of the index
    that was exported, "" where none had to be made, and ``images`` are platforms and the IDs of their images.
    ``descriptor`` is what a registry or an archive calls the image, as JSON, if it went to one.
    """

    image: str
    unused_args: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    declared_args: tuple[str, ...] = ()
    images: tuple[tuple[str, str], ...] = ()
    descriptor: dict[str, object] | None = None
