"""Structs: classes of named fields, declared as with ``dataclasses``, and much cheaper to import.

A build imports about a hundred of them. For each, ``dataclasses`` generates and compiles up to seven
functions, and it imports ``inspect``: half of the start-up time of a build. Structs share functions that
read the fields of the class at run time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform, overload

T = TypeVar("T")
C = TypeVar("C", bound=type)
REQUIRED = object()


class _Factory:
    """A default that is made anew for each struct."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


def field(*, factory: Callable[[], T]) -> T:
    """Declare a field whose default is the result of *factory*."""
    return _Factory(factory)  # type: ignore[return-value]


@overload
def struct(made: C, /) -> C: ...
@overload
def struct(*, frozen: bool = True, eq: bool = True) -> Callable[[C], C]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def struct(made: C | None = None, /, *, frozen: bool = True, eq: bool = True) -> C | Callable[[C], C]:
    """Return a class with the annotated names of the decorated class as its fields. That class has no base.

    A struct has slots, takes its fields by position or name, shows them in its repr, is matched by position,
    and can be pickled. ``__post_init__`` is not called. A *frozen* struct cannot be changed. With *eq*
    structs with equal fields are equal, and have the same hash if frozen; otherwise each is equal only to
    itself.
    """
    if made is None:
        return lambda plain: _build(plain, frozen, eq)  # type: ignore[return-value]
    return _build(made, frozen, eq)


def fields(item: object) -> Mapping[str, object]:
    """Return the fields of a struct or of its class, in order, with their defaults; none for other objects.

    A field without a default has REQUIRED.
    """
    found: Mapping[str, object] = getattr(item, "__struct_fields__", {})
    return found


def replace(item: T, **changes: object) -> T:
    """Return a copy of a struct with *changes*, by the names of fields."""
    given = {name: getattr(item, name) for name in fields(item)}
    return type(item)(**given | changes)


def as_dict(item: object) -> dict[str, Any]:
    """Return the fields of a struct by name; structs in it stay structs. Each value has its field's type."""
    return {name: getattr(item, name) for name in fields(item)}


def _build(plain: type, frozen: bool, eq: bool) -> type:
    names = tuple(plain.__annotations__)
    body = {name: item for name, item in plain.__dict__.items() if name not in ("__dict__", "__weakref__")}
    defaults = {name: body.pop(name, REQUIRED) for name in names}
    body |= {"__slots__": names, "__match_args__": names, "__struct_fields__": defaults}
    body |= {"__repr__": _repr, "__reduce__": _reduce, "__qualname__": plain.__qualname__}
    if eq:
        body |= {"__eq__": _equality(names), "__hash__": _hash(names) if frozen else None}
    if frozen:
        body |= {"__setattr__": _refuse, "__delattr__": _refuse}
    made = type(plain.__name__, (), body)
    made.__init__ = _initialiser(made)  # type: ignore[misc]
    return made


def _initialiser(made: type) -> Callable[..., None]:
    setters = [made.__dict__[name].__set__ for name in fields(made)]
    count = len(setters)

    def __init__(self: object, *args: object, **given: object) -> None:
        if given or len(args) != count:
            args = _arguments(made, args, given)
        for setter, item in zip(setters, args):  # noqa: B905 - the lengths are equal, and this is called often
            setter(self, item)

    return __init__


def _arguments(made: type, args: tuple[object, ...], given: dict[str, object]) -> tuple[object, ...]:
    """Return a value for each field. Raises TypeError for wrong arguments, as a function does."""
    out = [*args]
    for name, default in [*fields(made).items()][len(args) :]:
        item = given.pop(name, default)
        if item is REQUIRED:
            raise TypeError(f"{made.__name__}() lacks {name!r}")
        out.append(item.make() if isinstance(item, _Factory) else item)
    if given or len(args) > len(fields(made)):
        extra = ", ".join(map(repr, given)) or "an argument too many"
        raise TypeError(f"{made.__name__}() was given {extra}")
    return tuple(out)


def _getter(names: tuple[str, ...]) -> Callable[[object], object]:
    return operator.attrgetter(*names) if names else lambda _item: ()


def _equality(names: tuple[str, ...]) -> Callable[[object, object], bool]:
    get = _getter(names)

    def __eq__(self: object, other: object) -> bool:
        return get(self) == get(other) if other.__class__ is self.__class__ else NotImplemented

    return __eq__


def _hash(names: tuple[str, ...]) -> Callable[[object], int]:
    get = _getter(names)

    def __hash__(self: object) -> int:
        return hash(get(self))

    return __hash__


def _repr(self: object) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in fields(self))
    return f"{type(self).__qualname__}({shown})"


def _reduce(self: object) -> tuple[type, tuple[object, ...]]:
    return type(self), tuple(getattr(self, name) for name in fields(self))


def _refuse(self: object, name: str, *_value: object) -> None:
    raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")
