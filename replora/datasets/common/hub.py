"""Whether the Hugging Face hub can be reached, asked once before its client tries each file for half a minute."""

from __future__ import annotations

from pathlib import Path

from replora.errors import RepLoRAError

SECONDS = 10.0  # how long to wait for an answer


class HubUnreachableError(RepLoRAError):
    """The hub does not answer, and what is wanted from it is not in its cache."""


def check_hub(repository: str | None, revision: str | None = None) -> None:
    """Check that the hub answers, unless files of the repository are in its cache already, or the source is a folder.

    An answer that refuses, such as 404, is left to the client, whose message tells why.

    Args:
        repository: OWNER/NAME on the hub; anything else is a folder or has another source.
        revision: Branch, tag or commit.

    Raises:
        HubUnreachableError: It does not answer.
    """
    if not repository or Path(repository).exists():
        return
    # Slow to import.
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    cached = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    if cached.is_dir() and any(cached.iterdir()):
        return
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    else:
        try:
            huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=SECONDS)
            return
        except HFValidationError:  # no name of a repository
            return
        except Exception as error:  # errors of httpx or requests, by the version of the client
            if getattr(error, "response", None) is not None:
                return
            reason = f"it does not answer: {error}"
    raise HubUnreachableError(
        f"{constants.ENDPOINT} is out of reach ({reason}), and {repository} is not in the cache, "
        f"{constants.HF_HUB_CACHE}. Where there is a network, fetch it with `hf download {repository} --local-dir "
        "FOLDER` and give this folder, or copy the cache and set HF_HUB_OFFLINE=1"
    )


def timm_repository(name: str) -> str | None:
    """Where timm fetches the weights of a model from on the hub; None if it has another source for them."""
    import timm

    if "/" in name:
        return name.partition(":")[2] or name
    known = timm.get_pretrained_cfg(name)
    return known.hf_hub_id if known is not None else None
