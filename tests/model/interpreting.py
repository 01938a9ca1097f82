"""Triton's interpreter, but for a sixth of its time and with bf16 rounded as a GPU rounds it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

QUIET = 0x40  # the bit of a bf16 NaN that no cut may clear


def prepare() -> None:
    """From now on, for the whole process; whoever calls it has told triton to interpret."""
    patch_once()
    keep_types()
    take_shortcuts()
    round_to_nearest()


def patch_once() -> None:
    """Replace the functions of the language once, and put nothing back.

    The interpreter does both at every launch, and replaces them again at every call within a
    kernel, of `tl.sum` too. Nothing compiles in this process, so nobody misses the originals.
    """
    import triton.language as tl  # reads the environment
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()
    semantic, nothing = interpreter.interpreter_semantic, interpreter._LangPatchScope()

    @cache
    def languages(function: Callable) -> frozenset[str]:
        return frozenset(
            v.__name__ for v in function.__globals__.values() if v is tl or v is tl.core
        )

    def once(function: Callable):
        if not languages(function) <= done:
            patch(function)
            done.update(languages(function))
        return nothing  # to put back

    def bind(owner, name, member, builder, scope):
        def bound(*args, **kwargs):
            kwargs["_semantic"] = semantic
            return member(*args, **kwargs)

        scope.set_attr(owner, name, bound)

    interpreter._patch_lang, interpreter._patch_attr = once, bind


def keep_types() -> None:
    """Make each type once; the interpreter makes it, and the constants of its shape, every time.

    It also works out for each sum of integers whether it overflows, and then asserts nothing, as
    that is for kernels that are compiled to be debugged.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    make, types, shapes = tl.block_type.__init__, {}, {}
    builder = interpreter.interpreter_builder
    scalar_shape, number = tl.tuple(()), cache(tl.constexpr)
    numpy_type, numpy_types = interpreter._get_np_dtype, {}

    def make_block(self, element_ty, shape):
        key = (element_ty.name, *(getattr(size, "value", size) for size in shape))
        if key not in types:
            make(self, element_ty, shape)
            self.shape = shapes.setdefault(key[1:], self.shape)  # equal ones are the same one
            self.constants = tl.tuple([number(size) for size in self.shape])
            types[key] = self.__dict__
        self.__dict__ = types[key]

    def make_tensor(self, handle, type):
        block = type.is_block()
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape = type.constants if block else scalar_shape
        self.numel = number(type.numel if block else 1)

    def known_numpy_type(type):
        name = type.scalar.name  # a pointer's type has no hash
        if name not in numpy_types:
            numpy_types[name] = numpy_type(type)
        return numpy_types[name]

    tl.block_type.__init__ = make_block
    tl.tensor.__init__ = make_tensor
    interpreter._get_np_dtype = known_numpy_type
    builder.options = replace(builder.options, sanitize_overflow=False)


def take_shortcuts() -> None:
    """Say at once what the language works out at length: of equal types and shapes, of numbers."""
    import triton.language as tl
    from triton.language.semantic import TritonSemantic

    equal, unwrap = tl.dtype.__eq__, tl.core._unwrap_if_constexpr
    broadcast, promote = TritonSemantic.broadcast_impl_value, TritonSemantic.computation_type_impl
    check, typed = TritonSemantic.binary_op_type_checking_impl, tl.block_type.with_element_ty
    plain, promoted, types = {int, bool, float, str, type(None), tl.dtype, tl.tensor}, {}, {}
    numbers = {}  # tensors of one number, made for the operand on the other side

    def unwrap_quickly(value):
        return value if type(value) in plain else unwrap(value)

    def broadcast_quickly(self, lhs, rhs):
        one, other = lhs.type, rhs.type
        if one.is_block() == other.is_block() and (not one.is_block() or one.shape is other.shape):
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    def promote_once(self, one, one_is_scalar, other, other_is_scalar, divides):
        key = (one.name, one_is_scalar, other.name, other_is_scalar, divides)
        if key not in promoted:
            promoted[key] = promote(self, one, one_is_scalar, other, other_is_scalar, divides)
        return promoted[key]

    def check_quickly(self, one, other, *how, **more):
        if type(one) is type(other) is tl.tensor:
            if one.dtype.is_ptr() or other.dtype.is_ptr():  # the result has the type of `one`
                fit = one.dtype.is_ptr() and other.dtype.is_int() and how == (True, True)
            else:
                divides = how[3] if len(how) > 3 else more.get("div_or_mod")
                fit = one.dtype.name == other.dtype.name and not divides
            if fit and one.type.is_block() and not other.type.is_block():
                return one, other  # numpy takes one number for all
            if fit:
                return broadcast_quickly(self, one, other)
        elif type(one) is tl.tensor and type(other) in (int, float):
            key = (one.type.name, type(other), other, how, *more.items())
            if key in numbers:
                return one, numbers[key]
            checked, number = check(self, one, other, *how, **more)
            if checked is one:
                numbers[key] = number
            return checked, number
        return check(self, one, other, *how, **more)

    def typed_once(self, scalar):
        key = (self.shape, scalar.name)
        if key not in types:
            types[key] = typed(self, scalar)
        return types[key]

    tl.block_type.with_element_ty = typed_once
    TritonSemantic.binary_op_type_checking_impl = check_quickly
    tl.dtype.__eq__ = lambda self, other: self is other or equal(self, other)
    tl.core._unwrap_if_constexpr = unwrap_quickly
    TritonSemantic.broadcast_impl_value = broadcast_quickly
    TritonSemantic.computation_type_impl = promote_once


def round_to_nearest() -> None:
    """Round float32 to the nearest bf16, of two as near to the even one.

    The interpreter cuts the last 16 bits off: every sum and every column of a ring would lie up to
    a whole step below, which no GPU does, so nothing could be held to the reference's bf16.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(given, by, to, rounding):
        if (by, to) == (tl.bfloat16, tl.float32):
            return (np.ascontiguousarray(given).view(np.uint16).astype(np.uint32) << 16).reshape(
                given.shape
            )
        if (by, to) != (tl.float32, tl.bfloat16):
            return convert(given, by, to, rounding)
        bits = np.ascontiguousarray(given).view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        nearest = np.where(nan, (bits >> 16) | QUIET, nearest)
        return nearest.astype(np.uint16).reshape(given.shape)

    interpreter._convert_float = rounded
