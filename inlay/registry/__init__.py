"""The registry: what exists, what it scored, which one is live. Imports neither torch nor any sibling.

canonical.py           canonical JSON, digests, times
printable.py           text from outside, safe to print
names.py               names and references
objects.py             the content-addressed folder
migrations.py          the schema as a diary
database.py            one connection, transactions, what is asserted on opening
store.py               where a store is, and the folders it makes
records.py             the frozen records that are handed out
fingerprint.py         what a base is
safetensors_header.py  bounded header reader, scan for NaN
ingest.py              what may come in
kinds.py               the kinds of adapters, as data
shapes.py              which tensors each keeps, and of which shape
fitting.py             whether every tensor fits the base
targets.py             which modules a configuration targets
module_names.py        where a checkpoint keeps a module's tensors
peft_config.py         reading an adapter's configuration
patterns.py            its expressions over module names, within bounds
cards.py               licence and model card
adding.py              registering a version
lookup.py              from references to records
listing.py             the list of names, page by page
describing.py          owners, descriptions, tags
recipes.py             the grammar of recipes
locking.py             from recipes to locks; dependents
guards.py              thresholds, evidence, verdicts
evidence.py            suites, scores, reports
journal.py             hash-chained events, stacks replayed
removing.py            retire, purge
keys.py                API keys of servers
archive.py             the file of a bundle
bundling.py            making one
bundle_rows.py         reading one, and believing nothing
unbundling.py          taking one over; repair
aliases.py             promote, roll back, yank, guard
upkeep.py              fsck, gc
registry.py            the Registry class
"""

from inlay.registry.canonical import canonical, digest_of, digest_of_json
from inlay.registry.fingerprint import BaseFingerprint, cache_dir
from inlay.registry.guards import Evidence, Guard, Judge, Verdict
from inlay.registry.journal import Event
from inlay.registry.keys import ApiKey
from inlay.registry.names import Reference, check_alias, check_name, parse_alias, parse_reference
from inlay.registry.printable import printable
from inlay.registry.recipes import Merge, Recipe, Route, Stack, Use
from inlay.registry.records import (
    About,
    BaseRef,
    Bundled,
    Dependent,
    Described,
    Drift,
    EvalRecord,
    Lock,
    Member,
    NameRow,
    SuiteRow,
    Unbundled,
    Version,
)
from inlay.registry.registry import Registry

__all__ = [
    "About",
    "ApiKey",
    "BaseFingerprint",
    "BaseRef",
    "Bundled",
    "Dependent",
    "Described",
    "Drift",
    "EvalRecord",
    "Event",
    "Evidence",
    "Guard",
    "Judge",
    "Lock",
    "Member",
    "Merge",
    "NameRow",
    "Recipe",
    "Reference",
    "Registry",
    "Route",
    "Stack",
    "SuiteRow",
    "Unbundled",
    "Use",
    "Verdict",
    "Version",
    "cache_dir",
    "canonical",
    "check_alias",
    "check_name",
    "digest_of",
    "digest_of_json",
    "parse_alias",
    "parse_reference",
    "printable",
]
