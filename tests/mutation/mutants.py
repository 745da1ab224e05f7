"""The mutants of a module: for each check one source in which it is disabled, forced or shifted.

A condition is made always true and always false; an operand of `and`/`or` is taken out; a comparison of sizes
is shifted by one; calls, raises and the like are taken out, unless they stand alone under an `if` and go with
its condition. What others imply is left out: tests that notice both constants in place of a condition notice
its inversion. What only words a message is left alone: the arguments of a raise, f-strings, annotations.
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_SHIFTED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_SET_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
_QUANTIFIERS = {"any": "all", "all": "any"}
_FINDINGS = ("Finding", "EntryFinding", "_about")
_BOTH = (True, False)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One altered module. `key` says where and what, without line numbers, so that it outlives edits."""

    key: str
    line: int
    source: str


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place in the tree that holds a node: a field of its owner, or an element of one."""

    owner: ast.AST
    field: str
    index: int | None = None

    @property
    def content(self) -> object:
        value = getattr(self.owner, self.field)
        return value if self.index is None else value[self.index]

    def put(self, new: object) -> None:
        if self.index is None:
            setattr(self.owner, self.field, new)
        else:
            getattr(self.owner, self.field)[self.index] = new


@dataclass(frozen=True, slots=True)
class _Edit:
    """What is done to a slot."""

    slot: _Slot
    new: object
    what: str
    line: int


def mutants_of(path: str, source: str) -> list[Mutant]:
    """All mutants of the module at `path`."""
    tree = ast.parse(source)
    seen: Counter[str] = Counter()
    mutants = []
    for function, edit in list(_functions(tree, "")):
        key = f"{path} {function}: {edit.what}"
        seen[key] += 1
        numbered = key if seen[key] == 1 else f"{key} (#{seen[key]})"
        original = edit.slot.content
        edit.slot.put(edit.new)
        mutants.append(Mutant(numbered, edit.line, ast.unparse(ast.fix_missing_locations(tree))))
        edit.slot.put(original)
    return mutants


def _functions(node: ast.AST, outer: str) -> Iterator[tuple[str, _Edit]]:
    """The edits of all functions in `node`, each with the function's full name."""
    for child in ast.iter_child_nodes(node):
        name = outer
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{outer}.{child.name}".lstrip(".")
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from ((name, edit) for edit in _FunctionEdits(child).edits())
        yield from _functions(child, name)


@dataclass(frozen=True, slots=True)
class _FunctionEdits:
    """The edits of one function, without those of functions defined in it."""

    function: ast.FunctionDef | ast.AsyncFunctionDef

    def edits(self) -> Iterator[_Edit]:
        return self._statements(self.function)

    @property
    def _returns_bool(self) -> bool:
        returns = self.function.returns
        return isinstance(returns, ast.Name) and returns.id == "bool"

    def _statements(self, node: ast.AST) -> Iterator[_Edit]:
        """Edits of a node that is no condition, and of everything in it."""
        yield from _dropped_statements(node)
        yield from _expression_edits(node)
        for slot in _child_slots(node):
            child = slot.content
            if isinstance(
                child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Raise | ast.JoinedStr
            ):
                continue
            forced = self._forced(slot)
            if forced is None:
                assert isinstance(child, ast.AST)
                yield from self._statements(child)
            else:
                yield from self._condition(slot, forced)

    def _forced(self, slot: _Slot) -> tuple[bool, ...] | None:
        """The constants to try in a slot that holds a condition, else None."""
        owner, expression = slot.owner, slot.content
        if isinstance(owner, ast.While) and slot.field == "test":
            return (
                () if isinstance(expression, ast.Constant) else (False,)
            )  # a loop for ever shows nothing new
        if isinstance(expression, ast.Constant):
            is_result = isinstance(owner, ast.Return) and isinstance(expression.value, bool)
            return (not expression.value,) if is_result else None
        is_test = isinstance(owner, ast.If | ast.IfExp) and slot.field == "test"
        is_filter = isinstance(owner, ast.comprehension) and slot.field == "ifs"
        is_guard = isinstance(owner, ast.match_case) and slot.field == "guard"
        is_result = isinstance(owner, ast.Return) and self._returns_bool
        is_boolean = _is_boolean(expression)
        return _BOTH if is_test or is_filter or is_guard or is_result or is_boolean else None

    def _condition(self, slot: _Slot, forced: tuple[bool, ...]) -> Iterator[_Edit]:
        """Edits of a condition: constants in its place, and edits of its parts."""
        expression = slot.content
        assert isinstance(expression, ast.expr)
        operands: tuple[bool, ...] | None = None
        if isinstance(expression, ast.BoolOp):
            # To be noticed when taken out, an operand must decide; so the whole is no constant of that kind.
            neutral = isinstance(expression.op, ast.And)
            operands, forced = (neutral,), tuple(value for value in forced if value is not neutral)
        for value in forced:
            what = f"`{ast.unparse(expression)}` forced {value}"
            yield _Edit(slot, ast.Constant(value), what, expression.lineno)
        if isinstance(expression, ast.BoolOp) and operands is not None:
            for index in range(len(expression.values)):
                yield from self._condition(_Slot(expression, "values", index), operands)
        elif isinstance(expression, ast.UnaryOp) and _is_not(expression):
            yield from self._condition(_Slot(expression, "operand"), ())
        else:
            yield from self._statements(expression)


def _child_slots(node: ast.AST) -> Iterator[_Slot]:
    for field, value in ast.iter_fields(node):
        if not _is_wording(node, field):
            if isinstance(value, list):
                yield from (
                    _Slot(node, field, at) for at, item in enumerate(value) if isinstance(item, ast.AST)
                )
            elif isinstance(value, ast.AST):
                yield _Slot(node, field)


def _is_wording(node: ast.AST, field: str) -> bool:
    return (
        field in ("annotation", "returns", "decorator_list", "bases")
        or (isinstance(node, ast.Call) and field == "keywords" and _calls(node, _FINDINGS))
        or (isinstance(node, ast.Call) and field == "args" and _calls(node, ("isinstance",)))
    )


def _calls(node: ast.Call, names: tuple[str, ...]) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id in names


def _is_boolean(node: object) -> bool:
    """Whether the value of `node` certainly is a condition, wherever it stands."""
    if isinstance(node, ast.BoolOp):
        return all(map(_is_boolean, node.values))
    if isinstance(node, ast.Call):
        return _calls(node, ("isinstance", "any", "all"))
    if isinstance(node, ast.Attribute):
        return node.attr.startswith("is_")
    return isinstance(node, ast.Compare) or _is_not(node)


def _is_not(node: object) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _expression_edits(node: ast.AST) -> Iterator[_Edit]:
    if isinstance(node, ast.Compare):
        yield from _comparison_edits(node)
    elif isinstance(node, ast.BoolOp):  # of values: as a condition it does not get here
        for operand in node.values:
            rest = [value for value in node.values if value is not operand]
            what = f"drop `{ast.unparse(operand)}` of `{ast.unparse(node)}`"
            # What is left alone must stay valid Python.
            yield _Edit(_Slot(node, "values"), rest * 2 if len(rest) == 1 else rest, what, node.lineno)
    elif isinstance(node, ast.BinOp) and type(node.op) in _SET_OPERATORS:
        what = f"&/| swapped in `{ast.unparse(node)}`"
        yield _Edit(_Slot(node, "op"), _SET_OPERATORS[type(node.op)](), what, node.lineno)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        # b - b is zero, and the empty set.
        nothing = ast.BinOp(node.right, ast.Sub(), copy.deepcopy(node.right))
        what = f"subtract nothing in `{ast.unparse(node)}`"
        yield _Edit(_Slot(node, "right"), nothing, what, node.lineno)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _QUANTIFIERS:
        swapped = _QUANTIFIERS[node.func.id]
        yield _Edit(_Slot(node.func, "id"), swapped, f"{swapped} for `{ast.unparse(node)}`", node.lineno)


def _comparison_edits(node: ast.Compare) -> Iterator[_Edit]:
    for index, operator in enumerate(node.ops):
        shifted = _SHIFTED.get(type(operator))
        if shifted is not None:
            number = f" as {index + 1}." if len(node.ops) > 1 else ""
            what = f"`{ast.unparse(node)}` with {shifted.__name__}{number}"
            yield _Edit(_Slot(node, "ops", index), shifted(), what, node.lineno)


def _dropped_statements(node: ast.AST) -> Iterator[_Edit]:
    for field in ("body", "orelse", "finalbody"):
        statements = getattr(node, field, None)
        if not isinstance(statements, list) or (isinstance(node, ast.If) and len(statements) == 1):
            continue
        for index, statement in enumerate(statements):
            if _is_droppable(statement):
                what = f"drop `{_first_line(statement)}`"
                yield _Edit(_Slot(node, field, index), ast.Pass(), what, statement.lineno)


def _is_droppable(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call | ast.YieldFrom)
    return isinstance(statement, ast.Raise | ast.Continue | ast.AugAssign) or (
        isinstance(statement, ast.Return) and statement.value is None
    )


def _first_line(statement: ast.stmt) -> str:
    return ast.unparse(statement).split("\n")[0][:90]
