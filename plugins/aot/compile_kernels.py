"""Build step of libsala_plugins.so: compiles all operators' kernels and writes the tables that describe them.

Run as `python -m plugins.aot.compile_kernels` from the root of the checkout. Writes to the output directory
`operator_tables.cc`, `cubins.S` (which includes the cubins) and one `.cubin` file for each compiled kernel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from sala_export.ops.common.contract import Contract
from sala_export.ops.common.launch import KernelSet, Launch
from sala_export.ops.common.targets import AOT_ARCHITECTURES
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.registry import CONTRACTS

from .kernels import AotError, CompiledKernel, CompileJob, compile_job, compile_kernel
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
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        count = build(CONTRACTS, arguments.output_dir, arguments.jobs)
    except AotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"compiled {count} cubins in {time.monotonic() - started:.1f} s")
    return 0


def build(contracts: Sequence[Contract], output_dir: Path, jobs: int) -> int:
    """Compile and write everything; returns the number of cubins.

    Raises: AotError if a kernel cannot be shipped.
    """
    wanted = sorted(
        {job for c in contracts for _, _, _, job in _images(c, KERNEL_SETS[c.name])},
        key=lambda job: (job.kernel, job.sm, job.constexprs),
    )
    with ProcessPoolExecutor(jobs) as pool:
        compiled = dict(zip(wanted, pool.map(compile_kernel, wanted), strict=True))

    output_dir.mkdir(parents=True, exist_ok=True)
    symbols = {job: _write_cubin(output_dir, job, kernel) for job, kernel in compiled.items()}
    tables = [_tables(contract, KERNEL_SETS[contract.name], compiled, symbols) for contract in contracts]
    (output_dir / "operator_tables.cc").write_text(write_tables(tables))
    (output_dir / "cubins.S").write_text(_assembly(sorted(set(symbols.values()))))
    return len(wanted)


def _images(contract: Contract, kernel_set: KernelSet) -> Iterator[tuple[Launch, str, int, CompileJob]]:
    """Every launch with its activation type, the index of its variant, and the compilation that serves it."""
    for launch in (*kernel_set.prefill, *kernel_set.decode):
        for activation in kernel_set.aot_dtypes:
            for index, variant in enumerate(kernel_set.aot_variants):
                for sm in AOT_ARCHITECTURES:
                    yield (
                        launch,
                        activation,
                        index,
                        compile_job(contract, kernel_set, launch, activation=activation, variant=variant, sm=sm),
                    )


def _tables(
    contract: Contract,
    kernel_set: KernelSet,
    compiled: Mapping[CompileJob, CompiledKernel],
    symbols: Mapping[CompileJob, str],
) -> OperatorTables:
    def images_of(sequence: Sequence[Launch]) -> list[list[Image]]:
        return [
            [
                Image(activation=activation, variant=variant, sm=job.sm, symbol=symbols[job], compiled=compiled[job])
                for launch, activation, variant, job in _images(contract, kernel_set)
                if launch is wanted
            ]
            for wanted in sequence
        ]

    return OperatorTables(
        contract=contract,
        kernel_set=kernel_set,
        sms=tuple(AOT_ARCHITECTURES),
        prefill=images_of(kernel_set.prefill),
        decode=images_of(kernel_set.decode),
    )


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
