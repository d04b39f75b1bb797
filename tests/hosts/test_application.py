"""The application's own tests, in its own environment, against the lab's MySQL."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.hosts.world import CHECKOUT, World

pytestmark = pytest.mark.lab


def test_the_applications_tests_pass_against_a_real_mysql(here: World) -> None:
    python = CHECKOUT / ".tools/app/bin/python"
    assert python.exists(), "the application's environment is missing: scripts/test makes it"
    server = {
        "TEST_DATABASE_HOST": here.address("dev1").rpartition(".")[0] + ".10",
        "TEST_DATABASE_PORT": "3306",
        "TEST_DATABASE_USER": "waffle_dev",
        "TEST_DATABASE_PASSWORD": here.secrets("dev")["vault_database_master_password"],
    }
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=CHECKOUT / "app",
        env={**os.environ, **server, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
