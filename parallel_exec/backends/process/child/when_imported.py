"""Has something done as soon as a module is imported, which most workers never import, so that it need not be imported for that.

Guarantees:
    It is done before whoever imports the module has it; at once if it has been imported before. To ask where the module is,
    as `importlib.util.find_spec` does, changes nothing.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


def when_imported(name: str, then: Callable[[Any], object]) -> None:
    """Call `then` with the module `name` as soon as that is imported."""
    module = sys.modules.get(name)
    if module is not None:
        then(module)
    else:
        sys.meta_path.insert(0, _Finder(name, then))


class _Finder:
    """Finds modules as ever, and has something done as soon as `name` is imported; `sys.meta_path` has it until then."""

    def __init__(self, name: str, then: Callable[[Any], object]) -> None:
        self._name = name
        self._then = then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return how to import that module; None for any other."""
        if name != self._name:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.loaded)  # type: ignore[assignment]
        return spec

    def loaded(self, module: Any) -> None:
        """Do it, and nothing more from now on."""
        if self in sys.meta_path:  # else it has been imported before, and is once more
            sys.meta_path.remove(self)
            self._then(module)


class _Loader:
    """Loads a module as `loader` does, and then calls `loaded` with it."""

    def __init__(self, loader: Any, loaded: Callable[[Any], object]) -> None:
        self._loader = loader
        self._loaded = loaded

    def create_module(self, spec: Any) -> Any:
        """Return what `loader` makes."""
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        """Load the module."""
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._loaded(module)
