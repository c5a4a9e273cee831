"""Reader of compiled programs: products and their precision, arrays, collectives, transfers to the host."""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"f64": 8, "s64": 8, "u64": 8, "c64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_HEADING = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
# The operation is the first word behind the type that is followed by a parenthesis; types have none such.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
)
_TO_THE_HOST = re.compile(r"infeed|outfeed|send|recv|\w*callback\w*")
_LOOPED = re.compile(r"\bbody=%([\w.\-]+).*?(?:known_trip_count\":\{\"n\":\"(\d+)\"|$)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)"
)


class Array(NamedTuple):
    """An array that a program makes.

    Attributes:
      dtype: Its type, such as ``"f32"``.
      shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return _BYTES.get(self.dtype, 1) * math.prod(self.shape)


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
      name: Name of its result.
      results: Arrays that it makes.
      operation: Such as ``"fusion"``.
      text: Operands and attributes, without the code of a kernel.
      computation: Name of the computation that it is in.
    """

    name: str
    results: list[Array]
    operation: str
    text: str
    computation: str

    @property
    def operands(self) -> list[str]:
        """Names of what it takes."""
        return re.findall(r"%([\w.\-]+)", self.text.partition(")")[0])

    @property
    def place(self) -> str:
        """Name of the JAX operation that it was compiled from; empty if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""


class Product(NamedTuple):
    """A convolution or a product of matrices.

    Attributes:
      library: ``"cudnn"``, ``"cublas"``, ``"triton"``, or ``"xla"`` for XLA's own.
      precision: ``"bf16"``, ``"tf32"``, ``"3 tf32"`` for three products of TF32 parts, or ``"f32"``.
      is_convolution: Whether it is a convolution.
      place: Name of the JAX operation that it was compiled from.
    """

    library: str
    precision: str
    is_convolution: bool
    place: str


class Program:
    """A compiled program, read from its text.

    Args:
      text: What ``as_text()`` of a compiled program returns, for CPUs or GPUs.
    """

    def __init__(self, text: str) -> None:
        self.instructions = list(_instructions(text))
        self._results = {instruction.name: instruction.results for instruction in self.instructions}

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """Arrays in memory: all but those within fused operations."""
        inner = {name for i in self.instructions if i.operation in ("fusion", "reduce") for name in _called(i)}
        return [
            array
            for instruction in self.instructions
            if instruction.computation not in inner and instruction.operation not in ("get-tuple-element", "tuple")
            for array in instruction.results
        ]

    @property
    def wide(self) -> list[Array]:
        """Arrays of floats and signed integers of 64 bits, fused or not; JAX counts random numbers by unsigned ones."""
        return [array for i in self.instructions for array in i.results if array.dtype in ("f64", "s64")]

    @property
    def to_the_host(self) -> list[str]:
        """Operations that transfer data to the host or from it, and calls of its functions."""
        found = [i for i in self.instructions if _TO_THE_HOST.fullmatch(i.operation) or "callback" in _target(i)]
        return [f"{i.operation} {i.place}" for i in found]

    def exchanged(self) -> list[int]:
        """Return the bytes of each array that crosses devices, as often as a loop of a known length repeats it."""
        repeats = self._repeats
        return [
            array.bytes
            for instruction in self.instructions
            if instruction.operation.removesuffix("-start") in _COLLECTIVES
            for array in _received(instruction)
            for _ in range(repeats.get(instruction.computation, 1))
        ]

    @property
    def copied(self) -> list[Array]:
        """Arrays that are copied, whole and on their own."""
        return [array for i in self.instructions if i.operation in ("copy", "copy-start") for array in i.results[:1]]

    @functools.cached_property
    def products(self) -> list[Product]:
        """Convolutions and products of matrices, in and out of fusions; one in a loop counts once."""
        triton = {
            name
            for instruction in self.instructions
            if instruction.operation == "fusion" and "__triton" in instruction.text
            for name in _called(instruction)
        }
        found = []
        for instruction in self.instructions:
            target = _target(instruction)
            if instruction.operation in ("dot", "convolution"):
                library = "triton" if instruction.computation in triton else "xla"
            elif target.startswith(("__cudnn$conv", "__cublas")):
                library = target[2:].partition("$")[0]
            else:
                continue
            is_convolution = instruction.operation == "convolution" or "conv" in target
            found.append(Product(library, self._precision(instruction), is_convolution, instruction.place))
        return found

    def counted(self) -> Counter[str]:
        """Return the number of convolutions and products by library and precision, such as ``"cudnn tf32"``."""
        return Counter(f"{product.library} {product.precision}" for product in self.products)

    def matrices(self, rows: int, columns: int) -> list[Array]:
        """Return arrays in memory of `rows` times `columns` numbers that have an axis of `columns`."""
        return [array for array in self.arrays if columns in array.shape and math.prod(array.shape) == rows * columns]

    def _precision(self, instruction: Instruction) -> str:
        kinds = {array.dtype for name in instruction.operands[:2] for array in self._results.get(name, [])[:1]}
        if "f32" not in kinds:
            return "/".join(sorted(kinds))
        text = instruction.text.lower()
        if "tf32_tf32_f32_x3" in text:
            return "3 tf32"
        # XLA takes TF32 for float32 on tensor cores unless a product asks for more.
        is_exact = re.search(
            r"operand_precision[\"=:]*[\[{][^\]}]*high|algorithm=dot_f32_f32_f32|alg_dot_f32_f32_f32", text
        )
        return "f32" if is_exact else "tf32"

    @functools.cached_property
    def _repeats(self) -> dict[str, int]:
        """How often loops of known length repeat each computation."""
        times: dict[str, int] = {}
        callers = {}
        for instruction in self.instructions:
            count = 1
            if instruction.operation == "while" and (loop := _LOOPED.search(instruction.text)) and loop[2]:
                count = int(loop[2])
            callers |= {name: (instruction.computation, count) for name in _called(instruction)}
        for name in callers:
            times[name], place = 1, name
            while place in callers:
                place, count = callers[place]
                times[name] *= count
        return times


def _instructions(text: str) -> Iterator[Instruction]:
    computation = ""
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            computation = heading[1]
        elif found := _INSTRUCTION.match(line):
            name, kind, operation, rest = found.groups()
            if "mosaic" in rest:
                rest = rest.partition("backend_config=")[0]
            yield Instruction(name, _arrays(kind), operation, rest, computation)


def _arrays(text: str) -> list[Array]:
    return [Array(dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in _ARRAY.findall(text)]


def _received(instruction: Instruction) -> list[Array]:
    """What arrives; some collectives that only start repeat what they were given before that."""
    number = len(instruction.operands)
    return instruction.results[number:] if len(instruction.results) == 2 * number else instruction.results


def _called(instruction: Instruction) -> list[str]:
    return [name for group in _CALLED.findall(instruction.text) for name in re.findall(r"%([\w.\-]+)", group)]


def _target(instruction: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', instruction.text)
    return found[1] if found else ""
