"""Import hooks: what is done when a module of RecBole is imported. Light, since `import recbole_cafe` loads it.

Two finders stand in `sys.meta_path`. The first one sees the modules of RecBole that we extend, lets them be imported as
they would be without us, and extends them then. The second one is asked last, for modules that nobody else has, and
provides our models as modules of RecBole's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ROOT = "recbole"
MODELS_OF_RECBOLE = "recbole.model.sequential_recommender"
# What registry.extend does something to.
EXTENDED = (
    ROOT,
    "recbole.config.configurator",
    "recbole.data.dataset",
    "recbole.quick_start.quick_start",
    "recbole.trainer",
    "recbole.utils.case_study",
)


class ExtendingLoader(Loader):
    """Executes a module by its own loader and extends it then."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, with its own loader as its attribute, for those who look at that."""
        module.__loader__ = self.own
        if module.__spec__ is not None:
            module.__spec__.loader = self.own
        self.own.exec_module(module)
        from recbole_cafe.host import registry

        if module.__name__ == ROOT:
            registry.install()
        else:
            registry.extend(module)


class ExtendingFinder(MetaPathFinder):
    """Finds the modules in EXTENDED as the other finders do, and sees to it that they are extended."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the other finders find, with another loader; None for modules that are not extended."""
        if fullname not in EXTENDED:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, ExtendingFinder):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = ExtendingLoader(spec.loader)
                return spec
        return None


class ModelLoader(Loader):
    """Fills a module with the model classes that RecBole looks for in it.

    Args:
        names: models of ours whose name in lower case is the module's.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def create_module(self, spec: ModuleSpec) -> None:
        """A plain module will do."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the classes in; their own modules are imported now."""
        from recbole_cafe.host import registry

        for name in self.names:
            setattr(module, name, registry.model_class(name))


class ModelFinder(MetaPathFinder):
    """Finds recbole.model.sequential_recommender.<name in lower case> for the models RecBole does not have itself."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return a spec whose loader makes a module with our model in it; None for other names."""
        parent, _, leaf = fullname.rpartition(".")
        if parent != MODELS_OF_RECBOLE:
            return None
        from recbole_cafe.host import registry

        names = registry.names_in_module(leaf)
        return ModuleSpec(fullname, ModelLoader(names), origin="recbole_cafe") if names else None


def watch_imports() -> None:
    """Put the finders where imports are looked for. Harmless to repeat."""
    if not any(isinstance(finder, ExtendingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, ExtendingFinder())
        sys.meta_path.append(ModelFinder())


def watch() -> None:
    """Wait for RecBole to be imported, and extend it then; at once if it has been. Harmless to repeat."""
    watch_imports()
    if ROOT in sys.modules:
        from recbole_cafe.host import registry

        registry.install()
