"""Reading pickles without running them.

A pickle is a program for a small stack machine, and Python's own machine calls whatever the program names.
This one carries out the same instructions on plain data only: a name becomes a :class:`Global`, a call of one
becomes a :class:`Call`, and nothing is looked up, imported or called. Memory stays within a small multiple of
the pickle's length. Instructions: protocols 0 to 5 as :mod:`pickletools` describes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

# Calls whose meaning is plain data, by the name that the pickle gives.
_CONTAINERS: dict[str, type[dict[Any, Any]] | type[list[Any]]] = {
    "collections.OrderedDict": dict,
    "collections.defaultdict": dict,
    "builtins.dict": dict,
    "__builtin__.dict": dict,
    "builtins.list": list,
    "__builtin__.list": list,
    "builtins.set": list,
    "__builtin__.set": list,
}


class BadPickleError(Exception):
    """The instructions make no sense; a line that says why."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name of Python that the pickle mentions, such as "torch.FloatStorage"."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """An object that Python would have made by calling ``function`` with ``arguments``; inert."""

    function: Any
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """A reference to something that the pickle's owner keeps elsewhere: torch's storages."""

    reference: Any


def read_pickle(stream: BinaryIO) -> Any:
    """What a pickle describes: plain values and containers, for all else Global, Call and Persistent.

    The stream stands after the pickle then. Sets become lists, and keys that are not plain text or numbers
    are left out with their values. Raises BadPickleError for anything that is not a pickle.
    """
    import pickletools  # not on the way to every --help

    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except BadPickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise BadPickleError(f"its instructions make no sense ({type(error).__name__})") from error
    raise BadPickleError("it ends early")


class _Machine:
    """The stack machine. ``marks`` are the stacks that wait below a MARK."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _GET:
            self.stack.append(self.memo[int(argument)])
        elif name in _PUT:
            self.memo[int(argument)] = self.stack[-1]
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _IGNORED:
            raise BadPickleError(f"it has the instruction {name}, which no checkpoint needs")

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def append(self, _: Any) -> None:
        item = self.stack.pop()
        _extend(self.stack[-1], [item])

    def appends(self, _: Any) -> None:
        items = self.pop_mark()
        _extend(self.stack[-1], items)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _update(self.stack[-1], [key, value])

    def set_items(self, _: Any) -> None:
        items = self.pop_mark()
        _update(self.stack[-1], items)

    def make_list(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def make_dict(self, _: Any) -> None:
        table: dict[Any, Any] = {}
        _update(table, self.pop_mark())
        self.stack.append(table)

    def make_tuple(self, _: Any) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def short_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise BadPickleError("its instructions make no sense (stack)")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def find(self, argument: str) -> None:
        self.stack.append(Global(argument.replace(" ", ".", 1)))

    def find_by_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Global(f"{_text(module)}.{_text(name)}"))

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_make(function, arguments))

    def call_with_names(self, _: Any) -> None:
        self.stack.pop()
        self.call(_)

    def call_marked(self, _: Any) -> None:
        function, *arguments = self.pop_mark()
        self.stack.append(_make(function, tuple(arguments)))

    def instantiate(self, argument: str) -> None:
        arguments = tuple(self.pop_mark())
        self.stack.append(_make(Global(argument.replace(" ", ".", 1)), arguments))

    def refer(self, _: Any) -> None:
        self.stack.append(Persistent(self.stack.pop()))

    def drop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def drop_marked(self, _: Any) -> None:
        self.pop_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])


def _make(function: Any, arguments: Any) -> Any:
    given = arguments if isinstance(arguments, tuple) else ()
    if isinstance(function, Global) and function.name in _CONTAINERS:
        # The very object where there is one: copies of copies could fill the memory.
        kind = _CONTAINERS[function.name]
        return given[0] if given and isinstance(given[0], kind) else kind()
    return Call(function, given)


def _extend(target: Any, items: Any) -> None:
    """Python would ask the object; an inert one has no use for its items."""
    if isinstance(target, list):
        target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple visits all that is in it, which can be made to take for ever.
            if isinstance(key, str | int | float | bytes) or key is None:
                target[key] = value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadPickleError("it names something that is not text")
    return value


_NUMBERS = ["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"]
_TEXTS = ["STRING", "BINSTRING", "SHORT_BINSTRING"]
_TEXTS += ["UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"]
_BYTES = ["BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"]
_VALUES = frozenset(_NUMBERS + _TEXTS + _BYTES)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUT = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_IGNORED = frozenset({"PROTO", "FRAME"})
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "MEMOIZE": _Machine.memoize,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_marked,
    "DUP": _Machine.duplicate,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "LIST": _Machine.make_list,
    "FROZENSET": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.short_tuple(1),
    "TUPLE2": lambda machine, _: machine.short_tuple(2),
    "TUPLE3": lambda machine, _: machine.short_tuple(3),
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.find_by_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_names,
    "OBJ": _Machine.call_marked,
    "INST": _Machine.instantiate,
    # State that Python would give to the finished object.
    "BUILD": _Machine.drop,
    "PERSID": lambda machine, argument: machine.stack.append(Persistent(argument)),
    "BINPERSID": _Machine.refer,
}
