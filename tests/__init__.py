"""The tests. What the modules share is found as Ansible finds it: among its own module utilities."""

from pathlib import Path

import ansible.module_utils

ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[1] / "plugins/module_utils"))
