"""Limits of config values, written on their fields: `steps: Annotated[int, AtLeast(1)] = 40_000`.

A limit's text completes "must be ..." for numbers and "takes ..." for the length of a list.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Above:
    """A number, or every number of a list, is larger than the bound."""

    bound: float

    def __str__(self) -> str:
        return f"above {self.bound}"

    def accepts(self, number: float) -> bool:
        return number > self.bound


@dataclass(frozen=True)
class AtLeast:
    """A number, or every number of a list, is not smaller than the bound."""

    bound: float

    def __str__(self) -> str:
        return f"at least {self.bound}"

    def accepts(self, number: float) -> bool:
        return number >= self.bound


@dataclass(frozen=True)
class Below:
    """A number, or every number of a list, is smaller than the bound."""

    bound: float

    def __str__(self) -> str:
        return f"below {self.bound}"

    def accepts(self, number: float) -> bool:
        return number < self.bound


@dataclass(frozen=True)
class Between:
    """A number lies between two bounds, which are allowed themselves."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"between {self.low} and {self.high}"

    def accepts(self, number: float) -> bool:
        return self.low <= number <= self.high


@dataclass(frozen=True)
class Length:
    """A list has this many values, or is empty if it is optional."""

    count: int
    optional: bool = False

    def __str__(self) -> str:
        return f"{'no or ' if self.optional else ''}{self.count} values"

    def accepts(self, length: int) -> bool:
        return length == self.count or self.optional and length == 0


@dataclass(frozen=True)
class NotEmpty:
    """A list has at least one value."""

    def __str__(self) -> str:
        return "at least one value"

    def accepts(self, length: int) -> bool:
        return length > 0


LENGTHS = (Length, NotEmpty)
