"""The lines of plain progress, as pure functions of texts and numbers."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Control characters that would act on a terminal: all but tab and newline.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def started(number: int, name: str) -> str:
    return f"#{number} {printable(name)}"


def cached(number: int, name: str) -> str:
    return f"#{number} {printable(name)}\n#{number} CACHED"


def done(number: int, seconds: float, cpu_seconds: float, peak: int) -> str:
    used = f" (CPU {cpu_seconds:.1f}s, memory {peak / 1e6:.0f} MB)" if peak else ""
    return f"#{number} DONE {seconds:.1f}s{used}"


def failed(number: int, seconds: float) -> str:
    return f"#{number} FAILED {seconds:.1f}s"


def output(number: int, seconds: float, text: str) -> str:
    """Return the lines of *text*, which a step wrote *seconds* after its start."""
    start = f"#{number} {seconds:.2f} "
    return start + text.replace("\n", f"\n{start}")


def conclusion(image: "str | None", tags: "Iterable[str]", warnings: "Sequence[str]") -> "Iterator[str]":
    """Yield the last lines: findings of the checks, the image ID, the image's names."""
    yield from found(warnings)
    if image is not None:
        yield f"image {image}"
    for tag in tags:
        yield f"tagged {tag}"


def found(warnings: "Sequence[str]") -> "Iterator[str]":
    """Yield the findings of the checks, and their number."""
    for warning in warnings:
        yield "\n".join(map(printable, warning.split("\n")))
    if warnings:
        count = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
        yield f"{count} found; docs/rules explains each"


def printable(text: str) -> str:
    """Return *text* with control characters escaped, safe for any terminal."""
    text = text.translate(_ESCAPES).replace("\n", "\\n")
    return text.encode("utf-8", "replace").decode("utf-8")
