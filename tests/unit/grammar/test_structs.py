"""grammar.structs: what our classes of named fields promise, which ``dataclasses`` promise too."""

import pickle

import pytest

from grammar.structs import REQUIRED, as_dict, field, fields, replace, struct


@struct
class Point:
    """Two numbers and a name."""

    x: int
    y: int = 2
    name: str = ""

    @property
    def total(self) -> int:
        return self.x + self.y


@struct
class Place:
    x: int
    y: int = 2
    name: str = ""


@struct(frozen=False)
class Basket:
    items: list[str] = field(factory=list)


@struct(eq=False)
class Node:
    name: str


@struct
class Nothing:
    pass


def test_fields_are_given_by_place_or_name() -> None:
    assert Point(1, 2, "a") == Point(name="a", x=1) == Point(1, name="a")
    assert (Point(1).y, Point(1, 5).total, Point.__doc__) == (2, 6, "Two numbers and a name.")
    assert repr(Point(1)) == "Point(x=1, y=2, name='')"


@pytest.mark.parametrize(
    ("args", "given", "says"),
    [
        ((), {}, "lacks 'x'"),
        ((1, 2, "a", 4), {}, "an argument too many"),
        ((1,), {"z": 1}, "was given 'z'"),
        ((1,), {"x": 1}, "was given 'x'"),
    ],
)
def test_wrong_arguments(args: tuple[int, ...], given: dict[str, int], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        Point(*args, **given)  # type: ignore[arg-type]


def test_frozen() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match=r"Point\.x cannot be changed"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"Point\.x cannot be changed"):
        del point.x
    basket = Basket()
    basket.items = ["a"]
    assert basket == Basket(["a"]) != Basket()
    with pytest.raises(AttributeError):
        basket.other = 1  # type: ignore[attr-defined]


def test_equality_is_of_a_kind() -> None:
    assert len({Point(1), Point(1), Point(2), Place(1)}) == 3
    assert Node("a") != Node("a")
    assert Nothing() == Nothing()
    with pytest.raises(TypeError, match="unhashable"):
        hash(Basket())


def test_a_default_is_made_for_each() -> None:
    one, two = Basket(), Basket()
    one.items.append("a")
    assert two.items == []


def test_match_by_place() -> None:
    match Point(1, 5):
        case Point(x, y):
            assert (x, y) == (1, 5)


def test_what_is_known_of_fields() -> None:
    assert dict(fields(Point)) == {"x": REQUIRED, "y": 2, "name": ""}
    assert fields(Point(1)) == fields(Point)
    assert not fields("text")
    assert as_dict(Point(1)) == {"x": 1, "y": 2, "name": ""}
    assert replace(Point(1), y=7) == Point(1, 7)
    with pytest.raises(TypeError, match="was given 'z'"):
        replace(Point(1), z=7)


@pytest.mark.parametrize("item", [Point(1, 3, "a"), Basket(["a"]), Nothing()])
def test_pickle(item: object) -> None:
    assert pickle.loads(pickle.dumps(item)) == item
