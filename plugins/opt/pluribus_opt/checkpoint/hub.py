"""Checkpoints on the Hugging Face hub: only the files needed, and failures in plain words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.listing import NAMINGS, read_index


@dataclass(frozen=True, slots=True)
class Repo:
    """A repo at one commit, its files downloaded when asked for.

    Attributes:
        setting: that names it, for messages.
        id: ``ORGANISATION/NAME``.
        commit: that its branch or tag stood for when it was found.
        files: everything in it.
    """

    setting: str
    id: str
    commit: str
    files: frozenset[str] = field(repr=False)

    @property
    def where(self) -> str:
        """The repo and its commit, for people."""
        return f"{self.id} at commit {self.commit[:8]}"

    @property
    def identity(self) -> tuple[str, str]:
        """What all of its files' contents follow from."""
        return self.id, self.commit

    def download(self, names: Iterable[str]) -> Path:
        """Download these files unless they are cached, and return their folder."""
        from huggingface_hub import hf_hub_download

        try:
            files = [hf_hub_download(self.id, name, revision=self.commit) for name in names]
        except Exception as error:  # see find_repo
            raise _explain(self.setting, self.id, self.commit, error) from error
        if not files:
            raise CheckpointError(
                f"{self.setting}={self.id} has neither a config.json nor a tokenizer: "
                f"download it and set {self.setting}=FOLDER"
            )
        return Path(files[-1]).parent

    def download_weights(self) -> Path:
        """Download the weights, in the preferred format alone, and return their folder."""
        for naming in NAMINGS:
            if naming.whole in self.files:
                return self.download([naming.whole])
            if naming.index in self.files:
                return self._download_indexed(naming.index)
            found = [n for n in sorted(self.files) if n.endswith(naming.suffixes) and "/" not in n]
            if found:
                return self.download(found)
        raise CheckpointError(f"{self.setting}={self.id} has no safetensors, .bin or .pt files")

    def _download_indexed(self, index: str) -> Path:
        listed = {*read_index(self.download([index]) / index).values()}
        if absent := sorted(listed - self.files):
            raise CheckpointError(
                f"{index} of {self.setting}={self.id} names {absent[0]}, which the repo lacks"
            )
        return self.download(sorted(listed))


def find_repo(setting: str, repo: str, revision: str | None) -> Repo | Path:
    """Look a repo up, or return its cached folder where the hub cannot be asked."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi().model_info(repo, revision=revision)
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        if "config.json" in files:
            # By the revision's own name: the cache then knows its commit when offline.
            hf_hub_download(repo, "config.json", revision=revision)
    except Exception as error:  # the client lets through what its HTTP library raises
        cached = None if _is_refusal(error) else _cached_folder(repo, revision)
        if cached is None:
            raise _explain(setting, repo, revision, error) from error
        return cached
    return Repo(setting, repo, info.sha or "", files)


def _cached_folder(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _is_refusal(error: Exception) -> bool:
    return _status(error) in range(400, 500)


def _status(error: Exception) -> int | None:
    """Return the hub's answer's status, or None if there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _explain(setting: str, repo: str, revision: str | None, error: Exception) -> CheckpointError:
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    status = _status(error)
    if isinstance(error, GatedRepoError) or status == 403:
        why = (
            "it is gated: accept its terms on the hub and set HF_TOKEN to a token that may read it"
        )
    elif isinstance(error, RevisionNotFoundError):
        why = f"it has no revision {revision}: set model.revision to a branch, tag or commit of it"
    elif status in (401, 404):
        why = (
            "there is no such folder or file, and no such repo on the hub "
            "(if it is private, set HF_TOKEN to a token that may read it)"
        )
    elif status is not None:
        why = f"the hub answered with status {status}"
    else:
        why = f"there is no such folder or file, and the hub cannot be asked ({error})"
    return CheckpointError(
        f"{setting}={repo}: {why}. Or download it elsewhere and set {setting}=FOLDER"
    )
