"""Where attention happens in a component: the product of its pattern with the values, and what enters it."""

from collections.abc import Iterator, Mapping

from voltmeter.wiring.algebra import FLAT, MOVED, base_name, mixes
from voltmeter.wiring.parts import nearest_mixing
from voltmeter.wiring.replay import SOFTMAX
from voltmeter.wiring.trace import Op, Recording, Ref


def core_of(recording: Recording, z: int) -> Op | None:
    """The product pattern @ value behind the views that make ``z``."""
    while (number := recording.values[z].op) is not None:
        op = recording.ops[number]
        name = base_name(op)
        if name.startswith("_scaled_dot_product"):
            return op
        if name == "bmm":
            return op if _behind_softmax(recording, op) else None
        if name not in FLAT and name not in MOVED and name != "lift_fresh":
            return None
        z = op.ins[0]
    return None


def operands_of(recording: Recording, core: Op) -> Mapping[str, int] | None:
    """The versions that act as query, key and value."""
    if base_name(core).startswith("_scaled_dot_product"):
        q, k, v = (a.value for a in core.args[:3])
        return {"q": q, "k": k, "v": v}
    scores = [op for op in nearest_mixing(recording, core.args[0].value) if base_name(op) in ("bmm", "baddbmm")]
    if len(scores) != 1:
        return None
    refs = [a.value for a in scores[0].args if isinstance(a, Ref)][-2:]
    return {"q": refs[0], "k": refs[1], "v": core.args[1].value}


def looks_at_one_key(recording: Recording, core: Op | None, z: int) -> bool:
    """Attention over one key whose product with the values is none (einsum multiplies), or cannot be opened."""
    if core is None:
        return any(_is_pattern_of_one(recording, op) for op in _before(recording, z))
    if not base_name(core).startswith("_scaled_dot_product"):
        return False
    return recording.values[core.ins[1]].tensor.shape[-2] == 1


def _is_pattern_of_one(recording: Recording, op: Op) -> bool:
    """A softmax over one entry, of a product of two computed tensors: a query and a key."""
    if base_name(op) not in SOFTMAX or recording.values[op.outs[0]].tensor.shape[op.args[1]] != 1:
        return False
    products = nearest_mixing(recording, op.ins[0])
    return any(sum(recording.values[i].dynamic for i in product.ins) > 1 for product in products)


def _behind_softmax(recording: Recording, op: Op) -> bool:
    return any("softmax" in base_name(back) for back in _before(recording, op.ins[0]))


def _before(recording: Recording, value: int) -> Iterator[Op]:
    """The ops that a version is made by, back to the nearest products (and these)."""
    seen, stack = set(), [value]
    while stack:
        number = recording.values[stack.pop()].op
        if number is None or number in seen:
            continue
        seen.add(number)
        op = recording.ops[number]
        yield op
        if not mixes(op):
            stack += op.ins
