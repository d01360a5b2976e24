"""The command line: one thin function a verb, loaded when it is called.

A verb parses, calls one public function, prints. Exit codes: 0 done; 1 a guard or check said no; 2 bad input
or usage; 3 the environment (busy, disk, network: try again); 70 a bug; 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

VERBS = (
    ("init", "store", "Make a store for adapters here."),
    ("demo", "demo", "Watch the whole story on a small built-in base: train, compose, measure, roll back."),
    ("train", "train", "Train an adapter, register it, and say what it gained and what it forgot."),
    ("data", "data", "Look over training data: what is wrong with a file."),
    ("add", "store", "Register an adapter that PEFT wrote as the next version of a name."),
    ("ls", "look", "List adapters, variants and what is live."),
    ("show", "look", "Show everything about one version, lock or name."),
    ("diff", "diff", "Say what differs between two versions or two locks, scores and verdicts included."),
    ("log", "journal", "Read the journal: who made what live, when and why."),
    ("eval", "measure", "Score a version or variant, and its base beside it, on a suite."),
    ("forget", "forget", "Measure what a version or variant forgot of the base's general skills."),
    ("blame", "blame", "Say which member of a variant costs what, alone and in the whole."),
    ("suite", "suite", "Look over suites: what is wrong with one, which there are, what is in them."),
    ("plan", "compose", "Show what a recipe or a reference would load, and what it costs."),
    ("lock", "compose", "Pin a recipe to exact versions as the next lock of a variant."),
    ("compose", "auto", "Compose adapters by measured result: what keeps most and forgets least."),
    ("generate", "compose", "Ask a version or variant."),
    ("serve", "serve", "Serve variants behind an OpenAI API, following the registry."),
    ("export", "hub", "Write a version or variant out as one PEFT adapter, or folded into its base."),
    ("guard", "live", "Set or show the thresholds that an alias demands."),
    ("promote", "live", "Point an alias at a version or lock, if its guard allows it."),
    ("rollback", "live", "Put an alias, and on request all variants with it, back to what was live before."),
    ("yank", "live", "Mark a version as bad, so that nothing rolls back to it."),
    ("push", "hub", "Send a version or variant to the Hugging Face Hub, with a model card."),
    ("pull", "hub", "Register an adapter from the Hugging Face Hub, pinned to a commit."),
    ("retire", "live", "Give up versions that never were live, so that their bytes may go."),
    ("purge", "live", "Erase the bytes of versions because the law says they must go."),
    ("describe", "live", "Say what a name or a version is, whose it is, and tag it."),
    ("keys", "keys", "Who may ask a server, and for what: make API keys, list them, revoke them."),
    ("bundle", "bundle", "Write names, or the whole store, into one file."),
    ("unbundle", "bundle", "Take over what a bundle holds."),
    ("fsck", "store", "Check every byte and row of the store."),
    ("gc", "store", "Remove leftovers that nothing refers to."),
)
"""Every verb: its name, the module in this package that holds it, and its line in the help."""


class Verbs(click.Group):
    """The group whose help knows every verb without importing it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, _, _ in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for name, module, _ in VERBS:
            if name == cmd_name:
                return getattr(importlib.import_module(f"inlay.cli.{module}"), f"{name}_verb")
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, line) for name, _, line in VERBS])


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from inlay import __version__

        click.echo(f"inlay {__version__}")
        ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
def cli() -> None:
    """Inlay keeps a team's adapters: trains them, versions them, composes them for each customer while
    measuring what is forgotten, and rolls a bad one back everywhere.

    \b
    Begin with      inlay demo
    then            inlay VERB --help
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run a verb and leave with its exit code."""
    arguments = list(sys.argv[1:] if args is None else args)
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, hear)
    sys.exit(run(arguments, heard))


def run(arguments: list[str], heard: Sequence[int] = ()) -> int:
    """Run a verb; errors are said here and nowhere else.

    `heard`: fills with the signals of a Ctrl-C. Not every KeyboardInterrupt arrives as one: where it falls
    into the import of a compiled module, what comes out is that module's ImportError.
    """
    as_json = "--json" in arguments
    try:
        code = cli.main(args=arguments, prog_name="inlay", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _interrupted(arguments, as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        fix = "see inlay --help"
        if isinstance(error, click.UsageError) and error.ctx is not None:
            fix = f"see {error.ctx.command_path} --help"
        return _fail(arguments, as_json, "InputError", error.format_message().rstrip("."), fix, 2)
    except BrokenPipeError:
        # The reader of a pipe left (`inlay log | head`): not an error of anybody's.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - closed by the end of the process
        return 0
    except Exception as error:
        if heard:
            click.echo(err=True)  # behind the terminal's ^C, as click does for a KeyboardInterrupt
            return _interrupted(arguments, as_json)
        return _explain(arguments, as_json, error)


def _interrupted(arguments: list[str], as_json: bool) -> int:
    message = "interrupted; what was registered stays registered"
    return _fail(arguments, as_json, "Interrupted", message, None, 130)


def _explain(arguments: list[str], as_json: bool, error: Exception) -> int:
    from inlay.errors import InlayError

    if isinstance(error, InlayError):
        return _fail(arguments, as_json, type(error).__name__, error.message, error.fix, error.exit_code)
    if isinstance(error, OSError):
        return _fail(
            arguments, as_json, "EnvironmentError", f"{error}", "check the disk and the rights, try again", 3
        )
    if os.environ.get("INLAY_TRACEBACK"):
        import traceback

        traceback.print_exc()
    message = f"a bug in inlay: {type(error).__name__}: {error}"
    return _fail(arguments, as_json, "Bug", message, "INLAY_TRACEBACK=1 shows where; please report it", 70)


def _fail(arguments: list[str], as_json: bool, kind: str, message: str, fix: str | None, code: int) -> int:
    from inlay.registry.printable import printable

    if as_json:
        import json

        click.echo(json.dumps({"schema": 1, "error": {"type": kind, "message": message, "fix": fix}}))
    else:
        line = f"{message}; {fix}" if fix else message
        click.echo(f"inlay: {printable(line)}", err=True)
    return code
