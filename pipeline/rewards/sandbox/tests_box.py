"""The tests' box: runs the tests and asks the candidate's box for what they call.

Comparisons happen here, on plain data. An object of the candidate's own (a :class:`Handle`) stays in its box; it
could claim to be equal to anything, so no expected value is ever compared by it or sent to it for comparison:

- ``handle == plain`` compares the plain data the object is made of, if it is a subclass of a built-in type, and is
  False otherwise; ordering against plain data needs that data too;
- what a built-in type answers (``startswith``, ``count``) is asked of that plain data too;
- an operator between a handle and plain data may give another object, but no plain data, and the number, truth or text
  of such an object is refused: else ``abs(f(x) - 9) < 1e-6`` would ask the candidate how far it is from 9.
"""

import builtins
import os
import sys

from pipeline.rewards.sandbox.protocol import (
    MAX_FRAME,
    ProtocolError,
    Reference,
    Unsendable,
    decode,
    encode,
    receive,
    send,
)

_MATERIALISED = 100_000
_IMMUTABLE = (int, float, complex, str, bytes, tuple, frozenset)
# Questions that plain data answers, such as ``f(x).startswith("abc")``: not for a subclass to answer as it likes.
_QUESTIONS = frozenset(
    name for kind in (str, bytes, int, float, tuple, frozenset) for name in dir(kind) if name[:2] != "__"
) | {"get", "keys", "values", "items"}
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


class CandidateGone(BaseException):
    """The candidate's box stopped answering, or answered nonsense. No ``except Exception`` of a test may hide it."""


class Unpassable(BaseException):
    """The tests hand the candidate something that cannot cross between boxes: the judge's limit, not its fault."""


class _Link:
    """The pipes to the candidate's box. There is one per process, in ``_link``."""

    def __init__(self, requests, replies):
        self.requests, self.replies = requests, replies
        self.functions, self.errors, self.plain = [], {}, {}
        self.uses, self.lost = 0, None

    def refer(self, value):
        if isinstance(value, Handle):
            return object.__getattribute__(value, "_reference")
        if callable(value):
            self.functions.append(value)
            return Reference("tests", len(self.functions) - 1)
        if hasattr(type(value), "__next__") or type(value) in _VIEWS:
            return _as_list(value)
        for base in (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset):
            if isinstance(value, base):
                return base(value)
        raise Unpassable(f"the tests hand over a {type(value).__name__}")

    def resolve(self, reference, tainted=False):
        if reference.owner == "candidate":
            return Handle(reference, tainted)
        return self.functions[reference.key]

    def ask(self, operation, *details, tainted=False):
        """The candidate's answer to one operation, as plain data or handles; raises what it raised."""
        if self.lost:
            raise CandidateGone(self.lost)
        self.uses += operation != "plain"
        nonce = os.urandom(8)
        try:
            try:
                request = encode((nonce, operation, details), self.refer)
                send(self.requests, request)
            except Unsendable as cause:
                raise Unpassable(str(cause)) from None
            while True:
                answer = decode(
                    receive(self.replies, MAX_FRAME // 2), lambda reference: self.resolve(reference, tainted)
                )
                if not (type(answer) is tuple and answer and answer[0] == "callback"):
                    break
                self._serve_callback(answer)
            answered, status, value = answer
            if answered != nonce or status not in ("value", "raised"):
                raise ProtocolError("an answer to another question")
            if status == "value":
                return value
            failure = self._failure(operation, *value)
        except (ProtocolError, ValueError, TypeError, IndexError) as cause:
            self.lost = str(cause)
            raise CandidateGone(self.lost) from None
        raise failure

    def _serve_callback(self, answer):
        _, key, arguments, keywords = answer
        function = self.functions[key]
        try:
            outcome = ("value", function(*arguments, **keywords))
        except Exception as failure:
            if isinstance(failure, AssertionError):
                self.lost = "an assertion failed in a function of the tests that it called"
            outcome = ("raised", (type(failure).__name__, [str(failure)]))
        send(self.requests, encode(outcome, self.refer))

    def _failure(self, operation, number, name, arguments):
        kind = self.errors.get(number) or getattr(builtins, name, RuntimeError)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = RuntimeError  # SystemExit and its like end the candidate's call, not the tests
        if issubclass(kind, StopIteration) and operation != "next":
            kind = RuntimeError  # would end a loop of the tests early
        try:
            return kind(*arguments)
        except Exception:
            return RuntimeError(name)


_link = None


def _made_plain(handle):
    """The plain data that a handle's object is made of as a 1-tuple, or None.

    Asked once as long as nothing else was asked: an object that answers each comparison anew would guess until it
    hits.
    """
    key = object.__getattribute__(handle, "_reference").key
    asked_at, answer = _link.plain.get(key, (-1, None))
    if asked_at == _link.uses or (answer is not None and isinstance(answer[0], _IMMUTABLE)):
        return answer
    answer = _link.ask("plain", handle)
    if not (type(answer) is tuple and len(answer) == 1 and not isinstance(answer[0], Handle)):
        answer = None
    _link.plain[key] = (_link.uses, answer)
    return answer


def _is_tainted(value):
    return isinstance(value, Handle) and object.__getattribute__(value, "_tainted")


def _refuse_taint(handle, what):
    if _is_tainted(handle):
        raise TypeError(f"{what} of an object that the candidate made from an operation with the tests' data")


def _asked_plain(operation, kind):
    def method(self):
        _refuse_taint(self, operation)
        answer = _link.ask(operation, self)
        if type(answer) is not kind:
            raise TypeError(f"{operation} of the candidate's object gave no {kind.__name__}")
        return answer

    return method


def _unary(operation):
    def method(self):
        _refuse_taint(self, operation)
        return _link.ask(operation, self)

    return method


def _arithmetic(operation, swapped=False):
    def method(self, other):
        if isinstance(other, Handle):
            tainted = _is_tainted(self) or _is_tainted(other)
            return _link.ask(operation, *((other, self) if swapped else (self, other)), tainted=tainted)
        plain = _made_plain(self)
        if plain is not None:
            function = getattr(_operators(), operation)
            return function(other, plain[0]) if swapped else function(plain[0], other)
        answer = _link.ask(operation, *((other, self) if swapped else (self, other)), tainted=True)
        if not isinstance(answer, Handle):
            raise TypeError("an operation of the candidate's object with the tests' data gave plain data")
        return answer

    return method


def _operators():
    import operator

    return operator


def _ordering(operation):
    def method(self, other):
        _refuse_taint(self, operation)
        if isinstance(other, Handle):
            _refuse_taint(other, operation)
            return _link.ask(operation, self, other)
        plain = _made_plain(self)
        if plain is None:
            raise TypeError("the candidate's object cannot be ordered against the tests' data")
        return getattr(_operators(), operation)(plain[0], other)

    return method


class Handle:
    """An object of the candidate's own, which stays in its box."""

    __slots__ = ("_reference", "_tainted")

    def __init__(self, reference, tainted):
        object.__setattr__(self, "_reference", reference)
        object.__setattr__(self, "_tainted", tainted)

    def __getattribute__(self, name):
        if name[:2] == "__":
            if name == "__name__":
                return _link.ask("getattr", self, name)
            if name == "__class__":
                return Handle
            raise AttributeError(name)
        plain = _made_plain(self) if name in _QUESTIONS else None
        if plain is not None and hasattr(plain[0], name):
            return getattr(plain[0], name)
        return _link.ask("getattr", self, name, tainted=_is_tainted(self))

    def __setattr__(self, name, value):
        if name[:2] == "__":
            raise AttributeError(name)
        _link.ask("setattr", self, name, value)

    def __delattr__(self, name):
        _link.ask("delattr", self, name)

    def __call__(self, *arguments, **keywords):
        return _link.ask("call", self, arguments, keywords, False, tainted=_is_tainted(self))

    def __getitem__(self, key):
        return _link.ask("getitem", self, key, tainted=_is_tainted(self))

    def __setitem__(self, key, value):
        _link.ask("setitem", self, key, value)

    def __delitem__(self, key):
        _link.ask("delitem", self, key)

    def __iter__(self):
        iterator = _link.ask("iter", self, tainted=_is_tainted(self))
        if not isinstance(iterator, Handle):
            raise TypeError("iter() of the candidate's object gave no iterator")
        while True:
            try:
                item = _link.ask("next", iterator, tainted=_is_tainted(self))
            except StopIteration:
                return
            yield item

    def __next__(self):
        return _link.ask("next", self, tainted=_is_tainted(self))

    def __contains__(self, item):
        return any(item is own or item == own for own in self)

    def __eq__(self, other):
        if isinstance(other, Handle):
            if _is_tainted(self) or _is_tainted(other):
                return False
            return _link.ask("eq", self, other) is True
        plain = _made_plain(self)
        return plain is not None and not _is_tainted(self) and bool(plain[0] == other)

    def __ne__(self, other):
        if isinstance(other, Handle) and not (_is_tainted(self) or _is_tainted(other)):
            return _link.ask("ne", self, other) is True
        return not self == other

    def __instancecheck__(self, other):
        return isinstance(other, Handle) and _link.ask("isinstance", other, self) is True

    def __hash__(self):
        return hash(object.__getattribute__(self, "_reference").key)

    def __round__(self, *digits):
        _refuse_taint(self, "round")
        return _link.ask("round", self, *digits)

    def __format__(self, form):
        return format(str(self), form)

    __bool__ = _asked_plain("bool", bool)
    __len__ = _asked_plain("len", int)
    __str__ = _asked_plain("str", str)
    __repr__ = _asked_plain("repr", str)
    __int__ = _asked_plain("int", int)
    __index__ = _asked_plain("index", int)
    __float__ = _asked_plain("float", float)
    __complex__ = _asked_plain("complex", complex)
    __reversed__ = _unary("reversed")
    __neg__ = _unary("neg")
    __pos__ = _unary("pos")
    __abs__ = _unary("abs")
    __invert__ = _unary("invert")
    __lt__, __le__, __gt__, __ge__ = map(_ordering, ("lt", "le", "gt", "ge"))
    __add__, __radd__ = _arithmetic("add"), _arithmetic("add", swapped=True)
    __sub__, __rsub__ = _arithmetic("sub"), _arithmetic("sub", swapped=True)
    __mul__, __rmul__ = _arithmetic("mul"), _arithmetic("mul", swapped=True)
    __matmul__, __rmatmul__ = _arithmetic("matmul"), _arithmetic("matmul", swapped=True)
    __truediv__, __rtruediv__ = _arithmetic("truediv"), _arithmetic("truediv", swapped=True)
    __floordiv__, __rfloordiv__ = _arithmetic("floordiv"), _arithmetic("floordiv", swapped=True)
    __mod__, __rmod__ = _arithmetic("mod"), _arithmetic("mod", swapped=True)
    __pow__, __rpow__ = _arithmetic("pow"), _arithmetic("pow", swapped=True)
    __lshift__, __rlshift__ = _arithmetic("lshift"), _arithmetic("lshift", swapped=True)
    __rshift__, __rrshift__ = _arithmetic("rshift"), _arithmetic("rshift", swapped=True)
    __and__, __rand__ = _arithmetic("and_"), _arithmetic("and_", swapped=True)
    __or__, __ror__ = _arithmetic("or_"), _arithmetic("or_", swapped=True)
    __xor__, __rxor__ = _arithmetic("xor"), _arithmetic("xor", swapped=True)


def _called_for_effect(function, *arguments, **keywords):
    """A call whose result the tests drop: what it did to lists, sets and dictionaries in its arguments comes back."""
    if not isinstance(function, Handle):
        return function(*arguments, **keywords)
    result, changed = _link.ask("call", function, arguments, keywords, True)
    for before, after in zip(arguments, changed):
        if type(before) is type(after):
            if type(before) in (list, bytearray):
                before[:] = after
            elif type(before) in (dict, set):
                before.clear()
                before.update(after)
    return result


def _as_list(value):
    """Iterators cross as lists."""
    items = []
    for item in value:
        if len(items) == _MATERIALISED:
            raise Unpassable("the tests hand over an iterator of more than 100000 items")
        items.append(item)
    return items


def _namespace(names, exposed):
    """The names that the tests use and do not define: the candidate's, or modules of the standard library."""
    namespace = {"__name__": "tests", "__builtins__": builtins, "_called_for_effect": _called_for_effect}
    for name, found in zip(names, exposed, strict=True):
        kind, *details = found
        if kind == "value":
            namespace[name] = details[0]
        elif kind == "error":
            number, base = details
            base = getattr(builtins, base, Exception)
            if not (isinstance(base, type) and issubclass(base, Exception)):
                base = Exception
            namespace[name] = _link.errors[number] = type(name, (base,), {})
        elif kind in ("module", "missing") and name in sys.stdlib_module_names:
            namespace[name] = __import__(name)
    return namespace


def _verdict(job):
    """(verdict, reason) of the tests in ``job["code"]``."""
    names = job["names"]
    try:
        receive(_link.replies)
    except ProtocolError:
        return "error", "the candidate's box did not start"
    try:
        answer = _link.ask("names", *names)
        problem, exposed = answer
        if problem is not None:
            return "wrong", f"the completion does not load: {str(problem)[:200]}"
        _link.uses = 0
        namespace = _namespace(names, exposed)
    except CandidateGone as cause:
        return "wrong", f"the completion stopped: {cause}"
    except Exception as cause:
        return "wrong", f"the completion's names: {cause}"
    try:
        exec(job["code"], namespace)
        verdict = ("right", "") if _link.uses else ("unscorable", "the tests never use the completion")
    except AssertionError as failure:
        verdict = ("wrong", f"assertion failed in line {_line(failure)} {str(failure)[:200]}".rstrip())
    except (CandidateGone, ProtocolError) as cause:
        verdict = ("wrong", f"the completion stopped: {cause}")
    except Unpassable as cause:
        verdict = ("error", f"cannot be tested in two boxes: {cause}")
    except Exception as failure:
        verdict = ("wrong", f"{type(failure).__name__} in line {_line(failure)}: {str(failure)[:200]}")
    except BaseException as failure:
        verdict = ("error", f"the tests ended by {type(failure).__name__}")
    return ("wrong", f"the completion stopped: {_link.lost}") if _link.lost else verdict


def _line(failure):
    trace, line = failure.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def main(job):
    """Run the tests against the candidate box, send the sealed verdict and end without any exit handler."""
    global _link
    _link = _Link(job["requests"], job["replies"])
    verdict = _verdict(job)
    send(job["verdict"], encode((job["seal"], *verdict), lambda value: str(value)))
    os._exit(0)
