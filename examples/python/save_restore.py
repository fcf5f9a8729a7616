"""Read a long text once, and ask it several questions, today or next week.

    python examples/python/save_restore.py BUNDLE book.txt "Who wrote the letter?" "Where was it found?"

The first run reads the text and saves the session to book.txt.state. Later runs restore it and start with the question.
"""

import sys
from pathlib import Path

import sala_export
from sala_export.runtime.model import Model


def read_once(model: Model, text: Path) -> Path:
    """The state file of a text, written if it is not there yet."""
    state = text.with_name(f"{text.name}.state")
    if not state.exists():
        session = model.session()
        session.prefill(text.read_text(encoding="utf-8"))
        session.save(state)
    return state


def main(bundle: str, text: str, *questions: str) -> None:
    model = sala_export.load(bundle)
    book = model.restore(read_once(model, Path(text)))
    for question in questions:
        session = book.fork()  # the text is known already: only the question is read
        session.prefill(question)
        print(f"> {question}")
        print("".join(session.generate(max_new_tokens=64)))


if __name__ == "__main__":
    main(*sys.argv[1:])
