"""Names and references: what is accepted, what is refused, and that every reference writes itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.errors import InputError
from inlay.registry import check_alias, check_name, parse_alias, parse_reference, printable

PART = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
NAME = st.one_of(PART, st.builds("{}/{}".format, PART, PART)).filter(lambda n: n != "base")
ALIAS = PART.filter(lambda a: not (a[0] == "v" and a[1:].isdigit()))
DIGEST = st.from_regex(r"sha256:[0-9a-f]{8,64}", fullmatch=True)


@given(NAME, st.one_of(ALIAS, DIGEST, st.integers(1, 2**53).map("v{}".format)))
def test_a_reference_reads_what_it_writes(name: str, value: str) -> None:
    reference = parse_reference(f"{name}@{value}")
    assert str(reference) == f"{name}@{value}"
    assert parse_reference(str(reference)) == reference
    assert reference.kind == (
        "digest"
        if value.startswith("sha256:")
        else "number"
        if value[1:].isdigit() and value[0] == "v"
        else "alias"
    )


@given(NAME)
def test_a_name_alone_is_its_prod(name: str) -> None:
    assert parse_reference(name) == parse_reference(f"{name}@prod")


@given(DIGEST)
def test_a_digest_alone_names_whatever_has_it(digest: str) -> None:
    assert parse_reference(digest).name == ""
    assert str(parse_reference(digest)) == digest


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_refused_on_one_line(text: str) -> None:
    try:
        assert parse_reference(text) == parse_reference(str(parse_reference(text)))
    except InputError as error:
        assert "\n" not in str(error)
        assert printable(str(error)) == str(error)


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "@prod", "legal@", "Legal@prod", "legal@Prod", "legal@v0", "legal@v01",
        "legal@v99999999999999999999",
        "legal@@prod", "legal@prod@v1", "a/b/c", "../legal", "legal/../x", "/legal", "legal/", "-legal",
        ".hidden",
        "legal@sha256:abc", "legal@sha256:ABCDEF01", "sha256:" + "a" * 65, "légal", "legal ", "legal\n",
        "base",
        "base@prod", "a" * 64,
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_reference(text)


def test_a_number_is_never_an_alias() -> None:
    with pytest.raises(InputError, match="must not look like a version number"):
        check_alias("v3")
    with pytest.raises(InputError, match="only an alias can move"):
        parse_alias("legal@v3")
    assert parse_alias("legal") == ("legal", "prod")
    assert check_alias("v3-rc") == "v3-rc"


def test_the_base_is_nobodys_name() -> None:
    with pytest.raises(InputError, match="reserved for the base model itself"):
        check_name("base")


@given(st.text(max_size=200))
def test_printable_text_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert all(ord(c) >= 32 and not 0x7F <= ord(c) <= 0x9F for c in shown)
    shown.encode("utf-8")


def test_printable_keeps_letters_and_shows_what_it_escapes() -> None:
    assert printable("Größe 数 👍") == "Größe 数 👍"
    assert printable("a\x1b[31m\nb\u202ec\u2028") == "a\\x1b[31m\\x0ab\\u202ec\\u2028"
