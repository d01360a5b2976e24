"""Merging: one adapter out of several.

methods.py      every method by name: paper, inputs, parameters; what is refused, and why. No torch
core.py         the core space: shared singular bases, each adapter a small core; back to factors
merge.py        `merge`: check, then module by module: bases, method, truncation
loading.py      the adapter of a plan's slot: read, or merged out of what its parts are
mergekit.py     mergekit's methods on cores or on dense deltas, seeded
tsv_m.py        TSV-M: singular vectors of the tasks, made orthogonal
iso_c.py        Iso-C: the sum with an even spectrum
knots_ties.py   KnOTS-TIES: TIES in the shared left basis
cat.py          CAT: a stack whose weights are learned from examples
learned.py      what CAT made becomes a version of its own

A method of our own is one function in one file plus its record in METHODS.
"""

from __future__ import annotations

from inlay.composer.merging.methods import METHODS, REFUSED, Method, Parameter

__all__ = ["METHODS", "REFUSED", "Method", "Parameter"]
