"""Ignore rules during a scan of the context. Imports nothing heavy: replay uses it too."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grammar.ignore import Ignore, State


class Keeper:
    """Decides what a scan takes (``cache.scan.scan``); remembers the verdict of each directory."""

    def __init__(self, ignore: "Ignore", base: str) -> None:
        self._ignore = ignore
        self._states: dict[str, State | None] = {"": None}
        state: State | None = None
        parts = base.split("/") if base else []
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            state = ignore.match(path, state)
            self._states[path] = state

    def __call__(self, path: str, is_dir: bool) -> int:
        state = self._ignore.match(path, self._states[path.rpartition("/")[0]])
        if is_dir:
            self._states[path] = state
        if not state.excluded:
            return 2
        return 1 if is_dir and self._ignore.may_reinclude(path) else 0


def keeper(ignore: "Ignore", base: str) -> "Keeper | None":
    """A keeper for a scan that starts at *base*, or None when everything is taken."""
    return None if ignore.empty else Keeper(ignore, base)
