# ruff: noqa
import numpy as np
from plain import Plain


class Warns(Plain):
    def classes(self, before, after):
        np.zeros(1) / np.zeros(1)
        return Plain.classes(self, before, after)
