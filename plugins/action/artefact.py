"""Builds the artefact of a release on the control node: a deterministic archive of the application at a commit."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

EXECUTABLE = "100755"
LINK = "120000"
STEERING = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
}


def git(*arguments: str, folder: Path, environment: dict[str, str] | None = None) -> bytes:
    """Run Git in ``folder`` and return its output; raise `AnsibleActionFail` with Git's own words."""
    # Inside one of Git's hooks these name the hook's repository, whatever the folder.
    kept = {name: value for name, value in os.environ.items() if name not in STEERING}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            check=True,
            capture_output=True,
            env={**kept, "GIT_OPTIONAL_LOCKS": "0", **(environment or {})},
        )
    except FileNotFoundError:
        raise AnsibleActionFail("git was not found on the control node: install it and run the same command") from None
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip()
        raise AnsibleActionFail(f"`git {' '.join(arguments)}` in {folder}: {words}") from None
    return done.stdout


def tree_of(source: Path, version: str) -> tuple[str, str, bool]:
    """Return Git's tree of ``source`` (a folder in a work tree) at ``version``, the commit, and whether it is dirty.

    For the version HEAD, uncommitted changes below ``source`` are part of the tree; the user's own index is not
    touched.
    """
    prefix = git("rev-parse", "--show-prefix", folder=source).decode().strip().rstrip("/")
    try:
        commit = git("rev-parse", "--verify", f"{version}^{{commit}}", folder=source).decode().strip()
    except AnsibleActionFail:
        raise AnsibleActionFail(
            f"app_version: {version!r} is not a commit, tag or branch of the repository of {source}; "
            "`git fetch --tags` may bring it, `git log --oneline` lists commits"
        ) from None
    if version != "HEAD" or not git("status", "--porcelain", "--", ".", folder=source).strip():
        return git("rev-parse", f"{commit}:{prefix}", folder=source).decode().strip(), commit, False
    with tempfile.TemporaryDirectory(prefix="waffle-index-") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git("read-tree", commit, folder=source, environment=index)
        git("add", "--all", "--", ".", folder=source, environment=index)
        tree = git("write-tree", f"--prefix={prefix}/" if prefix else "--", folder=source, environment=index)
    return tree.decode().strip(), commit, True


def archive(source: Path, tree: str) -> bytes:
    """Return ``tree`` as an uncompressed tar archive that depends on nothing but its content."""
    listing = git("ls-tree", "-r", "-z", "--full-tree", tree, folder=source).decode().split("\0")
    entries = [line.split("\t", 1) for line in listing if line]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for head, path in sorted(entries, key=lambda entry: entry[1]):
            mode, kind, digest = head.split()
            if kind != "blob":
                raise AnsibleActionFail(f"{path}: a Git submodule cannot be part of the application")
            content = git("cat-file", "blob", digest, folder=source)
            member = tarfile.TarInfo(path)
            member.mode = 0o755 if mode == EXECUTABLE else 0o644
            if mode == LINK:
                member.type, member.linkname, content = tarfile.SYMTYPE, content.decode(), b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member_digest(content: bytes, name: str) -> str:
    """Return the SHA-256 of one file in an archive, or an empty text where there is none."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        try:
            stream = tar.extractfile(name)
        except KeyError:
            return ""
        return hashlib.sha256(stream.read()).hexdigest() if stream else ""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted.

    Arguments:
        source: folder of the application, inside a Git work tree.
        version: commit, tag or branch; HEAD takes the work tree as it is.
        allow_dirty: whether uncommitted changes may be part of the artefact.
        cache: folder for finished archives.

    Returns path, digest (SHA-256), lock (SHA-256 of poetry.lock), commit (the last one that touched the source),
    label (the digest's beginning, marked where it is dirty), subject.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("source", "version", "allow_dirty", "cache"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the artefact's facts as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        source, version = Path(str(arguments["source"])), str(arguments.get("version", "HEAD"))
        if not source.is_dir():
            raise AnsibleActionFail(f"app_source: {source} is not a folder; set it in group_vars/all/vars.yml")
        tree, commit, dirty = tree_of(source, version)
        if dirty and not arguments.get("allow_dirty", False):
            raise AnsibleActionFail(
                f"{source} has changes that are not committed, and this environment takes none (allow_dirty_tree). "
                "Commit them (`git add -A && git commit`), or deploy a commit: -e app_version=main"
            )
        content = archive(source, tree)
        digest = hashlib.sha256(content).hexdigest()
        lock = member_digest(content, "poetry.lock")
        if not lock:
            raise AnsibleActionFail(f"{source}/poetry.lock is not in {version}: run `poetry lock` there and commit it")
        path = Path(str(arguments["cache"])) / f"{digest}.tar"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as stream:
                stream.write(content)
            Path(stream.name).replace(path)
        # Commits that touch something else are no new version of the application.
        touched, _, subject = (
            git("log", "-1", "--format=%H%n%s", commit, "--", ".", folder=source).decode().partition("\n")
        )
        result.update(
            changed=False,
            path=str(path),
            digest=digest,
            lock=lock,
            commit=touched,
            dirty=dirty,
            label=digest[:8] + ("-dirty" if dirty else ""),
            subject=subject.strip(),
        )
        return result
