"""Up and down: from nothing to hosts that answer, and back to a machine without a trace."""

import dataclasses
import shutil
from functools import partial

from lab import access, checks, hosts, images, machines, network, state, tls
from lab.commands import parallel
from lab.config import HostSpec, Lab
from lab.errors import LabError
from lab.progress import notice, say, step


def wanted_hosts(lab: Lab, current: state.State | None, asked: list[HostSpec]) -> list[HostSpec]:
    """Return the hosts after `up`: the default ones, those the lab had, and those asked for now.

    LabError if a host that is there was built with another release, or belongs to another group, than asked.
    """
    had = current.hosts if current else {}
    wanted = {spec.name: spec for spec in lab.default_hosts()} | had
    if lab.release_is_explicit:
        asked = [spec for spec in lab.default_hosts() if not spec.is_database] + asked
    for spec in asked:
        before = had.get(spec.name, spec)
        if (before.release, before.group) != (spec.release, spec.group):
            raise LabError(
                f"{spec.name} is there with release {before.release} and group {before.group}, asked for are "
                f"{spec.release} and {spec.group}: `make down` first, or leave LAB_RELEASE and --host out"
            )
        wanted[spec.name] = spec
    return list(wanted.values())


def up(lab: Lab, asked: list[HostSpec]) -> list[HostSpec]:
    """Boot what is missing of the lab; return all its hosts. LabError if that cannot be done."""
    current = claim(lab)
    specs = wanted_hosts(lab, current, asked)
    running = machines.find([lab.machine(spec.name) for spec in specs])
    missing = [spec for spec in specs if not running[lab.machine(spec.name)].is_intact]
    silent = [spec for spec in specs if spec not in missing and not hosts.answers(lab, spec)]
    is_known = current is not None and list(current.hosts.values()) == specs
    if is_known and not missing and not silent and access.is_complete(lab):
        return specs

    checks.before_up(lab, missing)
    (lab.state / "hosts").mkdir(parents=True, exist_ok=True)
    lab.state.chmod(0o700)
    state.save(lab, state.State(lab.checkout, {spec.name: spec for spec in specs}))
    access.ensure_keys(lab, specs)
    tls.ensure_authority(lab)
    network.ensure(lab)
    recipes = build_images(missing)
    names = [spec.name for spec in specs]
    jobs = [partial(boot, lab, spec, recipes[image_name(spec)], names) for spec in missing]
    parallel([*jobs, *(partial(hosts.finish, lab, spec) for spec in silent)])
    for spec in specs:
        if spec not in missing:
            hosts.write_hosts_file(lab, spec.name, names)
    access.write_inventory(lab, specs)
    return specs


def claim(lab: Lab) -> state.State | None:
    """Return the lab's state if it is this checkout's; remove a dead lab of another checkout.

    LabError if a lab of this name is alive and another checkout's.
    """
    current = state.load(lab)
    if current is None or current.owner == lab.checkout:
        return current
    if any(machine.is_running for machine in machines.find([lab.machine(n) for n in host_names(lab)]).values()):
        raise LabError(
            f"the lab {lab.name!r} that runs belongs to the checkout {current.owner}. Fix: remove it with "
            f"`make -C {current.owner} down`, or set another LAB_NAME and LAB_SUBNET here"
        )
    notice(f"nothing of the lab {lab.name!r} of {current.owner} runs any more: its leftovers are removed")
    remove(dataclasses.replace(lab, checkout=current.owner))
    return None


def image_name(spec: HostSpec) -> str:
    """Return which image a host needs; hosts with the same answer share it."""
    return "database" if spec.is_database else spec.release


def build_images(specs: list[HostSpec]) -> dict[str, images.Recipe]:
    """Build the images of these hosts, two at once; return them by `image_name`."""
    recipes: dict[str, images.Recipe] = {}

    def build(name: str) -> None:
        recipes[name] = images.ensure_database() if name == "database" else images.ensure(images.bare(name))

    parallel([partial(build, name) for name in sorted({image_name(spec) for spec in specs})], workers=2)
    return recipes


def boot(lab: Lab, spec: HostSpec, image: images.Recipe, names: list[str]) -> None:
    """Boot one host and say so."""
    with step(f"boot {spec.name} ({image.kind} {image.release}, {lab.address(spec.name)})"):
        hosts.boot(lab, spec, image, names)


def known_host(lab: Lab, name: str) -> HostSpec:
    """Return a host of the lab by name; LabError if this checkout's lab has none of that name."""
    current = state.load(lab)
    if current is None:
        raise LabError(f"there is no lab {lab.name!r}: `make up`")
    if current.owner != lab.checkout:
        raise LabError(f"the lab {lab.name!r} belongs to the checkout {current.owner}: go there")
    if name not in current.hosts:
        raise LabError(f"the lab {lab.name!r} has no host {name!r}: it has {', '.join(current.hosts)}")
    return current.hosts[name]


def reset(lab: Lab, name: str) -> None:
    """Make a bare host of this one again; address, host keys and place in the lab stay."""
    spec = known_host(lab, name)
    recipe = build_images([spec])[image_name(spec)]
    hosts.erase(lab, name)
    boot_known(lab, spec, recipe)


def boot_known(lab: Lab, spec: HostSpec, recipe: images.Recipe) -> None:
    """Boot a host of a lab whose other hosts are as they are."""
    network.ensure(lab)
    current = state.load(lab)
    boot(lab, spec, recipe, list(current.hosts) if current else [spec.name])


def host_names(lab: Lab) -> list[str]:
    """Return every host of the lab that left a trace: files, namespace, control group or process."""
    prefix = lab.machine("")
    machine_names = {*network.namespaces(lab), *machines.supervised_names(), *machines.control_groups(prefix)}
    names = {name.removeprefix(prefix) for name in machine_names if name.startswith(prefix)}
    return sorted(names | {path.name for path in (lab.state / "hosts").glob("*")})


def down(lab: Lab) -> list[str]:
    """Remove this checkout's lab; return what was removed. LabError if it is another's, and alive."""
    current = state.load(lab)
    if current and current.owner != lab.checkout:
        if current.owner.exists():
            claim(lab)
            return []
        notice(f"the checkout {current.owner} that made the lab {lab.name!r} is gone: it is removed from here")
    return remove(lab)


def remove(lab: Lab) -> list[str]:
    """Remove everything of the lab but its images, whatever state it is in; return what was removed.

    LabError if something of it is still there afterwards.
    """
    removed: list[str] = []

    def remove_host(name: str) -> None:
        machines.stop(lab.machine(name))
        network.unplug(lab, name)
        hosts.unmount(lab.host_dir(name) / "root")
        removed.append(f"host {name}")

    parallel([partial(remove_host, name) for name in host_names(lab)])
    removed.sort()
    removed += network.remove(lab)
    for path in (lab.state, lab.local):
        if path.exists():
            shutil.rmtree(path)
            removed.append(f"files {path}")
    # The directory that all labs of the checkout share goes with the last of them.
    if lab.local.parent.is_dir() and not any(lab.local.parent.iterdir()):
        lab.local.parent.rmdir()
    if lab.state_root.is_dir():
        if network.restore_forwarding(lab):
            removed.append("IP forwarding, which was off before")
        if not any(lab.state_root.iterdir()):
            lab.state_root.rmdir()
    if left := leftovers(lab):
        raise LabError("not everything could be removed, try again:\n" + "\n".join(f"  - {item}" for item in left))
    return removed


def leftovers(lab: Lab) -> list[str]:
    """Return what is there of the lab; after `remove`, nothing."""
    left = [f"host {name}" for name in host_names(lab)]
    left += [f"mount {path}" for path in hosts.mounts_below(lab.state)]
    left += [f"interface {name}" for name, link in network.links().items() if network.is_own_bridge(lab, link)]
    left += [f"nftables table {lab.table}"] if network.table_comment(lab) == lab.tag else []
    return left


def purge_cache() -> list[str]:
    """Remove the images that no host of any lab runs from; return their names."""
    return images.purge(hosts.mounted_images())


def status(lab: Lab) -> list[dict[str, str]]:
    """Return name, address, image, state and boot id of each host of the lab, whoever's it is."""
    current = state.load(lab)
    specs = list(current.hosts.values()) if current else []
    found = machines.find([lab.machine(spec.name) for spec in specs])
    rows = []
    for spec in specs:
        leader = found[lab.machine(spec.name)].leader
        marker = lab.host_dir(spec.name) / "image"
        condition = "stopped" if leader is None else "answers" if hosts.answers(lab, spec) else "silent"
        rows.append(
            {
                "host": spec.name,
                "address": lab.address(spec.name),
                "group": spec.group or "-",
                "image": marker.read_text().rpartition("-")[0] if marker.exists() else "-",
                "state": condition,
                "boot_id": machines.boot_id(leader) if leader else "-",
            }
        )
    return rows


def summarize(lab: Lab, specs: list[HostSpec]) -> None:
    """Print the addresses of the hosts."""
    say(f"lab {lab.name}: " + ", ".join(f"{spec.name} {lab.address(spec.name)}" for spec in specs))
