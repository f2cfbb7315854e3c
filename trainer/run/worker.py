"""The process that trains one run: `spectral worker SPEC`, alone or by torchrun."""

from pathlib import Path

import click

from pipeline.console import PATH, PlainCommand, progress_display


@click.command(cls=PlainCommand, hidden=True)
@click.argument("spec", type=PATH)
def worker(spec: Path) -> None:
    """Train the run that the file SPEC describes, or go on with it."""
    from trainer.process.stop import leave_when_asked

    leave_when_asked()  # before torch is loaded, which takes seconds
    from trainer.run.carry_out import carry_out
    from trainer.run.spec import RunSpec

    if line := carry_out(RunSpec.load(spec), progress_display(False)):
        click.echo(line)
