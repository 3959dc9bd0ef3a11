"""Makes Mega known to transformers in every Python process that `mega run` starts: Python imports this by its name."""

import contextlib
import os
import runpy
import sys
from importlib.machinery import PathFinder

sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != os.path.dirname(os.path.abspath(__file__))]
_hidden = PathFinder.find_spec("sitecustomize", sys.path)
if _hidden is not None and _hidden.origin is not None:  # the environment's own sitecustomize
    runpy.run_path(_hidden.origin, run_name="sitecustomize")
with contextlib.suppress(ImportError):  # a Python of another environment
    import mega_transformers  # noqa: F401
