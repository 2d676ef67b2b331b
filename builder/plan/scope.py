"""Build arguments: given, predefined and used."""

from __future__ import annotations

from builder.errors import BuildError
from builder.oci.model import Platform
from grammar.structs import field, struct

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
# Arguments for the builder: ARG declares them, but no step sees them.
NOT_IN_ENV = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})
# Arguments that configure BuildKit; they need no ARG.
_QUIET = ("BUILDKIT_", "SOURCE_DATE_EPOCH")


def platform_args(target: Platform, build: Platform, stage: str) -> dict[str, str]:
    """Return the arguments that every FROM sees without an ARG."""
    args = {"TARGETSTAGE": stage or "default"}
    for prefix, where in (("TARGET", target), ("BUILD", build)):
        args[f"{prefix}PLATFORM"] = str(where)
        args[f"{prefix}OS"] = where.os
        args[f"{prefix}ARCH"] = where.architecture
        args[f"{prefix}VARIANT"] = where.variant
        args[f"{prefix}OSVERSION"] = ""
    return args


def parse_epoch(text: str) -> int:
    """Return the value of SOURCE_DATE_EPOCH in seconds. Raises BuildError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise BuildError(f"SOURCE_DATE_EPOCH is {text!r}, not a number of seconds since 1970")
    return int(text)


@struct(frozen=False)
class Scope:
    """The arguments of one build: those of the command line, and the global ones of the file."""

    build_args: dict[str, str]
    globals: dict[str, str]
    used: set[str] = field(factory=set)

    def value_of(self, name: str, default: str | None) -> str | None:
        """Return the value of ``ARG name[=default]`` in a stage; None leaves it unset."""
        self.used.add(name)
        if name in self.build_args:
            return self.build_args[name]
        return self.globals.get(name) if default is None else default

    def proxies(self) -> tuple[tuple[str, str], ...]:
        """Return the variables of the proxy arguments for every RUN, in both spellings, declared or not."""
        given = {name.lower(): value for name, value in sorted(self.build_args.items()) if value}
        return tuple(
            (spelling, given[name]) for name in _PROXIES if name in given for spelling in (name.upper(), name)
        )

    def unused(self) -> tuple[str, ...]:
        """Return the names of the command line that no ARG has used."""
        return tuple(
            name
            for name in self.build_args
            if name not in self.used and name.lower() not in _PROXIES and not name.startswith(_QUIET)
        )
