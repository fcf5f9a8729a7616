"""Loading a bundle to run it: `load` gives a model, a model gives sessions, a session holds one context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ..errors import BundleError, RequestError, SessionError, StateError
from ..installation import onnxruntime_library as installed_onnxruntime
from ..specs import MOST_TOKENS, CpuMath
from .answer import answer_decoder
from .batch import BatchAnswer, batch_steps
from .options import (
    MOST_THREADS,
    GenerateOptions,
    bytes_limit,
    choice,
    file_path,
    flag,
    generate_options,
    listed,
    optional_number,
    optional_path,
    stop_strings,
    whole_number,
)
from .prompt import TokenizerLike, require_tokenizer
from .prompt_ids import TokenIds, known_ids
from .scheduler import DEFAULT_MAX_WAITING, Scheduler
from .session import Session, require_session

if TYPE_CHECKING:
    from ..bundle.reader import Bundle
    from ..files import TextFile
    from . import _native
    from .state_store import StateStore


class Model:
    """A loaded bundle. It is immutable and shared by its sessions, which may run in different threads."""

    def __init__(self, native: _native.Model, tokenizer: TokenizerLike | None) -> None:
        self._native = native
        self.tokenizer = tokenizer
        """None if the bundle has none."""

    @property
    def runtime(self) -> str:
        """Name of the engine that runs the model: `tensorrt` or `onnxruntime`."""
        return self._native.runtime

    @property
    def runtime_reason(self) -> str:
        """The reason why `auto` did not take TensorRT. Empty if it did, or if you chose a runtime yourself."""
        return self._native.runtime_reason

    @property
    def precision(self) -> str:
        """Type of activations and caches. You can restore a state where this and the model are the same."""
        return self._native.precision

    @property
    def fingerprint(self) -> str:
        """SHA-256 of configuration and weights. You can restore a state where this and the precision are the same."""
        return self._native.fingerprint

    @property
    def dense_len(self) -> int:
        """Tokens from which on a context is attended to sparsely. All tokens of a shorter one see each other."""
        return self._native.dense_len

    @property
    def on_gpu(self) -> bool:
        """True if weights and caches are in the memory of a GPU."""
        return not self._native.on_host

    def predicted_device_bytes(self, max_context: int, chunk_tokens: int) -> int | None:
        """Predict the bytes on the GPU while a session of these sizes runs. None if the engine cannot predict them."""
        return None

    @property
    def default_chunk_tokens(self) -> int:
        """Tokens per prefill step, unless you choose another number for a session."""
        return self._native.default_chunk_tokens

    @property
    def default_max_context(self) -> int:
        """Tokens that a session can hold, unless you choose another number for it."""
        return self._native.default_max_context

    @property
    def vocab_size(self) -> int:
        return self._native.vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return tuple(self._native.eos_token_ids)

    @property
    def stop_token_ids(self) -> list[int]:
        """The tokens that end a generation by default: those of the model, and those that the tokenizer's configs name.

        Raises: BundleError if the tokenizer names one outside the vocabulary.
        """
        tokenizer_stops = self.tokenizer.stop_token_ids if self.tokenizer else ()
        for token in tokenizer_stops:
            if not 0 <= token < self.vocab_size:
                raise BundleError(
                    f"the tokenizer's configs name stop token {token}, and the vocabulary ends at "
                    f"{self.vocab_size - 1}: use the tokenizer of this model"
                )
        return sorted({*self.eos_token_ids, *tokenizer_stops})

    @property
    def cache_bytes(self) -> int:
        """Bytes that the caches of all sessions of this model take. What forks share counts once."""
        return self._native.cache_bytes

    def session(
        self,
        *,
        max_context: int | None = None,
        chunk_tokens: int | None = None,
        max_checkpoints: int | None = None,
    ) -> Session:
        """Create a session with an empty context.

        Args:
            max_context: tokens that the session can hold. By default what the model was made for. A session takes the
                memory of the tokens that it holds.
            chunk_tokens: tokens per prefill step. By default the engine chooses. Results do not depend on it.
            max_checkpoints: checkpoints that the session keeps to rewind to, 8 by default. `Session.checkpoints` says
                where they are, and what one takes.
        Raises: SessionError for sizes that the engine does not serve; RunError if there is no memory.
        """
        native = self._native.create_session(_session_options(max_context, chunk_tokens, max_checkpoints))
        return Session(native, self._native, self.tokenizer, self.stop_token_ids)

    def restore(
        self,
        path: str | Path,
        *,
        max_context: int | None = None,
        chunk_tokens: int | None = None,
        max_checkpoints: int | None = None,
    ) -> Session:
        """Create a session from a file of `Session.save`. It may have another `max_context`.

        Raises: StateError if the file is no state of this model and precision, SessionError if it does not fit.
        """
        options = _session_options(max_context, chunk_tokens, max_checkpoints)
        native = self._native.restore(file_path("the state", path, StateError), options)
        return Session(native, self._native, self.tokenizer, self.stop_token_ids)

    def restore_longest(
        self,
        store: StateStore,
        token_ids: TokenIds,
        *,
        max_context: int | None = None,
        chunk_tokens: int | None = None,
        max_checkpoints: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Session:
        """Create a session with as many of these tokens, from the first on, as a state of the store has.

        Read the others if there are any:

            session = llm.restore_longest(store, token_ids)
            if session.position < len(token_ids):
                session.prefill(token_ids[session.position :])

        If a file of a state is damaged or missing, a warning is logged, the states that need the file are dropped, and
        the next longest is taken.

        Args:
            on_progress: called with the files that have been read and how many there are in all. What it raises ends
                it and comes out.
        Returns: a session at position 0 if the store has nothing that fits.
        Raises: StateError if the store is of another model or precision, or cannot be used; SessionError for what are
            no token ids; otherwise as `session`.
        """
        ids = known_ids(token_ids)
        options = _session_options(max_context, chunk_tokens, max_checkpoints)
        most = self._native.default_max_context if max_context is None else max_context
        found = store.restore(self._native, ids[:most], options, on_progress=on_progress)
        if found is None:
            return self.session(max_context=max_context, chunk_tokens=chunk_tokens, max_checkpoints=max_checkpoints)
        native, segments = found
        return Session(native, self._native, self.tokenizer, self.stop_token_ids, segments)

    def state_bytes(self, tokens: int) -> int:
        """Bytes of the file that a session of so many tokens saves.

        If the last token was generated, it has not run yet, and the file takes a little less.
        Raises: SessionError for more tokens than a session can hold.
        """
        return self._native.state_bytes(whole_number("tokens", tokens, 0, MOST_TOKENS))

    def generate_batch(self, sessions: Sequence[Session], **options: Unpack[GenerateOptions]) -> Iterator[list[str]]:
        """Yield the answers of several sessions, piece by piece. One step of the engine serves all of them.

        For example, ask two questions about one book at the same time:

            who, where = book.fork(), book.fork()
            who.prefill("Who is Natasha?")
            where.prefill("Where does it begin?")
            for pieces in llm.generate_batch([who, where]):
                ...

        Each list has a piece of text for each session, in their order. It is empty where nothing is certain yet, and
        for a session whose answer has ended. `Session.finish_reason` tells why.

        Args:
            sessions: of this model and of the same `max_context`, each once, with contexts of any lengths. You cannot
                use them otherwise before their answers have ended or you leave the iterator.
            options: as in `Session.generate`, for all sessions. Session number i draws with `seed + i`.
        Raises: SessionError for wrong options or sessions, or more of them than a step of the engine serves. RunError
            if a step fails. If there is no memory for one session, its answer ends, the others go on, and its RunError
            is raised when they have ended.
        """
        tokenizer = require_tokenizer(self.tokenizer)
        chosen, options = [*map(require_session, sessions)], listed(options)
        answers = [BatchAnswer(answer_decoder(tokenizer, options.get("stop_strings"))) for _ in chosen]
        return (pieces for _, pieces in batch_steps(self._native, chosen, answers, options, self.stop_token_ids))

    def generate_batch_tokens(
        self, sessions: Sequence[Session], **options: Unpack[GenerateOptions]
    ) -> Iterator[list[int | None]]:
        """Yield the next token id of each session. None for those whose answers have ended.

        Everything else is as in `generate_batch`. `stop_strings` need a tokenizer.
        """
        chosen, options = [*map(require_session, sessions)], listed(options)
        strings = options.get("stop_strings")
        answers = [
            BatchAnswer(None if strings is None else answer_decoder(require_tokenizer(self.tokenizer), strings))
            for _ in chosen
        ]
        return (ids for ids, _ in batch_steps(self._native, chosen, answers, options, self.stop_token_ids))

    def scheduler(
        self,
        *,
        max_running: int | None = None,
        max_waiting: int = DEFAULT_MAX_WAITING,
        max_cache_bytes: int | str | None = None,
        prefill_share: float = 0.5,
    ) -> Scheduler:
        """Create a scheduler, which runs the requests of many sessions side by side.

        Prompts run chunk by chunk, and between the chunks the answers are drawn, one step of the engine for all of
        them. A session gives the tokens that it gives alone, whatever runs beside it, but for the rounding of sums.

        * The waiting request of the highest priority begins first, and the oldest of these. It begins when there is
          memory for its prompt and its longest answer. Nobody overtakes it. What has begun goes on.
        * Prompts of the highest priority run first. Equal ones take a chunk in turn.
        * Sessions of the same `max_context` share steps. Others take a step each.

        Args:
            max_running: requests that run at once, each with its prompt or its answer. The others wait. By default 8,
                or as many as a step of the engine serves.
            max_waiting: requests that may wait. One more is refused.
            max_cache_bytes: bytes that the caches of all sessions of this model may take, such as "20G". By default
                what the GPU has. Without a GPU you must give it if memory is short.
            prefill_share: share of the time that goes to prompts while answers are being drawn, between 0 and 1. A
                smaller `chunk_tokens` of the sessions makes the turns shorter.
        Raises: SessionError naming the option that is wrong.
        """
        return Scheduler(
            self._native,
            self.tokenizer,
            self.stop_token_ids,
            max_running=max_running,
            max_waiting=max_waiting,
            max_cache_bytes=bytes_limit("max_cache_bytes", max_cache_bytes, SessionError),
            prefill_share=prefill_share,
        )

    def check_generate(self, **options: Unpack[GenerateOptions]) -> None:
        """Check options of `Session.generate` before there is anything to generate from.

        Raises: SessionError naming the first option that is wrong, its value and what is expected.
        """
        stop_strings(options.get("stop_strings"))
        self._native.check_generate(generate_options(options, self.stop_token_ids))


def _session_options(
    max_context: int | None, chunk_tokens: int | None, max_checkpoints: int | None
) -> _native.SessionOptions:
    from . import _native

    return _native.SessionOptions(
        max_context=optional_number("max_context", max_context, 1, MOST_TOKENS),
        chunk_tokens=optional_number("chunk_tokens", chunk_tokens, 1, MOST_TOKENS),
        max_checkpoints=optional_number("max_checkpoints", max_checkpoints, 0, MOST_TOKENS),
    )


def load_bundle(
    bundle: str | Path | Bundle,
    *,
    runtime: str = "auto",
    weights: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    threads: int = 0,
    cpu_math: str | None = None,
    verify_hashes: bool = False,
    tokenizer: TokenizerLike | None = None,
    onnxruntime_library: Path | None = None,
    operators_library: Path | None = None,
    tensorrt_library: Path | None = None,
    runtime_cache: Path | None = None,
    decode_graph: bool = True,
) -> Model:
    """Load a bundle directory, or a bundle that is open.

    Files are opened once, and whatever is loaded is hashed. If the bundle is replaced meanwhile, the model is wholly
    the old one or the new one, tokenizer included, or the load is refused.

    Args:
        runtime: `tensorrt` runs the engine on a GPU that it was built for. `onnxruntime` runs on the CPU, whatever
            GPUs those were. `auto` takes TensorRT if such a GPU and the library are here, and `Model.runtime_reason`
            tells why not.
        weights: a checkpoint directory whose weights take the place of the bundle's, a fine-tune for example: of the
            same configuration, names, types and shapes.
        on_progress: called with the bytes of weights loaded so far and in all. If it raises, the load ends.
        threads: threads that load weights and, on the CPU, compute, at most 1,024. 0 takes all cores.
        cpu_math: arithmetic on the CPU, `exact` (the default) or `fast`.
        verify_hashes: compare every file with its hash. Of the weights, only what is loaded is compared.
        tokenizer: a tokenizer to use instead of the bundle's own.
        onnxruntime_library, operators_library, tensorrt_library: libonnxruntime, libsala_ort and libtensorrt_rtx (or
            libnvinfer) to use instead of those installed.
        runtime_cache: file where TensorRT for RTX keeps what it compiled for this GPU; by default beside the bundle,
            where that folder can be written. It holds code: keep it as safe as the bundle.
        decode_graph: replay a captured decode step. False enqueues every step.
    Raises: BundleError if the bundle is missing, damaged, of another schema or without weights, or if `weights` are not
        of its form; UnsupportedError if the runtime's library, driver or GPU is missing or another than needed;
        RequestError or SessionError for a wrong option; RunError if there is no memory.
    """
    # Here, not above: the command line must start without these libraries.
    from ..bundle.reader import Bundle
    from . import _native

    threads = whole_number("threads", threads, 0, MOST_THREADS)
    math = CpuMath.EXACT if cpu_math is None else choice("cpu_math", cpu_math, tuple(CpuMath))
    verify_hashes, decode_graph = flag("verify_hashes", verify_hashes), flag("decode_graph", decode_graph)
    weights = optional_path("weights", weights, BundleError)
    onnxruntime_library = optional_path("onnxruntime_library", onnxruntime_library, RequestError)
    operators_library = optional_path("operators_library", operators_library, RequestError)
    tensorrt_library = optional_path("tensorrt_library", tensorrt_library, RequestError)
    runtime_cache = optional_path("runtime_cache", runtime_cache, RequestError)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
    if tokenizer is None:
        tokenizer = tokenizer_of(opened.text_files())
    native = _native.Model.load(
        opened.directory,
        bundle_descriptor=opened.descriptor,
        manifest_sha256=opened.manifest_sha256,
        runtime=runtime,
        onnxruntime_library=onnxruntime_library or installed_onnxruntime(),
        operators_library=operators_library,
        tensorrt_library=tensorrt_library,
        runtime_cache=runtime_cache,
        decode_graph=decode_graph,
        weights=weights,
        on_progress=on_progress,
        threads=threads,
        cpu_math=math,
        verify_hashes=verify_hashes,
    )
    return Model(native, tokenizer)


def tokenizer_of(text_files: Mapping[str, TextFile]) -> TokenizerLike | None:
    """The tokenizer that these files make. None if there are none. Raises: BundleError naming a malformed file."""
    if not text_files:
        return None
    # Here, not above: token ids need no tokenizer library.
    from .text import Tokenizer

    return Tokenizer.from_files(text_files)
