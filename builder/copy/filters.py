"""The filters of a scan: ignore rules, --parents and --exclude. Few imports: replay uses it too."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cache.context_scan import Stat, StatIndex
    from grammar.ignore import Ignore, State

# What one source of a COPY selects: a path, the patterns it must match and must not.
Selector = tuple[str, tuple[str, ...], tuple[str, ...]]


class _Rules:
    """One list of patterns, matched while a tree is walked. Keeps the state of each directory."""

    def __init__(self, patterns: "Ignore", base: str) -> None:
        self.patterns = patterns
        self._states: dict[str, State | None] = {"": None}
        state: State | None = None
        parts = base.split("/") if base else []
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            state = self._states[path] = patterns.match(path, state)

    def match(self, path: str, is_dir: bool) -> bool:
        state = self.patterns.match(path, self._states[path.rpartition("/")[0]])
        if is_dir:
            self._states[path] = state
        return state.excluded

    def verdict(self, path: str, is_dir: bool) -> int:
        """Return 2 to take the path, 1 to look inside, 0 to leave it out. A matching path is left out."""
        if not self.match(path, is_dir):
            return 2
        return 1 if is_dir and self.patterns.may_reinclude(path) else 0


class ScanFilter:
    """Decides what a scan takes (``cache.context_scan.scan``)."""

    def __init__(self, ignore: "Ignore", selector: Selector) -> None:
        from grammar.ignore import parse_patterns

        base, include, exclude = selector
        self._skip = len(base) + 1 if base else 0
        self._ignore = None if ignore.empty else _Rules(ignore, base)
        self._include = _Rules(parse_patterns(include), "") if include else None
        self._exclude = _Rules(parse_patterns(exclude), "") if exclude else None

    def __call__(self, path: str, is_dir: bool) -> int:
        verdict = 2 if self._ignore is None else self._ignore.verdict(path, is_dir)
        inside = path[self._skip :]
        if verdict and self._exclude is not None:
            verdict = min(verdict, self._exclude.verdict(inside, is_dir))
        if verdict and self._include is not None and not self._include.match(inside, is_dir):
            verdict = 1 if is_dir else 0  # something below may match
        return verdict


def scan_filter(ignore: "Ignore", selector: Selector) -> "ScanFilter | None":
    """Return the filter of a scan of what *selector* selects; None where everything is taken.

    Raises grammar.ignore.IgnoreError for a malformed pattern.
    """
    return None if ignore.empty and not selector[1] and not selector[2] else ScanFilter(ignore, selector)


def selector_name(selector: Selector) -> str:
    """Return the name of a selector in a stat index: the path alone where there are no patterns."""
    return selector[0] if not selector[1] and not selector[2] else repr(selector)


class SeenContext:
    """What replay has scanned of a build context before it gave up, for the full build to use."""

    def __init__(self, context: str, ignore: bytes, index: "StatIndex") -> None:
        self.context = context
        self.ignore = ignore
        self.index = index
        self.scanned: dict[Selector, list[Stat]] = {}
