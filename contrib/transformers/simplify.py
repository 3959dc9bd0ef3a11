"""Python source text without what is decided: constants folded, branches never taken and unused arguments removed.

Text is edited at the positions of syntax nodes, so that comments and docstrings stay. One edit may make another
possible: `simplified` goes over a definition until nothing changes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
UNKNOWN = object()
NOTES = re.compile(r"\s+# (?:type: ignore|noqa)\b.*$", flags=re.MULTILINE)
ENTRY = re.compile(r"^( +)((?:\w+, )*\w+): ")


@dataclass
class Rules:
    """What is decided, and what is written in place of something else.

    Args:
        rewrites: Pattern -> expression or statement. `_1`, `_2` ... stand for any expression, `__` for any that is
            dropped, and `__` as the last argument for any further arguments too.
        within: Qualified name of a function -> rewrites that are for it alone.
        facts: Qualified name of a function -> its arguments and variables whose value is known -> that value. They
            disappear from its signature and docstring, as do assignments to them.
        arguments: Name of a function -> keyword arguments that calls no longer pass.
        dropped: Functions that are called for an effect which is not wanted, and decorators.
        members: Qualified names of fields and methods that classes are to lose.
        words: Strings, as elements of a tuple or first in an element, that lists are to lose.
        optional: What need not fit anything, of all these.
    """

    rewrites: Mapping[str, str] = field(default_factory=dict)
    within: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    dropped: Sequence[str] = ()
    members: Sequence[str] = ()
    words: Sequence[str] = ()
    optional: Sequence[str] = ()
    used: set[str] = field(default_factory=set)

    def unused(self) -> list[str]:
        """What fitted nothing: the sources have changed."""
        known = [*self.rewrites, *self.dropped, *self.members]
        known += [f"{where}: {pattern}" for where, patterns in self.within.items() for pattern in patterns]
        known += [f"{where}: {name}" for where, names in self.facts.items() for name in names]
        known += [f"{name}({argument}=)" for name, arguments in self.arguments.items() for argument in arguments]
        return sorted(set(known) - self.used - set(self.optional))


def simplified(text: str, rules: Rules) -> str:
    """One definition, with its decorators and the comment before it, simplified.

    Raises:
        ValueError: if it does not come to an end.
    """
    text = without_asserts(NOTES.sub("", text))
    for _ in range(50):
        edits = _Pass(text, rules).edits
        if not edits:
            return text
        text = edited(text, edits)
    raise ValueError(f"the simplification of this does not end:\n{text}")


def edited(text: str, edits: Iterable[tuple[int, int, str]]) -> str:
    """A text with parts (start, stop) of its bytes replaced; of parts within each other the outermost counts."""
    data, end = text.encode(), 0
    pieces = []
    for start, stop, new in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if start < end:
            continue
        pieces += [data[end:start], new.encode()]
        end = stop
    return b"".join([*pieces, data[end:]]).decode()


def without_asserts(text: str) -> str:
    """A text without assertions, which are there for the type checker."""
    source = Source(text)
    asserts = [node for node in ast.walk(source.tree) if isinstance(node, ast.Assert)]
    return edited(text, [(*source.lines_of(node), "") for node in asserts])


class Source:
    """A text, its syntax tree, and where nodes are."""

    def __init__(self, text: str) -> None:
        self.data = text.encode()
        self.tree = ast.parse(text)
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node starts and stops."""
        place: Callable[[int, int], int] = lambda line, column: self.starts[line - 1] + column  # noqa: E731
        return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)  # type: ignore

    def text(self, node: ast.AST) -> str:
        """The text of a node."""
        start, stop = self.span(node)
        return self.data[start:stop].decode()

    def lines_of(self, node: ast.AST) -> tuple[int, int]:
        """The whole lines of a statement, with decorators and the comment right above it."""
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])  # type: ignore
        while first > 1 and self._is_comment(first - 1, node.col_offset):  # type: ignore[attr-defined]
            first -= 1
        return self.starts[first - 1], self.starts[node.end_lineno]  # type: ignore[attr-defined]

    def body(self, statements: Sequence[ast.stmt], header: int) -> str:
        """The text of the statements of a block, with comments, whose header ends in line `header`."""
        first = statements[0].lineno
        while first - 1 > header and self._is_comment(first - 1, statements[0].col_offset):
            first -= 1
        return self.data[self.starts[first - 1] : self.starts[statements[-1].end_lineno or 0]].decode()

    def _is_comment(self, line: int, column: int) -> bool:
        text = self.data[self.starts[line - 1] : self.starts[line]].decode()
        return text.startswith(" " * column + "#")


class _Pass(ast.NodeVisitor):
    """One pass over a definition: what could be edited."""

    def __init__(self, text: str, rules: Rules) -> None:
        self.source, self.rules = Source(text), rules
        self.edits: list[tuple[int, int, str]] = []
        self.scope: list[str] = []
        self.visit(self.source.tree)

    @property
    def place(self) -> str:
        return ".".join(self.scope)

    @property
    def facts(self) -> Mapping[str, str]:
        return self.rules.facts.get(self.place, {})

    def replace(self, node: ast.AST, new: str) -> None:
        self.edits.append((*self.source.span(node), new))

    # statements

    def visit_block(self, block: Sequence[ast.stmt]) -> None:
        dropped = [self._is_dropped(statement) for statement in block]
        for number, statement in enumerate(block):
            is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if is_text and number and dropped[number - 1]:
                dropped[number] = True  # the description of a field
            elif isinstance(statement, ast.Pass) and not all(dropped[:number] + dropped[number + 1 :]):
                dropped[number] = True
        for number, statement in enumerate(block):
            if dropped[number] and number == 0 and all(dropped):
                if not isinstance(statement, ast.Pass):
                    self.replace(statement, "pass")
            elif dropped[number]:
                self.edits.append((*self.source.lines_of(statement), ""))
            else:
                self.visit(statement)
            if isinstance(statement, (ast.Return, ast.Raise)) and number + 1 < len(block):
                after = block[number + 1 :]
                self.edits.append((self.source.span(statement)[1] + 1, self.source.lines_of(after[-1])[1], ""))
                return

    def _is_dropped(self, statement: ast.stmt) -> bool:
        if isinstance(statement, ast.If) and _is_empty(statement.body) and not statement.orelse:
            return True
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            name = _last_name(statement.value.func)
            if name in self.rules.dropped:
                self.rules.used.add(name)
                return True
        if isinstance(statement, (*FUNCTIONS, ast.AnnAssign, ast.Assign)) and self.scope:
            for name in _bound(statement):
                member = ".".join([*self.scope, name])
                if member in self.rules.members:
                    self.rules.used.add(member)
                    return True
        if isinstance(statement, ast.AnnAssign) and statement.value is None and len(self.scope) > 1:
            return True  # a type, for the checker
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == ast.unparse(statement.value):
            return True
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and self.facts:
            names = _bound(statement)
            if names and all(name in self.facts for name in names):
                self.rules.used.update(f"{self.place}: {name}" for name in names)
                return True
        return False

    def visit_Module(self, node: ast.Module) -> None:
        self.visit_block(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._decorators(node)
        self.scope.append(node.name)
        names = [member.rpartition(".")[2] for member in self.rules.members if member.startswith(f"{self.place}.")]
        self._docstring(node, names)
        kept = [base for base in node.bases if _last_name(base) not in self.rules.dropped]
        if len(kept) < len(node.bases):
            self.rules.used.update(_last_name(base) for base in node.bases if base not in kept)
            start, stop = self.source.span(node.bases[0])[0], self.source.span(node.bases[-1])[1]
            self.edits.append((start, stop, ", ".join(self.source.text(base) for base in kept)))
        for base in node.bases:
            self.visit(base)
        self.visit_block(node.body)
        self.scope.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._decorators(node)
        self.scope.append(node.name)
        names = [each.arg for each in _all_arguments(node.args)]
        known = [name for name in names if name in self.facts]
        if known:
            self.rules.used.update(f"{self.place}: {name}" for name in known)
            self._signature(node, known)
            self._docstring(node, known)
        self.visit(node.args)
        if node.returns is not None:
            self.visit(node.returns)
        self.visit_block(node.body)
        self.scope.pop()

    def _decorators(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            name = _last_name(decorator.func if isinstance(decorator, ast.Call) else decorator)
            if name in self.rules.dropped:
                self.rules.used.add(name)
                line = self.source.starts[decorator.lineno - 1]
                self.edits.append((line, self.source.span(decorator)[1] + 1, ""))

    def _signature(self, node: ast.FunctionDef, known: Sequence[str]) -> None:
        given, parts = node.args, []
        plain = [*given.posonlyargs, *given.args]
        defaults: list[ast.expr | None] = [*[None] * (len(plain) - len(given.defaults)), *given.defaults]
        pairs = [*zip(plain, defaults), (given.vararg, None), *zip(given.kwonlyargs, given.kw_defaults)]
        for number, (argument, default) in enumerate(pairs):
            if number == len(plain) and argument is None:
                keywords = [each.arg for each in given.kwonlyargs if each.arg not in known]
                parts += ["*"] if keywords else []
                continue
            if argument is None or argument.arg in known:
                continue
            star = "*" if argument is given.vararg else ""
            equals = "=" if argument.annotation is None else " = "
            value = "" if default is None else equals + self.source.text(default)
            parts.append(star + self.source.text(argument) + value)
        parts += [] if given.kwarg is None else [f"**{self.source.text(given.kwarg)}"]
        nodes = filter(None, [*(each for pair in pairs for each in pair), given.kwarg])
        start = self.source.data.index(b"(", self.source.span(node)[0]) + 1
        stop = self.source.data.index(b")", max(self.source.span(each)[1] for each in nodes))
        self.edits.append((start, stop, ", ".join(parts)))

    def _docstring(self, node: ast.ClassDef | ast.FunctionDef, names: Sequence[str]) -> None:
        if names and ast.get_docstring(node) is not None:
            text = self.source.text(node.body[0])
            shorter = without_entries(text, names)
            if shorter != text:
                self.replace(node.body[0], shorter)

    def visit_If(self, node: ast.If) -> None:
        value = self.value(node.test)
        is_elif = self.source.data[slice(*self.source.span(node))].startswith(b"elif")
        if value is UNKNOWN:
            self.visit(node.test)
            self.visit_block(node.body)
            if _is_empty(node.orelse) and node.orelse:
                header = self.source.span(node.body[-1])[1] + 1
                self.edits.append((header, self.source.span(node.orelse[-1])[1] + 1, ""))
            elif len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
                self.visit(node.orelse[0])
            else:
                self.visit_block(node.orelse)
            return
        taken, header = node.body, node.test.end_lineno or 0
        if not value:
            taken, header = node.orelse, node.body[-1].end_lineno or 0
        self.edits.append(self._taken(node, taken, header, is_elif))

    def _taken(self, node: ast.If, taken: Sequence[ast.stmt], header: int, is_elif: bool) -> tuple[int, int, str]:
        """The edit that leaves of an `if` or `elif` the branch that is taken, if there is one."""
        (start, stop), column = self.source.span(node), node.col_offset
        follows = len(taken) == 1 and isinstance(taken[0], ast.If) and taken[0].col_offset == column
        line = self.source.starts[node.lineno - 1]
        if follows:  # `elif` after the branch that is not taken
            text = self.source.text(taken[0])
            return start, stop, text if is_elif else text.removeprefix("el")
        if not taken:
            return line, self.source.starts[node.end_lineno or 0], "" if is_elif else " " * column + "pass\n"
        body = self.source.body(taken, header)
        if is_elif:
            return start, stop, f"else:\n{body}".rstrip("\n")
        depth = taken[0].col_offset - column
        return line, self.source.starts[node.end_lineno or 0], dedented(body, depth)

    def visit_For(self, node: ast.For) -> None:
        self._loop(node)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item)
        self.visit_block(node.body)

    def visit_While(self, node: ast.While) -> None:
        self._loop(node)

    def _loop(self, node: ast.For | ast.While) -> None:
        for each in ast.iter_child_nodes(node):
            if isinstance(each, ast.expr):
                self.visit(each)
        self.visit_block(node.body)

    def visit_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            kept = [
                (name, value)
                for name, value in zip(target.elts, node.value.elts)
                if not (isinstance(name, ast.Name) and name.id in self.facts)
            ]
            if len(kept) < len(target.elts):
                self.rules.used.update(f"{self.place}: {each.id}" for each in target.elts if each.id in self.facts)  # type: ignore
                names, values = (", ".join(self.source.text(each) for each in side) for side in zip(*kept))
                self.replace(node, f"{names} = {values}")
                return
        if not self.rewritten(node):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if not self.rewritten(node):
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        self.visit(node.value)

    def visit_Tuple(self, node: ast.Tuple) -> None:
        words = self.rules.words
        kept = [each for each in node.elts if self._word(each) not in words]
        if len(kept) == len(node.elts):
            self.generic_visit(node)
            return
        parts = [self.source.text(each) for each in kept]
        self.replace(node, f"({', '.join(parts)}{',' if len(parts) == 1 else ''})")

    def _word(self, node: ast.expr) -> object:
        first = node.elts[0] if isinstance(node, ast.Tuple) and node.elts else node
        return first.value if isinstance(first, ast.Constant) else None

    def visit_Return(self, node: ast.Return) -> None:
        if not self.rewritten(node):
            self.generic_visit(node)

    # expressions

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.expr):
            if isinstance(node, (ast.JoinedStr, ast.Constant)) or self.rewritten(node) or self.folded(node):
                return
            if isinstance(node, ast.Call) and self._shorter_call(node):
                return
        super().visit(node)

    def folded(self, node: ast.expr) -> bool:
        """Replaces an expression whose value, or a part of whose operands, is known."""
        value = self.value(node)
        if value is not UNKNOWN:
            self.replace(node, repr(value))
            return True
        if isinstance(node, ast.IfExp):
            test = self.value(node.test)
            if test is not UNKNOWN:
                self.replace(node, self.source.text(node.body if test else node.orelse))
                return True
        if isinstance(node, ast.BoolOp):
            # the last operand may be the result, which matters unless it is True or False
            known = [self.value(each) for each in node.values]
            last = len(known) - 1
            kept = [
                each
                for number, (each, value) in enumerate(zip(node.values, known))
                if not (isinstance(value, bool) or (value is None and number < last))
            ]
            if len(kept) < len(node.values):
                word = " and " if isinstance(node.op, ast.And) else " or "
                self.replace(node, word.join(self._operand(each) for each in kept))
                return True
        return False

    def _operand(self, node: ast.expr) -> str:
        text = self.source.text(node)
        return f"({text})" if isinstance(node, (ast.BoolOp, ast.IfExp, ast.Lambda)) else text

    def value(self, node: ast.expr) -> object:
        """The value of an expression, or UNKNOWN."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name) and node.id in self.facts:
            self.rules.used.add(f"{self.place}: {node.id}")
            return ast.literal_eval(self.facts[node.id])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            value = self.value(node.operand)
            return UNKNOWN if value is UNKNOWN else not value
        if isinstance(node, ast.BoolOp):
            values = [self.value(each) for each in node.values]
            decisive = isinstance(node.op, ast.Or)
            if any(value is not UNKNOWN and bool(value) is decisive for value in values):
                return decisive
            return UNKNOWN if UNKNOWN in values else values[-1]
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right = self.value(node.left), self.value(node.comparators[0])
            if UNKNOWN in (left, right):
                return UNKNOWN
            if isinstance(node.ops[0], (ast.Is, ast.Eq)):
                return left == right
            if isinstance(node.ops[0], (ast.IsNot, ast.NotEq)):
                return left != right
        return UNKNOWN

    def _shorter_call(self, node: ast.Call) -> bool:
        name = _last_name(node.func)
        names = set(self.rules.arguments.get(name, ()))
        found = [each.arg for each in node.keywords if each.arg in names]
        if not found:
            return False
        self.rules.used.update(f"{name}({argument}=)" for argument in found)
        parts = [self.source.text(each) for each in node.args]
        parts += [self.source.text(each) for each in node.keywords if each.arg not in names]
        self.replace(node, f"{self.source.text(node.func)}({', '.join(parts)})")
        return True

    def rewritten(self, node: ast.AST) -> bool:
        """Replaces a node that fits a pattern."""
        for rules, prefix in (
            (self.rules.within.get(self.place, {}), f"{self.place}: "),
            (self.rules.rewrites, ""),
        ):
            for pattern, new in rules.items():
                found: dict[str, ast.AST] = {}
                if not _fits(_parsed(pattern), node, found):
                    continue
                self.rules.used.add(prefix + pattern)
                text = re.sub(r"\b_\d\b", lambda name, found=found: self.source.text(found[name[0]]), new)
                if text != self.source.text(node):
                    self.replace(node, text)
                    return True
        return False


_PATTERNS: dict[str, ast.AST] = {}


def _parsed(pattern: str) -> ast.AST:
    if pattern not in _PATTERNS:
        statement = ast.parse(pattern).body[0]
        _PATTERNS[pattern] = statement.value if isinstance(statement, ast.Expr) else statement
    return _PATTERNS[pattern]


def _fits(pattern: object, node: object, found: dict[str, ast.AST]) -> bool:
    """Whether a node is what a pattern says; `found` gets what its names stand for."""
    if isinstance(pattern, ast.Name) and pattern.id.startswith("_") and isinstance(node, ast.expr):
        if pattern.id == "__":
            return True
        if re.fullmatch(r"_\d", pattern.id):
            return ast.dump(found.setdefault(pattern.id, node)) == ast.dump(node)
    if type(pattern) is not type(node):
        return False
    if isinstance(pattern, ast.AST):
        if isinstance(pattern, ast.Call) and pattern.args and ast.unparse(pattern.args[-1]) == "__":
            assert isinstance(node, ast.Call)
            first = pattern.args[:-1]
            return _fits(pattern.func, node.func, found) and (
                len(node.args) >= len(first) and _fits(first, node.args[: len(first)], found)
            )
        return all(
            _fits(getattr(pattern, name, None), getattr(node, name, None), found)
            for name in pattern._fields
            if name not in ("ctx", "type_comment", "kind")
        )
    if isinstance(pattern, list):
        assert isinstance(node, list)
        return len(pattern) == len(node) and all(_fits(p, n, found) for p, n in zip(pattern, node))
    return pattern == node


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a definition or an assignment binds."""
    if isinstance(statement, FUNCTIONS):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]  # type: ignore
    return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]


def _all_arguments(given: ast.arguments) -> list[ast.arg]:
    return [*given.posonlyargs, *given.args, *given.kwonlyargs]


def _is_empty(block: Sequence[ast.stmt]) -> bool:
    return all(isinstance(each, ast.Pass) for each in block)


def dedented(text: str, depth: int) -> str:
    """A block with fewer spaces before each line."""
    return re.sub(rf"^ {{{depth}}}", "", text, flags=re.MULTILINE)


def without_entries(docstring: str, names: Iterable[str]) -> str:
    """A docstring in Google's style without what it says of some arguments or fields."""
    lines, result = docstring.splitlines(keepends=True), []
    depth = None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if depth is not None and (indent > depth and line.strip()):
            continue
        depth = None
        found = ENTRY.match(line)
        if found:
            entries = found[2].split(", ")
            kept = [entry for entry in entries if entry not in names]
            if not kept:
                depth = indent
                continue
            if len(kept) < len(entries):
                line = line.replace(found[2], ", ".join(kept), 1)
        result.append(line)
    text = "".join(result)
    # a section without entries
    return re.sub(r"\n\n +(?:Args|Attributes):\n(?=\s*(?:\n|\"\"\"))", "\n", text)
