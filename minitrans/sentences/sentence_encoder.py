"""SentenceEncoder: a model folder or hub name in, embeddings out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.arguments import check_choice, check_flag, check_int
from minitrans.backends import check_backend, load_blocks
from minitrans.encoder.forward import Encoded, forward
from minitrans.encoder.packing import PackedBatch, pack, segments
from minitrans.encoder.policy import PruningPolicy, as_policy
from minitrans.encoder.pooling import normalized, pool_encoded
from minitrans.errors import InputError, MinitransError, NumericalError
from minitrans.hub.names import DEFAULT_MODEL
from minitrans.hub.resolve import resolve
from minitrans.models.folder import ModelFolder
from minitrans.models.identity import Identity, weight_states, weights_identity, weights_read_again
from minitrans.models.parameters import Float32
from minitrans.models.quantization import PRECISIONS, with_precision
from minitrans.models.sentence import PoolingConfig, SimilarityName, check_prompts, sentence_settings
from minitrans.models.tokenization.tokenizer import Tokenized, Tokenizer, check_max_seq_length
from minitrans.models.weights import load_parameters
from minitrans.sentences.batches import over_texts
from minitrans.sentences.call import (
    Call,
    Lengths,
    OnTruncation,
    Progress,
    PrunedText,
    as_texts,
    check_options,
    output_array,
)
from minitrans.sentences.threads import resolve_threads
from minitrans.sentences.vectors import (
    DTYPES,
    check_precision,
    output_width,
    similarity,
    similarity_pairwise,
    to_precision,
)

T = TypeVar("T")

QUERY_PROMPTS, DOCUMENT_PROMPTS = ("query",), ("document", "passage", "corpus")  # the first that a model has


class SentenceEncoder:
    """A sentence encoder on the CPU, without torch: the part of ``SentenceTransformer`` that encodes.

    The embedding of a text is the same to the last bit whatever the other texts of the call, their order,
    ``batch_size`` and ``threads``. An encoder may be called from several threads at once, in a forked child, and in the
    middle of another of its calls, as by a signal handler. A call goes by the settings that there are when it begins.

    Args:
        model_name_or_path: a model folder, a name on the hub, or None for the bundled int8 all-MiniLM-L6-v2, which
            never touches the network.
        revision: branch, tag or commit on the hub; None takes the pinned one of a known model.
        cache_folder: where downloads go; None follows HF_HOME and its kin.
        local_files_only: fail rather than open a connection.
        token: for private models of the hub.
        backend: "auto", or the name of one; ``encoder.backend`` says which is in use.
        precision: of the weights: "auto" as stored, "int8" or "float32".
        pruning: a PruningPolicy for every call of encode, the name of one that travels with minitrans (see
            minitrans.encoder.policy_files.shipped_policies), or None.
        threads: how many chunks run at once; None takes every processor that affinity and cgroup quota allow.
        truncate_dim: keep only the first dimensions of every embedding (for models trained for it).
        prompts: name -> text put before every text; added to the model's own.
        default_prompt_name: which of them to use when a call names none.
        similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan"; None takes the model's own.
        on_truncation: what happens when texts are longer than ``max_seq_length``: "warn" once per call with their
            count, raise an "error", or "ignore".

    Raises:
        ModelNotFoundError, DownloadError, DigestError: the model could not be had.
        ModelError: it is broken or not supported; the message says what is wrong and where.
        PolicyError: the pruning policy does not fit the model.
        BackendError: the backend cannot run here.
        InputError: another argument is out of range.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        backend: str = "auto",
        precision: str = "auto",
        pruning: PruningPolicy | str | None = None,
        threads: int | None = None,
        truncate_dim: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: SimilarityName | None = None,
        on_truncation: OnTruncation = "warn",
    ) -> None:
        self.threads = resolve_threads(threads)
        check_flag("local_files_only", local_files_only)
        check_choice("on_truncation", on_truncation, get_args(OnTruncation))
        check_choice("precision", precision, PRECISIONS)
        check_backend(backend)
        if similarity_fn_name is not None:
            check_choice("similarity_fn_name", similarity_fn_name, get_args(SimilarityName))
        if truncate_dim is not None:
            check_int("truncate_dim", truncate_dim)
        given = check_prompts({} if prompts is None else prompts, "SentenceEncoder")
        self.on_truncation = on_truncation
        self.folder = resolve(
            model_name_or_path,
            revision=revision,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            token=token,
        )
        name = DEFAULT_MODEL if model_name_or_path is None else os.fspath(model_name_or_path)
        self.name_or_path = str(self.folder) if Path(name).is_dir() else name  # a path holds from any directory
        folder = ModelFolder.open(self.folder)
        settings = sentence_settings(folder)
        self._weight_files = weight_states(folder)
        stored = load_parameters(folder)
        parameters = with_precision(stored, precision)
        self.config = parameters.config
        self.precision = parameters.precision
        self._dequantized = (stored.precision, parameters.precision) == ("int8", "float32")
        self.pooling = PoolingConfig.from_folder(folder, self.config.hidden_size)
        self.tokenizer = Tokenizer.from_folder(folder, self.config)
        self.blocks = load_blocks(backend, parameters)
        self.backend = self.blocks.name
        policy = as_policy(pruning)
        if policy is not None and policy.fitted is not None:  # while the weights are at hand
            self.fingerprint = weights_identity(folder, stored)
        self.pruning = self._check_policy(policy)
        self.truncate_dim = settings.get("truncate_dim") if truncate_dim is None else truncate_dim
        self.prompts: dict[str, str] = settings.get("prompts", {}) | given
        default = settings.get("default_prompt_name") if default_prompt_name is None else default_prompt_name
        self.default_prompt_name: str | None = default
        self._prompt(None, None)  # refuses a default that there is not
        self.similarity_fn_name: SimilarityName = similarity_fn_name or settings.get("similarity_fn_name") or "cosine"

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, special tokens included; what is longer loses its end. May be set."""
        return self.tokenizer.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.tokenizer.max_seq_length = check_max_seq_length(value, self.tokenizer.least, self.config)

    def get_embedding_dimension(self) -> int:
        """Numbers per embedding, after ``truncate_dim``."""
        return self._dimension(None)

    get_sentence_embedding_dimension = get_embedding_dimension  # the name in older sentence-transformers

    @property
    def identity(self) -> Identity:
        """Which encoder this is: all that an embedding depends on, as it is now set.

        ModelError if the weight files were changed since they were read: the first use reads them again.
        """
        dimension = self._dimension(None)
        whole = self.config.hidden_size * len(self.pooling.modes)
        return Identity.of(
            self.fingerprint,
            self.tokenizer.sha256,
            self.pooling,
            None if dimension == whole else dimension,
            self._checked_prompts(),
            self.default_prompt,
            "float32 from int8" if self._dequantized else self.precision,
        )

    @cached_property
    def fingerprint(self) -> str:
        """The weights' part of `identity`: what a policy with fitted arrays is for (``Fitted.model``)."""
        return weights_read_again(self.folder, self.config, self._weight_files)

    @overload
    def encode(  # type: ignore[overload-overlap]
        self,
        sentences: str,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        show_progress_bar: bool | None = ...,
        output_value: Literal["sentence_embedding", "token_embeddings"] = ...,
        precision: str = ...,
        *,
        normalize_embeddings: bool = ...,
        truncate_dim: int | None = ...,
        convert_to_numpy: Literal[True] = ...,
        pruning: PruningPolicy | str | None = ...,
        out: NDArray[Any] | None = ...,
    ) -> NDArray[Any]: ...
    @overload
    def encode(
        self,
        sentences: Iterable[str],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        show_progress_bar: bool | None = ...,
        output_value: Literal["sentence_embedding"] = ...,
        precision: str = ...,
        *,
        normalize_embeddings: bool = ...,
        truncate_dim: int | None = ...,
        convert_to_numpy: Literal[True] = ...,
        pruning: PruningPolicy | str | None = ...,
        out: NDArray[Any] | None = ...,
    ) -> NDArray[Any]: ...
    @overload
    def encode(
        self,
        sentences: Iterable[str],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        show_progress_bar: bool | None = ...,
        *,
        output_value: Literal["token_embeddings"],
        precision: Literal["float32"] = ...,
        normalize_embeddings: bool = ...,
        truncate_dim: int | None = ...,
        convert_to_numpy: Literal[True] = ...,
        pruning: PruningPolicy | str | None = ...,
        out: NDArray[Any] | None = ...,
    ) -> list[NDArray[Any]]: ...
    def encode(
        self,
        sentences: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        precision: str = "float32",
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        convert_to_numpy: Literal[True] = True,
        pruning: PruningPolicy | str | None = "inherit",
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any] | list[NDArray[Any]]:
        """Embed one text or many.

        The first seven arguments have the order, names and defaults of ``SentenceTransformer.encode``, of which the
        first is called ``inputs`` in its later releases. The others go by name; it has more of them.

        Args:
            sentences: a str gives one vector [H]; a list or any other iterable of str gives [B, H].
            prompt_name: which of ``prompts`` to put before every text.
            prompt: the text itself; wins over ``prompt_name``.
            batch_size: most texts in one chunk of work. It has no influence on the result.
            show_progress_bar: None shows one on a terminal when the "minitrans" logger is at INFO or below.
            output_value: "sentence_embedding", or "token_embeddings": one array [n, H] per text, n being the tokens
                that pruning left.
            precision: number format of the embeddings: "float32", "int8", "uint8", "binary", "ubinary"
                (see minitrans.sentences.vectors.to_precision).
            normalize_embeddings: scale every embedding to length 1.
            truncate_dim: keep only the first dimensions; None takes the encoder's own.
            convert_to_numpy: True; here so that calls written for sentence-transformers run.
            pruning: a PruningPolicy or the name of one, None for no pruning, or "inherit" for the encoder's own. Texts
                of other lengths than it was fitted on are counted in a PruningWarning.
            out: an array [B, H] of the right dtype to write into, for example a memmap.

        Returns:
            float32 [H] or [B, H], or the format of ``precision``; a list of arrays for "token_embeddings".

        Raises:
            InputTypeError: an item is not a str; the message names its index and type.
            InputError: an argument is out of range.
            TruncationError: a text is too long and ``on_truncation`` is "error".
            PolicyError: the policy does not fit the model.
            NumericalError: NaN or infinity inside the model, with the layer.
        """
        check_choice("output_value", output_value, ("sentence_embedding", "token_embeddings"))
        if not check_flag("convert_to_numpy", convert_to_numpy):
            raise InputError("convert_to_numpy is False, wanted True: embeddings are NumPy arrays")
        if show_progress_bar is not None:
            check_flag("show_progress_bar", show_progress_bar)
        texts = as_texts(sentences)
        prompt = self._prompt(prompt, prompt_name)
        call = self._call(pruning, batch_size, precision, normalize_embeddings, truncate_dim)
        single = isinstance(sentences, str)
        if output_value == "token_embeddings":
            if out is not None or call.precision != "float32":
                raise InputError("token_embeddings come as a list of float32 arrays: leave out `out` and `precision`")
            if call.normalize or truncate_dim is not None:
                raise InputError("token_embeddings come whole: leave out `normalize_embeddings` and `truncate_dim`")
            tokens: list[NDArray[Any]] = [np.empty(0)] * len(texts)
            for place, encoded in self._run(texts, prompt, call, show_progress_bar, lambda encoded: encoded):
                tokens[place] = [encoded.hidden[rows] for rows in segments(encoded.offsets)]
            return tokens[0] if single else tokens
        shape = (len(texts), output_width(call.dimension, call.precision))
        vectors = output_array(out, shape, DTYPES[call.precision])
        run = self._run(texts, prompt, call, show_progress_bar, lambda encoded: self._pool(encoded, call))
        for place, pooled in run:
            vectors[place] = pooled
        return vectors[0] if single else vectors

    def encode_query(self, sentences: str | Iterable[str], **options: Any) -> NDArray[Any] | list[NDArray[Any]]:
        """``encode`` with the model's prompt for queries, where it has one."""
        return self.encode(sentences, **self._with_prompt(options, QUERY_PROMPTS))

    def encode_document(self, sentences: str | Iterable[str], **options: Any) -> NDArray[Any] | list[NDArray[Any]]:
        """``encode`` with the model's prompt for documents, where it has one."""
        return self.encode(sentences, **self._with_prompt(options, DOCUMENT_PROMPTS))

    def pruned_tokens(
        self, sentences: str | Iterable[str], *, pruning: PruningPolicy | str | None = "inherit"
    ) -> list[PrunedText]:
        """The tokens of each of ``sentences``, and which of them ``pruning`` keeps; errors as for ``encode``."""
        call = self._call(pruning)
        texts = as_texts(sentences)
        results: list[PrunedText] = []
        for _, encoded in self._run(texts, self._prompt(None, None), call, False, lambda encoded: encoded):
            left = np.isin(np.arange(len(encoded.batch.ids)), encoded.rows)  # [T]
            for text in segments(encoded.batch.offsets):
                tokens = self.tokenizer.tokens(encoded.batch.ids[text].tolist())
                results.append(PrunedText(tokens, left[text].tolist()))
        return results

    def tokenize(self, sentences: str | Iterable[str], *, prompt_name: str | None = None) -> PackedBatch:
        """The texts as the layers get them: behind their prompt, cut at ``max_seq_length``, packed without padding.

        What `minitrans.encoder.forward.forward` takes. ``sentences``, ``prompt_name`` and errors as for ``encode``.
        """
        return pack(self.tokenized(sentences, prompt_name).ids, self.tokenizer.prefix, self.tokenizer.suffix)

    def tokenized(self, sentences: str | Iterable[str], prompt_name: str | None = None) -> Tokenized:
        """The ids that `tokenize` packs of ``sentences`` and ``prompt_name``, and how many there were uncut."""
        prompt, texts, call = self._prompt(None, prompt_name), as_texts(sentences), self._call(None)
        found = self.tokenizer.encode([prompt + text for text in texts])
        lengths = Lengths(call)
        lengths.add(found.lengths, 0)
        lengths.warn(len(texts), 4)
        return found

    @property
    def default_prompt(self) -> str:
        """What stands before every text of a call that names no prompt; "" without a default."""
        return self._prompt(None, None)

    def policy_for(self, pruning: PruningPolicy | str | None) -> PruningPolicy | None:
        """The policy that a call with this ``pruning`` uses, as ``encode`` takes it. PolicyError if it does not fit."""
        inherit = isinstance(pruning, str) and pruning == "inherit"
        return self._check_policy(self.pruning if inherit else pruning)

    def similarity(self, a: ArrayLike, b: ArrayLike) -> Float32:
        """Similarity of every embedding in a [B, H] with every one in b [B', H]: [B, B']."""
        return similarity(a, b, self.similarity_fn_name)

    def similarity_pairwise(self, a: ArrayLike, b: ArrayLike) -> Float32:
        """Similarity of embedding i of a with embedding i of b: [B]."""
        return similarity_pairwise(a, b, self.similarity_fn_name)

    def info(self) -> dict[str, Any]:
        """What runs, in plain JSON values: model, sizes, backend, precision, threads."""
        return {
            "model": self.name_or_path,
            "folder": str(self.folder),
            "identity": self.identity.to_dict(),
            "backend": self.backend,
            **self.blocks.info(),
            "precision": self.precision,
            "threads": self.threads,
            "layers": self.config.num_hidden_layers,
            "heads": self.config.num_attention_heads,
            "hidden_size": self.config.hidden_size,
            "vocab_size": self.config.vocab_size,
            "max_seq_length": self.max_seq_length,
            "embedding_dimension": self.get_embedding_dimension(),
            "pooling": "+".join(self.pooling.modes) + (", normalized" if self.pooling.normalize else ""),
            "pruning": None if self.pruning is None else self.pruning.to_dict(),
        }

    def __getstate__(self) -> dict[str, Any]:
        with suppress(MinitransError):
            _ = self.fingerprint  # where it goes, the files may be others
        return self.__dict__

    def __repr__(self) -> str:
        return f"SentenceEncoder({self.name_or_path!r}, backend={self.backend!r}, precision={self.precision!r})"

    def _run(
        self, texts: Sequence[str], prompt: str, call: Call, bar: bool | None, work: Callable[[Encoded], T]
    ) -> Iterator[tuple[slice, T]]:
        """Encode all texts; yields which texts, and what ``work`` made of them, in order."""
        lengths = Lengths(call)
        results = over_texts(
            self.blocks,
            self.tokenizer,
            [prompt + text for text in texts] if prompt else texts,
            lambda blocks, batch: work(forward(blocks, batch, call.policy)),
            threads=call.threads,
            limit=call.limit,
            batch_size=call.batch_size,
            told=lengths.add,
        )
        with (progress := Progress(len(texts), bar)):
            for place, result in results:
                yield place, result
                progress.update(place.stop - place.start)
        lengths.warn(len(texts), 4)

    def _call(
        self,
        pruning: PruningPolicy | str | None,
        batch_size: int = 32,
        precision: str = "float32",
        normalize: bool = False,
        truncate_dim: int | None = None,
    ) -> Call:
        """What a call asks for; the settings of the encoder are read here, once, and checked as they may be set."""
        check_choice("on_truncation", self.on_truncation, get_args(OnTruncation))
        return Call(
            check_int("batch_size", batch_size),
            self.policy_for(pruning),
            check_precision(precision),
            check_flag("normalize_embeddings", normalize),
            self._dimension(truncate_dim),
            self.max_seq_length,
            self.on_truncation,
            resolve_threads(self.threads),
        )

    def _pool(self, encoded: Encoded, call: Call) -> NDArray[Any]:
        vectors = pool_encoded(encoded, self.pooling)  # [B, H]
        if not np.isfinite(vectors).all():
            raise NumericalError("the pooling overflowed: finite hidden states near the end of float32's range")
        vectors = vectors[:, : call.dimension]
        return to_precision(normalized(vectors) if call.normalize else vectors, call.precision)

    def _check_policy(self, policy: object) -> PruningPolicy | None:
        policy = as_policy(policy)
        if policy is not None:
            weights = None if policy.fitted is None else self.fingerprint
            policy.check_fits(self.config, self.pooling.modes, weights)
        return policy

    def _dimension(self, truncate_dim: int | None) -> int:
        whole = self.config.hidden_size * len(self.pooling.modes)
        value = self.truncate_dim if truncate_dim is None else truncate_dim
        return whole if value is None else min(check_int("truncate_dim", value), whole)

    def _checked_prompts(self) -> dict[str, str]:
        return check_prompts(self.prompts, "SentenceEncoder.prompts")

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None:
            return check_prompts({"prompt": prompt}, "encode")["prompt"]
        name = self.default_prompt_name if name is None else name
        if name is None:
            return ""
        prompts = self._checked_prompts()
        if not isinstance(name, str) or name not in prompts:
            raise InputError(f"prompt_name is {name!r:.100}, this model has {sorted(prompts) or 'no prompts'}")
        return prompts[name]

    def _with_prompt(self, options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
        check_options(options, SentenceEncoder.encode.__code__)
        if options.get("prompt") is None and options.get("prompt_name") is None:
            prompts = self._checked_prompts()
            name = next((name for name in names if name in prompts), None)
            # No such prompt is no prompt, not the default one.
            options |= {"prompt": ""} if name is None else {"prompt_name": name}
        return options
