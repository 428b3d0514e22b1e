"""The `crossdock` command. Commands import what they need when they run: `--help` is quick.

Exit codes: 0 ok, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import os
import sys

import typer

from cluster.shadowing import find_shadowed


def new_app() -> typer.Typer:
    from cluster.cli import (
        api_key,
        background,
        bench,
        chat,
        controller,
        doctor,
        generate,
        identity,
        model,
        operate,
        profile,
        serve,
        simulate,
        status,
        tune,
    )

    app = typer.Typer(
        name="crossdock",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(identity.remember_identity)
    app.command("serve")(serve.serve)
    app.command("up")(background.up)
    app.command("down")(background.down)
    app.command("generate")(generate.generate)
    app.command("chat")(chat.chat)
    app.command("status")(status.status)
    app.command("controller")(controller.controller)
    app.command("router")(controller.router)
    app.command("scale")(operate.scale)
    app.command("drain")(operate.drain)
    app.command("drain-node")(operate.drain_node)
    app.command("flip")(operate.flip)
    app.command("profile")(profile.profile)
    app.command("api-key")(api_key.api_key)
    app.command("doctor")(doctor.doctor)
    app.command("simulate")(simulate.simulate)
    app.command("tune")(tune.tune)
    app.add_typer(bench.app, name="bench")
    app.add_typer(model.app, name="model")
    return app


def main() -> None:
    """Entry point: turns every expected error into one plain line and an exit code."""
    # Else gRPC writes a line whenever a peer breaks a connection off, in each process below, too.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    _refuse_shadowed()
    from core.errors import CrossdockError, Incompatible, InvalidField, NotFound

    try:
        new_app()()  # Ends the process itself, with exit code 2 for wrong usage.
    except (InvalidField, Incompatible, NotFound) as error:
        # What was given, be it a flag, a file or a model folder, is not what is needed.
        sys.exit(_say(error, 2))
    except CrossdockError as error:
        sys.exit(_say(error, 1))


def _say(error: Exception, exit_code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return exit_code


def _refuse_shadowed() -> None:
    """Not even `doctor` can run: what it needs may be what is hidden."""
    shadowed = find_shadowed()
    if shadowed:
        for one in shadowed:
            print(f"error: {one}", file=sys.stderr)
        print(
            "take what hides them out of the import path: PYTHONPATH, or a package of that name",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
