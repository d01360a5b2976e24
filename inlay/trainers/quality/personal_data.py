"""Strings in a text that are personal data by their form. Where a form has check digits, they must be right.

National ids are those with a checksum and a form that says which they are: a bare row of nine digits is none.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from datetime import date

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "BR": 29, "CH": 21, "CY": 28, "CZ": 24, "DE": 22,
    "DK": 18, "EE": 20, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IS": 26, "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18,
    "NO": 15, "PL": 28, "PT": 25, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27,
    "TR": 26, "UA": 29,
}  # fmt: skip
"""Characters of a country's IBAN (SWIFT's registry)."""


def luhn(digits: str) -> bool:
    """Luhn's sum of a number with its check digit (ISO/IEC 7812-1) is a multiple of ten."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def iban(text: str) -> bool:
    """Country, length and the remainder 1 of ISO 7064's mod 97-10."""
    if len(text) != IBAN_LENGTHS.get(text[:2]):
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def _card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and digits[0] in "3456" and len(set(digits)) > 1 and luhn(digits)


def _phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2


def _address(text: str) -> bool:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (found.is_loopback or found.is_unspecified or text == "255.255.255.255")


def _spanish(text: str) -> bool:
    digits = text[:-1].replace("-", "").translate(str.maketrans("XYZ", "012"))
    return text[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23]


_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12,
         14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)  # fmt: skip


def _italian(text: str) -> bool:
    total = sum(
        _ODD[c] if place % 2 == 0 else (int(c) if c.isdigit() else ord(c) - 65)
        for place, c in enumerate(text[:15])
    )
    return text[15] == chr(65 + total % 26)


def _french(text: str) -> bool:
    digits = re.sub(r"\s", "", text).replace("2A", "19").replace("2B", "18")
    return digits.isdigit() and len(digits) == 15 and 97 - int(digits[:13]) % 97 == int(digits[13:])


def _brazilian(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    for known in (9, 10):
        check = sum(d * (known + 1 - place) for place, d in enumerate(digits[:known])) * 10 % 11 % 10
        if check != digits[known]:
            return False
    return len(set(digits)) > 1


def _chinese(text: str) -> bool:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(c) * weight for c, weight in zip(text, weights, strict=False))
    return _day(int(text[6:10]), int(text[10:12]), int(text[12:14])) and "10X98765432"[total % 11] == text[17]


def _polish(text: str) -> bool:
    weights = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)
    check = -sum(int(c) * weight for c, weight in zip(text, weights, strict=False)) % 10
    # The century is coded into the month: 1900 as it is, 2000 with 20 more, 1800 with 80 more.
    century = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[int(text[2]) // 2]
    month = int(text[2:4]) % 20
    return check == int(text[10]) and _day(century + int(text[:2]), month, int(text[4:6]))


def _swedish(text: str) -> bool:
    digits = re.sub(r"\D", "", text)[-10:]
    return luhn(digits) and any(
        _day(c + int(digits[:2]), int(digits[2:4]), int(digits[4:6])) for c in (1900, 2000)
    )


def _british_health(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    return -sum(d * (10 - place) for place, d in enumerate(digits[:9])) % 11 == digits[9]


def _indian(text: str) -> bool:
    """Verhoeff's check over the dihedral group of ten."""
    check = 0
    for place, c in enumerate(reversed(re.sub(r"\D", "", text))):
        check = _dihedral(check, _permuted(place % 8, int(c)))
    return check == 0


def _dihedral(a: int, b: int) -> int:
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
    return 5 + (a - b) % 5 if b < 5 else (a - b) % 5


def _permuted(times: int, digit: int) -> int:
    for _ in range(times):
        digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
    return digit


def _day(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _any(_text: str) -> bool:
    return True


FORMS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("e-mail addresses", re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}\b"), _any),
    ("card numbers", re.compile(r"(?<![\w.-])[3-6](?:[ -]?\d){12,18}(?![\w-])"), _card),
    ("national ids (FR)", re.compile(r"\b[12] ?\d\d ?[01]\d ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d\b"), _french),
    ("national ids (IT)", re.compile(r"\b[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]\b"), _italian),
    ("national ids (ES)", re.compile(r"\b(?:\d{8}|[XYZ]-?\d{7})-?[A-Z]\b"), _spanish),
    ("national ids (BR)", re.compile(r"\b\d{3}\.\d{3}\.\d{3}-\d\d\b"), _brazilian),
    ("national ids (CN)", re.compile(r"\b[1-8]\d{5}(?:19|20)\d{9}[\dX]\b"), _chinese),
    ("national ids (SE)", re.compile(r"\b(?:19|20)?\d{6}[-+]\d{4}\b"), _swedish),
    ("national ids (PL)", re.compile(r"\b\d{11}\b"), _polish),
    ("national ids (GB, health)", re.compile(r"\b\d{3} \d{3} \d{4}\b"), _british_health),
    ("national ids (IN)", re.compile(r"\b[2-9]\d{3} \d{4} \d{4}\b"), _indian),
    (
        "network addresses",
        re.compile(r"(?<![\w.])(?<![Vv]ersion )(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)"),
        _address,
    ),
    (
        "network addresses",
        re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{1,4}(?![\w:])"),
        _address,
    ),
    (
        "phone numbers",
        re.compile(
            r"(?<![\w.,+-])(?:\+\d{1,3}[ ./-]?(?:\(0?\d{1,4}\)[ ./-]?)?\d(?:[ ./-]?\d){5,12}"
            r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}"
            r"|(?:\(0\d{1,4}\) ?|0[1-9]\d{1,3}[ /-])\d{3,4}[ -]?\d{2,4}(?:[ -]?\d{2,4})?)(?![\w-]|[.,]\d)"
        ),
        _phone,
    ),
)
"""Kind, form and check; what an earlier form took is not looked at again."""

_IBAN = re.compile(r"\b([A-Z]{2}\d\d)((?: ?[A-Z0-9]){11,30})")
# What none of the forms can do without: most texts are done after this.
_POSSIBLE = re.compile(
    r"@|\d(?:[ ()./-]{0,3}\d){6}|\d\.\d{1,3}\.\d{1,3}\.\d|:[0-9a-fA-F]{0,4}:|[A-Z]{2}\d\d ?[A-Z]|[A-Z]{6}\d"
)


def personal_data(text: str) -> Iterator[tuple[str, str]]:
    """(kind, string) of everything in a text that looks like personal data."""
    if not _POSSIBLE.search(text):
        return
    for found in list(_IBAN.finditer(text)):
        if (taken := _iban_in(found.group())) is not None:
            yield "IBANs", taken
            text = text.replace(taken, " " * len(taken))
    for kind, form, right in FORMS:
        for found in list(form.finditer(text)):
            if right(found.group()):
                yield kind, found.group()
                text = text[: found.start()] + " " * len(found.group()) + text[found.end() :]


def _iban_in(text: str) -> str | None:
    """The beginning of `text` that is an IBAN: what follows one may be capitals as well."""
    length = IBAN_LENGTHS.get(text[:2], 0)
    seen = 0
    for place, c in enumerate(text, 1):
        seen += c != " "
        if seen == length:
            return text[:place] if iban(text[:place].replace(" ", "")) else None
    return None
