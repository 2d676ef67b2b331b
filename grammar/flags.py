"""The flags of instructions, ``--name[=value]``: which exist, of which kind, and their values."""

from __future__ import annotations

from grammar.ast import Flag
from grammar.errors import DockerfileError
from grammar.structs import field, struct
from grammar.suggest import suggestion

TEXT = "text"
BOOL = "bool"
LIST = "list"

FLAGS: dict[str, dict[str, str]] = {
    "FROM": {"platform": TEXT},
    "RUN": {"mount": LIST, "network": TEXT, "security": TEXT, "device": LIST},
    "COPY": {
        "from": TEXT,
        "chown": TEXT,
        "chmod": TEXT,
        "link": BOOL,
        "parents": BOOL,
        "exclude": LIST,
    },
    "ADD": {
        "chown": TEXT,
        "chmod": TEXT,
        "link": BOOL,
        "exclude": LIST,
        "checksum": TEXT,
        "keep-git-dir": BOOL,
        "unpack": BOOL,
    },
    "HEALTHCHECK": {
        "interval": TEXT,
        "timeout": TEXT,
        "start-period": TEXT,
        "start-interval": TEXT,
        "retries": TEXT,
    },
}


@struct(frozen=False)
class Given:
    """The flags of one instruction, checked."""

    flags: dict[str, list[Flag]] = field(factory=dict)

    def text(self, name: str) -> str:
        return (self.flags[name][0].value or "") if name in self.flags else ""

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(flag.value or "" for flag in self.all(name))

    def all(self, name: str) -> tuple[Flag, ...]:
        return tuple(self.flags.get(name, ()))

    def truth(self, name: str) -> bool | None:
        """Return the value of a bool flag, None if it was not given."""
        if name not in self.flags:
            return None
        value = self.flags[name][0].value
        return value is None or value.lower() == "true"


def check_flags(keyword: str, flags: list[Flag]) -> Given:
    """Check flags against the table. Raises DockerfileError with the span of the flag."""
    known = FLAGS.get(keyword, {})
    given = Given()
    for flag in flags:
        kind = known.get(flag.name)
        if kind is None:
            guess = suggestion(flag.name, known)
            hint = "" if known else f"{keyword} takes no flags; quote the word if it is an argument"
            raise DockerfileError(f"unknown flag: --{flag.name}{guess}", flag.span, hint)
        if flag.name in given.flags and kind != LIST:
            raise DockerfileError(f"Duplicate flag specified: {flag.name}", flag.span)
        if flag.value == "" if kind == BOOL else flag.value is None:
            raise DockerfileError(f"Missing a value on flag: {flag.name}", flag.span)
        if kind == BOOL and flag.value is not None and flag.value.lower() not in ("true", "false"):
            raise DockerfileError(
                f"Expecting boolean value for flag {flag.name}, not: {flag.value}", flag.span
            )
        given.flags.setdefault(flag.name, []).append(flag)
    return given
