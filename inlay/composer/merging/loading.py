"""The adapter of a plan's slot: read, or merged out of what its parts are."""

from __future__ import annotations

from inlay.composer.factors import Adapter, read_adapter
from inlay.composer.slots import MergedSlot, MergeInput, Slot
from inlay.composer.stacking import stacked
from inlay.registry import Registry


def adapter_of(store: Registry, slot: Slot | MergedSlot) -> Adapter:
    """The factors of a slot, every byte verified. The same slot gives the same factors, to the bit."""
    if isinstance(slot, Slot):
        return read_adapter(slot.version, store=store)
    from inlay.composer.merging.merge import merged

    inputs = [_input(store, each) for each in slot.inputs]
    return merged(inputs, [each.weight for each in slot.inputs], slot.settings, slot.ref)


def _input(store: Registry, each: MergeInput) -> Adapter:
    members = [(adapter_of(store, slot), weight) for slot, weight in each.parts]
    if len(members) == 1 and members[0][1] == 1.0:
        return members[0][0]
    return stacked(members, each.ref)
