"""What nginx gives one client at most, and where the application's accounts cannot go."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import rendered


def test_a_client_has_a_share_of_the_application() -> None:
    proxy = rendered("nginx", "proxy.conf.j2")
    assert "limit_req zone=client_requests burst=400 nodelay;\nlimit_conn client_connections 100;\n" in proxy
    whole = rendered("nginx", "nginx.conf.j2")
    assert "zone=client_requests:10m rate=200r/s;" in whole
    assert "limit_req_status 429;" in whole and "limit_conn_status 429;" in whole


def test_a_share_can_be_all() -> None:
    """The zones stay, since a preview that was made before names them."""
    none = {"nginx_client_requests_per_second": "0", "nginx_client_concurrent_requests": "0"}
    assert "limit_" not in rendered("nginx", "proxy.conf.j2", **none)
    assert "zone=client_requests:10m rate=1r/s;" in rendered("nginx", "nginx.conf.j2", **none)


@pytest.mark.parametrize("trusted", [[], ["10.0.0.0/16"]])
def test_the_question_of_a_load_balancer_alone_is_not_counted(trusted: list[str]) -> None:
    """The health path asks the database: a client's requests for it count like any others."""
    whole = rendered("nginx", "nginx.conf.j2", nginx_health_path="/api/health/ready", nginx_trusted_proxies=trusted)
    assert "map $uri" not in whole
    exempt = whole.partition("map $asks_for_health$uri $counted_client {")[2].partition("}")[0]
    assert exempt.split() == ["1/api/health/ready", '"";', "default", "$binary_remote_addr;"]
    asking = whole.partition("geo $asks_for_health {")[2].partition("}")[0]
    known = [line.split() for line in asking.strip().splitlines()]
    assert known == [["default", "0;"], *([each, "1;"] for each in ("127.0.0.0/8", "::1/128", *trusted))]


def test_a_client_is_named_by_trusted_proxies_alone() -> None:
    assert "real_ip" not in rendered("nginx", "nginx.conf.j2")
    whole = rendered("nginx", "nginx.conf.j2", nginx_trusted_proxies=["10.0.0.0/16", "10.1.0.0/16"])
    assert (
        "set_real_ip_from 10.0.0.0/16;\n    set_real_ip_from 10.1.0.0/16;\n    real_ip_header X-Forwarded-For;" in whole
    )


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        ({}, ["tcp dport 22 reject", "ip daddr 169.254.0.0/16", "ip6 daddr fe80::/10", "ip6 daddr fd00:ec2::254/128"]),
        ({"app_denied_ports": [22, 2222], "app_denied_networks": []}, ["tcp dport 22 reject", "tcp dport 2222 reject"]),
        ({"app_denied_ports": [], "app_denied_networks": []}, []),
    ],
)
def test_the_application_is_denied_what_the_variables_name(changed: dict[str, Any], lines: list[str]) -> None:
    rules = rendered("app", "firewall.nft.j2", __app_migration_user="app-migrate", **changed)
    denied = rules.partition("chain denied {")[2].partition("    }\n")[0]
    found = [line.strip() for line in denied.splitlines() if "reject" in line]
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))
    # Also where nothing is denied: the table is what the unit loads and takes away.
    assert 'meta skgid "app" jump denied' in rules and 'meta skgid "app-migrate" jump denied' in rules
