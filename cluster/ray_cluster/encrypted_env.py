"""Encryption of the environment variables that are sent to a cluster, with the cluster's token as the key.

Ray stores the variables of a job's runtime environment in plain text, shows them to every client that lists
jobs, and writes them into log files on every node. So the values are sent as one ciphertext; only processes
with the cluster's token can decrypt it.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping

from cluster.ray_cluster.auth_token import find_token

ENCRYPTED = "USERRL_SEALED_ENVIRONMENT"
"""The variable that holds the ciphertext."""
SETUP_HOOK = "cluster.ray_cluster.encrypted_env.decrypt_environment"
"""What Ray calls in every worker of a run before anything else."""


def encrypt_environment(values: Mapping[str, str], *, token: str) -> str:
    """The variables as one line of base64 text."""
    from cryptography.fernet import Fernet

    return Fernet(_key(token)).encrypt(json.dumps(dict(values)).encode()).decode()


def decrypt_environment() -> None:
    """Adds the encrypted variables, if there are any, to this process's environment. Raises RuntimeError,
    without a value in it, if this node's token is not the one they were encrypted with."""
    ciphertext = os.environ.get(ENCRYPTED)
    if not ciphertext:
        return
    from cryptography.fernet import Fernet, InvalidToken

    try:
        os.environ |= json.loads(Fernet(_key(find_token() or "")).decrypt(ciphertext))
    except InvalidToken:
        raise RuntimeError(
            "the variables given with --env cannot be decrypted: this node's Ray token is not the one that "
            "the submitter used: give both the same token, or set the variables in the nodes' environment"
        ) from None


def _key(token: str) -> bytes:
    """A key for this use only. The token is long and random, so one hash is enough."""
    return base64.urlsafe_b64encode(hashlib.sha256(b"userrl sealed environment\0" + token.encode()).digest())
