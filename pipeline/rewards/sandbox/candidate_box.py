"""The candidate's box: runs a completion and serves its functions and objects over a pipe.

Nothing in here is trusted by anybody: the completion shares this process and can do with it what it likes. It never
holds an expected value, and what it answers is plain data that the tests' box compares (see box_tests).
"""

import builtins
import operator
import os
import sys
import types

from pipeline.rewards.sandbox.protocol import ProtocolError, Reference, Unsendable, decode, encode, receive, send

_UNARY = {
    "neg": operator.neg, "pos": operator.pos, "abs": abs, "invert": operator.invert, "bool": bool, "str": str,
    "repr": repr, "int": int, "float": float, "complex": complex, "index": operator.index, "len": len, "iter": iter,
    "next": next, "reversed": reversed,
}  # fmt: skip
_BINARY = {
    name: getattr(operator, name)
    for name in (
        "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and_", "or_", "xor",
        "eq", "ne", "lt", "le", "gt", "ge",
    )
} | {"divmod": divmod, "round": round}  # fmt: skip
_BASES = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)


class _Served:
    """The completion's objects by number, and the pipes."""

    def __init__(self, requests, replies):
        self.requests, self.replies = requests, replies
        self.objects, self.numbers = [], {}
        self.error_classes = {}

    def refer(self, value):
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return Reference("candidate", number)

    def resolve(self, reference):
        if reference.owner == "candidate":
            return self.objects[reference.key]
        return self._callback(reference)

    def _callback(self, reference):
        def callback(*arguments, **keywords):
            send(self.replies, encode(("callback", reference.key, arguments, keywords), self.refer))
            status, value = decode(receive(self.requests), self.resolve)
            if status == "raised":
                raise getattr(builtins, value[0], RuntimeError)(*value[1])
            return value

        return callback

    def raised(self, failure):
        """An exception as plain data: number of an exposed class of the completion's, built-in name, arguments."""
        kinds = type(failure).__mro__
        number = next((self.error_classes[kind] for kind in kinds if kind in self.error_classes), None)
        name = next(kind.__name__ for kind in kinds if kind.__module__ == "builtins")
        arguments = [item if type(item) in (str, int, float, bool) else str(item) for item in failure.args[:5]]
        return number, name, arguments

    def exposed(self, namespace, name):
        """What the tests get for a name: ("value", v), ("module", name), ("error", number, bases) or ("missing",)."""
        if name not in namespace:
            return ("missing",)
        value = namespace[name]
        if isinstance(value, types.ModuleType):
            return ("module", value.__name__)
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ != "builtins":
            number = self.error_classes.setdefault(value, len(self.error_classes))
            return ("error", number, next(kind.__name__ for kind in value.__mro__ if kind.__module__ == "builtins"))
        return ("value", value)

    def perform(self, operation, details):
        if operation == "call":
            function, arguments, keywords, with_arguments = details
            result = function(*arguments, **keywords)
            return (result, arguments) if with_arguments else result
        if operation in _UNARY:
            return _UNARY[operation](*details)
        if operation in _BINARY:
            return _BINARY[operation](*details)
        if operation in ("getattr", "setattr", "delattr"):
            return getattr(builtins, operation)(*details)
        if operation in ("getitem", "setitem", "delitem"):
            return getattr(operator, operation)(*details)
        if operation == "plain":
            base = next((base for base in _BASES if isinstance(details[0], base)), None)
            return None if base is None else (str.__str__(details[0]) if base is str else base(details[0]),)
        if operation == "isinstance":
            return isinstance(*details)
        raise ProtocolError(f"unknown operation {operation!r}")


def _load(source):
    """Runs the completion as a module called ``solution`` and gives its namespace and what it raised."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
    except BaseException as failure:
        return module.__dict__, f"{type(failure).__name__}: {failure}"[:200]
    return module.__dict__, None


def main(job):
    """Load the completion and serve calls on it until the pipe closes."""
    served = _Served(job["requests"], job["replies"])
    send(served.replies, b"ready")  # while nothing of the completion has run: a box that fails is no wrong answer
    namespace, problem = _load(job["source"])
    while True:
        try:
            nonce, operation, details = decode(receive(served.requests), served.resolve)
        except ProtocolError:
            os._exit(0)
        try:
            if operation == "names":
                outcome = ("value", (problem, [served.exposed(namespace, name) for name in details]))
            else:
                outcome = ("value", served.perform(operation, details))
            answer = encode((nonce, *outcome), served.refer)
            if len(answer) > 16 * 1024 * 1024:
                raise Unsendable("more than 16 MiB at once")
        except BaseException as failure:
            answer = encode((nonce, "raised", served.raised(failure)), served.refer)
        send(served.replies, answer)
