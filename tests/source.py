"""What the package's source says: its modules, their imports, and of what type an expression is.

Types are inferred from annotations and constructors, as far as that is simple.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import parallel_exec

ROOT = Path(parallel_exec.__file__).parent

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).replace(".__init__", ""): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}
PACKAGES = {module for module, path in FILES.items() if path.name == "__init__.py"}

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Class(NamedTuple):
    """A class of ours: the type of its instances."""

    module: str
    name: str


class Elements(NamedTuple):
    """The type of a container, by what it holds."""

    types: frozenset[Any]


class Returns(NamedTuple):
    """The type of what is called: a callback, a weak reference."""

    types: frozenset[Any]


Types = frozenset  # of these three; what is not known has none of them
UNKNOWN: Types[Any] = frozenset()


class Import(NamedTuple):
    """An import of a module of ours, or of a name in one (None: the module itself), and the name that it is given."""

    module: str
    name: str | None
    alias: str
    line: int


@dataclass
class ClassInfo:
    """What a class has."""

    module: str
    node: ast.ClassDef
    attributes: dict[str, Types[Any]] = field(default_factory=dict)
    methods: dict[str, Types[Any]] = field(default_factory=dict)


@dataclass
class Module:
    """What a module has."""

    name: str
    tree: ast.Module
    imports: dict[str, Import] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)  # names of what was imported from elsewhere
    classes: dict[str, ClassInfo] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, ast.expr] = field(default_factory=dict)

    def own_attributes(self) -> set[str]:
        """Return the names of all that the module's classes have."""
        return {name for info in self.classes.values() for name in (*info.attributes, *info.methods)}


# ── imports ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def tree(module: str) -> ast.Module:
    """Return a module's syntax tree."""
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports_of(module: str) -> tuple[list[Import], list[Import], list[Import]]:
    """Return what of ours a module imports: when it is imported, for types alone, and in functions."""
    found: tuple[list[Import], list[Import], list[Import]] = ([], [], [])
    _collect_imports(tree(module), 0, found)
    return found


def _collect_imports(node: ast.AST, when: int, found: tuple[list[Import], ...]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            found[when].extend(_imports_in(child))
        elif isinstance(child, FUNCTION):
            _collect_imports(child, 2, found)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for statement in child.body:
                _collect_imports(ast.Module([statement], []), 1, found)
            for statement in child.orelse:
                _collect_imports(ast.Module([statement], []), when, found)
        else:
            _collect_imports(child, when, found)


def _imports_in(statement: ast.Import | ast.ImportFrom) -> Iterator[Import]:
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            package, _, module = alias.name.partition(".")
            if package == "parallel_exec":
                yield Import(module, None, alias.asname or package, statement.lineno)
        return
    package, _, module = str(statement.module).partition(".")
    if statement.level or package != "parallel_exec":
        return
    for alias in statement.names:
        inner = f"{module}.{alias.name}" if module else alias.name
        is_module = inner in FILES
        yield Import(
            inner if is_module else module,
            None if is_module else alias.name,
            alias.asname or alias.name,
            statement.lineno,
        )


# ── names and types ─────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def modules() -> dict[str, Module]:
    """Return all modules, and what their classes have."""
    found = {name: _read(name) for name in FILES}
    for _ in range(3):  # what an attribute is may be told by another's
        for module in found.values():
            for info in module.classes.values():
                _infer_attributes(found, module, info)
    return found


def _read(name: str) -> Module:
    module = Module(name, tree(name))
    for each in imports_of(name):
        module.imports.update({one.alias: one for one in each})
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            module.classes[node.name] = ClassInfo(name, node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module.others.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    module.others -= module.imports.keys()
    for node in module.tree.body:
        if isinstance(node, FUNCTION):
            module.functions[node.name] = node
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.col_offset <= 4:
            module.aliases[node.targets[0].id] = node.value
    return module


def _find(found: dict[str, Module], module: str, name: str) -> Any:
    """Return what a name stands for in a module: a class, a module's name, (module, function or alias), or None."""
    here = found.get(module)
    if here is None:
        return None
    if name in here.classes:
        return Class(module, name)
    for known in (here.functions, here.aliases):
        if name in known:
            return module, known[name]
    target = here.imports.get(name)
    return target and (target.module if target.name is None else _find(found, target.module, target.name))


_UNIONS = {"Optional", "Union", "Annotated", "ClassVar", "Final"}
_CALLABLES = {"Callable", "ReferenceType", "ref"}


def annotated(found: dict[str, Module], module: str, expression: ast.expr | None) -> Types[Any]:
    """Return the types that an annotation names."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return annotated(found, module, ast.parse(expression.value, mode="eval").body)
    if isinstance(expression, (ast.BinOp, ast.Tuple)):
        parts = [expression.left, expression.right] if isinstance(expression, ast.BinOp) else expression.elts
        return UNKNOWN.union(*(annotated(found, module, each) for each in parts))
    if isinstance(expression, ast.Subscript):
        return _annotated_subscript(found, module, expression)
    what = _named(found, module, expression)
    if isinstance(what, Class):
        return frozenset([what])
    is_alias = isinstance(what, tuple) and isinstance(what[1], (ast.Subscript, ast.Name, ast.BinOp, ast.Constant))
    return annotated(found, what[0], what[1]) if is_alias else UNKNOWN


def _annotated_subscript(found: dict[str, Module], module: str, expression: ast.Subscript) -> Types[Any]:
    name = ast.unparse(expression.value).rpartition(".")[2]
    inner: ast.expr = expression.slice
    last = inner.elts[-1] if isinstance(inner, ast.Tuple) else inner
    if name in _CALLABLES:
        return frozenset([Returns(annotated(found, module, last))])
    if name in _UNIONS:
        return annotated(found, module, inner)
    of_ours = annotated(found, module, expression.value)
    if of_ours or name in {"type", "Type"}:
        return of_ours
    return frozenset([Elements(annotated(found, module, last if "dict" in name.lower() else inner))])


def _named(found: dict[str, Module], module: str, node: ast.expr | None) -> Any:
    """Return what of a module's top level is named, as `_find` does."""
    if isinstance(node, ast.Name):
        return _find(found, module, node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        origin = _find(found, module, node.value.id)
        return _find(found, origin, node.attr) if isinstance(origin, str) else None
    return None


def bases(found: dict[str, Module], kind: Class) -> Iterator[Class]:
    """Yield a class and all its bases of ours."""
    yield kind
    for base in found[kind.module].classes[kind.name].node.bases:
        for each in annotated(found, kind.module, base):
            if isinstance(each, Class) and each != kind:
                yield from bases(found, each)


def member(found: dict[str, Module], kind: Class, name: str) -> tuple[Class | None, Types[Any], bool]:
    """Return which class has an attribute, what that is, and whether it is a method."""
    for each in bases(found, kind):
        info = found[each.module].classes[each.name]
        if name in info.attributes:
            return each, info.attributes[name], False
        if name in info.methods:
            return each, info.methods[name], True
    return None, UNKNOWN, False


@dataclass
class Scope:
    """Where an expression stands: what its names are."""

    found: dict[str, Module]
    module: Module
    kind: Class | None = None  # whose methods these are
    this: str | None = None  # what they call their object
    names: dict[str, Types[Any]] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)  # variables with what this function has made itself

    def infer(self, node: ast.expr | None) -> Types[Any]:
        """Return the types of an expression."""
        if isinstance(node, ast.Name):
            is_this = node.id == self.this and self.kind is not None
            return frozenset([self.kind]) if is_this else self.names.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            members = (member(self.found, each, node.attr) for each in self._classes(node.value))
            return UNKNOWN.union(*(types for _, types, is_method in members if not is_method))
        if isinstance(node, ast.Call):
            return self._infer_call(node)
        if isinstance(node, ast.Subscript):
            return UNKNOWN.union(*(each.types for each in self.infer(node.value) if isinstance(each, Elements)))
        parts: list[ast.expr] = []
        if isinstance(node, (ast.BoolOp, ast.IfExp)):
            parts = node.values if isinstance(node, ast.BoolOp) else [node.body, node.orelse]
        elif isinstance(node, ast.NamedExpr):
            parts = [node.value]
        return UNKNOWN.union(*map(self.infer, parts))

    def _classes(self, node: ast.expr) -> list[Class]:
        return [each for each in self.infer(node) if isinstance(each, Class)]

    def _infer_call(self, node: ast.Call) -> Types[Any]:
        function = node.func
        if isinstance(function, ast.Name) and function.id == "cast":
            return annotated(self.found, self.module.name, node.args[0])
        called = UNKNOWN.union(*(each.types for each in self.infer(function) if isinstance(each, Returns)))
        if isinstance(function, ast.Attribute):
            for each in self.infer(function.value):
                if isinstance(each, Class):
                    _, types, is_method = member(self.found, each, function.attr)
                    called |= types if is_method else UNKNOWN
                elif isinstance(each, Elements) and function.attr in {"get", "pop", "popleft", "setdefault"}:
                    called |= each.types
                elif isinstance(each, Elements) and function.attr in {"values", "copy"}:
                    called |= {each}
        what = self.named(function)
        if isinstance(what, Class):
            return called | {what}
        if isinstance(what, tuple) and isinstance(what[1], FUNCTION):
            return called | annotated(self.found, what[0], what[1].returns)
        if isinstance(function, ast.Name) and function.id in {"list", "tuple", "set", "sorted", "iter", "deque"}:
            return called | (self.infer(node.args[0]) if node.args else UNKNOWN)
        return called

    def named(self, node: ast.expr) -> Any:
        """Return what of a module's top level is named."""
        root = node.value if isinstance(node, ast.Attribute) else node
        is_local = isinstance(root, ast.Name) and root.id in self.names
        return None if is_local else _named(self.found, self.module.name, node)

    def within(self, function: Any) -> Scope:
        """Return the scope of a function that stands here."""
        inner = Scope(self.found, self.module, self.kind, self.this, dict(self.names))
        arguments = function.args
        for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            inner.names[each.arg] = annotated(self.found, self.module.name, each.annotation)
        for _ in range(2):
            for node in _of_this_scope(function):
                inner.learn(node)
        inner.made = _made_here(inner, function)
        return inner

    def learn(self, node: ast.AST) -> None:
        """Note what a statement or a comprehension gives a name to."""
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, self.infer(node.value))
        elif isinstance(node, ast.AnnAssign):
            self._bind(node.target, annotated(self.found, self.module.name, node.annotation))
        elif isinstance(node, ast.NamedExpr):
            self._bind(node.target, self.infer(node.value))
        elif isinstance(node, (ast.For, ast.comprehension)):
            types = (each.types for each in self.infer(node.iter) if isinstance(each, Elements))
            self._bind(node.target, UNKNOWN.union(*types))
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._bind(node.optional_vars, self.infer(node.context_expr))

    def _bind(self, target: ast.expr, types: Types[Any]) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = self.names.get(target.id, UNKNOWN) | types
        elif isinstance(target, (ast.Tuple, ast.List)):
            inner = UNKNOWN.union(*(each.types for each in types if isinstance(each, Elements)))
            for each in target.elts:
                self._bind(each, inner)


def _of_this_scope(function: Any) -> Iterator[ast.AST]:
    """Yield what stands in a function, but not in the functions in it."""
    body = function.body if isinstance(function.body, list) else [function.body]
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, (*FUNCTION, ast.Lambda, ast.ClassDef)):
            waiting.extend(ast.iter_child_nodes(node))


def _made_here(scope: Scope, function: Any) -> set[str]:
    """Return the variables that only ever have what the function has just made."""
    values: dict[str, list[bool]] = {}
    for node in _of_this_scope(function):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    values.setdefault(target.id, []).append(_makes(scope, node.value))
    return {name for name, made in values.items() if all(made)}


def _makes(scope: Scope, value: ast.expr | None) -> bool:
    if not isinstance(value, ast.Call):
        return False
    name = ast.unparse(value.func).rpartition(".")[2]
    return name in {"__new__", "cls"} or name.lstrip("_")[:1].isupper() or isinstance(scope.named(value.func), Class)


def _infer_attributes(found: dict[str, Module], module: Module, info: ClassInfo) -> None:
    kind = Class(module.name, info.node.name)
    for node in info.node.body:
        if isinstance(node, FUNCTION):
            types = annotated(found, module.name, node.returns)
            is_attribute = any("property" in ast.unparse(each) for each in node.decorator_list)
            (info.attributes if is_attribute else info.methods)[node.name] = types
            this = node.args.args[0].arg if node.args.args else None
            scope = Scope(found, module, kind, this).within(node)
            for inner in ast.walk(node):
                _learn_attribute(info, scope, inner)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            info.attributes[node.target.id] = annotated(found, module.name, node.annotation)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    info.attributes.setdefault(target.id, UNKNOWN)
            if ast.unparse(node.targets[0]) == "__slots__":
                slots = [each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
                info.attributes.update({str(name): info.attributes.get(str(name), UNKNOWN) for name in slots})


def _learn_attribute(info: ClassInfo, scope: Scope, node: ast.AST) -> None:
    """Note what an assignment says of an attribute of the class."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        for each in target.elts if isinstance(target, ast.Tuple) else [target]:
            if not (
                isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == scope.this
            ):
                continue
            types = UNKNOWN
            if isinstance(node, ast.AnnAssign):
                types = annotated(scope.found, scope.module.name, node.annotation)
            elif isinstance(node, ast.Assign) and not isinstance(target, ast.Tuple):
                types = scope.infer(node.value)
            info.attributes[each.attr] = info.attributes.get(each.attr, UNKNOWN) | types
