"""What LeRobot's robot client sends, read as data.

lerobot 0.6.1 sends pickles. A pickle names the functions that put its content together, so ``pickle.loads``
of a stranger's bytes runs the stranger's code. Here every name but those that a robot's observation needs is
refused before it is called, and the message itself becomes a record whose fields are checked. Before that,
what a few bytes could make of the server's memory and stack is refused, too.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec
import numpy as np
from lerobot.async_inference import helpers
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot.transport import services_pb2
from numpy.typing import NDArray

from multismolvla.modalities import Feature

#: Bytes of an observation: forty cameras of 1920 x 1080 pixels.
LARGEST = 256 * 2**20
#: Opcodes of a message: a picture takes some twenty, a number up to fifteen.
MOST_OPCODES = 10_000
#: Those of pickle's protocols 4 (Python 3.12) and 5, but for sets, and what says at which place to remember.
_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES",
    "BINBYTES", "BYTEARRAY8", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND",
    "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "STACK_GLOBAL", "NEWOBJ", "REDUCE", "BUILD",
})  # fmt: skip
_FIRST_KEY = {"SETITEM": 1, "SETITEMS": 2}  # behind the dictionary, and the mark
#: NumPy's codes of what pictures and joints are made of.
_NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_ORDERS = ("<", ">", "=", "|")
#: What reading bytes that are no pickle, or the pickle of something else, ends with.
_UNREADABLE = (
    pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError, ImportError,
    OverflowError, MemoryError, RecursionError,
)  # fmt: skip


class MessageError(ValueError):
    """Bytes that are no message of LeRobot's robot client."""


class Instructions(msgspec.Struct, frozen=True):
    """What a client asks for: the fields of LeRobot's ``RemotePolicyConfig``, which annotates them otherwise.

    Attributes:
        policy_type: of the policy.
        pretrained_name_or_path: its checkpoint.
        lerobot_features: what the robot observes, by LeRobot's keys.
        actions_per_chunk: how many actions of a chunk are sent back.
        device: on which the policy is to run.
        rename_map: key of the robot -> key of the policy; LeRobot's own client sends none.
    """

    policy_type: str
    pretrained_name_or_path: str
    lerobot_features: dict[str, Feature]
    actions_per_chunk: int
    device: str = "cpu"
    rename_map: dict[str, str] = {}


def read_instructions(data: bytes) -> Instructions:
    """Read the first message of a client.

    Raises:
        MessageError: it is none.
    """
    return _read(data, RemotePolicyConfig.__name__, Instructions)


def read_observation(data: bytes) -> TimedObservation:
    """Read what a robot observed; its values are numbers, texts and arrays.

    Raises:
        MessageError: the bytes are no observation.
    """
    read = _read(data, TimedObservation.__name__, TimedObservation)
    arrays = {name: value.values for name, value in read.observation.items() if isinstance(value, _Array)}
    if sum(values.nbytes for values in arrays.values()) > LARGEST:  # of the same bytes, named many times
        raise MessageError(f"Arrays of more than {LARGEST} bytes; those of an observation have fewer.")
    read.observation |= {name: values.copy() for name, values in arrays.items()}
    return read


def joined(parts: Iterable[services_pb2.Observation]) -> bytes:
    """The message that a client has sent in parts.

    Raises:
        MessageError: they end too early, or exceed `LARGEST`.
    """
    data = bytearray()
    for part in parts:
        data += part.data
        if len(data) > LARGEST:
            raise MessageError(f"A message of more than {LARGEST} bytes; an observation has fewer.")
        if part.transfer_state == services_pb2.TRANSFER_END:
            return bytes(data)
    raise MessageError(f"A message ended after {len(data)} bytes, before it was complete.")


def _read[T](data: bytes, name: str, message: type[T]) -> T:
    unpickler = _Unpickler(data, name)
    try:
        _check(data)
        found = unpickler.load()
    except MessageError:
        raise
    except _UNREADABLE as error:
        raise MessageError(
            f"{len(data)} bytes cannot be read as {name} ({type(error).__name__}: {_short(str(error))}). "
            "Expected a message of LeRobot 0.6.1's robot client."
        ) from error
    if not isinstance(found, unpickler.record):
        raise MessageError(f"A {type(found).__name__} was sent, expected {name} of LeRobot's robot client.")
    try:
        return msgspec.convert(vars(found), message)
    except msgspec.ValidationError as error:
        raise MessageError(f"{name}: {error}. Is the client that of LeRobot 0.6.1?") from error


def _check(data: bytes) -> None:
    """See that a pickle asks for nothing that a client's never does, before it is carried out.

    CPython does what it is asked: it makes a memo of as many places as a number in nine bytes says; and of a
    tuple that is a key it takes the hash, and those of the tuples inside, without end, on the stack of C.

    Raises:
        UnpicklingError: another opcode, too many, or a key that is no text.
    """
    stack: list[pickletools.StackObject] = []
    memo: list[pickletools.StackObject] = []
    for number, (opcode, place, _) in enumerate(pickletools.genops(data)):
        name, taken, made = opcode.name, opcode.stack_before, opcode.stack_after
        if number == MOST_OPCODES:
            raise pickle.UnpicklingError(f"more than {MOST_OPCODES} opcodes")
        if name not in _OPCODES:
            raise pickle.UnpicklingError(f"opcode {name}")
        if name == "MEMOIZE":
            memo.append(stack[-1])
            continue
        if name in ("BINGET", "LONG_BINGET"):
            made = [memo[place or 0]]
        count = len(taken)
        if pickletools.stackslice in taken:  # all since the last mark
            count += stack[::-1].index(pickletools.markobject) - 1
        below = max(0, len(stack) - count)
        items = stack[below:]
        stack[below:] = made
        for key in items[_FIRST_KEY[name] :: 2] if name in _FIRST_KEY else ():
            if key is not pickletools.pyunicode:
                raise pickle.UnpicklingError(f"a key: Expected `str`, got `{key.name}`")


class _DType:
    """Stands for ``numpy.dtype``: one of plain numbers."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or code not in _NUMBERS:
            raise MessageError(f"An array of dtype {_short(code)}. Expected one of {sorted(_NUMBERS)}.")
        self.code = self.text = code

    def __setstate__(self, state: tuple[int, str, *tuple[object, ...]]) -> None:
        order = state[1]
        if not isinstance(order, str) or order not in _ORDERS:
            raise MessageError(f"An array of byte order {_short(order)}. Expected one of {_ORDERS}.")
        self.text = order + self.code


class _Array:
    """Stands for ``numpy.ndarray``, until it is known that everything fits."""

    def __init__(self, *_: object) -> None:
        self.values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _DType, bool, bytes]) -> None:
        _, shape, dtype, fortran, data = state
        self.values = _made(data, dtype, shape, "F" if fortran else "C").values


def _made(data: bytes, dtype: _DType, shape: tuple[int, ...], order: Literal["C", "F"]) -> _Array:
    array = _Array()
    array.values = _from_buffer(data, dtype).reshape(shape, order=order)
    return array


def _scalar(dtype: _DType, data: bytes) -> Any:
    return _from_buffer(data, dtype)[0]


def _from_buffer(data: bytes, dtype: _DType) -> NDArray[Any]:
    if not isinstance(dtype, _DType):
        raise MessageError(f"An array of dtype {_short(dtype)}.")
    return np.frombuffer(data, dtype.text)


class _Maker:
    """Stands for a function or class of NumPy's: may be called, and not be changed.

    ``functools.partial`` may be told by a pickle that its function is itself, and calls that without end, on
    the stack of C.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *values: object) -> object:
        return self._make(*values)

    def __setstate__(self, state: object) -> None:
        raise MessageError("The message changes what NumPy's names stand for; an observation does not.")


def _fill(record: Any, state: Any) -> None:
    """``__setstate__`` of a record. Of the class, it lacks an argument: that cannot be changed."""
    record.__dict__.update(state)


class _Unpickler(pickle.Unpickler):
    """Makes one kind of record, and arrays of plain numbers.

    A pickle also fills what it has made, and what it was given by name: NumPy's own classes trust it (a dtype
    of numbers may be told that it holds objects), and so would a function's attributes. So there are
    stand-ins for them, each with a ``__setstate__`` that checks.

    Attributes:
        record: stands for the message's class.
    """

    def __init__(self, data: bytes, message: str) -> None:
        super().__init__(io.BytesIO(data))
        self.record: type[object] = type(message, (), {"__setstate__": _fill})
        self._known: dict[tuple[str, str], object] = {
            (helpers.__name__, message): self.record,
            ("numpy", "ndarray"): "ndarray",  # says to the next one what to make
            ("numpy._core.multiarray", "_reconstruct"): _Maker(_Array),
            ("numpy", "dtype"): _Maker(_DType),
            ("numpy._core.multiarray", "scalar"): _Maker(_scalar),
            ("numpy._core.numeric", "_frombuffer"): _Maker(_made),  # protocol 5
        }

    def find_class(self, module_name: str, global_name: str, /) -> object:
        """What a name in the pickle stands for."""
        found = self._known.get((module_name, global_name))
        if found is None:
            raise MessageError(
                f"The message names {_short(f'{module_name}.{global_name}')}, which no observation needs: "
                "refused, and nothing of it was executed. Expected numbers, texts and NumPy arrays."
            )
        return found


def _short(text: object) -> str:
    """A stranger's text for the log: on one line, and not the whole of it; of anything else its type."""
    if not isinstance(text, str):
        return f"of type {type(text).__name__}"
    return repr(text if len(text) <= 80 else text[:80] + "...")
