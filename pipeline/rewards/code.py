"""``code``: does the program in the completion pass the tests of its row? Run in the sandbox, one box each.

``tests`` is a list of assert statements, or a program of them such as HumanEval's ``def check(candidate)``, which is
called with the function that the column ``entry_point`` names (else the last one that the prompt or the completion
defines). Optional columns: ``entry_point``; ``test_setup_code`` (MBPP), which runs before the tests.
"""

import ast
import builtins
import functools
import re
import symtable
import sys
from types import CodeType
from typing import NamedTuple

from pipeline.rewards.answers import visible_text
from pipeline.rewards.judging import Judgement, Sample, error, right, timeout, unscorable, wrong
from pipeline.rewards.sandbox import boxes
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import text_of

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON_TAGS = frozenset({"", "python", "python3", "py"})
_DEFINED = re.compile(r"^(?:async[ \t]+)?def[ \t]+(\w+)", re.MULTILINE)
_STARTUP_SECONDS = 10.0


class Tests(NamedTuple):
    """Compiled tests: the names they take from the completion; ``problem`` says why there is nothing to run."""

    code: CodeType | None = None
    names: tuple[str, ...] = ()
    problem: str = ""


def _defines(source: str, name: str) -> bool:
    """Whether ``source`` binds ``name`` at its top level, as far as a line-by-line look can tell (it is hostile)."""
    word = re.escape(name)
    pattern = (
        rf"^(?:(?:async[ \t]+)?def[ \t]+{word}\b|class[ \t]+{word}\b|{word}[ \t]*[:=]|(?:from|import)\b.*\b{word}\b)"
    )
    return re.search(pattern, source, re.MULTILINE) is not None


def program_text(text: str, names: tuple[str, ...] = ()) -> str:
    """The program in a completion: its fenced Python, else all of its visible text.

    Of several blocks the last one that defines all of ``names`` counts (what follows is an example of its use), else
    all of them in a row.
    """
    text = visible_text(text).replace("\r\n", "\n")
    blocks = [block for tag, block in _FENCE.findall(text) if tag.lower() in _PYTHON_TAGS]
    if not blocks:
        return text
    whole = [block for block in blocks if all(_defines(block, name) for name in names)]
    return whole[-1] if names and whole else "\n\n".join(blocks)


def _global_names(table: symtable.SymbolTable, defined: set[str]) -> set[str]:
    """Names that a program reads from outside: globals it never binds."""
    found = set()
    for symbol in table.get_symbols():
        bound = symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
        outside = symbol.is_global() if table.get_type() == "function" else not bound or symbol.is_global()
        if symbol.is_referenced() and outside and symbol.get_name() not in defined:
            found.add(symbol.get_name())
    return found.union(*(_global_names(child, defined) for child in table.get_children()), set())


def _top_level(table: symtable.SymbolTable) -> set[str]:
    return {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}


def _modules_used(tree: ast.AST, outside: set[str]) -> set[str]:
    """Names outside the tests that occur only before a dot and name a module of the standard library (``math.sqrt``).

    These are the module itself, whatever the completion calls by that name.
    """
    before_dot = {
        id(n.value): n.value.id for n in ast.walk(tree) if isinstance(n, ast.Attribute) and _is_name(n.value)
    }
    bare = {n.id for n in ast.walk(tree) if _is_name(n) and id(n) not in before_dot}
    return {name for name in before_dot.values() if name in outside - bare and name in sys.stdlib_module_names}


def _is_heading(node: ast.stmt) -> bool:
    """A docstring or ``from __future__``, before which nothing may come."""
    future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
    return future or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


class _Effects(ast.NodeTransformer):
    """Marks calls whose result is dropped: they are there for what they do to their arguments."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        self.generic_visit(node)
        if isinstance(node.value, ast.Call):
            marked = ast.Name("_called_for_effect", ast.Load())
            node.value = ast.Call(marked, [node.value.func, *node.value.args], node.value.keywords)
        return node


@functools.lru_cache(maxsize=1024)
def prepare_tests(text: str, entry_point: str | None) -> Tests:
    """Compile the tests and find out what they take from the completion."""
    try:
        tree = ast.parse(text.replace("\r\n", "\n"), "tests.py")
        table = symtable.symtable(ast.unparse(tree), "tests.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as cause:
        return Tests(problem=f"the tests do not parse: {cause}")
    if not any(isinstance(node, ast.Assert | ast.Raise | ast.Call) for node in ast.walk(tree)):
        return Tests(problem="there is no test: at least one assert is required")
    defined = _top_level(table)
    outside = _global_names(table, defined)
    called = [
        node.value.func.id
        for node in tree.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
    ]
    modules = sorted(_modules_used(tree, outside))
    start = next((i for i, node in enumerate(tree.body) if not _is_heading(node)), len(tree.body))
    tree.body[start:start] = [ast.Import([ast.alias(name)]) for name in modules]
    names = {name for name in outside if not hasattr(builtins, name)} - set(modules)
    if "check" in defined and "check" not in called and not any(isinstance(n, ast.Assert) for n in tree.body):
        if entry_point is None:
            return Tests(problem="the tests define check(candidate): name the function in the column 'entry_point'")
        call = ast.parse(f"check({entry_point})").body[0] if entry_point.isidentifier() else None
        if call is None:
            return Tests(problem=f"the entry point {entry_point!r} is no name")
        tree.body.append(call)
        names.add(entry_point)
    elif not names:
        names = _called_built_in(outside, entry_point)
        if not names:
            return Tests(problem="the tests name no function of the completion's; give the column 'entry_point'")
    code = compile(ast.fix_missing_locations(_Effects().visit(tree)), "tests.py", "exec", dont_inherit=True)
    return Tests(code, tuple(sorted(names)))


def _called_built_in(outside: set[str], entry_point: str | None) -> set[str]:
    """The function under test where it is named like a built-in one (MBPP's ``sum``): only if there is no doubt.

    A completion must not be able to put its own ``set`` or ``sorted`` in the place of those that the tests use.
    """
    if entry_point in outside:
        return {entry_point}
    functions = {name for name in outside if callable(getattr(builtins, name, None)) and name[0].islower()}
    return functions if len(functions) == 1 else set()


def _tests_text(tests: object, setup: object) -> str | None:
    """The tests of a row as one program, or None where there are none."""
    if isinstance(tests, list | tuple) and all(isinstance(test, str) for test in tests):
        tests = "\n".join(tests)
    if not isinstance(tests, str) or not tests.strip():
        return None
    return f"{setup}\n{tests}" if isinstance(setup, str) and setup.strip() else tests


def run_job(job: dict) -> tuple[str, str]:
    """(verdict, reason) of one completion. Runs in a worker."""
    text, prompt, entry_point = job["text"], job["prompt"], job["entry_point"]
    if entry_point is None:
        functions = _DEFINED.findall(prompt) or _DEFINED.findall(program_text(text))
        entry_point = functions[-1] if functions else None
    tests = prepare_tests(job["tests"], entry_point)
    if tests.problem:
        return "unscorable", tests.problem
    source = program_text(text, tests.names)
    if entry_point and not _defines(source, entry_point) and _defines(prompt, entry_point):
        source = prompt + source  # the completion continues where the prompt stops, inside the function
    details = {"source": source, "code": tests.code, "names": list(tests.names)}
    return boxes.run_pair({**details, "deadline": job["deadline"], "bubblewrap": job["bubblewrap"]})


def check(deadline: float = 6.0, allow_unsafe_code_execution: bool = False) -> str:
    """Before any model loads: what completions run in, "bubblewrap" or "none".

    Raises UserError where the sandbox does not hold and that is not allowed.
    """
    if not 0 < deadline <= 600:
        raise UserError(f"reward 'code': deadline must be in 0..600 seconds, got {deadline}")
    return boxes.require(allow_unsafe_code_execution)


def judge_many(
    samples: list[Sample], deadline: float = 6.0, allow_unsafe_code_execution: bool = False
) -> list[Judgement]:
    """Verdicts on ``samples`` against the column ``tests``; each completion has ``deadline`` seconds of wall clock."""
    boxed = boxes.require(allow_unsafe_code_execution) == "bubblewrap"
    judgements: list[Judgement | None] = []
    jobs = []
    for sample in samples:
        tests = _tests_text(sample.row.get("tests"), sample.row.get("test_setup_code"))
        judgements.append(unscorable("there is no test: at least one is required") if tests is None else None)
        if tests is not None:
            entry_point = sample.row.get("entry_point")
            jobs.append(
                {
                    "text": sample.text,
                    "prompt": text_of(sample.prompt or "", role=None),
                    "tests": tests,
                    "entry_point": entry_point if isinstance(entry_point, str) else None,
                    "deadline": float(deadline),
                    "bubblewrap": boxes.launcher() if boxed else None,
                }
            )
    outcomes = iter(boxes.pool().run(jobs, deadline + _STARTUP_SECONDS))
    return [judgement or _judgement(next(outcomes)) for judgement in judgements]


def _judgement(outcome) -> Judgement:
    if outcome.status != "done":
        return error(f"the judge's worker {'hung' if outcome.status == 'timeout' else 'died'}")
    verdict, reason = outcome.value
    return {
        "right": lambda: right(),
        "wrong": lambda: wrong(reason),
        "timeout": lambda: timeout(reason),
        "unscorable": lambda: unscorable(reason),
    }.get(verdict, lambda: error(reason))()
