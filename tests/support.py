"""What the tests share."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.hosts import possible
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.inference import infer
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.resolved import Stated, resolve
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.source import Source
from jinja2 import Environment

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ("dev", "prod")
ROLES = sorted(path.parent.parent.name for path in ROOT.glob("roles/*/tasks/main.yml"))
AWKWARD = "p@$$w\"o'rd #1 \\ ${HOME} %d é"


def module_at(path: str) -> ModuleType:
    """Import a Python file by its path below the root."""
    name = f"waffle_iron_{Path(path).stem}"
    specification = importlib.util.spec_from_file_location(name, ROOT / path)
    if specification is None or specification.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def yaml_at(path: str | Path) -> Any:
    """Read a YAML file by its path below the root."""
    return yaml.safe_load((ROOT / path).read_text())


def rendered(role: str, template: str, **changed: Any) -> str:
    """Return a template as the role writes it."""
    values = {**yaml_at(f"roles/{role}/defaults/main.yml"), **changed}
    environment = Environment(trim_blocks=True)  # noqa: S701
    return environment.from_string((ROOT / f"roles/{role}/templates/{template}").read_text()).render(values)


class Unsafe(str):
    """A text that Ansible never takes for a template."""


class VaultDumper(yaml.SafeDumper):
    """Writes YAML with the tag of Ansible."""


class VaultLoader(yaml.SafeLoader):
    """Reads YAML with the tag of Ansible."""


VaultDumper.add_representer(Unsafe, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text)))
VaultLoader.add_constructor("!unsafe", lambda _, node: Unsafe(node.value))


def vault_text(secrets: dict[str, str]) -> str:
    """Return the clear text of a vault."""
    text: str = yaml.dump(secrets, Dumper=VaultDumper, allow_unicode=True)
    return text


def vault_secrets(text: str | bytes) -> dict[str, str]:
    """Return the secrets in the clear text of a vault."""
    secrets: dict[str, str] = yaml.load(text, Loader=VaultLoader)  # noqa: S506 - a SafeLoader
    return secrets


def host_roles() -> list[str]:
    """Return the roles that site.yml brings to hosts; the others work on an account of AWS."""
    plays = [play for item in yaml_at("site.yml") for play in yaml_at(item["ansible.builtin.import_playbook"])]
    return sorted({entry["role"] for play in plays for entry in play.get("roles", [])})


def is_sample() -> bool:
    """Return True if the sample is deployed: a clone for another application has none of its settings (new-app)."""
    return all((ROOT / path).is_file() for path in ("app/nba/settings.py", "group_vars/all/sample.yml"))


about_the_sample = pytest.mark.skipif(not is_sample(), reason="another application is deployed")


def application_of(folder: Path) -> dict[str, Any]:
    """Return what preflight finds out about an application, as the fact has it."""
    paths = (
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".py", ".toml", ".lock", ".ini", ".txt")
    )
    source = Source(
        {str(path.relative_to(folder)): path.read_text() for path in [*paths, *folder.glob("frontend/*.html")]}
    )
    (host,) = possible("debian-13", "x86_64", "")
    return resolve(infer(source, host), source, Stated()).as_json()


def install_collection(checkout: Path, folder: Path) -> Path:
    """Build the collection in a checkout and install it into a repository, without a network; return the archive."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    (folder / "ansible.cfg").write_text("[defaults]\ncollections_path = collections\n")
    galaxy = [str(Path(sys.executable).parent / "ansible-galaxy"), "collection"]
    command = [*galaxy, "build", str(checkout), "--output-path", str(folder)]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("waffle-iron-*.tar.gz")
    command = [*galaxy, "install", str(archive), "--collections-path", "collections", "--no-deps", "--offline"]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return archive


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
