"""What to say of a model that cannot be read: the place, and the true thing to type."""

from voltmeter.errors import WiringError
from voltmeter.wiring.algebra import base_name
from voltmeter.wiring.trace import Recording

UNREADABLE = "this model's residual stream could not be read"


def declaring(module: str = "") -> str:
    """The mend: a module that cannot be read may be declared one opaque component. The root module may not."""
    if module:
        python = f'voltmeter.wire(model, example, declare=["{module}"])'
        return f"make it one opaque component: {python}, or --declare {module} on the command line"
    return "put the part that cannot be read into a module of its own and declare it; see docs/wiring.md#declare"


def unreadable(recording: Recording, value: int) -> WiringError:
    """The refusal, naming the place where two paths meet in something that is not a sum."""
    op = recording.values[_joint(recording, value)].op
    call = recording.ops[op].call if op is not None else None
    key = recording.calls[call].key if call is not None else None
    name = base_name(recording.ops[op]) if op is not None else "an input"
    return WiringError(
        UNREADABLE,
        [
            f"{key.place if key else 'this model'} joins a layer's input and output by something that is not a sum"
            f" (near {name})"
        ],
        declaring(key.module if key else ""),
    )


def _joint(recording: Recording, value: int) -> int:
    """Back from a value to the first op that brings several paths together."""
    while (number := recording.values[value].op) is not None:
        dynamic = [i for i in dict.fromkeys(recording.ops[number].ins) if recording.values[i].dynamic]
        if len(dynamic) != 1:
            break
        value = dynamic[0]
    return value
