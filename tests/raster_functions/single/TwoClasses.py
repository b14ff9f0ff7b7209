# ruff: noqa
from plain import Plain


class First(Plain):
    pass


class Second(Plain):
    pass
