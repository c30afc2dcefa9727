"""What somebody who only guesses gets in a blind test."""

from math import comb


def at_least(right: int, asked: int) -> float:
    """The probability of `right` or more right answers to `asked` questions, each guessed with an even chance."""
    return sum(comb(asked, number) for number in range(right, asked + 1)) / 2**asked


def at_most(right: int, asked: int) -> float:
    """The probability of `right` or fewer: as often, so many are wrong or more."""
    return at_least(asked - right, asked)
