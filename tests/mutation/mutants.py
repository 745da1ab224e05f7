"""The mutants of a module: for each check one source in which it is disabled, inverted or shifted.

What only words a message is left alone: the arguments of a raise, f-strings, annotations and docstrings.
"""

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_SET_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
_Edit = Callable[[ast.AST], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One altered module. `key` says where and what, without line numbers, so that it outlives edits."""

    key: str
    line: int
    source: str


@dataclass(frozen=True, slots=True)
class _Site:
    """A place that can be altered: the path of node fields from the root, and how."""

    path: tuple[tuple[str, int | None], ...]
    function: str
    what: str
    line: int
    edit: _Edit


def mutants_of(path: str, source: str) -> list[Mutant]:
    """All mutants of the module at `path`."""
    tree = ast.parse(source)
    seen: Counter[str] = Counter()
    mutants = []
    for site in _sites(tree, (), ""):
        altered = copy.deepcopy(tree)
        site.edit(_follow(altered, site.path))
        key = f"{path} {site.function}: {site.what}"
        seen[key] += 1
        numbered = key if seen[key] == 1 else f"{key} (#{seen[key]})"
        mutants.append(Mutant(numbered, site.line, ast.unparse(ast.fix_missing_locations(altered))))
    return mutants


def _follow(node: ast.AST, path: tuple[tuple[str, int | None], ...]) -> ast.AST:
    for field, index in path:
        child = getattr(node, field)
        node = child if index is None else child[index]
    return node


def _sites(node: ast.AST, path: tuple[tuple[str, int | None], ...], function: str) -> Iterator[_Site]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        function = f"{function}.{node.name}".lstrip(".")
    if function:
        for what, edit in _edits(node):
            yield _Site(path, function, what, getattr(node, "lineno", 0), edit)
    for field, value in ast.iter_fields(node):
        if _is_wording(node, field):
            continue
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if isinstance(child, ast.AST):
                step = (field, index if isinstance(value, list) else None)
                yield from _sites(child, (*path, step), function)


def _is_wording(node: ast.AST, field: str) -> bool:
    return (
        isinstance(node, ast.Raise | ast.JoinedStr)
        or field in ("annotation", "returns", "decorator_list", "bases")
        or (isinstance(node, ast.Call) and field == "keywords" and _makes_finding(node))
    )


def _makes_finding(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id in ("Finding", "EntryFinding", "_about")


def _edits(node: ast.AST) -> Iterator[tuple[str, _Edit]]:
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield f"negate `{ast.unparse(node.test)}`", _negate
    elif isinstance(node, ast.comprehension):
        for index, condition in enumerate(node.ifs):
            yield f"drop filter `{ast.unparse(condition)}`", _drop_filter(index)
    elif isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for replacement in _COMPARISONS.get(type(operator), ()):
                what = f"`{ast.unparse(node)}` with {replacement.__name__}"
                yield f"{what} as {index + 1}." if len(node.ops) > 1 else what, _compare(index, replacement)
    elif isinstance(node, ast.BoolOp):
        for index in range(len(node.values)):
            yield f"drop `{ast.unparse(node.values[index])}` of `{ast.unparse(node)}`", _drop_operand(index)
        yield f"and/or swapped in `{ast.unparse(node)}`", _swap_boolean
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"drop not of `{ast.unparse(node)}`", _double_not
    elif isinstance(node, ast.BinOp) and type(node.op) in _SET_OPERATORS:
        yield f"&/| swapped in `{ast.unparse(node)}`", _swap_set_operator
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        yield f"subtract nothing in `{ast.unparse(node)}`", _drop_subtrahend
    else:
        yield from _statement_edits(node)


def _statement_edits(node: ast.AST) -> Iterator[tuple[str, _Edit]]:
    if (
        isinstance(node, ast.Return)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, bool)
    ):
        yield f"`{ast.unparse(node)}` inverted", _invert_result
    body = getattr(node, "body", None)
    if not isinstance(body, list):
        return
    for field in ("body", "orelse"):
        for index, statement in enumerate(getattr(node, field, [])):
            if _is_droppable(statement):
                yield f"drop `{_first_line(statement)}`", _drop_statement(field, index)


def _is_droppable(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call | ast.YieldFrom)
    return isinstance(statement, ast.Raise | ast.Continue | ast.AugAssign) or (
        isinstance(statement, ast.Return) and statement.value is None
    )


def _first_line(statement: ast.stmt) -> str:
    return ast.unparse(statement).split("\n")[0][:90]


def _negate(node: ast.AST) -> None:
    assert isinstance(node, ast.If | ast.While | ast.IfExp)
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _drop_filter(index: int) -> _Edit:
    def edit(node: ast.AST) -> None:
        assert isinstance(node, ast.comprehension)
        del node.ifs[index]

    return edit


def _compare(index: int, replacement: type[ast.cmpop]) -> _Edit:
    def edit(node: ast.AST) -> None:
        assert isinstance(node, ast.Compare)
        node.ops[index] = replacement()

    return edit


def _drop_operand(index: int) -> _Edit:
    def edit(node: ast.AST) -> None:
        assert isinstance(node, ast.BoolOp)
        del node.values[index]
        if len(node.values) == 1:  # what is left alone must stay valid Python
            node.values.append(copy.deepcopy(node.values[0]))

    return edit


def _swap_boolean(node: ast.AST) -> None:
    assert isinstance(node, ast.BoolOp)
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()


def _double_not(node: ast.AST) -> None:
    assert isinstance(node, ast.UnaryOp)
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _swap_set_operator(node: ast.AST) -> None:
    assert isinstance(node, ast.BinOp)
    node.op = _SET_OPERATORS[type(node.op)]()


def _drop_subtrahend(node: ast.AST) -> None:
    assert isinstance(node, ast.BinOp)
    # b - b is zero, and the empty set.
    node.op, node.right = ast.Sub(), ast.BinOp(node.right, ast.Sub(), copy.deepcopy(node.right))


def _invert_result(node: ast.AST) -> None:
    assert isinstance(node, ast.Return)
    assert isinstance(node.value, ast.Constant)
    node.value = ast.Constant(not node.value.value)


def _drop_statement(field: str, index: int) -> _Edit:
    def edit(node: ast.AST) -> None:
        getattr(node, field)[index] = ast.Pass()

    return edit
