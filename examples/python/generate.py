"""Answer a prompt, and print the answer while it is written.

python examples/python/generate.py BUNDLE "Tell me about rivers."
"""

import sys

import sala_export


def main(bundle: str, prompt: str) -> None:
    model = sala_export.load(bundle)  # on its GPU if there is one, else on the CPU
    session = model.session()
    session.prefill(prompt)
    for piece in session.generate(max_new_tokens=64, temperature=0.8, top_p=0.95, seed=1):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
