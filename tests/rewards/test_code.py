"""``code`` on honest programs: what passes, what fails, what cannot be judged."""

# ruff: noqa: E501 (whole programs on a line read better as a table)

import json
import pickle
import shutil

import pytest

from pipeline.rewards.code import prepare_tests, program_text
from pipeline.rewards.registry import get_reward
from pipeline.runtime.errors import UserError

needs_box = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
SQUARE = "def f(x):\n    return x * x\n"
ASSERTS = ["assert f(3) == 9", "assert f(5) == 25"]
# name -> (completion, tests)
HONEST = {
    "plain": (SQUARE, ASSERTS),
    "fenced with prose": (f"Sure!\n\n```python\n{SQUARE}```\nIt multiplies.\n```python\nprint(f(3))\n```\n", ASSERTS),
    "fence that is cut off": (f"```python\n{SQUARE}", ASSERTS),
    "thoughts first": (f"<think>\n```python\ndef f(x): return 0\n```\n</think>\n```py\n{SQUARE}```<|im_end|>", ASSERTS),
    "windows line ends": (SQUARE.replace("\n", "\r\n"), ASSERTS),
    "prints": ("import sys\nprint('hello')\n" + SQUARE + "print(f(2), file=sys.stderr)\n" * 3, ASSERTS),
    "generator": ("def f(n):\n    for k in range(n):\n        yield k * k", ["assert list(f(4)) == [0, 1, 4, 9]"]),
    "endless generator": (
        "def f():\n    n = 0\n    while True:\n        yield n\n        n += 1",
        ["import itertools", "assert list(itertools.islice(f(), 3)) == [0, 1, 2]"],
    ),
    "main guard": (SQUARE + "if __name__ == '__main__':\n    print(f(int(input())))", ASSERTS),
    "big integers": ("import math\ndef f(n): return math.factorial(n)", ["import math", "assert f(5000) == math.factorial(5000)"]),
    "raising on purpose": (
        "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return x * x",
        "try:\n    f(-1)\nexcept ValueError as error:\n    assert str(error) == 'negative'\nelse:\n    assert False\nassert f(3) == 9",
    ),
    "an exception of its own": (
        "class Negative(ValueError): pass\ndef f(x):\n    raise Negative('x')",
        "try:\n    f(-1)\n    assert False\nexcept Negative as error:\n    assert isinstance(error, ValueError)",
    ),
    "one second of work": ("import time\ndef f(x):\n    end = time.time() + 1\n    while time.time() < end: pass\n    return x", ["assert f(1) == 1"]),
    "class under test": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x); return self\n"
        "    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)",
        ["s = Stack()", "s.push(1).push(2)", "assert len(s) == 2", "assert s.pop() == 2 and s.items == [1]"],
    ),
    "operators of a class": (
        "from dataclasses import dataclass\n@dataclass\nclass V:\n    x: int\n    y: int\n"
        "    def __add__(self, o): return V(self.x + o.x, self.y + o.y)\n    def __mul__(self, k): return V(self.x * k, self.y * k)",
        ["assert V(1, 2) + V(3, 4) == V(4, 6)", "assert (V(1, 2) * 3).y == 6", "assert V(1, 2) != V(2, 1)", "assert isinstance(V(1, 2), V)"],
    ),
    "named tuple": ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)", ["assert f() == (1, 2)", "assert f().x == 1"]),
    "enumeration": ("import enum\nclass C(enum.IntEnum):\n    RED = 1\ndef f(): return C.RED", ["assert f() == 1", "assert f() == C.RED"]),
    "linked nodes": (
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\ndef f(n):\n    return 1 + f(n.next) if n else 0",
        ["a, b = Node(1), Node(2)", "a.next = b", "assert f(a) == 2"],
    ),
    "in place": ("def f(xs): xs.sort()", ["xs = [3, 1, 2]", "f(xs)", "assert xs == [1, 2, 3]"]),
    "functions as arguments": ("def f(g, xs): return [g(x) for x in xs]", ["assert f(lambda x: x + 1, [1, 2]) == [2, 3]", "assert f(str, (1,)) == ['1']"]),
    "functions as results": ("def f(k): return lambda x: x + k", ["assert f(2)(3) == 5"]),
    "standard types": (
        "import collections, datetime, decimal, fractions\ndef f(): return [collections.Counter('aab'), collections.deque([1]),"
        " decimal.Decimal('0.1'), fractions.Fraction(1, 3), datetime.date(2020, 1, 2), {1, 2}, (1,), b'x', None, 1j, range(3), float('inf')]",
        "import datetime, decimal, fractions\nassert f() == [{'a': 2, 'b': 1}, __import__('collections').deque([1]), decimal.Decimal('0.1'),"
        " fractions.Fraction(1, 3), datetime.date(2020, 1, 2), {1, 2}, (1,), b'x', None, 1j, range(3), float('inf')]",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(xs):\n    with ThreadPoolExecutor(4) as pool:\n        return list(pool.map(abs, xs))",
        ["assert f([-1, 2, -3]) == [1, 2, 3]"],
    ),
    "event loop": ("import asyncio\nasync def g(x): return x * x\ndef f(x): return asyncio.run(g(x))", ASSERTS),
    "temporary file": ("import tempfile\ndef f(x):\n    with tempfile.TemporaryFile() as t:\n        t.write(b'a' * x)\n        return t.tell()", ["assert f(3) == 3"]),
    "named like a built-in function": ("def sum(a, b): return a * b", ["assert sum(3, 4) == 12"]),
    "named like a module": ("def string(x): return str(x)", ["assert string(3) == '3'"]),
    "check(candidate)": (SQUARE, "def check(candidate):\n    assert candidate(3) == 9\n"),
    "a module that only the completion imports": ("import math\ndef f(x): return math.sqrt(x)", ["assert math.isclose(f(4), 2)"]),
}  # fmt: skip
WRONG = {
    "wrong value": ("def f(x): return x", ASSERTS),
    "none": ("def f(x): return None", ASSERTS),
    "wrong type": ("def f(x): return [x * x]", ["assert f(3) == (9,)"]),
    "another name": ("def g(x): return x * x", ASSERTS),
    "syntax error": ("def f(x) return x", ASSERTS),
    "raises": ("def f(x): return x / 0", ASSERTS),
    "refusal": ("I cannot help with that.", ASSERTS),
    "only the second test fails": ("def f(x): return 9", ASSERTS),
}


@pytest.fixture(scope="module")
def verdicts():
    """All programs of this file judged at once, as name -> judgement."""
    cases = {**HONEST, **WRONG}
    reward = get_reward("code", deadline=8.0)
    completions, tests = zip(*cases.values(), strict=True)
    return dict(zip(cases, reward.judge(None, list(completions), tests=list(tests)), strict=True))


@needs_box
@pytest.mark.parametrize("name", HONEST)
def test_honest_completion_passes(verdicts, name):
    assert verdicts[name].verdict == "right", verdicts[name].reason


@needs_box
@pytest.mark.parametrize("name", WRONG)
def test_wrong_completion_fails(verdicts, name):
    assert verdicts[name][:2] == ("wrong", 0.0)


@needs_box
@pytest.mark.parametrize(
    ("completion", "tests"),
    [
        *((SQUARE, nothing) for nothing in (None, "", [], [3], "x = 1", "assert True", "assert (")),
        (SQUARE, "def check(g): assert True\n"),
        (SQUARE, "assert set(sorted([1])) == {1}"),
    ],
)
def test_without_a_test_that_uses_the_completion_there_is_no_score(completion, tests):
    judgement = get_reward("code").judge(None, [completion], tests=[tests])[0]
    assert judgement[:2] == ("unscorable", None)
    assert judgement.reason


@needs_box
def test_completion_that_goes_on_where_the_prompt_stops():
    prompt = 'def f(x):\n    """Square x."""\n'
    reward = get_reward("code")
    tests = "def check(candidate):\n    assert candidate(3) == 9\n"
    arguments = {"tests": [tests] * 3, "entry_point": ["f"] * 3}
    assert reward([prompt] * 3, ["    return x * x\n", "    return x\n", SQUARE], **arguments) == [1.0, 0.0, 1.0]


@needs_box
def test_setup_code_runs_before_the_tests():
    columns = {"tests": [["assert f(three) == 9"]], "test_setup_code": ["three = 3"]}
    assert get_reward("code")(None, [SQUARE], **columns) == [1.0]


@needs_box
def test_code_reward_is_picklable_and_conversational():
    reward = pickle.loads(pickle.dumps(get_reward("code", deadline=5.0)))
    assert reward(None, [[{"role": "assistant", "content": SQUARE}]], tests=[ASSERTS]) == [1.0]


def test_deadline_must_be_positive():
    with pytest.raises(UserError, match="deadline"):
        get_reward("code", deadline=0.0)


@pytest.mark.parametrize(
    ("tests", "names"),
    [
        ("assert f(g(1)) == h", ("f", "g", "h")),
        ("import math\nx = f(1)\nassert math.sqrt(x) == len([1])", ("f",)),
        ("assert math.sqrt(f(1)) == 1", ("f",)),
        ("assert string(1) == '1'", ("string",)),
        ("assert sum(1, 2) == 3", ("sum",)),
        ("def helper(y):\n    return f(y)\nassert [helper(z) for z in [1]] == [1]", ("f",)),
        ("assert (lambda q: f(q))(1) == 1", ("f",)),
    ],
)
def test_names_that_tests_take_from_the_completion(tests, names):
    assert prepare_tests(tests, None).names == names


def test_a_test_program_is_called_with_its_entry_point():
    assert prepare_tests("def check(candidate):\n    assert candidate(3) == 9\n", "f").names == ("f",)
    assert "entry_point" in prepare_tests("def check(candidate):\n    assert candidate(3) == 9\n", None).problem


def test_program_text_takes_the_last_block_that_defines_what_is_tested():
    text = (
        "```python\ndef f(): 1\n```\nor better\n```python\ndef f(): 2\n```\nso\n```python\nf()\n```\n```text\nx\n```"
    )
    assert program_text(text, ("f",)) == "def f(): 2\n"
    assert program_text(text, ("g",)) == "def f(): 1\n\n\ndef f(): 2\n\n\nf()\n"
    assert program_text("no fence", ("f",)) == "no fence"


def humaneval(path):
    """(id, solution, solution that returns None, columns) of every problem."""
    for row in map(json.loads, path.open()):
        columns = {"tests": row["test"], "entry_point": row["entry_point"]}
        yield row["task_id"], row["prompt"] + row["canonical_solution"], row["prompt"] + "    return None\n", columns


def mbpp(path):
    for row in map(json.loads, path.open()):
        columns = {"tests": row["test_list"], "test_setup_code": row["test_setup_code"]}
        yield f"mbpp/{row['task_id']}", row["code"], _returns_none(row["code"]), columns


def _returns_none(code):
    """The program with the body of every function replaced by ``return None``."""
    import ast

    tree = ast.parse(code.replace("\r\n", "\n"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Return(ast.Constant(None))]
    return ast.unparse(ast.fix_missing_locations(tree))


def check_programs(problems):
    reward = get_reward("code", deadline=20.0)
    ids, solutions, empty, columns = zip(*problems, strict=True)
    named = {name: [row.get(name) for row in columns] for name in columns[0]}
    passed = reward.judge(None, list(solutions), **named)
    failed = reward.judge(None, list(empty), **named)
    assert {i: j.reason for i, j in zip(ids, passed, strict=True) if j.verdict != "right"} == {}
    assert {i: j for i, j in zip(ids, failed, strict=True) if j.verdict != "wrong"} == {}


@needs_box
def test_canonical_solutions_of_a_sample_pass_and_return_none_fails(real_data):
    check_programs(list(humaneval(real_data("humaneval/HumanEval.jsonl")))[::10])
    check_programs(list(mbpp(real_data("mbpp/mbpp.jsonl")))[::70])


@needs_box
@pytest.mark.slow
def test_every_canonical_solution_passes_and_return_none_fails(real_data):
    """All 100 HumanEval and 700 MBPP programs, without an exception."""
    check_programs(list(humaneval(real_data("humaneval/HumanEval.jsonl"))))
    check_programs(list(mbpp(real_data("mbpp/mbpp.jsonl"))))
