"""What stands for a secret in what is compared: equal or different, and nothing else."""

from __future__ import annotations

import hashlib
import re

# Words in the name of a setting that holds a secret.
SENSITIVE = r"[\w.-]*(?:passw(?:or)?d|passphrase|secret|token(?!s)|api[_-]?key|private[_-]?key|credential)[\w.-]*"
SECRET_SETTING = re.compile(rf"({SENSITIVE}[\"']?[ \t]*[=:][ \t]*)(\S.*)", re.IGNORECASE)
SECRET_HEADER = re.compile(
    r"((?:proxy_set_header|add_header|fastcgi_param|uwsgi_param|set)[ \t]+"
    rf"\$?(?:{SENSITIVE}|[\w-]*authorization)[ \t]+)(\S.*)",
    re.IGNORECASE,
)
SECRET_URL = re.compile(r"(?<=://)([^\s/@:]*):([^\s/@]+)@")


class SecretDigests:
    """Makes digests of secrets, and puts them in the place of secrets in texts."""

    def __init__(self, key: str) -> None:
        self._key = hashlib.sha256(key.encode()).digest()
        self._known: set[str] = set()

    def digest(self, content: str | bytes) -> str:
        """Return 16 hexadecimal digits that are equal for equal contents of one run, and say nothing else."""
        data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        return hashlib.blake2b(data, key=self._key, digest_size=8).hexdigest()

    def secret(self, text: str) -> str:
        """Return what stands for a secret in a fact."""
        return f"<hidden {self.digest(text)}>"

    def content(self, data: str | bytes) -> str:
        """Return what stands for the content of a file in a fact."""
        return f"<content {self.digest(data)}>"

    def add(self, *secrets: str) -> None:
        """Redact secrets of this host, wherever they stand, from now on; a short one is ignored."""
        self._known.update(text for text in secrets if len(text) >= 6)

    def redact(self, text: str) -> str:
        """Return a configuration's text with digests in the place of secrets."""
        for known in sorted(self._known, key=len, reverse=True):
            text = text.replace(known, self.secret(known))
        text = SECRET_URL.sub(lambda found: f"{found[1]}:{self.secret(found[2])}@", text)
        for pattern in (SECRET_SETTING, SECRET_HEADER):
            text = pattern.sub(lambda found: found[1] + self.secret(found[2]), text)
        return text
