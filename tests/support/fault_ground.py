"""A directory in which one command runs again and again, killed or failing, over what it wrote before."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from support.file_faults import Fault, Outcome, run_with_fault
from support.writing_commands import WritingCommand, copy_output


class Ground:
    """A directory in which one command runs again and again, with what its two variants write."""

    def __init__(self, command: WritingCommand, folder: Path, prefix: Sequence[str] = ()) -> None:
        self.command = command
        self.prefix = prefix
        self.directory = folder / "ground"
        self.old = folder / "old"
        self.directory.mkdir()
        self.calls = self.run("old").calls
        copy_output(self.output, self.old)
        self.old_digest = command.digest(self.output)
        self.calls = self.run("new").calls
        self.new_digest = command.digest(self.output)
        assert self.old_digest != self.new_digest

    @property
    def output(self) -> Path:
        return self.directory / self.command.output

    def put_old(self) -> None:
        """Lay the old output at the path, beside whatever runs have left."""
        if self.output.is_dir():
            shutil.rmtree(self.output)
        else:
            self.output.unlink(missing_ok=True)
        copy_output(self.old, self.output)

    def run(self, variant: str = "new", fault: Fault | None = None) -> Outcome:
        command = [*self.prefix, *self.command.arguments(variant)]
        done = run_with_fault(command, self.directory, fault or Fault())
        if fault is None:
            assert done.status == 0, done.told
            assert self.names() == [self.command.output]
        return done

    def names(self) -> list[str]:
        """What the directory holds, without the logs of failed builds, which their messages name."""
        return sorted(path.name for path in self.directory.iterdir() if ".log" not in path.suffixes)

    def check_whole(self) -> None:
        assert self.command.digest(self.output) in (self.old_digest, self.new_digest)

    def finish(self) -> None:
        """The next run replaces what is there, and leaves nothing else."""
        self.run()
        assert self.command.digest(self.output) == self.new_digest
