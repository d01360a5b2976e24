"""inlay keys add, ls, revoke"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inlay.cli.console import common, emit, open_store, printable_lines, table

if TYPE_CHECKING:
    from inlay.registry import ApiKey


@click.group("keys", context_settings={"help_option_names": ["-h", "--help"]})
def keys_verb() -> None:
    """Who may ask a server, and for what: make API keys, list them, revoke them. Each takes --json.

    \b
    Example:
      KEY=$(inlay keys add acme-corp --allow acme --rate 600 --concurrent 8)
      inlay keys ls
      inlay keys revoke 3f9a2c1d5e6f --why "found in a log"
    """


@keys_verb.command("add")
@click.argument("tenant")
@click.option("--name", metavar="TEXT", help="What the key is for, to tell it from the tenant's others.")
@click.option(
    "--allow",
    multiple=True,
    metavar="ENTRY",
    help="A name (all its references), an exact reference, `base`, or * for all; repeatable.  [default: *]",
)
@click.option("--rate", type=int, metavar="N", help="Requests a minute.  [default: no limit]")
@click.option("--concurrent", type=int, metavar="N", help="Requests at once.  [default: no limit]")
@click.option("--admin", is_flag=True, help="It may use the server's admin endpoints as well.")
@common
def add_verb(
    tenant: str,
    name: str | None,
    allow: tuple[str, ...],
    rate: int | None,
    concurrent: int | None,
    admin: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Make an API key of TENANT. Its secret alone goes to stdout, this once; the store keeps the hash.

    Running servers know it within a second. Once there is a key, servers on loopback ask for one too.

    \b
    Example:
      KEY=$(inlay keys add acme-corp --allow acme --rate 600 --concurrent 8)
    """
    registry = open_store(store)
    key, secret = registry.add_key(
        tenant, name=name, allow=allow or ("*",), rate=rate, concurrent=concurrent, admin=admin
    )
    said = [f"made key {key.id} of {tenant}; keep its secret now, it is not shown again"]
    said += [f"note: {entry} is not in the store, or not yet" for entry in registry.absent(key)]
    click.echo(printable_lines(said), err=True)
    emit("keys add", as_json, {**_key_dict(key), "secret": secret}, secret)


@keys_verb.command("ls")
@common
def ls_verb(store: str | None, as_json: bool) -> None:
    """List every key that was made: whose, what it may reach, how often, whether it was revoked.

    \b
    Example:
      inlay keys ls
    """
    found = open_store(store).keys()
    headers = ("ID", "TENANT", "NAME", "ALLOW", "LIMITS", "CREATED", "REVOKED")
    emit(
        "keys ls",
        as_json,
        [_key_dict(key) for key in found],
        lambda: table([_cells(key) for key in found], headers) if found else "there are no keys",
    )


@keys_verb.command("revoke")
@click.argument("identity", metavar="ID")
@click.option("--why", required=True, metavar="TEXT", help="The reason, kept with the key.")
@common
def revoke_verb(identity: str, why: str, store: str | None, as_json: bool) -> None:
    """Let nobody in with the key ID any more, for good. Running servers hear of it within a second.

    \b
    Example:
      inlay keys revoke 3f9a2c1d5e6f --why "found in a log"
    """
    key = open_store(store).revoke_key(identity, why)
    said = f"key {key.id} of {key.tenant} is revoked since {str(key.revoked)[:19]}: {key.why}"
    emit("keys revoke", as_json, _key_dict(key), lambda: printable_lines([said]))


def _key_dict(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "allow": list(key.allow),
        "rate": key.rate,
        "concurrent": key.concurrent,
        "admin": key.admin,
        "who": key.who,
        "created": key.created,
        "revoked": key.revoked,
        "why": key.why,
        "damaged": key.damaged,
    }


def _cells(key: ApiKey) -> tuple[str, ...]:
    limits = [f"{key.rate}/min"] * (key.rate is not None)
    limits += [f"{key.concurrent} at once"] * (key.concurrent is not None)
    allow = "damaged, see inlay fsck" if key.damaged else ", ".join([*key.allow, *["admin"] * key.admin])
    revoked = f"{key.revoked[:10]}: {key.why}" if key.revoked is not None else ""
    return (key.id, key.tenant, key.name or "", allow, ", ".join(limits), key.created[:10], revoked)
