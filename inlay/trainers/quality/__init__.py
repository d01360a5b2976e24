"""Whether data is fit to be trained on.

data_check.py     `check` for a person, `refuse_bad_data` for a run
finding.py        one thing found: level, kind, lines, what to do
material.py       what is looked at: the rows as far as they can be read
measuring.py      what a base says of them: tokens and likelihoods
defects/          the kinds of defects, all in `DEFECTS`, by what a row is
figures.py        the file in numbers
wordings.py       how requests are worded
similar.py        texts that are nearly the same, by MinHash
spread.py         how far a value lies from the others
personal_data.py  e-mail addresses, card numbers, ids by form and check digits
report_text.py, report_html.py, report_plots.py   the report for a terminal and as a page
"""

from __future__ import annotations

from inlay.trainers.quality.data_check import DataCheck, check, refuse_bad_data
from inlay.trainers.quality.finding import Finding

__all__ = ["DataCheck", "Finding", "check", "refuse_bad_data"]
