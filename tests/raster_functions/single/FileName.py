# ruff: noqa
from plain import Plain


class Helper:
    pass


class AnotherName(Plain):
    pass
