"""Calls of dive._C for the trial `bindings`: one function a kind, on a bench that is repaired."""

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tiny_decoders import small
from tiny_steering import randomised

from dive import _C
from dive.decode.session import DecodeSession
from tests.hard.capsules import Capsuled, Raises, lying_capsule

NAMED = (ValueError, TypeError, RuntimeError, MemoryError, IndexError, KeyError, AttributeError)
INTS = [-(2**63), -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**40, 2**63 - 2, 2**63 - 1, 2**63, 2**70]
WIDTH, RANK, ROWS = 48, 3, 3


class Bench:
    """A decoder with its description, a steering, and what they give when nobody disturbs them."""

    def __init__(self) -> None:
        self.model = small("llama")
        session = DecodeSession(self.model)
        assert session.engine_choice().engine == "dive._C"
        assert session.binding.spec is not None
        self.spec = session.binding.spec.engine_arguments(32)
        self.steering = session.binding.steering(randomised(self.model, strength=0.05))
        self.packed = fresh_steering(0)
        self.tokens = torch.tensor([5, 9])
        self.engine = self.fresh()
        self.want = self.steps(self.engine)

    def fresh(self, spec: Any = None) -> Any:
        engine = _C.Engine(self.spec if spec is None else spec)
        self.ready(engine)
        return engine

    def ready(self, engine: Any) -> None:
        engine.reserve(2, 16)
        for row in range(2):
            engine.start_slot(row, 0, 0)
        engine.steer_slot(0, self.steering)

    def steps(self, engine: Any) -> list[int]:
        """The tokens that three steps from nothing choose, and what logits they had."""
        out, tokens = [], self.tokens.clone()
        for _ in range(3):
            logits, following = torch.zeros(2, 96), torch.empty(2, dtype=torch.long)
            engine.step(tokens, torch.tensor([0, 1]), following, logits)
            assert torch.equal(logits.argmax(-1), following)
            tokens = following
            out += following.tolist()
        return out

    def call(self, kind: Callable[["Bench", Any], Any], rng: Any) -> str | None:
        """Makes one call; what was wrong with how it ended."""
        try:
            return kind(self, rng)
        except NAMED as error:
            return None if str(error) else f"{type(error).__name__} without a message"
        except (OverflowError, BufferError, *Raises.KINDS):
            return None  # `raising` sees to it that none is lost
        except BaseException as error:
            return f"{type(error).__name__}: {error}"

    def check(self) -> str | None:
        """Sound calls, against what they gave at first and against plain PyTorch."""
        self.ready(self.engine)
        got = self.steps(self.engine)
        return None if got == self.want else f"sound steps chose {got}, and {self.want} before"


def steering_parts(seed: int, width: int = WIDTH) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(RANK, width, generator=g) / width**0.5,
        torch.randn(RANK, generator=g),
        0.3 * torch.randn(width, RANK, generator=g),
        torch.randn(width, generator=g),
        torch.tensor(0.2),
    )


def fresh_steering(seed: int) -> Any:
    return _C.Steering(*steering_parts(seed))


class Builds:
    """A sequence that makes its items when it is asked for them, and keeps none."""

    def __init__(self, make: Callable[[int], Any], count: Any) -> None:
        self.make, self.count = make, count

    def __len__(self) -> Any:
        return self.count

    def __getitem__(self, place: int) -> Any:
        gc.collect(0)
        return self.make(place)


class BuildsList(list):
    """The same, of a list's kind: what it holds is not what it gives."""

    def __init__(self, items: Any, make: Callable[[Any], Any]) -> None:
        super().__init__(items)
        self.make = make

    def __getitem__(self, place: Any) -> Any:
        return self.make(super().__getitem__(place))

    def __iter__(self) -> Any:
        return (self.make(one) for one in super().__iter__())


class BuildsDict(dict):
    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return value.clone() if isinstance(value, torch.Tensor) else value


class Foreign:
    """No tensor, with the exchange table of one."""

    __dlpack_c_exchange_api__ = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)


def odd_tensor(rng: Any, shape: Any = None) -> Any:
    """Of any kind, in or out of place."""
    shape = shape or rng.choice([[], [0], [2], [3, 48], [ROWS, WIDTH], [2, 96], [2, 5, 12], [0, 7]])
    kind = rng.randrange(22)
    if kind < 6:
        return torch.zeros(
            shape,
            dtype=rng.choice(
                [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64,
                 torch.int32, torch.bool, torch.complex64, torch.uint8]
            ),
        )  # fmt: skip
    made = torch.randn(shape)
    if kind == 6:
        return made.requires_grad_()
    if kind == 7:
        return torch.empty(shape, device="meta")
    if kind == 8:
        return made.to_sparse() if made.dim() else made
    if kind == 9:
        return made.mT if made.dim() > 1 else made
    if kind == 10:
        return made[..., ::2] if made.dim() else made
    if kind == 11:
        return made.numpy()
    if kind == 12:
        return made.numpy()[::-1] if made.dim() else made.numpy()
    if kind == 13:
        return torch.zeros(1).expand(shape or [1])
    if kind == 14:
        return freed(made)
    if kind == 15:
        read_only = np.zeros(shape, dtype=np.float32)
        read_only.flags.writeable = False
        return read_only
    if kind == 16:
        return Capsuled(lambda: lying_capsule(rng))
    if kind == 17:
        return Raises(rng)
    if kind == 18:
        return torch.nn.Parameter(made)
    if kind == 19:
        return made.conj() if made.dim() else torch.view_as_complex(torch.zeros(2))
    if kind == 20:
        return Foreign()
    return rng.choice([None, "x", 1.5, [], {}, object(), float("nan"), b"x", type, [1.0] * 3])


def freed(tensor: Any) -> Any:
    tensor.untyped_storage().resize_(0)
    return tensor


# --- the kinds ---------------------------------------------------------------------------------


def odd_steerings(bench: Bench, rng: Any) -> None:
    """Lists of steerings of any items and kinds, and then a step."""

    def item(place: int) -> Any:
        if rng.random() < 0.1:
            raise Raises.Odd("no such item")
        return rng.choice([bench.steering[0], None, bench.packed, 3, _C.Steering])

    items = [rng.choice([*bench.steering, None, bench.packed, 3]) for _ in bench.steering]
    given = rng.choice(
        [
            bench.steering, tuple(bench.steering), items, items[:1], [None] * len(items),
            BuildsList(items, lambda one: bench.packed), Builds(item, len(items)),
            Builds(item, rng.choice([-1, 0, 1, 2**40, 2**63 - 1, 2**64, "x"])), odd_tensor(rng),
        ]
    )  # fmt: skip
    bench.engine.steer_slot(rng.randrange(2), given)
    bench.engine.step(bench.tokens, torch.tensor([0, 1]), torch.empty(2, dtype=torch.long))


def built_steerings(bench: Bench, rng: Any) -> str | None:
    """A list whose items are read otherwise than they lie in it: its own are taken."""
    lying = BuildsList(bench.steering, lambda one: None)
    bench.ready(bench.engine)
    bench.engine.steer_slot(0, lying)
    del lying[:]
    gc.collect(0)
    return None if bench.steps(bench.engine) == bench.want else "a list's own items were not taken"


def odd_weights(bench: Bench, rng: Any) -> None:
    parts = list(steering_parts(rng.randrange(3)))
    place = rng.randrange(5)
    if place == 4:
        parts[4] = rng.choice([float("nan"), 1e300, "x", None, torch.tensor(2.0), 10**400])
    else:
        same = list(parts[place].shape) if rng.random() < 0.6 else None
        parts[place] = odd_tensor(rng, same)
    activation = rng.choice(["silu", "gelu", "tanh", "identity", "", "x" * 1000, 3])
    _C.Steering(*parts, activation=activation, eps=rng.choice([1e-6, -1.0, float("inf")]))


def freed_storage(bench: Bench, rng: Any) -> str | None:
    what = rng.randrange(5)
    if what == 0:
        tensors = [torch.zeros(1024), torch.zeros(1024)]
        freed(tensors[rng.randrange(2)])
        _C.copy_memory(*tensors)
    elif what == 1:
        parts = list(steering_parts(1))
        place = rng.randrange(4)
        parts[place].untyped_storage().resize_(rng.choice([0, 4, 8]))
        _C.Steering(*parts)
    elif what == 2:
        keys, values = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
        rng.choice([keys, values]).untyped_storage().resize_(rng.choice([0, 16]))
        bench.engine.copy_cache(0, 0, 0, keys, values)
    elif what == 3:
        tensors = [torch.tensor([5, 9]), torch.tensor([0, 1]), torch.empty(2, dtype=torch.long)]
        logits = torch.zeros(2, 96)
        freed(rng.choice([*tensors, logits]))
        bench.engine.step(*tensors, logits)
    else:
        memory = torch.zeros(4096)
        memory.untyped_storage().resize_(rng.choice([0, 4096]))
        _C.read_memory(memory)
    return "freed memory was taken"


def weights_moved(bench: Bench, rng: Any) -> str | None:
    spec = copy.deepcopy(bench.spec)
    engine = bench.fresh(spec)
    layer = rng.choice(spec["layers"])
    weight = rng.choice([spec["head"][0], spec["final_norm"], layer["up"][0], layer["key"][0]])
    what = rng.randrange(3)
    if what == 0:
        weight.data = torch.zeros_like(weight)
    elif what == 1:
        weight.set_(torch.zeros_like(weight))
    else:
        weight.untyped_storage().resize_(rng.choice([0, 8]))
    engine.step(bench.tokens, torch.tensor([0, 1]), torch.empty(2, dtype=torch.long))
    return "moved weights were read"


def lying_capsules(bench: Bench, rng: Any) -> None:
    lie = Capsuled(lambda: lying_capsule(rng))
    what = rng.randrange(4)
    if what == 0:
        _C.copy_memory(torch.zeros(1024), lie)
    elif what == 1:
        parts: list[Any] = list(steering_parts(0))
        parts[rng.randrange(4)] = lie
        _C.Steering(*parts)
    elif what == 2:
        bench.engine.copy_cache(0, 0, 0, lie, torch.randn(2, 5, 12))
    else:
        bench.engine.step(bench.tokens, lie, torch.empty(2, dtype=torch.long))


def capsule_twice(bench: Bench, rng: Any) -> str | None:
    tensor = torch.zeros(1024)
    capsule = torch.utils.dlpack.to_dlpack(tensor)
    once = Capsuled(lambda: capsule)
    _C.read_memory(once)
    _C.read_memory(once)
    return "a capsule was taken twice"


def raising(bench: Bench, rng: Any) -> str | None:
    raises = Raises(rng)
    try:
        if rng.random() < 0.5:
            _C.copy_memory(torch.zeros(1024), raises)
        else:
            bench.engine.step(bench.tokens, raises, torch.empty(2, dtype=torch.long))
    except BaseException as error:
        if isinstance(raises.error, Exception) and not isinstance(raises.error, MemoryError):
            if not isinstance(error, (ValueError, TypeError)):
                raise
        elif type(error) is not type(raises.error):
            return f"{type(raises.error).__name__} became {type(error).__name__}"
        return None
    return "what __dlpack__ raised was lost"


def disturbing(bench: Bench, rng: Any) -> None:
    """Whose `__dlpack__` frees another argument, calls the engine again or empties the spec."""
    engine, spec = bench.engine, dict(bench.spec)
    tokens, following = bench.tokens.clone(), torch.empty(2, dtype=torch.long)
    memory, target = torch.zeros(1024), torch.zeros(1024)
    row_tensor, what = torch.tensor([0, 1]), rng.randrange(5)

    def disturb() -> Any:
        if what == 0:
            freed(rng.choice([tokens, memory, target]))
        elif what == 1:
            engine.reserve(1, 4)
        elif what == 2:
            engine.step(tokens, row_tensor, following)
        elif what == 3:
            tokens.resize_(100_000)
        return torch.utils.dlpack.to_dlpack(row_tensor if what != 4 else memory)

    if what == 4:
        weight = spec["final_norm"]

        def emptied() -> Any:
            spec.clear()
            return torch.utils.dlpack.to_dlpack(weight.detach())

        _C.Engine({**spec, "final_norm": Capsuled(emptied)})
    elif rng.random() < 0.5:
        engine.step(tokens, Capsuled(disturb), following)
    else:
        _C.copy_memory(target, Capsuled(disturb))


def never_initialised(bench: Bench, rng: Any) -> str | None:
    empty, steering = _C.Engine.__new__(_C.Engine), _C.Steering.__new__(_C.Steering)

    class Sub(_C.Engine):
        def __init__(self) -> None:
            pass

    calls: list[Callable[[], Any]] = [
        lambda: empty.reserve(1, 1),
        lambda: empty.cache_bytes,
        lambda: empty.threads,
        lambda: setattr(empty, "threads", 1),
        lambda: empty.step(bench.tokens, torch.tensor([0, 1]), torch.empty(2, dtype=torch.long)),
        lambda: empty.copy_cache(0, 0, 0, torch.zeros(2, 1, 12), torch.zeros(2, 1, 12)),
        lambda: empty.start_slot(0, 0, 0),
        lambda: empty.steer_slot(0, None),
        lambda: empty.set_ropes([]),
        lambda: empty.use_stream(0),
        lambda: _C.Engine.reserve(5, 1, 1),
        lambda: Sub().reserve(1, 1),
        lambda: steering.rank,
        lambda: steering.dtype,
        lambda: steering.nbytes,
        lambda: bench.engine.steer_slot(0, [steering] * len(bench.spec["layers"])),
        lambda: copy.copy(bench.engine).reserve(1, 1),
        lambda: copy.deepcopy(bench.packed).rank,
    ]
    rng.choice(calls)()
    return "a thing that was never initialised was taken"


def built_specs(bench: Bench, rng: Any) -> str | None:
    """Tensors made at each look, a description emptied afterwards, and memory that is then reused.

    What the engine reads must be what it was given.
    """

    def made(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().clone()
        return BuildsDict(value) if isinstance(value, dict) else value

    spec = BuildsDict(bench.spec)
    for name, value in bench.spec.items():
        if isinstance(value, (list, tuple)):
            spec[name] = BuildsList(value, made)
    layers = [dict(layer) for layer in bench.spec["layers"]]
    for layer in layers:
        for name, value in layer.items():
            if isinstance(value, (list, tuple)):
                layer[name] = BuildsList(value, made)
    spec["layers"] = BuildsList(layers, made)
    engine = bench.fresh(spec)
    spec.clear()
    for layer in layers:
        layer.clear()
    gc.collect(0)
    noise = [torch.full((rng.randrange(1, 20_000),), float("nan")) for _ in range(50)]
    got = bench.steps(engine)
    del noise
    return None if got == bench.want else "an engine reads what it was not given"


def odd_specs(bench: Bench, rng: Any) -> None:
    spec = dict(bench.spec)
    spec["layers"] = [dict(layer) for layer in spec["layers"]]
    where = rng.choice([spec, *spec["layers"]])
    for name in rng.sample(list(where), rng.randrange(1, 3)):
        change = rng.randrange(6)
        if change == 0:
            del where[name]
        elif change == 1:
            where[name] = rng.choice([*INTS, float("nan"), 1.5, "x", None, [], {}, True])
        elif change == 2:
            where[name] = odd_tensor(rng)
        elif change == 3:
            where[name] = [odd_tensor(rng, [72, 72]), None]
        elif change == 4:
            where[name] = Builds(lambda place: odd_tensor(rng), rng.choice([0, 1, 2, 2**63 - 1]))
        elif isinstance(where[name], list) and where[name]:
            where[name] = where[name][:1] * rng.choice([0, 1, 2, 5000])
    engine = _C.Engine(spec)
    engine.reserve(2, 4)
    # a description that is taken must be one that can be run
    engine.step(bench.tokens, torch.tensor([0, 1]), torch.empty(2, dtype=torch.long))


def odd_numbers(bench: Bench, rng: Any) -> None:
    engine, number = bench.engine, lambda: rng.choice([*INTS, 0, 1, 3, 0, 1, float("nan"), "x"])
    keys = torch.randn(2, rng.choice([0, 1, 5, 16, 17]), 12)
    what = rng.randrange(8)
    if what < 3:
        engine.copy_cache(
            rng.choice([0, number()]), rng.choice([0, number()]), number(), keys, keys
        )
    elif what == 3:
        engine.start_slot(rng.choice([0, number()]), number(), number())
    elif what == 4:
        engine.reserve(number(), number())
    elif what == 5:
        engine.threads = number()
        engine.threads = 1
    elif what == 6:
        engine.steer_slot(number(), rng.choice([None, bench.steering, bench.steering[:1], [1], 3]))
    else:
        engine.use_stream(number())
    engine.step(bench.tokens, torch.tensor([0, 1]), torch.empty(2, dtype=torch.long))


def odd_steps(bench: Bench, rng: Any) -> None:
    arguments: list[Any] = [
        torch.tensor(rng.choice([[5, 9], [5], [-1, 3], [96, 0], [2**62, 1], []])),
        torch.tensor(rng.choice([[0, 1], [0, 0], [1], [2, 3], [-1, 0], [2**63 - 1, 0], []])),
        torch.empty(rng.choice([0, 1, 2, 3]), dtype=torch.long),
        rng.choice([None, torch.zeros(2, 96), torch.zeros(1, 96), torch.zeros(4, 96)[::2]]),
    ]
    if rng.random() < 0.4:
        arguments[rng.randrange(4)] = odd_tensor(rng)
    if rng.random() < 0.2:
        arguments[2] = arguments[rng.randrange(2)]  # writes over what it reads
    bench.engine.step(*arguments)


def odd_ropes(bench: Bench, rng: Any) -> None:
    ropes = [dict(rope) for rope in bench.spec["ropes"]]
    if rng.random() < 0.7:
        ropes[0][rng.choice(["cos", "sin"])] = odd_tensor(rng, [rng.choice([1, 32]), 6])
    engine = bench.fresh()
    engine.set_ropes(rng.choice([ropes, ropes * 2, BuildsList(ropes, dict), [], [3], [{}]]))
    bench.steps(engine)


def odd_memory(bench: Bench, rng: Any) -> None:
    memory = torch.zeros(rng.choice([1024, 2048, 100, 0]))[rng.choice([0, 1]) :]
    given = rng.choice([memory, odd_tensor(rng)])
    more = {
        "streams": rng.choice([1, 2, 4, 8, 3, *INTS]),
        "ahead": rng.choice([0, 64, 2**20, *INTS]),
        "threads": rng.choice([1, 1, *INTS]),
    }
    if rng.random() < 0.5:
        _C.read_memory(given, **more)
    else:
        _C.copy_memory(given, rng.choice([memory, torch.zeros(1024), odd_tensor(rng)]), **more)


def odd_instructions(bench: Bench, rng: Any) -> None:
    before = _C.build_info()["isa"]
    try:
        _C.use_isa(rng.choice([before, "", "avx9000", "x" * 10_000, "\0", None, 3]))
    finally:
        _C.use_isa(before)


def two_threads(bench: Bench, rng: Any) -> str | None:
    """Steps in one thread while another calls the same engine: done, or refused by name."""
    wrong: list[str] = []
    begun = threading.Barrier(2)

    def work(calls: list[Callable[[], Any]]) -> None:
        begun.wait()
        for one in calls:
            try:
                one()
            except NAMED:
                pass
            except BaseException as error:
                wrong.append(repr(error))

    engine = bench.engine
    bench.ready(engine)
    following = torch.empty(2, dtype=torch.long)

    def step() -> None:
        engine.step(bench.tokens, torch.tensor([0, 1]), following, torch.zeros(2, 96))

    others = [
        step,
        lambda: engine.reserve(2, 16),
        lambda: engine.reserve(3, 64),
        lambda: engine.steer_slot(0, None),
        lambda: engine.steer_slot(1, bench.steering),
        lambda: engine.start_slot(0, 0, 0),
        lambda: setattr(engine, "threads", rng.choice([1, 2])),
        lambda: engine.set_ropes(bench.spec["ropes"]),
        lambda: engine.cache_bytes,
    ]
    other = threading.Thread(target=work, args=([rng.choice(others) for _ in range(10)],))
    other.start()
    work([step] * 10)
    other.join()
    engine.threads = 1
    return wrong[0] if wrong else None


KINDS: dict[str, Callable[[Bench, Any], Any]] = {
    kind.__name__: kind
    for kind in (
        odd_steerings, built_steerings, odd_weights, freed_storage,
        weights_moved, lying_capsules, capsule_twice, raising, disturbing, never_initialised,
        built_specs, odd_specs, odd_numbers, odd_steps, odd_ropes, odd_memory, odd_instructions,
        two_threads,
    )
}  # fmt: skip
