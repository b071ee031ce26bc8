"""Public names of a package that are imported when first used."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def names(
    package: dict[str, Any], modules: Mapping[str, str], extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

    Args:
        package: its `globals()`.
        modules: the module of the package that each public name is in.
        extra: of the distribution, which brings what these modules import; an ImportError about a
            missing module says so.
    """
    name = package["__name__"]

    def get(attribute: str) -> Any:
        if attribute not in modules:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        try:
            module = importlib.import_module(f"{name}.{modules[attribute]}")
        except ModuleNotFoundError as error:
            if extra is None or (error.name or "").startswith("grw_keras"):
                raise
            raise ImportError(
                f"{name} needs the extra {extra!r}: pip install 'grw-keras[{extra}]'. "
                f"Received: {error}"
            ) from error
        return getattr(module, attribute)

    def names_and_own() -> list[str]:
        return sorted({*package, *modules})

    return get, names_and_own
