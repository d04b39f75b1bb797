"""What became of a deploy or rollback over all hosts of an environment (roles/app/tasks/deploy.yml).

A host's results are its variables: what the tasks of the role registered, and what Ansible keeps of a task that failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.waffle.iron.plugins.plugin_utils.answers.text import printable

# Ansible's variables of one host, and of all hosts.
Results = Mapping[str, Any]
Hosts = Mapping[str, Results]


def failure(failed_task: Mapping[str, Any], failed_result: Mapping[str, Any]) -> str:
    """Return why a task failed on a host: in the words of the release program, or else with the name of the task."""
    if refused := failed_result.get("refused"):
        return str(refused)
    reason = str(failed_result.get("msg") or "no reason was given")
    return printable(f"the task `{failed_task.get('name') or 'without a name'}` failed: {reason}")


def hosts_that_left(hostvars: Hosts, hosts: Iterable[str], present: Iterable[str]) -> list[str]:
    """Return the hosts that left the run before the end of the deploy; those that were never in it are left out.

    Args:
        hostvars: the results of all hosts.
        hosts: those that the run began with.
        present: those that are still in it.
    """
    remaining = set(present)
    left = [host for host in hosts if host not in remaining and "__app_status" in hostvars[host]]
    return [host for host in left if (hostvars[host].get("__app_finished") or {"skipped": True}).get("skipped")]


def failures(hostvars: Hosts, hosts: Iterable[str]) -> dict[str, str]:
    """Return why each host failed; those that did not fail are left out."""
    found = {}
    for host in hosts:
        known = hostvars[host]
        reverted = known.get("__app_reverted") or {}
        words = [
            str(known.get("__app_failure") or ""),
            str(reverted.get("refused") or ""),
            str(known.get("__app_afterwards") or ""),
        ]
        if "__app_reverted" not in known and not any(words):
            words = ["left the run, see above"]
        if any(words):
            found[host] = "\n".join(filter(None, words))
    return found


def in_unknown_state(hostvars: Hosts, hosts: Iterable[str], target: str) -> list[str]:
    """Return the hosts on which the release may be live though it was reverted: they were not reached, or refused."""
    found = []
    for host in hosts:
        known = hostvars[host]
        if (known.get("__app_prepared") or {}).get("host_unreachable"):
            continue  # nothing was started there
        # A host that left the run was not asked.
        reverted = known.get("__app_reverted") or {"host_unreachable": True}
        # Without an answer a refusal may mean anything.
        live = reverted.get("live", target if reverted.get("refused") else "")
        # It may be one's own run, which goes on, if the connection was lost before it named its release.
        started = known.get("__app_started") or {}
        goes_on = started.get("host_unreachable") and reverted.get("running")
        if reverted.get("host_unreachable") or goes_on or live == target:
            found.append(host)
    return found


def deploy_failed(hostvars: Hosts, hosts: Sequence[str], target: str, host: str) -> str:
    """Return the summary of a deploy or rollback that was reverted; on each host but the first, its own reason."""
    reasons = failures(hostvars, hosts)
    first = next((name for name in hosts if "__app_reverted" in hostvars[name]), host)
    if host != first:
        return f"{target} was reverted; see {first}. {reasons.get(host, 'This host did not fail.')}"
    unknown = in_unknown_state(hostvars, hosts, target)
    if unknown:
        text = (
            f"{target} is live on no host but perhaps on {', '.join(unknown)}, which could not be asked or did not go "
            "back; elsewhere what was live before still is. Fix: repair that, and run the same command again."
        )
    else:
        text = f"{target} is live on no host; what was live before still is."
    return "\n".join([text, *(f"{name}: {reason}" for name, reason in reasons.items())])


def deploy_unfinished(hostvars: Hosts, hosts: Iterable[str], target: str, repair: str) -> str:
    """Return what is left to do after a release went live on all hosts; nothing if nothing is.

    Args:
        hostvars: the results of all hosts.
        hosts: those of the run.
        target: the release that is live.
        repair: the command that does what is left.
    """
    failed, left = [], []
    for host in hosts:
        known = hostvars[host]
        started, finished = known.get("__app_started") or {}, known.get("__app_finished") or {}
        if words := started.get("unfinished") or finished.get("unfinished") or finished.get("refused"):
            left.append(f"{host}: {words}")
        if words := known.get("__app_afterwards"):
            failed.append(f"{host}: {words}")
    if left:
        left.insert(0, f"What is left to do there, {repair} does:")
    return "\n".join([f"{target} is live on every host.", *failed, *left]) if failed or left else ""


def previous_release(hostvars: Hosts, hosts: Iterable[str], host: str, target: str) -> str:
    """Return the release that a host goes back to; nothing if none was live.

    That is what was live when its run began, which may have waited for another one's end. A host that an earlier run
    left on the new release goes back to what its peers have.
    """
    known = hostvars[host]
    status = known.get("__app_status") or {}
    started = known.get("__app_started") or {}
    asked = [started.get("before"), status.get("live")]
    asked += [(hostvars[peer].get("__app_status") or {}).get("live") for peer in hosts]
    # An empty one counts if the host had none: a first release leaves nothing live.
    return next((str(release) for release in asked if release is not None and release != target), "")


def rollback_choices(hostvars: Hosts, hosts: Iterable[str]) -> list[str]:
    """Return the releases that the hosts would go back to, each once.

    A host whose last rollback ended when nobody was there to see it decides for the others.
    """
    statuses = [hostvars[host]["__app_status"] for host in hosts]
    decided = [status for status in statuses if status.get("unacknowledged")] or statuses
    return list(dict.fromkeys(str(status["release"]) for status in decided))


def workers_of_all(hostvars: Hosts, hosts: Iterable[str], most: int) -> int:
    """Return the worker processes of all hosts; one that this run does not ask counts with the ``most`` it may have."""
    return sum(int((hostvars[host].get("__app_status") or {}).get("workers", most)) for host in hosts)
