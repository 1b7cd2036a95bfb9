"""The whole audit of a model folder: one call, one verdict."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from minitrans import __version__
from minitrans.arguments import check_choice
from minitrans.audit import oracle, sentence_oracle
from minitrans.audit.checks import (
    FOLDER,
    INVARIANCE,
    NUMBERS,
    PEER,
    PRUNING,
    SENTENCES,
    Audit,
    Check,
    broken,
    judged,
    skipped,
)
from minitrans.audit.comparison import (
    NUMBER_CHECKS,
    TEXTS,
    Sample,
    embed,
    int8_check,
    number_checks,
    probe_texts,
    pruning_check,
)
from minitrans.audit.digests import Digests
from minitrans.audit.folder import audit_folder, declared_tokens, named_model
from minitrans.audit.invariance import invariance_check
from minitrans.audit.tensors import NO_ORIGINAL
from minitrans.backends import load_blocks
from minitrans.encoder.blocks import Blocks
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.policy_files import shipped_policies
from minitrans.errors import BackendError, DigestError, InputError, MinitransError, ModelNotFoundError, PolicyError
from minitrans.hub.names import DEFAULT_MODEL
from minitrans.hub.resolve import find_local
from minitrans.models.folder import ModelFolder
from minitrans.models.identity import PROVENANCE
from minitrans.models.parameters import Float32, Parameters
from minitrans.models.quantization import with_precision
from minitrans.models.weights import load_parameters
from minitrans.sentences.call import as_texts
from minitrans.sentences.sentence_encoder import SentenceEncoder
from minitrans.sentences.threads import resolve_threads

PEERS = {PEER: oracle, SENTENCES: sentence_oracle}
NO_KERNELS = "there are no compiled kernels to compare the reference with"
Tell = Callable[[str], None]


def sign_off(
    model: str | os.PathLike[str] | None = None,
    *,
    against: str | None = None,
    texts: Iterable[str] = (),
    pruning: Mapping[str, PruningPolicy] | None = None,
    threads: int | None = None,
    digests: Digests | None = None,
    original: str | os.PathLike[str] | None = None,
    known_as: str | None = None,
    progress: Tell | None = None,
) -> Audit:
    """Check everything about a model folder that can be checked on this machine; nothing is downloaded.

    Args:
        model: a folder or a name; None for the bundled model.
        against: "transformers" or "sentence-transformers" insists on the comparison with it, which is otherwise made
            where it is installed.
        texts: to be compared on, besides the built-in ones.
        pruning: name -> policy to be checked, besides the default one and those that travel with minitrans for this
            model.
        threads: one more number of threads that must not change a bit, besides 1, 2 and 4.
        digests: what the folder has to be, as an auditor wrote it down earlier.
        original: the float32 folder that an int8 model was made from; None looks for it on this machine.
        known_as: the published model that it must be, by name; "none" for none of them; None finds out.
        progress: told what is being checked.

    Returns:
        Every check. A broken model gives failed checks, not an error.

    Raises:
        ModelNotFoundError: the model is not on this machine.
        PolicyError: a policy of ``pruning`` does not fit the model.
        InputError, InputTypeError: another argument cannot be used; ``against`` is not installed; the folder holds no
            model at all.
    """
    tell = progress or (lambda _: None)
    if against is not None:
        check_choice("against", against, PEERS)
    why_not = {name: peer.why_not() for name, peer in PEERS.items()}
    if against is not None and why_not[against] is not None:
        raise InputError(f"no comparison with {against}: {why_not[against]}; {oracle.REMEDY}")
    resolve_threads(threads)
    if known_as is not None:
        named_model(known_as)
    sample_texts = (*TEXTS, *as_texts(texts))
    name = DEFAULT_MODEL if model is None else os.fspath(model)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    versions = {"minitrans": __version__, "numpy": np.__version__, "Python": platform.python_version()}
    machine = {"architecture": platform.machine(), "system": platform.system()}
    try:
        folder = _find(model)
    except DigestError as error:
        check = judged(FOLDER, "published digests", False, "a damaged copy", "the published files", [str(error)])
        return Audit(name, "", None, date, versions, machine, (check,), identity="published digests")
    tell("folder")
    source = None if original is None else _find(original)
    is_path = model is not None and Path(name).expanduser().is_dir()
    found = audit_folder(folder, None if is_path else name, digests, source, known_as)
    try:
        loaded = _load(folder, sample_texts)
    except MinitransError as error:
        groups = (NUMBERS, PRUNING, PEER, SENTENCES, INVARIANCE)
        loads = judged(FOLDER, "loads", False, "no", "without an error", [str(error)])
        rest = [skipped(group, "all", "the model cannot be used") for group in groups]
        written, identity, of_encoder = found.digests, None, []
    else:
        encoder = loaded.encoder
        machine |= {key: value for key, value in encoder.blocks.info().items() if value is not None}
        machine |= {"backend": encoder.backend, "precision": encoder.precision, "threads": str(encoder.threads)}
        for each, peer in PEERS.items():
            versions |= {} if why_not[each] else oracle.versions(peer.MODULES)
        how = f"in {encoder.precision}, on the {encoder.backend} backend"
        loads = judged(FOLDER, "loads", True, how, "without an error")
        identity = encoder.identity
        of_encoder = [_identity(folder, loaded, found.original, digests)]
        written = replace(found.digests, identity=identity)
        given = pruning or {}
        policies = _policies(encoder, given)
        rest = [
            *_numbers(loaded, found.original, tell),
            *_pruning(loaded, policies, tell),
            *_peers(folder, loaded, policies, why_not, tell),
            *_invariance(loaded, policies, given, threads, tell),
        ]
    of_folder = [check for check in found.checks if check.group == FOLDER]
    checks = *of_folder, loads, *of_encoder, *(check for check in found.checks if check.group != FOLDER), *rest
    known = None if found.known is None else found.known.name
    return Audit(name, str(folder), known, date, versions, machine, checks, written, found.identity, identity)


def _find(model: str | os.PathLike[str] | None) -> Path:
    """The folder of a model on this machine. ModelNotFoundError says how to fetch it."""
    folder = find_local(model)
    if folder is None:
        raise ModelNotFoundError(
            f"{model} is not on this machine, and an audit downloads nothing; fetch it with `minitrans pull {model}`, "
            "or give the path of a model folder"
        )
    return folder


@dataclass
class Loaded:
    """A model that can be run: as users run it, and in every backend and precision that this machine has."""

    encoder: SentenceEncoder
    sample: Sample
    probes: Sample  # these texts and more: what tokenizers are known to treat differently
    parameters: Mapping[str, Parameters]  # by precision, the stored one first
    missing: dict[str, str]  # precision or backend -> why it is not there
    _last: tuple[str, dict[str, Blocks]] = ("", {})

    def backends(self, precision: str) -> dict[str, Blocks]:
        """Name -> backend; laid out anew when the precision changes, as a large model fills the memory with each."""
        if self._last[0] != precision:
            self._last = precision, {}
            for backend in ("reference", "compiled"):
                try:
                    self._last[1][backend] = load_blocks(backend, self.parameters[precision])
                except BackendError as error:
                    self.missing[backend] = str(error)
        return self._last[1]


def _load(folder: Path, texts: Iterable[str]) -> Loaded:
    encoder = SentenceEncoder(folder, local_files_only=True, on_truncation="ignore")
    sample = Sample.of(texts, encoder.tokenizer)
    more = probe_texts(list(declared_tokens(folder)), encoder.tokenizer)
    probes = Sample.of(dict.fromkeys((*sample.texts, *more)), encoder.tokenizer)
    stored = load_parameters(folder)
    parameters, missing = {}, {}
    for precision in (stored.precision, "int8" if stored.precision == "float32" else "float32"):
        try:
            parameters[precision] = with_precision(stored, precision)
        except MinitransError as error:
            missing[precision] = str(error)
    return Loaded(encoder, sample, probes, parameters, missing)


def _identity(folder: Path, loaded: Loaded, original: Path | None, sealed: Digests | None) -> Check:
    """Which encoder this is, and whether what an int8 folder says of its origin is about these very weights."""
    identity = loaded.encoder.identity
    faults, notes = [], [f"{name}: {part}" for name, part in asdict(identity).items()]
    provenance = folder / PROVENANCE
    if loaded.encoder.precision == "int8":
        try:
            said = ModelFolder(folder).read(PROVENANCE)
            own = loaded.parameters["int8"].sha256
            if said.get("weights") is None:
                notes.append(f"{provenance.name} names no weights, so these count as a model of their own")
            elif said["weights"] != own:
                faults.append(f"{provenance.name} is of the weights {said['weights']!r:.66}, here are {own}")
        except ModelNotFoundError:
            notes.append(f"without a {provenance.name} these weights count as a model of their own")
        except MinitransError as error:
            faults.append(str(error))
        if original is not None and not faults and identity.weights != loaded.parameters["int8"].sha256:
            right = load_parameters(original).sha256
            if identity.weights != right:
                faults.append(f"{provenance.name} says that they were made from {identity.weights}, wanted {right}")
    if sealed is not None and sealed.identity is not None and (parts := sealed.identity.difference(identity)):
        faults.append(
            f"other {parts} than in {sealed.label}; where all files are as sealed, this release or its libraries read "
            "them otherwise"
        )
    measured = f"{identity.sha256[:16]}.., {identity.pooling}, {identity.precision}"
    wanted = "provenance and seal as they are"
    return judged(FOLDER, "encoder identity", not faults, measured, wanted, [*faults, *notes])


def _policies(encoder: SentenceEncoder, given: Mapping[str, PruningPolicy]) -> dict[str, PruningPolicy]:
    """The default policy as far as it fits this model, the shipped ones that were fitted to it, those that were given.

    Raises:
        PolicyError: one of these does not fit.
    """
    policies = {"default": PruningPolicy.default_for(encoder.config, encoder.pooling.modes)}
    model = encoder.config, encoder.pooling.modes, encoder.fingerprint
    for name in shipped_policies():
        policy = PruningPolicy.named(name)
        if policy.fitted is not None:
            with suppress(PolicyError):  # it belongs to another model
                policy.check_fits(*model)
                policies[name] = policy
    for policy in given.values():
        policy.check_fits(*model)
    return {**policies, **given}


def _numbers(loaded: Loaded, original: Path | None, tell: Tell) -> Iterator[Check]:
    sample, pooling = loaded.sample, loaded.encoder.pooling
    embeddings: dict[str, Float32 | MinitransError] = {}
    for precision in loaded.parameters:
        tell(f"reference against compiled, {precision}")
        backends = loaded.backends(precision)
        if "compiled" in backends:
            yield from number_checks(backends["reference"], backends["compiled"], sample, pooling, precision)
        embeddings[precision] = _embedded(backends.get("compiled", backends["reference"]), loaded)
    if "compiled" in loaded.missing:
        checks = len(NUMBER_CHECKS) * len(loaded.parameters)
        remedy = loaded.missing["compiled"]
        yield skipped(NUMBERS, "blocks", NO_KERNELS, remedy, reason="no compiled kernels", checks=checks)
    title = "int8 to float32"
    for precision in ("int8", "float32"):
        if precision in loaded.missing:
            yield skipped(NUMBERS, title, f"there is no {precision} form", loaded.missing[precision])
            return
    yield _int8(title, embeddings["float32"], embeddings["int8"], sample)
    title = "int8 to the original"
    if loaded.encoder.precision != "int8":
        return
    if original is None:
        yield skipped(NUMBERS, title, NO_ORIGINAL, "see `as quantised` above", reason="no original here")
        return
    tell(title)
    try:
        blocks = load_blocks("auto", load_parameters(original))
    except MinitransError as error:
        yield skipped(NUMBERS, title, f"the original cannot be read: {error}", reason="the original cannot be read")
        return
    yield _int8(title, _embedded(blocks, loaded), embeddings["int8"], sample)


def _embedded(blocks: Blocks, loaded: Loaded) -> Float32 | MinitransError:
    try:
        return embed(blocks, loaded.sample, loaded.encoder.pooling)
    except MinitransError as error:
        return error


def _int8(title: str, full: Float32 | MinitransError, small: Float32 | MinitransError, sample: Sample) -> Check:
    if isinstance(full, MinitransError):
        return broken(NUMBERS, title, "finite numbers", full)
    if isinstance(small, MinitransError):
        return broken(NUMBERS, title, "finite numbers", small)
    return int8_check(title, full, small, sample)


def _pruning(loaded: Loaded, policies: Mapping[str, PruningPolicy], tell: Tell) -> Iterator[Check]:
    precision = loaded.encoder.precision
    backends = loaded.backends(precision)
    if "compiled" not in backends:
        yield skipped(PRUNING, "all", NO_KERNELS, "as above", reason="no compiled kernels", checks=len(policies))
        return
    for name, policy in policies.items():
        tell(f"pruning, {name}")
        yield pruning_check(name, policy, backends["reference"], backends["compiled"], loaded.sample, precision)


def _peers(
    folder: Path, loaded: Loaded, policies: Mapping[str, PruningPolicy], why_not: Mapping[str, str | None], tell: Tell
) -> Iterator[Check]:
    """All that the two libraries can be asked about the float32 form; of one that cannot be asked, a line with why."""
    encoder, full = loaded.encoder, loaded.parameters.get("float32")
    blocks = {} if full is None else loaded.backends("float32")

    def transformers(full: Parameters) -> Iterator[Check]:
        samples, limit = (loaded.sample, loaded.probes), encoder.max_seq_length
        return oracle.oracle_checks(folder, full, blocks, *samples, encoder.pooling, limit, policies)

    def sentence_transformers(full: Parameters) -> Iterator[Check]:
        plain = encoder
        if plain.precision != "float32":
            plain = SentenceEncoder(folder, local_files_only=True, precision="float32", on_truncation="ignore")
        yield from sentence_oracle.sentence_checks(folder, plain, full, loaded.probes)

    ask = {PEER: transformers, SENTENCES: sentence_transformers}
    checks = {PEER: oracle.how_many(blocks, policies), SENTENCES: sentence_oracle.how_many(encoder)}
    for group, why in why_not.items():
        if why is not None:
            reason = next((each for each in ("not installed", "older than") if each in why), "cannot be imported")
            yield skipped(group, "all", why, oracle.REMEDY, reason=reason, checks=checks[group])
        elif full is None:
            yield skipped(group, "all", "there is no float32 form", loaded.missing["float32"])
        else:
            tell(group)
            try:
                yield from ask[group](full)
            except MinitransError as error:
                yield broken(group, "all", "its answers", error)


def _invariance(
    loaded: Loaded,
    policies: Mapping[str, PruningPolicy],
    given: Mapping[str, PruningPolicy],
    threads: int | None,
    tell: Tell,
) -> Iterator[Check]:
    """Without pruning, with the default policy, with one that is fitted, and with those of the user."""
    fitted = next((name for name, policy in policies.items() if policy.fitted is not None), None)
    ways = {"unpruned": None} | {name: each for name, each in policies.items() if name in ("default", fitted, *given)}
    for name, policy in ways.items():
        tell(f"invariance, {name}")
        yield invariance_check(name, loaded.encoder, loaded.sample, policy, threads)
