"""Build step of libsala_plugins.so: compiles all operators' kernels and writes the tables that describe them.

Run as `python -m plugins.aot.compile_kernels` from the root of the checkout. Writes to the output directory
`operator_tables.cc`, `kernel_index.cc`, `cubins.S` (which includes the cubins) and one `.cubin` file for each compiled
kernel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from sala_export.ops.common.contract import Contract
from sala_export.ops.common.launch import KernelSet, Launch
from sala_export.ops.common.targets import AOT_ARCHITECTURES, ARCHITECTURES
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.registry import CONTRACTS

from .contracts import check_files, source_files
from .cpp import AotError
from .kernel_index import IndexEntry, main_loop_sizes, write_index
from .kernels import CompiledKernel, CompileJob, compile_job, compile_kernel
from .tables import Image, OperatorTables, write_tables

_CUBIN_ALIGNMENT_BYTES = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="compilations at a time; default: as many as CPUs that this process may use",
    )
    parser.add_argument(
        "--architectures",
        type=int,
        nargs="+",
        choices=tuple(ARCHITECTURES),
        default=AOT_ARCHITECTURES,
        help="those to compile for, by 10 * major + minor; default: %(default)s",
    )
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        count = build(CONTRACTS, sorted(set(arguments.architectures)), arguments.output_dir, arguments.jobs)
    except AotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"compiled {count} cubins in {time.monotonic() - started:.1f} s")
    return 0


def build(contracts: Sequence[Contract], architectures: Sequence[int], output_dir: Path, jobs: int) -> int:
    """Compile and write everything for some of `ARCHITECTURES`; returns the number of cubins.

    Raises: AotError if a kernel cannot be shipped, or an operator lacks kernels or its generated files.
    """
    check_files(source_files(contracts), Path())
    if missing := {c.name for c in contracts} - KERNEL_SETS.keys():
        raise AotError(f"{', '.join(sorted(missing))}: no kernels in sala_export/ops/kernel_sets.py")
    wanted = compile_jobs(contracts, architectures)
    with ProcessPoolExecutor(jobs) as pool:
        compiled = dict(zip(wanted, pool.map(compile_kernel, wanted), strict=True))

    output_dir.mkdir(parents=True, exist_ok=True)
    symbols = {job: _write_cubin(output_dir, job, kernel) for job, kernel in compiled.items()}
    tables = [_tables(contract, KERNEL_SETS[contract.name], architectures, compiled, symbols) for contract in contracts]
    (output_dir / "operator_tables.cc").write_text(write_tables(tables))
    (output_dir / "kernel_index.cc").write_text(write_index(_index(contracts, architectures, compiled, symbols)))
    (output_dir / "cubins.S").write_text(_assembly(sorted(set(symbols.values()))))
    return len(wanted)


def compile_jobs(contracts: Sequence[Contract], architectures: Sequence[int]) -> list[CompileJob]:
    """Everything that is compiled for a library with kernels for these architectures."""
    return sorted({image.job for c in contracts for image in _images(c, KERNEL_SETS[c.name], architectures)})


@dataclass(frozen=True, kw_only=True, slots=True)
class _WantedImage:
    """One place of the tables, with the compilation that fills it."""

    sequence: str
    launch: Launch
    activation: str
    variant: int
    """Index in `KernelSet.aot_variants`."""
    job: CompileJob


def _images(contract: Contract, kernel_set: KernelSet, architectures: Sequence[int]) -> Iterator[_WantedImage]:
    """Every launch for every shipped type and variant, and for those of the architectures that it exists for."""
    for sequence, launches in (("prefill", kernel_set.prefill), ("decode", kernel_set.decode)):
        for launch, activation, index, sm in product(
            launches, kernel_set.aot_dtypes, range(len(kernel_set.aot_variants)), kernel_set.served(architectures)
        ):
            variant = kernel_set.aot_variants[index]
            job = compile_job(contract, kernel_set, launch, activation=activation, variant=variant, sm=sm)
            yield _WantedImage(sequence=sequence, launch=launch, activation=activation, variant=index, job=job)


def _tables(
    contract: Contract,
    kernel_set: KernelSet,
    architectures: Sequence[int],
    compiled: Mapping[CompileJob, CompiledKernel],
    symbols: Mapping[CompileJob, str],
) -> OperatorTables:
    def images_of(sequence: str, launches: Sequence[Launch]) -> list[list[Image]]:
        return [
            [
                Image(
                    activation=image.activation,
                    variant=image.variant,
                    sm=image.job.sm,
                    symbol=symbols[image.job],
                    compiled=compiled[image.job],
                )
                for image in _images(contract, kernel_set, architectures)
                if image.sequence == sequence and image.launch is launch
            ]
            for launch in launches
        ]

    return OperatorTables(
        contract=contract,
        kernel_set=kernel_set,
        sms=kernel_set.served(architectures),
        prefill=images_of("prefill", kernel_set.prefill),
        decode=images_of("decode", kernel_set.decode),
    )


def _index(
    contracts: Sequence[Contract],
    architectures: Sequence[int],
    compiled: Mapping[CompileJob, CompiledKernel],
    symbols: Mapping[CompileJob, str],
) -> dict[CompileJob, IndexEntry]:
    """Every cubin with what it serves.

    Raises: AotError if one kernel is said to have two main loops.
    """
    entries: dict[CompileJob, IndexEntry] = {}
    for contract in contracts:
        kernel_set = KERNEL_SETS[contract.name]
        for image in _images(contract, kernel_set, architectures):
            job, variant = image.job, kernel_set.aot_variants[image.variant]
            main_loop = main_loop_sizes(image.launch.main_loop, kernel_set.compile_time(image.launch, job.sm, variant))
            entry = entries.setdefault(
                job, IndexEntry(symbol=symbols[job], compiled=compiled[job], main_loop=main_loop)
            )
            if entry.main_loop != main_loop:
                raise AotError(f"{job.kernel}: its launches state different main loops for one cubin")
            entry.serve(image.sequence, image.activation, variant)
    return entries


def _write_cubin(output_dir: Path, job: CompileJob, kernel: CompiledKernel) -> str:
    """Write one cubin under the name of its assembler symbol, and return that name."""
    digest = hashlib.sha256(kernel.cubin).hexdigest()[:16]
    symbol = f"sala_{job.kernel}_sm{job.sm}_{digest}"
    (output_dir / f"{symbol}.cubin").write_bytes(kernel.cubin)
    return symbol


def _assembly(symbols: Sequence[str]) -> str:
    """Assembler source that defines each symbol as the bytes of its cubin file, found on the include path."""
    parts = ['.section .rodata,"a",@progbits\n']
    for symbol in symbols:
        parts.append(
            f".balign {_CUBIN_ALIGNMENT_BYTES}\n.globl {symbol}\n.hidden {symbol}\n{symbol}:\n"
            f'.incbin "{symbol}.cubin"\n'
        )
    parts.append('.section .note.GNU-stack,"",@progbits\n')
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(main())
