"""A registry of plug-ins that are chosen by name in the configuration.

One entry = a pydantic options class + what builds the thing from it. Registering a name makes it valid in
YAML at once: the registry supplies the pydantic schema of the field (a union told apart by one key).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")


def closest(name: object, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string."""
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


class Registry(Generic[T]):
    """Names -> (options class, builder). Refuses duplicates; a failed look-up lists what exists.

    Args:
        what: what is registered, for messages, e.g. ``"dataset"``.
        key: the configuration key that holds the name, e.g. ``"name"`` or ``"kind"``.
    """

    all: list[Registry[Any]] = []  # noqa: RUF012 - the one list of registries, read by config.py

    def __init__(self, what: str, key: str) -> None:
        self.what, self.key = what, key
        self.version = 0
        self._entries: dict[str, tuple[type[BaseModel], T]] = {}
        Registry.all.append(self)

    @staticmethod
    def total_version() -> int:
        """A number that grows with every registration in any registry."""
        return sum(registry.version for registry in Registry.all)

    def register(self, options: type[BaseModel]) -> Callable[[T], T]:
        """Decorator: register a builder under the default of ``options``' key field.

        Raises:
            ValueError: the name is taken, or ``options`` has no default for the key field.
        """
        field = options.model_fields.get(self.key)
        name = field.default if field is not None else None
        if not isinstance(name, str):
            raise ValueError(f"{options.__name__} needs `{self.key}: Literal['...'] = '...'` to be a {self.what}")
        if name in self._entries:
            raise ValueError(f"{self.what} {name!r} is already registered by {self._entries[name][0].__name__}")

        def add(builder: T) -> T:
            self._entries[name] = (options, builder)
            self.version += 1
            return builder

        return add

    def builder(self, name: str) -> T:
        """The builder registered under ``name``. Raises KeyError that lists what exists."""
        return self._entry(name)[1]

    def options(self, name: str) -> type[BaseModel]:
        """The options class registered under ``name``. Raises KeyError that lists what exists."""
        return self._entry(name)[0]

    def _entry(self, name: str) -> tuple[type[BaseModel], T]:
        if name not in self._entries:
            raise KeyError(
                f"unknown {self.what} {name!r}{closest(name, list(self))}; registered: {', '.join(self)}. "
                f"Add one with the decorator `register` of this registry."
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Schema of a field annotated ``Annotated[SomeBase, registry]``."""
        return core_schema.tagged_union_schema(
            choices={name: handler.generate_schema(options) for name, (options, _) in self._entries.items()},
            discriminator=self.key,
        )
