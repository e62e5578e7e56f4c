"""Walls between modules, as the source has them: who looks into whose objects, who changes them, who derives from whom.

Where the type of an object cannot be told, an attribute counts as a module's own if a class of that module has one of the
name.
"""

from __future__ import annotations

import ast
from typing import Iterator, NamedTuple

from source import FILES, FUNCTION, ROOT, Class, Module, Scope, annotated, bases, imports_of, member, modules

NAMED_TUPLES = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}


class Place(NamedTuple):
    """Where something stands."""

    module: str
    line: int
    code: str
    attribute: str

    def __str__(self) -> str:
        return f"{FILES[self.module].relative_to(ROOT)}:{self.line}: {self.code}"


class Access(NamedTuple):
    """An attribute of an object, by its name in the source or by a string."""

    scope: Scope
    node: ast.expr
    value: ast.expr
    attribute: str
    changes: bool


def _accesses(scope: Scope, node: ast.AST) -> Iterator[Access]:
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.ClassDef):
            inner = Scope(scope.found, scope.module, Class(scope.module.name, child.name), None, dict(scope.names))
        elif isinstance(child, (*FUNCTION, ast.Lambda)):
            if isinstance(node, ast.ClassDef) and isinstance(child, FUNCTION) and child.args.args:
                scope.this = child.args.args[0].arg
            inner = scope.within(child)
        elif isinstance(child, ast.Attribute):
            yield Access(scope, child, child.value, child.attr, not isinstance(child.ctx, ast.Load))
        elif isinstance(child, ast.Call):
            yield from _by_string(scope, child)
        yield from _accesses(inner, child)


def _by_string(scope: Scope, call: ast.Call) -> Iterator[Access]:
    name = ast.unparse(call.func)
    if name in {"getattr", "hasattr", "setattr", "delattr", "object.__setattr__"} and len(call.args) > 1:
        attribute = call.args[1]
        if isinstance(attribute, ast.Constant):
            changes = name not in {"getattr", "hasattr"}
            yield Access(scope, call, call.args[0], str(attribute.value), changes)


def _is_own(access: Access) -> bool:
    """Return whether an attribute belongs to the module that names it, or to the object whose method names it."""
    scope, value = access.scope, access.value
    if isinstance(value, ast.Name) and value.id in {"self", "cls", scope.this}:
        return True
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "super":
        return True
    if isinstance(value, ast.Name) and value.id not in scope.names:
        if value.id in scope.module.classes:
            return True
        if value.id in scope.module.others or value.id in scope.module.imports:
            return False
    kinds = [each for each in scope.infer(value) if isinstance(each, Class)]
    if not kinds:
        return access.attribute in scope.module.own_attributes()
    owners = [member(scope.found, each, access.attribute)[0] for each in kinds]
    return any(each is not None and each.module == scope.module.name for each in (*kinds, *owners))


def _is_thread_local(access: Access) -> bool:
    """Return whether it is one of the variables that each thread has for itself: what it sets there is its own."""
    what = access.scope.named(access.value)
    if not (isinstance(what, tuple) and isinstance(what[1], ast.Call)):
        return False
    module = access.scope.found[what[0]]
    info = module.classes.get(ast.unparse(what[1].func))
    return info is not None and any(ast.unparse(base) == "threading.local" for base in info.node.bases)


def _place(access: Access) -> Place:
    return Place(access.scope.module.name, access.node.lineno, ast.unparse(access.node), access.attribute)


def _all_accesses() -> Iterator[Access]:
    found = modules()
    for module in found.values():
        yield from _accesses(Scope(found, module), module.tree)


def reach_ins() -> list[Place]:
    """Return where a module names a private attribute of another's object, or imports a private name."""
    places = [
        Place(module, each.line, f"from {each.module} import {each.name}", each.name)
        for module in FILES
        for imports in imports_of(module)
        for each in imports
        if each.name is not None and each.name.startswith("_")
    ]
    for access in _all_accesses():
        name = access.attribute
        if name.startswith("_") and not name.endswith("__") and name not in NAMED_TUPLES and not _is_own(access):
            places.append(_place(access))
    return [place for place in places if not place.code.startswith("os._exit")]


def assignments() -> list[Place]:
    """Return where an attribute of an object is changed by another than itself, its module, or the function that made it."""
    return [
        _place(access)
        for access in _all_accesses()
        if access.changes
        and not access.attribute.endswith("__")
        and not (isinstance(access.value, ast.Name) and access.value.id in access.scope.made)
        and not _is_thread_local(access)
        and not _is_own(access)
    ]


def derivations() -> list[tuple[Class, Class]]:
    """Return each class with its base in another module, where that is a class with code, no exception, and not `typing`'s."""
    found = modules()
    return [
        (Class(module.name, info.node.name), base)
        for module in found.values()
        for info in module.classes.values()
        for expression in info.node.bases
        for base in annotated(found, module.name, expression)
        if isinstance(base, Class) and base.module not in (module.name, "_typing") and not _is_open(found, base)
    ]


def _is_open(found: dict[str, Module], kind: Class) -> bool:
    """Return whether a class is there to be derived from: an exception, a protocol, an abstract class."""
    for each in bases(found, kind):
        names = [ast.unparse(base).partition("[")[0] for base in found[each.module].classes[each.name].node.bases]
        if any(name.endswith(("Error", "Exception", "Warning")) for name in names):
            return True
        if each == kind and any(name.endswith(("Protocol", "ABC")) for name in names):
            return True
    return False
