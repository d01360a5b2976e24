"""inlay serve"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from inlay.cli.console import common, emit

if TYPE_CHECKING:
    from inlay.serving.server import Serving

MIB = 1 << 20


@click.command("serve")
@click.option(
    "--base", required=True, metavar="BASE", help="The base to serve: a folder or a hub id; `builtin`."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where the API listens; any but this machine needs API keys.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free."
)
@click.option(
    "--admin-host", default="127.0.0.1", show_default=True, help="Where metrics and the admin endpoints are."
)
@click.option("--admin-port", type=click.IntRange(0, 65535), help="[default: the one after --port]")
@click.option(
    "--rows", type=click.IntRange(1), default=32, show_default=True, help="Requests answered at once."
)
@click.option(
    "--queue",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Requests that may wait; more get status 503.",
)
@click.option(
    "--memory", type=click.IntRange(1), default=1024, show_default=True, metavar="MIB", help="For adapters."
)
@click.option(
    "--prefix-memory",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    metavar="MIB",
    help="For keys and values of prompts seen before; 0 keeps none.",
)
@click.option(
    "--max-prompt", type=click.IntRange(1), metavar="TOKENS", help="[default: what the base's context holds]"
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="NAME=REF:SHARE,…",
    help="A name whose requests go to several references, each user to one; repeatable.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="From a request's arrival to its last token.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="What running requests get when the server is asked to end.",
)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--accept-prompt-change",
    is_flag=True,
    help="Go on although the base's tokenizer or chat template changed.",
)
@click.option("--log-format", type=click.Choice(["json", "text"]), default="json", show_default=True)
@common
def serve_verb(
    base: str,
    host: str,
    port: int,
    admin_host: str,
    admin_port: int | None,
    rows: int,
    queue: int,
    memory: int,
    prefix_memory: int,
    max_prompt: int | None,
    splits: tuple[str, ...],
    timeout: float,
    drain: float,
    device: str,
    accept_prompt_change: bool,
    log_format: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Serve every variant and adapter of BASE behind an OpenAI API, following the registry.

    A promote, rollback or yank by any process reaches new requests within a second; running ones end as they
    began. Ends on SIGTERM (exit code 0) and Ctrl-C (130) once running requests have; a second one ends it at
    once.

    \b
    Examples:
      inlay serve --base builtin
      inlay serve --base ./my-base --split "acme=acme@prod:95,acme@canary:5"
    """
    from inlay.cli.bases import base_named
    from inlay.serving.server import serve
    from inlay.serving.settings import ServerSettings

    settings = ServerSettings(
        base=base_named(base),
        store=store,
        host=host,
        port=port,
        admin_host=admin_host,
        admin_port=admin_port,
        rows=rows,
        queue=queue,
        budget=memory * MIB,
        prefix_bytes=prefix_memory * MIB,
        prompt_tokens=max_prompt,
        timeout=timeout,
        drain=drain,
        splits=splits,
        device=device,
        accept_prompt_change=accept_prompt_change,
        log_format=log_format,  # type: ignore[arg-type]
    )

    def ready(serving: Serving) -> None:
        said = {
            "url": f"{serving.url}/v1",
            "admin": serving.admin,
            "base": serving.base,
            "store": serving.store,
            "pid": os.getpid(),
        }
        text = f"serving {serving.base} at {serving.url}/v1, admin at {serving.admin}"
        emit("serve", as_json, said, text)

    serve(settings, ready=ready)
