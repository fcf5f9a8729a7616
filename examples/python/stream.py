"""Read a prompt of any length from standard input while it comes, then answer it.

    cat book.txt question.txt | python examples/python/stream.py BUNDLE

The text is never in memory as a whole. The session holds the caches of the tokens, and nothing else grows.
"""

import sys

import sala_export
from sala_export.runtime.session import PrefillProgress


def show(progress: PrefillProgress) -> None:
    print(f"{progress.tokens_done} tokens, {progress.tokens_per_second:.0f} tokens/s", file=sys.stderr)


def main(bundle: str) -> None:
    session = sala_export.load(bundle).session()
    session.prefill(iter(sys.stdin), on_progress=show)  # any iterator of text or of token ids
    for piece in session.generate(max_new_tokens=64):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
