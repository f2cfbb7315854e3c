"""The process that trains one run: `python -m trainer.run.worker SPEC`, alone or by torchrun."""

from pathlib import Path

import click

from pipeline.console import PATH, PlainCommand, progress_display
from trainer.console import show_log


@click.command(cls=PlainCommand)
@click.argument("spec", type=PATH)
def main(spec: Path) -> None:
    """Train the run that the file SPEC describes, or go on with it."""
    show_log(verbose=False)
    from trainer.process.stop import leave_when_asked

    leave_when_asked()  # before torch is loaded, which takes seconds
    from trainer.run.carry_out import carry_out
    from trainer.run.spec import RunSpec

    if line := carry_out(RunSpec.load(spec), progress_display(False)):
        click.echo(line)


if __name__ == "__main__":
    main()
