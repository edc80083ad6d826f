"""Read the pickle inside a PyTorch checkpoint without running code from it.

A pickle is a program for a machine with a stack. The machine here knows the few names that build tensors and plain
data. Every other name is data too: calling it makes a `StandIn`, an inert object that only keeps the name. Training
systems save such objects beside the weights.

Nothing is hashed, compared, shown or copied while a pickle runs, because a few bytes can describe values that are
nested a million times, or shared so often that visiting each of them takes years.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from kseg.errors import WeightsError

STORAGE_DTYPES = {
    f"{name}Storage": np.dtype(dtype)
    for name, dtype in (
        ("Double", "float64"),
        ("Float", "float32"),
        ("Half", "float16"),
        ("BFloat16", ml_dtypes.bfloat16),
        ("Long", "int64"),
        ("Int", "int32"),
        ("Short", "int16"),
        ("Char", "int8"),
        ("Byte", "uint8"),
        ("Bool", "bool"),
    )
}
SCALAR_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
# A checkpoint of a large model with optimizer and history has some 100,000 operations.
MAX_OPERATIONS = 500_000
# Of an integer; random number generators have states of 128 bits.
MAX_BITS = 2048
MAX_NAME = 1000
MAX_SHOWN = 80


class Storage(NamedTuple):
    """A range of a stored array in elements, which is read after the pickle."""

    key: str
    start: int
    length: int


class Tensor(NamedTuple):
    """A tensor as the pickle describes it. `torch_files` checks all fields before it uses them."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class StandIn:
    """An object of a class that the reader does not know; `problem` tells why a known name made it."""

    __slots__ = ("name", "problem")

    def __init__(self, name: str, problem: str = ""):
        self.name, self.problem = name, problem

    def __repr__(self) -> str:
        return f"StandIn({self.name!r})"


class Global(NamedTuple):
    """A name in a module, which the pickle may call."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Dict:
    """A dict whose keys have not been hashed yet; `source` are the pairs with which it was made."""

    __slots__ = ("source", "pairs")

    def __init__(self, source: Any = ()):
        self.source, self.pairs = source, []


class Set:
    """A set whose items have not been hashed yet, in lists of items."""

    __slots__ = ("frozen", "parts")

    def __init__(self, items: Any = (), frozen: bool = False):
        self.frozen, self.parts = frozen, [items]


class Latin1(NamedTuple):
    """Bytes as protocol 2 writes them: as a text."""

    text: str


class ScalarType:
    """The dtype of a NumPy scalar, which NumPy pickles with its byte order as state."""

    __slots__ = ("kind", "order")

    def __init__(self, kind: str):
        self.kind, self.order = kind, "<"


def shown(value: Any) -> str:
    """Return a short text of a value, in a time that does not depend on what the value contains."""
    if isinstance(value, (str, bytes)):
        return repr(value[:MAX_SHOWN])
    if value is None or isinstance(value, (bool, int, float, np.generic)):
        return repr(value)[:MAX_SHOWN]
    return value.name[:MAX_SHOWN] if isinstance(value, (Global, StandIn)) else f"a {type(value).__name__}"


def is_count(value: Any) -> bool:
    """Return whether a value is a nonnegative integer and not a bool."""
    return type(value) is int and value >= 0


def _scalar_type(kind: Any = None, *_: Any) -> Any:
    if isinstance(kind, str) and kind in SCALAR_KINDS:
        return ScalarType(kind)
    return StandIn(
        "numpy.dtype", f"contains a NumPy scalar of type {shown(kind)}; readable: {', '.join(sorted(SCALAR_KINDS))}"
    )


def _scalar(scalar_type: Any = None, data: Any = None) -> Any:
    size = 8
    data = data.text[:size].encode("latin1") if isinstance(data, Latin1) else data
    if not isinstance(scalar_type, ScalarType) or not isinstance(data, bytes):
        return StandIn("numpy.scalar", "contains a NumPy scalar that is not a plain number")
    return np.frombuffer(data[:size], scalar_type.order + scalar_type.kind, count=1)[0]


def _latin1(text: Any = None, encoding: Any = None) -> Latin1:
    # A checkpoint needs no other codec.
    if not isinstance(text, str) or not isinstance(encoding, str) or encoding != "latin1":
        raise WeightsError(f"encodes text as {shown(encoding)}; only latin1 is allowed")
    return Latin1(text)


def _size(dimensions: Any = ()) -> tuple:
    if not isinstance(dimensions, tuple):
        raise WeightsError("is damaged: it has a size that is not a tuple")
    return dimensions


def _tensor(storage: Any = None, offset: Any = None, size: Any = None, stride: Any = None, *_: Any) -> Any:
    return storage if isinstance(storage, StandIn) else Tensor(storage, offset, size, stride)


def _typed_tensor(function: Any = None, _type: Any = None, arguments: Any = None, *_: Any) -> Any:
    if isinstance(function, Global) and TENSORS.get(function) and isinstance(arguments, tuple):
        return TENSORS[function](*arguments)
    return StandIn(str(function) if isinstance(function, Global) else "torch._tensor._rebuild_from_type_v2")


def _not_callable(*_: Any) -> None:
    raise WeightsError("calls a storage type, which only names an element type")


# The functions ignore requires_grad, backward hooks and metadata.
TENSORS: dict[Global, Callable[..., Any]] = {
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_parameter"): lambda tensor=None, *_: tensor,
    Global("torch._utils", "_rebuild_parameter_with_state"): lambda tensor=None, *_: tensor,
}
KNOWN: dict[Global, Callable[..., Any]] = TENSORS | {
    Global("torch._tensor", "_rebuild_from_type_v2"): _typed_tensor,
    Global("torch", "Size"): _size,
    Global("collections", "OrderedDict"): lambda source=(), *_: Dict(source),
    Global("collections", "Counter"): lambda source=(), *_: Dict(source),
    # The argument is the function that makes missing values.
    Global("collections", "defaultdict"): lambda *_: Dict(),
    Global("_codecs", "encode"): _latin1,
    Global("numpy", "dtype"): _scalar_type,
    Global("numpy.core.multiarray", "scalar"): _scalar,
    Global("numpy._core.multiarray", "scalar"): _scalar,
    **{Global("torch", name): _not_callable for name in STORAGE_DTYPES},
    **{Global(module, "set"): lambda items=(), *_: Set(items) for module in ("builtins", "__builtin__")},
    **{Global(module, "frozenset"): lambda items=(), *_: Set(items, True) for module in ("builtins", "__builtin__")},
}


class Machine:
    """A machine that runs one pickle and records the storages to which it refers."""

    def __init__(self):
        self.storages: dict[str, tuple[np.dtype, int]] = {}
        self.stack: list[Any] = []
        # Lengths of the stack at the marks that have not been used up yet.
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        """Return the value of the pickle at the file's position, and leave the position behind it.

        Raises WeightsError, or any error of a damaged pickle.
        """
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MAX_OPERATIONS:
                raise WeightsError(f"is damaged or hostile: its pickle has more than {MAX_OPERATIONS} operations")
            name = operation.name
            if name in LITERALS:
                self.stack.append(argument)
            elif name in MEMO_WRITES:
                if argument is not None and argument > count:
                    raise WeightsError(f"is damaged: its pickle uses memo index {argument} after {count} operations")
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            elif name in MEMO_READS:
                self.stack.append(self.memo[argument])
            elif name == "STOP":
                return self.stack.pop()
            elif name in OPERATIONS:
                OPERATIONS[name](self, argument)
            else:
                raise WeightsError(f"is refused: its pickle uses {name}, which checkpoints do not have")
        raise WeightsError("is incomplete: its pickle has no end")

    def _integer(self, value: int) -> None:
        if value.bit_length() > MAX_BITS:
            raise WeightsError(f"is damaged: it has an integer of {value.bit_length()} bits")
        self.stack.append(value)

    def _bytes(self, text: str) -> None:
        # Files written by Python 2 contain byte strings, which PyTorch also reads as UTF-8.
        data = text.encode("latin1")
        try:
            self.stack.append(data.decode("utf-8"))
        except UnicodeDecodeError:
            self.stack.append(data)

    def _pop_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _dict(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append(Dict())
        self._set_items(items)

    def _tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise WeightsError("is damaged: its pickle takes more values than it has")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Set):
            target.parts.append(items)
        elif not isinstance(target, StandIn):
            raise WeightsError(f"is damaged: its pickle adds items to {shown(target)}")

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise WeightsError("is damaged: its pickle has a key without a value")
        if isinstance(target, Dict):
            target.pairs.extend(zip(items[::2], items[1::2]))
        elif not isinstance(target, StandIn):
            raise WeightsError(f"is damaged: its pickle sets items of {shown(target)}")

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise WeightsError("is damaged: its pickle asks for a name that is not a text")
        # Every call keeps the name, so a long one would fill the memory.
        if len(module) + len(name) > MAX_NAME:
            raise WeightsError(f"is damaged: its pickle asks for a name of {len(module) + len(name)} characters")
        self.stack.append(Global(module, name))

    def _call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, StandIn):
            self.stack.append(StandIn(function.name))
            return
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise WeightsError(f"is damaged: its pickle calls {shown(function)}")
        build = KNOWN.get(function)
        self.stack.append(build(*arguments) if build else StandIn(str(function)))

    def _pop_call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self._call(function, arguments)

    def _pop_call_with_keywords(self, _: Any) -> None:
        self.stack.pop()
        self._pop_call(_)

    def _instance(self, names: str) -> None:
        arguments = tuple(self._pop_mark())
        self._global(*names.split(" ", 1))
        self._call(self.stack.pop(), arguments)

    def _marked_call(self, _: Any) -> None:
        function, *arguments = self._pop_mark()
        self._call(function, tuple(arguments))

    def _build(self, _: Any) -> None:
        # Attributes of dicts, tensors and stand-ins are not needed.
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Global) and target in KNOWN:
            raise WeightsError(f"is refused: it tries to change {target.name}")
        if isinstance(target, ScalarType):
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
            if not isinstance(order, str) or order not in ("<", ">", "|"):
                raise WeightsError(f"contains a NumPy scalar with byte order {shown(order)}; known: <, >, |")
            target.order = order

    def _persistent(self, _: Any) -> None:
        identifier = self.stack.pop()
        if (
            not isinstance(identifier, tuple)
            or len(identifier) not in (5, 6)
            or not isinstance(identifier[0], str)
            or identifier[0] != "storage"
        ):
            first = identifier[0] if isinstance(identifier, tuple) and identifier else identifier
            raise WeightsError(f"refers to something other than a storage: {shown(first)}")
        _, kind, key, _, elements = identifier[:5]
        if not isinstance(kind, Global) or kind.name not in STORAGE_DTYPES:
            raise WeightsError(f"has a storage of unknown type {shown(kind)}; known: {', '.join(STORAGE_DTYPES)}")
        if not isinstance(key, str) or not is_count(elements):
            raise WeightsError(
                f"describes a storage by {shown(key)} and {shown(elements)} instead of a name and a length"
            )
        declared = (STORAGE_DTYPES[kind.name], elements)
        if self.storages.setdefault(key, declared) != declared:
            raise WeightsError(f"describes storage {shown(key)} inconsistently: {self.storages[key]} and {declared}")
        self.stack.append(_view(key, elements, identifier[5] if len(identifier) == 6 else None))


def _view(key: str, elements: int, view: Any) -> Storage:
    if view is None:
        return Storage(key, 0, elements)
    if (
        not isinstance(view, tuple)
        or len(view) != 3
        or not is_count(view[1])
        or not is_count(view[2])
        or view[1] + view[2] > elements
    ):
        raise WeightsError(f"has a view that lies outside of storage {shown(key)} of {elements} elements")
    return Storage(key, view[1], view[2])


LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
MEMO_WRITES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
MEMO_READS = {"GET", "BINGET", "LONG_BINGET"}
OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), Machine._integer),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), Machine._bytes),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append(Dict()),
    "EMPTY_SET": lambda machine, _: machine.stack.append(Set()),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine._pop_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine._pop_mark())),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "LIST": lambda machine, _: machine.stack.append(machine._pop_mark()),
    "DICT": Machine._dict,
    "FROZENSET": lambda machine, _: machine.stack.append(Set(machine._pop_mark(), True)),
    "APPEND": lambda machine, _: machine._append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "ADDITEMS": lambda machine, _: machine._append(machine._pop_mark()),
    "SETITEM": lambda machine, _: machine._set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_mark()),
    "GLOBAL": lambda machine, names: machine._global(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine._global(machine.stack.pop(-2), machine.stack.pop()),
    "REDUCE": Machine._pop_call,
    "NEWOBJ": Machine._pop_call,
    "NEWOBJ_EX": Machine._pop_call_with_keywords,
    "INST": Machine._instance,
    "OBJ": Machine._marked_call,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent,
}
