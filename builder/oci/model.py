"""OCI image config and platform (image-spec v1.1 config.md).

Values are read with checks and written exactly. ``extra`` fields of a base's config are kept.
"""

from __future__ import annotations

import json
import os

from builder.errors import BuildError
from builder.support.json_strict import valid_text
from builder.support.json_types import Json, JsonObject
from cache.digest import DiffId, digest
from cache.errors import CacheError
from grammar.structs import field, replace, struct
from grammar.suggest import suggestion

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
}


@struct
class Platform:
    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def to_json(self) -> dict[str, str]:
        """Return the platform as an index holds it (image-spec image-index.md)."""
        out = {"architecture": self.architecture, "os": self.os}
        if self.variant:
            out["variant"] = self.variant
        return out


def host() -> Platform:
    """Return the platform of this machine."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "i386": ("386", ""),
}
_SYSTEMS = {"macos": "darwin"}
# What Go's lists of systems and architectures have.
_SYSTEM_NAMES = """
    aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 solaris wasip1
    windows zos
"""
_ARCHITECTURE_NAMES = """
    386 amd64 amd64p32 arm armbe arm64 arm64be ppc64 ppc64le loong64 mips mipsle mips64 mips64le mips64p32
    mips64p32le ppc riscv riscv64 s390 s390x sparc sparc64 wasm
"""
_KNOWN_SYSTEMS, _KNOWN_ARCHITECTURES = (
    frozenset(_SYSTEM_NAMES.split()),
    frozenset(_ARCHITECTURE_NAMES.split()),
)
_COMPONENT = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def normal_architecture(text: str, variant: str) -> tuple[str, str]:
    """Return an architecture and its variant by their OCI names."""
    architecture, implied = _ARCHITECTURES.get(text.lower(), (text.lower(), ""))
    variant = variant.lower() or implied
    if architecture == "arm":
        variant = variant or "v7"
        variant = f"v{variant}" if variant.isdigit() else variant
    elif architecture == "arm64":
        variant = {"8": "", "v8": "", "v8.0": "", "9": "v9", "9.0": "v9", "v9.0": "v9"}.get(variant, variant)
    if (architecture, variant) == ("amd64", "v1") or text.lower() == "i386":
        variant = ""
    return architecture, variant


def rank(stated: object, wanted: Platform) -> int:
    """Return how well an image for the platform *stated* in an index runs on *wanted*; 0 is not at all.

    As in containerd, a processor also runs programs for its older versions, and 32-bit ones last.
    """
    if not isinstance(stated, dict) or str(stated.get("os") or "").lower() != wanted.os:
        return 0
    texts = [str(stated.get(key) or "") for key in ("architecture", "variant")]
    known = normal_architecture(texts[0], texts[1])
    served = _served(*normal_architecture(wanted.architecture, wanted.variant))
    return len(served) - served.index(known) if known in served else 0


def _served(architecture: str, variant: str) -> list[tuple[str, str]]:
    """Return the architectures whose programs this one runs, the best first."""
    digits = variant.removeprefix("v")
    version = int(digits) if digits.isdigit() and len(digits) < 4 else 0
    out = [(architecture, variant)]
    if architecture == "amd64":
        out += [normal_architecture(architecture, f"v{older}") for older in range(version - 1, 0, -1)]
        return [*out, ("386", "")]
    if architecture == "arm64":
        out += [(architecture, "")] if variant else []
        return [*out, *(("arm", f"v{older}") for older in range(8, 4, -1))]
    if architecture == "arm":
        out += [(architecture, f"v{older}") for older in range(version - 1, 4, -1)]
    return out


def parse_platform(text: str, default: Platform) -> Platform:
    """Parse ``os/architecture[/variant]``, or a known system or architecture alone.

    Raises ValueError.
    """
    parts = text.split("/")
    for part in parts:
        if not part or not _COMPONENT.issuperset(part):
            raise ValueError(
                f'"{part}" is an invalid component of "{text}": '
                'platform specifier component must match "^[A-Za-z0-9_.-]+$"'
            )
    parts = [part.lower() for part in parts]
    if len(parts) > 3:
        raise ValueError(f'"{text}": cannot parse platform specifier')
    if len(parts) == 1:
        system = _SYSTEMS.get(parts[0], parts[0])
        if system in _KNOWN_SYSTEMS:
            return Platform(system, default.architecture, default.variant)
        if _ARCHITECTURES.get(parts[0], parts)[0] not in _KNOWN_ARCHITECTURES:
            raise ValueError(f'"{text}": unknown operating system or architecture')
        parts = [default.os, *parts]
    architecture, variant = normal_architecture(parts[1], parts[2] if len(parts) == 3 else "")
    return Platform(_SYSTEMS.get(parts[0], parts[0]), architecture, variant)


def platform_option(text: str) -> Platform:
    """Return the platform that ``--platform`` names; ``local`` is this machine. Raises ValueError."""
    return host() if text.lower() == "local" else parse_platform(text, host())


def unknown_platform(platform: Platform) -> str | None:
    """Return a warning for a platform that no list knows; None for any other."""
    for what, name, known in (
        ("system", platform.os, _KNOWN_SYSTEMS),
        ("architecture", platform.architecture, _KNOWN_ARCHITECTURES),
    ):
        if name not in known:
            return f"{platform}: no {what} is known by the name {name}{suggestion(name, sorted(known))}"
    return None


@struct
class History:
    """One line of an image's history. ``created`` is RFC 3339, "" if unknown."""

    created_by: str
    empty_layer: bool = False
    created: str = ""
    comment: str = ""
    author: str = ""

    def to_json(self) -> dict[str, object]:
        out: dict[str, object] = {}
        if self.created:
            out["created"] = self.created
        if self.created_by:
            out["created_by"] = self.created_by
        if self.author:
            out["author"] = self.author
        if self.comment:
            out["comment"] = self.comment
        if self.empty_layer:
            out["empty_layer"] = True
        return out


@struct
class ImageConfig:
    """An image's config. ``settings`` is its "config" object as JSON."""

    platform: Platform
    settings: JsonObject = field(factory=dict)
    history: tuple[History, ...] = ()
    diff_ids: tuple[DiffId, ...] = ()
    created: str = ""
    author: str = ""
    extra: JsonObject = field(factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """The environment in its order. The last of equal names wins."""
        return dict(item.partition("=")[::2] for item in self.settings.get("Env") or [])

    def with_settings(self, **changes: Json) -> ImageConfig:
        """Return a copy with some settings replaced. None removes one."""
        settings = {**self.settings, **changes}
        return replace(self, settings={k: v for k, v in settings.items() if v is not None})

    def with_env(self, env: dict[str, str]) -> ImageConfig:
        """Return a copy with this environment, in its order."""
        return self.with_settings(Env=[f"{key}={value}" for key, value in env.items()])

    def to_bytes(self) -> bytes:
        """Return the config as it is stored. Equal values give equal bytes."""
        out: dict[str, object] = dict(self.extra)
        if self.created:
            out["created"] = self.created
        if self.author:
            out["author"] = self.author
        out["architecture"] = self.platform.architecture
        out["os"] = self.platform.os
        if self.platform.variant:
            out["variant"] = self.platform.variant
        out["config"] = {key: item for key, item in sorted(self.settings.items()) if item}
        out["rootfs"] = {"type": "layers", "diff_ids": list(self.diff_ids)}
        out["history"] = [item.to_json() for item in self.history]
        return to_json(out)


_SETTINGS = frozenset(
    (
        *("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels"),
        *("StopSignal", "ArgsEscaped", "Healthcheck", "OnBuild", "Shell"),
    )
)
_EXTRA = ("os.version", "os.features")


def to_json(value: object) -> bytes:
    """Return compact JSON. Like Go, write U+FFFD for bytes that are not valid text."""
    return valid_text(json.dumps(value, separators=(",", ":"), ensure_ascii=False)).encode()


def parse_config(data: bytes, what: str) -> ImageConfig:
    """Read a config. Raises BuildError when a field is missing or of the wrong type."""
    from builder.support.json_strict import loads

    value = loads(data, what, 8 << 20)
    if not isinstance(value, dict):
        raise BuildError(f"{what} is not a JSON object")
    try:
        settings = _typed(value, "config", dict) or {}
        _check_settings(settings)
        rootfs = _typed(value, "rootfs", dict) or {}
        diff_ids = tuple(DiffId(digest(str(item))) for item in rootfs.get("diff_ids") or [])
        history = tuple(_history(item) for item in _typed(value, "history", list) or [])
        architecture, variant = (str(value.get(key) or "") for key in ("architecture", "variant"))
        if architecture in _ARCHITECTURES:  # a name that another tool has for it
            architecture, variant = normal_architecture(architecture, variant)
        where = Platform(str(value.get("os") or "linux"), architecture, variant)
    except (TypeError, CacheError) as error:
        raise BuildError(f"{what} is not an image config: {error}") from None
    # Other fields say nothing of an image: docker's leftovers describe the container that it was
    # committed from.
    return ImageConfig(
        where,
        {key: item for key, item in settings.items() if key in _SETTINGS},
        history,
        diff_ids,
        str(value.get("created") or ""),
        str(value.get("author") or ""),
        {key: value[key] for key in _EXTRA if key in value},
    )


def _typed(value: JsonObject, key: str, kind: type) -> Json:
    item = value.get(key)
    if item is not None and not isinstance(item, kind):
        raise TypeError(f"{key!r} is not a {kind.__name__}")
    return item


def _check_settings(settings: JsonObject) -> None:
    for key in ("Env", "Cmd", "Entrypoint", "Shell", "OnBuild"):
        items = _typed(settings, key, list) or []
        if not all(isinstance(item, str) for item in items):
            raise TypeError(f"{key!r} holds something that is not a text")
    for key in ("User", "WorkingDir", "StopSignal"):
        _typed(settings, key, str)
    for key in ("Labels", "ExposedPorts", "Volumes"):
        _typed(settings, key, dict)


def _history(item: Json) -> History:
    if not isinstance(item, dict):
        raise TypeError("a history entry is not an object")
    texts = [str(item.get(key) or "") for key in ("created_by", "created", "comment", "author")]
    return History(texts[0], bool(item.get("empty_layer")), texts[1], texts[2], texts[3])


def scratch(where: Platform) -> ImageConfig:
    """Return the config that FROM scratch starts with (T61)."""
    return ImageConfig(where, {"Env": [f"PATH={DEFAULT_PATH}"], "WorkingDir": "/"})
