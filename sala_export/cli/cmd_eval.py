"""`sala-export eval`"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..errors import RequestError
from ..evaluation.tasks import NEEDLE_TASKS, PERPLEXITY, TASKS
from ..plotting import plot_file
from .chat_options import Chat, ChatOptions, chat_options, require_sense
from .eval_tables import print_evaluation
from .options import SEED, BundlePath, TokenList, json_option, output_option, weights_option
from .output import print_json, progress_display, table_console
from .text_model import load_weights, open_text_model, runtime_options, show_runtime

if TYPE_CHECKING:
    from ..evaluation.haystack import Frame
    from ..evaluation.prompts import NeedleWords, ReadText
    from ..evaluation.run import EvaluationRequest
    from ..runtime.text import Tokenizer


@click.command("eval")
@click.argument("model", type=BundlePath())
@weights_option
@click.option(
    "--task",
    "tasks",
    type=click.Choice([*TASKS, PERPLEXITY]),
    multiple=True,
    help="Task to run. You can repeat the option.  [default: all but perplexity]",
)
@click.option(
    "--lengths",
    type=TokenList(),
    help="Lengths of contexts in tokens, e.g. 8K,64K.  [default: 4K, 8K, ..., as far as they fit]",
)
@click.option(
    "--depths",
    type=click.IntRange(1, 101),
    default=5,
    show_default=True,
    help="Number of depths at which a needle is asked for, from the beginning to the end of a text.",
)
@click.option(
    "--samples", type=click.IntRange(1, 100), default=1, show_default=True, help="Number of questions at each depth."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed of texts and questions.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), help="Most tokens of an answer.  [default: by task, 32 or 64]"
)
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Ask as a user of the chat template, or in plain text.  [default: --chat if the model has a template]",
)
@chat_options
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="Take the words of needles, questions and filler from this JSON file, for a model of another vocabulary.",
)
@click.option(
    "--haystack",
    type=click.Path(path_type=Path),
    help="Take the filler around needles from this text.  [default: sentences made by the command]",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Text of which perplexity is measured.  [default: the part of the text that ships with sala-export which "
    "quantize does not read]",
)
@output_option(False, "Folder that keeps the results. The same command goes on where an earlier one was ended.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a heat map of the results (.png, .svg or .pdf).")
@runtime_options
@json_option
@click.pass_obj
def evaluate(
    console: Console,
    /,
    model: Path,
    weights: Path | None,
    tasks: tuple[str, ...],
    chat: bool | None,
    text: Path | None,
    prompts: Path | None,
    haystack: Path | None,
    output: Path | None,
    plot: Path | None,
    runtime: str,
    cpu_math: str | None,
    as_json: bool,
    system: str | None,
    template_var: tuple[tuple[str, object], ...],
    chat_template: str | None,
    **options: Any,
) -> None:
    """Evaluate a model at long contexts: what it finds in a text, and how well it predicts one.

    MODEL is a bundle, or a checkpoint directory with --runtime torch. Texts with things to find are made by the
    command, in the manner of RULER. Each is read once, and every question about it is asked in a fork. docs/eval.md
    explains the tasks and figures. For example:

    \b
      sala-export eval sala.sala
      sala-export eval sala.sala --task passkey --lengths 8K,64K,256K --samples 2 -o results --plot heat.png
      sala-export eval sala.sala --task perplexity --text book.txt
    """
    from ..evaluation.run import EvaluatedModel, run_evaluation

    chosen = ChatOptions(system=system, template_var=template_var, chat_template=chat_template)
    words = _words(prompts, haystack)
    wanted = _tasks(tasks, prompts)
    scored = _text(text, wanted)
    with plot_file(plot) as save_plot:
        source, tokenizer = open_text_model(model, runtime=runtime, weights=weights)
        frame = _frame(tokenizer, chat, chosen)
        request = _request(wanted, options, words, scored, frame, chosen)
        loaded = load_weights(console, source, tokenizer, runtime=runtime, cpu_math=cpu_math)
        show_runtime(console, loaded, source)
        subject = EvaluatedModel(model=loaded, tokenizer=tokenizer, name=source.name, config=source.config)
        with progress_display(console) as on_progress:
            summary = run_evaluation(subject, request, output, on_progress)
        if save_plot is not None:
            from ..evaluation.plot import draw

            save_plot(draw(summary))
    if as_json:
        print_json(summary.to_dict())
    else:
        print_evaluation(table_console(), summary)


def _tasks(tasks: tuple[str, ...], prompts: Path | None) -> tuple[str, ...]:
    """The tasks, each once. Raises: RequestError for one that --prompts has no words for."""
    if prompts is None:
        return tuple(dict.fromkeys(tasks)) or TASKS
    for task in tasks:
        if task not in NEEDLE_TASKS:
            raise RequestError(f"--prompts {prompts} has words for passkey and multi-key, not for --task {task}")
    return tuple(dict.fromkeys(tasks)) or NEEDLE_TASKS


def _words(prompts: Path | None, haystack: Path | None) -> tuple[NeedleWords, dict[str, str | None]]:
    """The words of needles and filler, and the hashes of the files that they are from."""
    from ..evaluation.prompts import NeedleWords, ReadText, cut_from, read_words

    if prompts is not None and haystack is not None:
        raise RequestError(f"--haystack {haystack}: --prompts has filler already, leave one of the two out")
    hashes: dict[str, str | None] = {"prompts_sha256": None, "haystack_sha256": None}
    words = NeedleWords()
    if prompts is not None:
        words, hashes["prompts_sha256"] = read_words(prompts)
    if haystack is not None:
        read = ReadText.read(haystack, "--haystack")
        words, hashes["haystack_sha256"] = replace(words, filler=cut_from(read.text)), read.sha256
    return words, hashes


def _text(text: Path | None, tasks: tuple[str, ...]) -> ReadText | None:
    """The text of perplexity. Raises: RequestError if it cannot be read or is not asked for."""
    from ..evaluation.prompts import ReadText

    if text is None:
        return None
    if PERPLEXITY not in tasks:
        raise RequestError(f"--text {text} is for perplexity: give --task perplexity, too")
    return ReadText.read(text, "--text")


def _frame(tokenizer: Tokenizer, chat: bool | None, options: ChatOptions) -> Frame:
    """Text around prompts. Raises: as `Chat.choose`, and SessionError if the template looks at the prompt."""
    from ..evaluation.haystack import Frame

    is_chat = tokenizer.chat is not None if chat is None else chat
    require_sense(options, chat=is_chat, goes_on=False)
    if not is_chat:
        return Frame()
    template = Chat.choose(tokenizer, options)
    around = template.template.around_prompt(goes_on=False, system=template.system, **template.variables)
    return Frame(before=around.before, after=around.after, is_chat=True)


def _request(
    tasks: tuple[str, ...],
    options: dict[str, Any],
    words: tuple[NeedleWords, dict[str, str | None]],
    text: ReadText | None,
    frame: Frame,
    chat: ChatOptions,
) -> EvaluationRequest:
    from ..evaluation.run import EvaluationRequest
    from ..evaluation.tasks import TaskOptions

    return EvaluationRequest(
        tasks=tasks,
        lengths=options["lengths"],
        options=TaskOptions(depths=options["depths"], samples=options["samples"], seed=options["seed"], words=words[0]),
        max_new_tokens=options["max_new_tokens"],
        frame=frame,
        text=text,
        described={"chat": frame.is_chat, **chat, **words[1]},
    )
