"""Lets the torchvision of PyPI, which wants CUDA, be imported beside a torch for CPUs.

Its Python code registers shapes for two operators that only its shared library defines; defined
here first, without an implementation, the import goes through. No test calls them.
"""

import sys
from importlib.abc import MetaPathFinder

_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class _Before(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for name, schema in _OPERATORS.items():
                torch.library.define(f"torchvision::{name}", schema)
        return None


sys.meta_path.insert(0, _Before())
