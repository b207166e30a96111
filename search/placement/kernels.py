"""The compiled heuristics of expert balance, for one layer at a time.

A placement under work is five arrays: `slots: int64[device, slot]` the expert in each slot, `held: bool[device,
expert]`, `replicas: int64[expert]`, `share: float64[expert]` the load of one replica, `load: float64[device]`. The
first says all; `_index` and `_weigh` derive the others.

Everything that is compiled lives in this file: numba's cache does not notice a change in another one.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_NONE = -1
_SAME = 1e-12
"""A change of load below this fraction is rounding, not progress."""
_COUNT_ROUNDS = 0.3
"""Share of rounds that move a replica from one expert to another; the others swap experts. From trials with gpt-oss on
8 to 32 devices: between 0.1 and 0.8 the mean gap changes by less than a third, best for few slots per device above."""
_SWAPS_LEAST, _SWAPS_MOST = 2, 5
"""Random swaps of one round: enough to leave a local optimum, few enough to come back near it."""
_PATIENCE = 100
"""Rounds in vain after which to start from elsewhere."""
_ROUND_WORK = 500
"""What a round costs besides the changes it looks at, in changes."""
_MOVES_MOST = 2
"""Replicas that one round moves at most; plus half of the spare ones when it is to get far away."""
_DRAWS_FROM, _DRAWS_TO = 4, 2
"""Experts that are drawn to find one that hardly needs its last replica, and one that needs another."""


@njit(cache=True)
def greedy_placement(weight: Floats, devices: int, slots_per_device: int) -> Ints:
    """Replicas for the heaviest shares, then the heaviest replica first onto the emptiest device that has room.

    Args:
        weight: float64[expert] load of each expert.
        devices: devices.
        slots_per_device: slots of each.

    Returns:
        int64[device, slot]: expert in each slot.
    """
    replicas = np.ones(weight.shape[0], np.int64)
    _add_replicas(weight, replicas, devices, devices * slots_per_device - weight.shape[0])
    return _packed(weight, replicas, devices, slots_per_device)


@njit(cache=True)
def frugal_placement(weight: Floats, least: Ints, devices: int, slots_per_device: int) -> Ints:
    """As many replicas as are needed and no more: the slots that are left go to the lightest shares.

    Better than the greedy one where few experts carry most of the load and have few neighbours: these must be light.

    Args:
        weight: float64[expert] load of each expert.
        least: int64[expert] replicas, from one to `devices`, at most as many as slots.
        devices: devices.
        slots_per_device: slots of each.

    Returns:
        int64[device, slot]: expert in each slot.
    """
    replicas = least.copy()
    for _ in range(devices * slots_per_device - replicas.sum()):
        lightest = _NONE
        for expert in range(weight.shape[0]):
            if replicas[expert] < devices and (
                lightest == _NONE or weight[expert] / replicas[expert] < weight[lightest] / replicas[lightest]
            ):
                lightest = expert
        replicas[lightest] += 1
    return _packed(weight, replicas, devices, slots_per_device)


@njit(cache=True)
def _packed(weight: Floats, replicas: Ints, devices: int, slots_per_device: int) -> Ints:
    """Replicas onto devices, the heaviest first, each onto the emptiest device that has room and lacks its expert."""
    slots = np.zeros((devices, slots_per_device), np.int64)
    held = np.zeros((devices, weight.shape[0]), np.bool_)
    share = np.zeros(weight.shape[0])
    load = np.zeros(devices)
    _pack(weight, slots, held, replicas, share, load)
    return slots


@njit(cache=True)
def improve(weight: Floats, slots: Ints, target: float, work: int, rng: np.random.Generator) -> Ints:
    """Descend from `slots`, then disturb and descend again and again, until `target` is reached or the work is done.

    A round starts from the last placement that was no worse than its predecessor; after many rounds in vain, one round
    moves many replicas, and what it finds is the next start, however bad.

    Args:
        weight: float64[expert] load of each expert.
        slots: int64[device, slot] start.
        target: load of the fullest device that is good enough.
        work: changes to look at, a few nanoseconds each.
        rng: source of the disturbances.

    Returns:
        int64[device, slot]: the best placement found, never worse than the start.
    """
    devices, experts = slots.shape[0], weight.shape[0]
    slots = slots.copy()
    held = np.zeros((devices, experts), np.bool_)
    replicas = np.zeros(experts, np.int64)
    share = np.zeros(experts)
    load = np.zeros(devices)
    spare = slots.size - experts
    _index(slots, held, replicas)
    _weigh(weight, slots, replicas, share, load)
    done = _descend(weight, slots, held, replicas, share, load, spare > 0)
    base, best = slots.copy(), slots.copy()
    base_load = best_load = load.max()
    in_vain = 0
    while best_load > target and done < work:
        stuck = in_vain == _PATIENCE
        counts = spare > 0 and (stuck or rng.random() < _COUNT_ROUNDS)
        if counts:
            moves = _MOVES_MOST + spare // 2 if stuck else _MOVES_MOST
            _disturb_counts(weight, slots, held, replicas, share, load, 1 + int(rng.random() * moves), rng)
        else:
            _disturb_slots(slots, held, rng)
            _weigh(weight, slots, replicas, share, load)
        done += _ROUND_WORK + slots.size + _descend(weight, slots, held, replicas, share, load, counts)
        in_vain = 0 if stuck or load.max() < base_load * (1 - _SAME) else in_vain + 1
        if stuck or load.max() <= base_load:
            base[:], base_load = slots, load.max()
            if base_load < best_load:
                best[:], best_load = base, base_load
        else:
            slots[:] = base
            _index(slots, held, replicas)
            _weigh(weight, slots, replicas, share, load)
    return best


@njit(cache=True)
def _index(slots: Ints, held: Bools, replicas: Ints) -> None:
    held[:] = False
    replicas[:] = 0
    for device in range(slots.shape[0]):
        for expert in slots[device]:
            held[device, expert] = True
            replicas[expert] += 1


@njit(cache=True)
def _weigh(weight: Floats, slots: Ints, replicas: Ints, share: Floats, load: Floats) -> None:
    for expert in range(weight.shape[0]):
        share[expert] = weight[expert] / replicas[expert]
    for device in range(slots.shape[0]):
        total = 0.0
        for expert in slots[device]:
            total += share[expert]
        load[device] = total


@njit(cache=True)
def _add_replicas(weight: Floats, replicas: Ints, devices: int, spare: int) -> None:
    """One more for the largest load per replica, as long as slots remain."""
    for _ in range(spare):
        neediest = _NONE
        for expert in range(weight.shape[0]):
            if replicas[expert] < devices and (
                neediest == _NONE or weight[expert] / replicas[expert] > weight[neediest] / replicas[neediest]
            ):
                neediest = expert
        replicas[neediest] += 1


@njit(cache=True)
def _pack(weight: Floats, slots: Ints, held: Bools, replicas: Ints, share: Floats, load: Floats) -> None:
    """Fill all slots from nothing: longest processing time first, with equally many replicas per device."""
    filled = np.zeros(slots.shape[0], np.int64)
    held[:] = False
    load[:] = 0.0
    share[:] = weight / replicas
    for expert in np.argsort(-share, kind="mergesort"):
        for _ in range(replicas[expert]):
            _place(expert, slots, filled, held, share, load)
    _weigh(weight, slots, replicas, share, load)


@njit(cache=True)
def _place(expert: int, slots: Ints, filled: Ints, held: Bools, share: Floats, load: Floats) -> None:
    room = with_room = _NONE
    for device in range(slots.shape[0]):
        if filled[device] < slots.shape[1]:
            with_room = device
            if not held[device, expert] and (room == _NONE or load[device] < load[room]):
                room = device
    if room == _NONE:
        room = _exchange(expert, with_room, slots, filled, held, share, load)
    else:
        slots[room, filled[room]] = expert
        filled[room] += 1
    held[room, expert] = True
    load[room] += share[expert]


@njit(cache=True)
def _exchange(expert: int, room: int, slots: Ints, filled: Ints, held: Bools, share: Floats, load: Floats) -> int:
    """All devices with room hold `expert` already: another one gives up an expert to `room`, and takes this one.

    There is one: `expert` has at most as many replicas as there are devices, so a device lacks it and is full, and of
    its experts `room`, which has fewer and among them this one, lacks at least two.
    """
    for device in range(slots.shape[0]):
        if held[device, expert]:
            continue
        for slot in range(slots.shape[1]):
            other = slots[device, slot]
            if not held[room, other]:
                slots[room, filled[room]] = other
                filled[room] += 1
                held[room, other] = True
                load[room] += share[other]
                slots[device, slot] = expert
                held[device, other] = False
                load[device] -= share[other]
                return device
    return _NONE


@njit(cache=True)
def _descend(
    weight: Floats,
    slots: Ints,
    held: Bools,
    replicas: Ints,
    share: Floats,
    load: Floats,
    counts: bool,  # noqa: FBT001
) -> int:
    """Best swap of the fullest device, again and again; where none helps and `counts`, the best change of replicas.

    Returns:
        How many changes it looked at.
    """
    per_swap, per_change = slots.size * slots.shape[1], slots.size * slots.shape[0]
    done: int = 0
    while True:
        done += per_swap
        changed: bool = _best_swap(slots, held, share, load)
        if not changed and counts:
            done += per_change
            changed = _best_change(weight, slots, held, replicas, share, load)
        if not changed:
            return done
        _weigh(weight, slots, replicas, share, load)


@njit(cache=True)
def _best_swap(slots: Ints, held: Bools, share: Floats, load: Floats) -> bool:
    """Swap an expert of the fullest device with one of another, such that the fuller of the two ends lowest."""
    full = int(np.argmax(load))
    best = load[full] * (1 - _SAME)
    partner = best_out = best_in = _NONE
    for device in range(slots.shape[0]):
        if device == full:
            continue
        for out in range(slots.shape[1]):
            leaving = slots[full, out]
            if held[device, leaving]:
                continue
            for into in range(slots.shape[1]):
                coming = slots[device, into]
                less = share[leaving] - share[coming]
                fuller = max(load[full] - less, load[device] + less)
                if fuller < best and not held[full, coming]:
                    best, partner, best_out, best_in = fuller, device, out, into
    if partner == _NONE:
        return False
    _swap(slots, held, full, best_out, partner, best_in)
    return True


@njit(cache=True)
def _swap(slots: Ints, held: Bools, device: int, slot: int, other: int, other_slot: int) -> None:
    mine, its = slots[device, slot], slots[other, other_slot]
    slots[device, slot], slots[other, other_slot] = its, mine
    held[device, mine] = held[other, its] = False
    held[device, its] = held[other, mine] = True


@njit(cache=True)
def _best_change(weight: Floats, slots: Ints, held: Bools, replicas: Ints, share: Floats, load: Floats) -> bool:
    """Give a slot of a replicated expert to another expert, such that all devices it touches end below the fullest."""
    full = int(np.argmax(load))
    best = load[full] * (1 - _SAME)
    at = at_slot = taker = _NONE
    everyone = np.arange(weight.shape[0])
    for device in range(slots.shape[0]):
        # The fullest device must lose a replica for a lighter one, or share an expert with one more device.
        candidates = everyone if device == full else slots[full]
        for slot in range(slots.shape[1]):
            giver = slots[device, slot]
            if replicas[giver] == 1:
                continue
            for candidate in candidates:
                expert = int(candidate)
                if held[device, expert] or replicas[expert] == slots.shape[0]:
                    continue
                fuller = _fullest_after(device, giver, expert, weight, held, replicas, share, load, best)
                if fuller < best:
                    best, at, at_slot, taker = fuller, device, slot, expert
    if at == _NONE:
        return False
    giver = slots[at, at_slot]
    slots[at, at_slot] = taker
    held[at, giver], held[at, taker] = False, True
    replicas[giver] -= 1
    replicas[taker] += 1
    return True


@njit(cache=True)
def _fullest_after(  # noqa: PLR0913, PLR0917  # the arrays of a placement
    at: int,
    giver: int,
    taker: int,
    weight: Floats,
    held: Bools,
    replicas: Ints,
    share: Floats,
    load: Floats,
    limit: float,
) -> float:
    """Largest load of a device that holds either expert if `taker` gets the replica of `giver` on device `at`.

    Stops looking when it is no less than `limit`.
    """
    giver_share = weight[giver] / (replicas[giver] - 1)
    taker_share = weight[taker] / (replicas[taker] + 1)
    fullest: float = load[at] - share[giver] + taker_share
    for device in range(held.shape[0]):
        if fullest >= limit:
            break
        if device != at and (held[device, giver] or held[device, taker]):
            after = load[device]
            if held[device, giver]:
                after += giver_share - share[giver]
            if held[device, taker]:
                after += taker_share - share[taker]
            fullest = max(fullest, after)
    return fullest


@njit(cache=True)
def _disturb_slots(slots: Ints, held: Bools, rng: np.random.Generator) -> None:
    """A few random swaps."""
    devices, per_device = slots.shape
    for _ in range(_SWAPS_LEAST + int(rng.random() * (_SWAPS_MOST - _SWAPS_LEAST + 1))):
        device, other = int(rng.random() * devices), int(rng.random() * devices)
        slot, other_slot = int(rng.random() * per_device), int(rng.random() * per_device)
        if not held[other, slots[device, slot]] and not held[device, slots[other, other_slot]]:
            _swap(slots, held, device, slot, other, other_slot)


@njit(cache=True)
def _disturb_counts(
    weight: Floats,
    slots: Ints,
    held: Bools,
    replicas: Ints,
    share: Floats,
    load: Floats,
    moves: int,
    rng: np.random.Generator,
) -> None:
    """Move some replicas from experts that hardly need them to others that may, and pack anew."""
    for _ in range(moves):
        giver, taker = _draw_pair(weight, replicas, share, slots.shape[0], rng)
        if min(giver, taker) > _NONE and giver != taker:
            replicas[giver] -= 1
            replicas[taker] += 1
            share[giver] = weight[giver] / replicas[giver]
            share[taker] = weight[taker] / replicas[taker]
    _pack(weight, slots, held, replicas, share, load)


@njit(cache=True)
def _draw_pair(
    weight: Floats, replicas: Ints, share: Floats, devices: int, rng: np.random.Generator
) -> tuple[int, int]:
    """An expert with a replica to spare and one that lacks one, each the best of a few draws, or `_NONE`."""
    experts = weight.shape[0]
    giver = taker = _NONE
    for _ in range(_DRAWS_FROM):
        drawn = int(rng.random() * experts)
        if replicas[drawn] > 1 and (
            giver == _NONE or weight[drawn] / (replicas[drawn] - 1) < weight[giver] / (replicas[giver] - 1)
        ):
            giver = drawn
    for _ in range(_DRAWS_TO):
        drawn = int(rng.random() * experts)
        if replicas[drawn] < devices and (taker == _NONE or share[drawn] > share[taker]):
            taker = drawn
    return giver, taker
