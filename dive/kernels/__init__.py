"""The package `dive.kernels` of a checkout, which is the folder `kernels/` next to `dive/`.

A wheel has the kernel files here in place of this one. `kernels/` itself has no `__init__.py`: an
importable top-level package of that name makes transformers take it for the Hugging Face `kernels`
package, which breaks the import of model classes.
"""

from pathlib import Path

_checkout = Path(__file__).parents[2]
if (_checkout / "setup.py").is_file():
    __path__.append(str(_checkout / "kernels"))
