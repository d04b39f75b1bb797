"""Reads an environment's vault for the scripts beside this file."""

from __future__ import annotations

from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultSecret
from checkout import ROOT


def vault_values(environment: str) -> dict[str, Any]:
    """Return the values of an environment's vault, read by Ansible itself: YAML alone does not know `!unsafe`.

    Raises:
        OSError: .vault/ENVIRONMENT cannot be read.
        AnsibleError: the vault cannot be read, or is encrypted with another password.
    """
    loader = DataLoader()
    loader.set_vault_secrets([(environment, VaultSecret((ROOT / ".vault" / environment).read_bytes().strip()))])
    values: dict[str, Any] = loader.load_from_file(str(ROOT / f"group_vars/{environment}/vault.yml"), cache="none")
    return values
