"""Choosing a composition by measured result: `inlay.composer.auto`.

auto.py         the whole of it: adapters and suites in, a recipe, a lock and reasons out
items.py        suites dealt into what is chosen on, in stages, and what is reported on
aims.py         which target suite is for which adapter
budget.py       how much may still be asked in the time that is left
material.py     what candidates are made of: routers fitted, merges made, CAT learned, one model loaded
candidates.py   the candidates, and the neighbours of one
board.py        what is known of them, item by item; what is asked of the model, while there is time
loaded.py       material and board while the model is loaded
scan.py         many on few items, the better half on more
policy.py       which of them is taken, and why in two sentences
"""

from __future__ import annotations
