"""Builds the artefact of a release on the control node: a deterministic archive of the application at a commit.

Or takes one that was built before, by its digest: another machine may have built it, and Git may have newer commits.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import posixpath
import re
import subprocess
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.files import LIMIT_MEGABYTES, LINK, checked, listed
from ansible_collections.waffle.iron.plugins.plugin_utils.discovery.locks import KINDS

EXECUTABLE = "100755"
STEERING = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
}


# Nobody can answer in the middle of a run: Git fails instead, and says what it would have asked.
SILENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "", "SSH_ASKPASS_REQUIRE": "never"}
# Git puts a URL on its helpers' command lines, which everybody can read; an environment is for its owner alone.
CREDENTIALS = '!printf "username=%s\\npassword=%s\\n" "$WAFFLE_GIT_USER" "$WAFFLE_GIT_PASSWORD"; :'
# Where a mirror keeps what the remote calls HEAD; its own HEAD is a name for something else.
REMOTE_HEAD = "refs/waffle/head"
# The page and its files, which nginx serves: a file with such a name is kept by browsers for a year.
FRONTEND = "frontend"
FINGERPRINT = 10
FINGERPRINTED = re.compile(r"\.[0-9a-f]{8,}\.[a-z0-9]+$|/assets/.+-[A-Za-z0-9_-]{8}\.[a-z0-9]+$")
REFERENCE = re.compile(rb"""(\s(?:src|href)=["'])([^"':?#]+)(?=["'])""")
COMMITS_SHOWN = 100
DIGEST = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
RUNTIMES = ("venv", "container")


def git(*arguments: str, folder: Path, environment: dict[str, str] | None = None, lines: str = "") -> bytes:
    """Give Git in ``folder`` lines to read, and return its output; raise `AnsibleActionFail` with its own words."""
    # Inside one of Git's hooks these name the hook's repository, whatever the folder.
    kept = {name: value for name, value in os.environ.items() if name not in STEERING}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            check=True,
            capture_output=True,
            input=lines.encode(),
            env={**kept, **SILENT, "GIT_OPTIONAL_LOCKS": "0", **(environment or {})},
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


class Names(NamedTuple):
    """The variables that say where something is in a repository somewhere else, and a hint about its folder."""

    repository: str
    version: str
    folder: str
    hint: str = ""


APPLICATION = Names("app_repository", "app_version", "app_repository_folder")
FRONT_END = Names(
    "app_frontend_repository", "app_frontend_version", "app_frontend_folder",
    ", and have what the build makes committed (docs/frontend.md)",
)  # fmt: skip


@dataclass(frozen=True)
class Remote:
    """A repository somewhere else, as ``app_repository`` or ``app_frontend_repository`` names it."""

    url: str
    """Without credentials: this may be shown, and given to programs."""
    user: str = ""
    password: str = ""
    names: Names = APPLICATION
    """What messages are about."""

    @classmethod
    def parse(cls, text: str, names: Names = APPLICATION) -> Remote:
        """Take the credentials out of an http(s) URL; a path on this machine is made absolute."""
        parts = urlsplit(text)
        if parts.scheme in ("http", "https") and "@" in parts.netloc:
            login, _, host = parts.netloc.rpartition("@")
            user, _, password = login.partition(":")
            return cls(urlunsplit(parts._replace(netloc=host)), unquote(user), unquote(password), names)
        path = Path(text).expanduser()
        return cls(str(path.resolve()) if path.exists() else text, names=names)

    @property
    def shown(self) -> str:
        """Return the URL for a message, also without what other schemes may carry."""
        return hidden(self.url)

    def fetch(self, mirrors: Path) -> Path:
        """Fetch this repository's branches and tags into a bare mirror below ``mirrors``, and return the mirror.

        Two runs at once wait for each other; the lock ends with its process.
        """
        mirror = mirrors / hashlib.sha256(self.url.encode()).hexdigest()[:32]
        mirrors.mkdir(parents=True, exist_ok=True, mode=0o700)
        with mirror.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            git("init", "--quiet", "--bare", str(mirror), folder=mirrors)
            # Nobody else is asked, and nobody else told: a helper of the user's would keep them.
            own = ["-c", "credential.helper=", "-c", f"credential.helper={CREDENTIALS}"]
            helper = own if self.user or self.password else []
            # A clean-up that went on in the background would outlive the lock.
            quiet = ["-c", "gc.autoDetach=false", "-c", "maintenance.autoDetach=false"]
            refs = [f"+HEAD:{REMOTE_HEAD}", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            try:
                git(
                    *helper, *quiet, "fetch", "--quiet", "--prune", "--no-tags", "--", self.url, *refs,
                    folder=mirror,
                    environment={"WAFFLE_GIT_USER": self.user, "WAFFLE_GIT_PASSWORD": self.password},
                )  # fmt: skip
            except AnsibleActionFail as error:
                message = hidden(str(error.message))
                words = message.partition(f"in {mirror}: ")[2] or message
                raise AnsibleActionFail(
                    f"{self.names.repository}: {self.shown} could not be fetched: {words}\n"
                    f"Try `git ls-remote {self.shown}` on this machine; {self.names.repository} is in "
                    "group_vars/all/vars.yml"
                ) from None
        return mirror


def hidden(text: str) -> str:
    """Return a text without the credentials of the URLs in it."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def remote_tree(remote: Remote, mirror: Path, version: str, folder: str) -> tuple[str, str]:
    """Return Git's tree of ``folder`` in a fetched repository at ``version``, and the commit.

    HEAD is the remote's default branch. Nothing is ever dirty there.
    """
    name = REMOTE_HEAD if version == "HEAD" else version
    try:
        commit = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", folder=mirror).decode().strip()
    except AnsibleActionFail:
        raise AnsibleActionFail(
            f"{remote.names.version}: {version!r} is not a commit, tag or branch of {remote.shown}; "
            f"`git ls-remote {remote.shown}` lists its branches and tags"
        ) from None
    try:
        tree = git("rev-parse", "--verify", "--quiet", f"{commit}:{folder}", folder=mirror).decode().strip()
        is_folder = git("cat-file", "-t", tree, folder=mirror).strip() == b"tree"
    except AnsibleActionFail:
        is_folder = False
    if not is_folder:
        raise AnsibleActionFail(
            f"{remote.names.folder}: {folder!r} is not a folder of {remote.shown} at {version}; "
            f"set it in group_vars/all/vars.yml{remote.names.hint}"
        )
    return tree, commit


@dataclass(frozen=True)
class FrontEnd:
    """A front end of a repository of its own, which takes the place of the application's."""

    mirror: Path
    tree: str
    commit: str
    """The last one that touched its folder."""
    subject: str

    @classmethod
    def fetch(cls, url: str, version: str, folder: str, mirrors: Path) -> FrontEnd:
        """Fetch a built front end below ``mirrors``; raise `AnsibleActionFail` if it is none, or not committed."""
        remote, below = Remote.parse(url, FRONT_END), folder.strip("/")
        mirror = remote.fetch(mirrors)
        tree, commit = remote_tree(remote, mirror, version, below)
        # In a work tree of this machine, people look at more than its HEAD has.
        unfinished = version == "HEAD" and (Path(remote.url) / ".git").exists()
        if unfinished and git("status", "--porcelain", "--", below or ".", folder=Path(remote.url)).strip():
            raise AnsibleActionFail(
                f"{FRONT_END.repository}: {remote.shown} has changes that are not committed, which no release would "
                f"have. Fix: commit them (`git add -A && git commit`), or deploy a commit: -e {FRONT_END.version}=main"
            )
        if "index.html" not in git("ls-tree", "--name-only", "-z", tree, folder=mirror).decode().split("\0"):
            raise AnsibleActionFail(
                f"{FRONT_END.folder}: {below!r} of {remote.shown} at {version} has no index.html; "
                f"set it in group_vars/all/vars.yml to the folder that the build writes, such as dist{FRONT_END.hint}"
            )
        return cls(mirror, tree, *last_change(mirror, commit, below))


def last_change(folder: Path, commit: str, below: str) -> tuple[str, str]:
    """Return the last commit that touched what is below a folder, and its subject.

    Commits that touch something else are no new version of it.
    """
    log = git("log", "-1", "--format=%H%n%s", commit, "--", below or ".", folder=folder)
    touched, _, subject = log.decode(errors="replace").partition("\n")
    return touched, subject.strip()


def referenced(page: str, reference: str) -> str:
    """Return the path in the archive that a page's reference names; a leading slash is the front end's root."""
    folder = FRONTEND if reference.startswith("/") else posixpath.dirname(page)
    return posixpath.normpath(posixpath.join(folder, reference.lstrip("/")))


def with_fingerprints(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what changes in a front end, so that browsers may keep its files for ever: pages, and files to add.

    A file that a page names gets a second name with its digest in it, and the page names that. The first name stays:
    what is not named by a page, as a script's own imports, goes by it. Names that have a digest already are left.
    """
    changed: dict[str, bytes] = {}
    for page in files:
        if not (page.startswith(f"{FRONTEND}/") and page.endswith(".html")):
            continue

        def named(found: re.Match[bytes], page: str = page) -> bytes:
            reference = found[2].decode(errors="replace")
            path = referenced(page, reference)
            stem, suffix = posixpath.splitext(path)
            inside = path in files and path.startswith(f"{FRONTEND}/")
            if not inside or suffix in ("", ".html") or FINGERPRINTED.search(f"/{path}"):
                return found[0]
            mark = f".{hashlib.sha256(files[path]).hexdigest()[:FINGERPRINT]}"
            changed[f"{stem}{mark}{suffix}"] = files[path]
            return found[1] + f"{reference.removesuffix(suffix)}{mark}{suffix}".encode()

        changed[page] = REFERENCE.sub(named, files[page])
    return changed


def blobs(digests: list[str], folder: Path) -> list[bytes]:
    """Return the contents of Git's objects, in one call: one for each took most of a build's time."""
    stream = io.BytesIO(git("cat-file", "--batch", folder=folder, lines="\n".join(digests) + "\n"))
    found = []
    for _ in digests:
        size = int(stream.readline().split()[2])
        found.append(stream.read(size))
        stream.read(1)
    return found


def files_of(folder: Path, tree: str, what: str, limit: int = LIMIT_MEGABYTES) -> dict[str, tuple[str, bytes]]:
    """Return Git's mode and the content of each file of ``tree``; ``what`` it is, messages name."""
    entries = listed(git("ls-tree", "-r", "-l", "-z", "--full-tree", tree, folder=folder))
    files, findings = checked(entries, lambda digests: blobs(digests, folder), what, limit)
    if findings:
        raise AnsibleActionFail(
            "\n".join([f"the {what} cannot be packed:", *(f"  - {finding}" for finding in findings)])
        )
    return files


def with_front_end(
    files: Mapping[str, tuple[str, bytes]], front_end: FrontEnd, limit: int = LIMIT_MEGABYTES
) -> dict[str, tuple[str, bytes]]:
    """Return the application's files with another front end in the place of its own."""
    own = {path: file for path, file in files.items() if path.partition("/")[0] != FRONTEND}
    for path, (mode, content) in files_of(front_end.mirror, front_end.tree, "front end", limit).items():
        # nginx would follow it, out of the folder that is for everybody's eyes.
        if mode == LINK:
            raise AnsibleActionFail(f"{path}: a symbolic link cannot be part of a front end; commit the file itself")
        own[f"{FRONTEND}/{path}"] = mode, content
    return own


def archive(source: Path, tree: str, front_end: FrontEnd | None = None, limit: int = LIMIT_MEGABYTES) -> bytes:
    """Return ``tree`` as an uncompressed tar archive that depends on nothing but its content, and the front end's."""
    files = files_of(source, tree, "application", limit)
    if front_end:
        files = with_front_end(files, front_end, limit)
    changed = with_fingerprints({path: content for path, (mode, content) in files.items() if mode != LINK})
    files |= {path: (files.get(path, ("",))[0], content) for path, content in changed.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, (mode, content) in sorted(files.items()):
            member = tarfile.TarInfo(path)
            member.mode = 0o755 if mode == EXECUTABLE else 0o644
            if mode == LINK:
                member.type, member.linkname = tarfile.SYMTYPE, content.decode()
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(content: bytes, name: str) -> bytes | None:
    """Return the content of one file in an archive; None if there is no such file."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        try:
            stream = tar.extractfile(name)
        except KeyError:
            return None
        return stream.read() if stream else None


def member_digest(content: bytes, name: str) -> str:
    """Return the SHA-256 of one file in an archive, or an empty text if there is none."""
    found = member(content, name)
    return "" if found is None else hashlib.sha256(found).hexdigest()


def lock_in(content: bytes, stated: str) -> str:
    """Return the lock file of an archive: the one that is stated, or the first that there is."""
    return next((name for name in (stated, *KINDS) if name and member(content, name) is not None), "")


def lock_finding(content: bytes, runtime: str, place: str) -> str:
    """Return what is wrong with a poetry.lock for an archive that comes from a place; nothing if all is well."""
    again = "run `poetry lock` there and commit it"
    try:
        project, lock = (
            tomllib.loads((member(content, name) or b"").decode()) for name in ("pyproject.toml", "poetry.lock")
        )
    except ValueError as error:
        return f"{place}: pyproject.toml or poetry.lock is no TOML: {error}. Correct it, {again}"
    if project and lock.get("metadata", {}).get("content-hash") not in content_hashes(project):
        return f"{place}: poetry.lock is older than pyproject.toml, and no host could install from it: {again}"
    for package in lock.get("package", []):
        # A lock of Poetry 1 does not say which group it is for.
        if package.get("develop") and runtime == "venv" and "main" in package.get("groups", ()):
            return (
                f"{place}: {package['name']} is installed from a folder with `develop = true`, which is not there when "
                f"the release runs: set it to false in pyproject.toml, {again}"
            )
    return ""


def content_hashes(project: Mapping[str, Any]) -> list[str]:
    """Return what Poetry writes as content-hash (its packages/locker.py) for a pyproject.toml, now and before 2.3."""
    part, groups = project.get("project", {}), project.get("dependency-groups", {})
    poetry = project.get("tool", {}).get("poetry", {})
    legacy = ("dependencies", "source", "extras", "dev-dependencies")
    found = []
    for has_groups in (True, False):
        relevant: dict[str, Any] = {}
        if wanted := {
            key: part[key] for key in ("requires-python", "dependencies", "optional-dependencies") if key in part
        }:
            relevant["project"] = wanted
        if groups and has_groups:
            relevant["dependency-groups"] = groups
        tool = {key: poetry.get(key) for key in (*legacy, "group") if key in poetry or (key in legacy and not relevant)}
        text = json.dumps({**relevant, "tool": {"poetry": tool}} if relevant else tool, sort_keys=True)
        found.append(hashlib.sha256(text.encode()).hexdigest())
    return found


def runtime_finding(content: bytes, runtime: str, place: str) -> str:
    """Return what is wrong with ``app_runtime`` for an archive that comes from a place; nothing if all is well."""
    if runtime not in RUNTIMES:
        return f"app_runtime: {runtime!r} is neither of {' and '.join(RUNTIMES)}; set it in group_vars/all/vars.yml"
    if runtime == "container" and not member_digest(content, "Containerfile"):
        return (
            f"{place}: Containerfile is not there, and app_runtime is container, which builds the image of a release "
            "from it. Fix: write one (docs/image.md) and commit it: `git add Containerfile && "
            "git commit`; or set app_runtime to venv in group_vars/all/vars.yml"
        )
    return ""


def commits_between(old: str, new: str, below: str, folder: Path) -> list[str] | None:
    """Return what ``new`` has and ``old`` has not below a folder: short name and subject, the newest first.

    None if the repository does not have one of them: the live release may come from another one.
    """
    try:
        for commit in (old, new):
            git("cat-file", "-e", f"{commit}^{{commit}}", folder=folder)
    except AnsibleActionFail:
        return None
    log = git("log", f"--max-count={COMMITS_SHOWN}", "--format=%h %s", f"{old}..{new}", "--", below, folder=folder)
    return log.decode(errors="replace").splitlines()


@dataclass(frozen=True)
class Built:
    """The archive of an application at a commit, and what it was made of."""

    content: bytes
    folder: Path
    """The repository."""
    below: str
    """The application's folder in it."""
    place: str
    """What messages call the two."""
    commit: str
    dirty: bool
    front_end: FrontEnd | None

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the archive, which names the artefact."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Origin:
    """Where an application and its front end come from; the fields are `ActionModule`'s arguments."""

    source: Path
    mirrors: Path
    repository: str = ""
    repository_folder: str = ""
    frontend_repository: str = ""
    frontend_version: str = "HEAD"
    frontend_folder: str = ""
    file_limit: int = LIMIT_MEGABYTES

    def place(self) -> tuple[Path, str, Remote | None]:
        """Return the repository on this machine, the application's folder in it, and where it was fetched from."""
        if self.repository:
            remote = Remote.parse(self.repository)
            return remote.fetch(self.mirrors), self.repository_folder.strip("/"), remote
        if not self.source.is_dir():
            raise AnsibleActionFail(f"app_source: {self.source} is not a folder; set it in group_vars/all/vars.yml")
        return self.source, ".", None

    def build(self, version: str = "HEAD", *, allow_dirty: bool) -> Built:
        """Return the artefact; raise `AnsibleActionFail` if there is none, or the source is dirty and may not be."""
        dirty = False
        folder, below, remote = self.place()
        if remote:
            place = f"{remote.shown} {below}".strip()
            tree, commit = remote_tree(remote, folder, version, below)
        else:
            place = str(self.source)
            tree, commit, dirty = tree_of(folder, version)
        if dirty and not allow_dirty:
            raise AnsibleActionFail(
                f"{folder} has changes that are not committed, and this environment takes none (allow_dirty_tree). "
                "Fix: commit them (`git add -A && git commit`), or deploy a commit: -e app_version=main"
            )
        front_end = None
        if self.frontend_repository:
            wanted = self.frontend_repository, self.frontend_version, self.frontend_folder
            front_end = FrontEnd.fetch(*wanted, self.mirrors)
        return Built(archive(folder, tree, front_end, self.file_limit), folder, below, place, commit, dirty, front_end)

    def commits(self, commit: str, since: str) -> dict[str, list[str] | None]:
        """Return what comes with a commit and what it takes back, where another one is live."""
        try:
            folder, below, _ = self.place()
        except AnsibleActionFail:
            # For the eyes of whoever approves: an artefact that is here already needs no repository.
            return {"commits": None, "undone": None}
        where = below or ".", folder
        return {"commits": commits_between(since, commit, *where), "undone": commits_between(commit, since, *where)}


@dataclass(frozen=True)
class Kept:
    """An artefact in the cache, as ``DIGEST.tar``, and what its builder knew of it, as ``DIGEST.json`` beside it."""

    path: Path
    content: bytes
    facts: dict[str, Any]
    """commit, subject, dirty and frontend, as the action returns them."""

    @classmethod
    def keep(cls, cache: Path, content: bytes, facts: dict[str, Any]) -> Kept:
        """Write an artefact where it is not there yet, and what is known of it."""
        path = cache / f"{hashlib.sha256(content).hexdigest()}.tar"
        cache.mkdir(parents=True, exist_ok=True)
        for file, wanted in ((path, content), (path.with_suffix(".json"), json.dumps(facts).encode())):
            if not file.is_file() or file.read_bytes() != wanted:
                with tempfile.NamedTemporaryFile(dir=cache, delete=False) as stream:
                    stream.write(wanted)
                Path(stream.name).replace(file)
        return cls(path, content, facts)

    @classmethod
    def take(cls, cache: Path, digest: str) -> Kept:
        """Return the artefact of a digest; raise `AnsibleActionFail` if it is not there, or is not that one."""
        if not DIGEST.fullmatch(digest):
            raise AnsibleActionFail(
                f"artefact: {digest!r} is not a digest of 64 characters, as playbooks/build.yml prints it"
            )
        path = cache / f"{digest}.tar"
        other = (
            f"Bring {path.name} and {digest}.json to {cache} (a run of the pipeline keeps both as its artifact "
            f"`artefact`), or leave artefact out to build from Git"
        )
        try:
            content, known = path.read_bytes(), path.with_suffix(".json").read_bytes()
        except OSError as error:
            raise AnsibleActionFail(f"artefact: {error.filename}: {error.strerror}. {other}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise AnsibleActionFail(f"artefact: {path} is not what its name says: its digest differs. {other}")
        try:
            facts = json.loads(known)
            front_end = facts["frontend"]
            good = (
                isinstance(facts["subject"], str)
                and isinstance(facts["dirty"], bool)
                and all(COMMIT.fullmatch(part["commit"]) for part in (facts, front_end) if part)
            )
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise AnsibleActionFail(
                f"artefact: {path.with_suffix('.json')} does not tell what the artefact is. {other}"
            )
        return cls(path, content, facts)


# What says which repositories; empty ones are as those that are not given.
ORIGIN = ("repository", "repository_folder", "frontend_repository", "frontend_version", "frontend_folder")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone; no host is contacted.

    Arguments:
        source: folder of the application, inside a Git work tree; not used with ``repository``.
        repository: URL or path of another Git repository that holds the application; empty to take ``source``.
        repository_folder: folder of the application in that repository; empty for its root.
        frontend_repository: the same for a front end, instead of the application's own; empty for that.
        frontend_version: commit, tag or branch of it.
        frontend_folder: the folder with its built files; empty for its root.
        mirrors: folder for what is fetched of such repositories.
        version: commit, tag or branch; HEAD takes the work tree as it is, or the other repository's default branch.
        allow_dirty: whether uncommitted changes may be part of the artefact.
        runtime: what the release is to run in, ``venv`` or ``container``, which takes a Containerfile.
        file_limit: the most megabytes of a file.
        lock_file: the lock file that counts; empty if there is one alone.
        cache: folder for finished archives, and what is known of each.
        digest: take the archive of this digest from there as it is; ``version`` and ``frontend_version`` say nothing
            then, and Git is asked for the way from ``since`` alone. Empty to build.
        since: the commit that is live, to be told what comes with this one and what it takes back; may be left out.

    Returns path, digest (SHA-256), lock (SHA-256 of the lock file), commit (the last one that touched the source),
    label (the digest's beginning, marked where it is dirty), subject, frontend (commit and subject of a front end from
    a repository of its own, or empty); with ``since``, also commits and undone.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(
        (
            "source", "repository", "repository_folder", "mirrors", "version", "allow_dirty", "cache", "since",
            "frontend_repository", "frontend_version", "frontend_folder", "runtime", "digest", "file_limit",
            "lock_file",
        )
    )  # fmt: skip

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the artefact's facts as a task result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        named = {name: str(arguments[name]) for name in ORIGIN if arguments.get(name)}
        limit = int(arguments.get("file_limit", LIMIT_MEGABYTES))
        origin = Origin(
            Path(str(arguments.get("source", ""))), Path(str(arguments["mirrors"])), **named, file_limit=limit
        )
        allow_dirty = boolean(arguments.get("allow_dirty", False))
        cache = Path(str(arguments["cache"]))
        if digest := str(arguments.get("digest", "")):
            kept = Kept.take(cache, digest)
            if kept.facts["dirty"] and not allow_dirty:
                raise AnsibleActionFail(
                    f"artefact: {digest} has changes that were not committed, and this environment takes none "
                    "(allow_dirty_tree). Fix: commit them, and deploy that to the environment before this one"
                )
            content, facts, place = kept.content, kept.facts, str(kept.path)
        else:
            built = origin.build(str(arguments.get("version", "HEAD")), allow_dirty=allow_dirty)
            commit, subject = last_change(built.folder, built.commit, built.below)
            front_end = built.front_end
            facts = {
                "commit": commit,
                "subject": subject,
                "dirty": built.dirty,
                "frontend": {"commit": front_end.commit, "subject": front_end.subject} if front_end else {},
            }
            content, place = built.content, built.place
        name = lock_in(content, str(arguments.get("lock_file", "")))
        if not name:
            version = str(arguments.get("version", "HEAD"))
            raise AnsibleActionFail(
                f"{place}: no lock file is in {version}, and hosts install from one alone ({', '.join(KINDS)}). Fix: "
                "`poetry lock`, `uv lock`, or `uv pip compile --generate-hashes requirements.in -o requirements.txt` "
                "there, and commit it"
            )
        lock, runtime = member_digest(content, name), str(arguments.get("runtime", "venv"))
        wrong = lock_finding(content, runtime, place) if name == "poetry.lock" else ""
        if finding := wrong or runtime_finding(content, runtime, place):
            raise AnsibleActionFail(finding)
        path = Kept.keep(cache, content, facts).path
        if since := str(arguments.get("since", "")):
            result.update(origin.commits(facts["commit"], since))
        result.update(
            changed=False,
            path=str(path),
            digest=path.stem,
            lock=lock,
            label=path.stem[:8] + ("-dirty" if facts["dirty"] else ""),
            **{name: facts[name] for name in ("commit", "subject", "dirty", "frontend")},
        )
        return result
