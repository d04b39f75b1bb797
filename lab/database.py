"""The stand-in for RDS: its configuration, its master accounts, and stopping it for fault tests."""

from pathlib import Path

from lab import machines, tls
from lab.commands import indent
from lab.config import DATABASE_HOST, Lab
from lab.errors import LabError
from lab.images import chroot
from lab.machines import inside

# Enough for the pools of two hosts of prod with four workers each, twice during a switch, and for all of dev's.
MAX_CONNECTIONS = 400
# What Amazon grants to the master account of RDS for MySQL: no SUPER, no FILE, no SHUTDOWN.
MASTER_PRIVILEGES = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, RELOAD, PROCESS, REFERENCES, INDEX, ALTER, "
    "SHOW DATABASES, CREATE TEMPORARY TABLES, LOCK TABLES, EXECUTE, REPLICATION SLAVE, REPLICATION CLIENT, "
    "CREATE VIEW, SHOW VIEW, CREATE ROUTINE, ALTER ROUTINE, CREATE USER, EVENT, TRIGGER"
)


def configure(lab: Lab, root: Path, kind: str) -> None:
    """Write server options and certificate of a database of `kind` mysql or mariadb into its root."""
    certificate, key = tls.database_certificate(lab)
    directory = root / "etc/mysql/tls"
    directory.mkdir(parents=True, exist_ok=True)
    files = {"ca.pem": tls.authority(lab), "server.pem": certificate, "server.key": key}
    for name, text in files.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o600)
    chroot(root, "chown", "--recursive", "mysql:mysql", "/etc/mysql/tls")
    # The packages' own files bind to the loopback address; the last file read wins.
    (root / f"etc/mysql/{kind}.conf.d/zz-lab.cnf").write_text(f"""\
[mysqld]
bind-address = {lab.address(DATABASE_HOST)}
character-set-server = utf8mb4
max_connections = {MAX_CONNECTIONS}
log_bin_trust_function_creators = 1
skip-name-resolve
ssl-ca = /etc/mysql/tls/ca.pem
ssl-cert = /etc/mysql/tls/server.pem
ssl-key = /etc/mysql/tls/server.key
{"mysqlx = OFF" if kind == "mysql" else ""}
""")


def ensure_master(environment: str, user: str, password: str, lab: Lab | None = None) -> None:
    """Create the account that RDS creates with an instance, or give it this password.

    `environment` appears in messages only. Neither name nor password reaches a command line or a log.
    """
    if not password or "\0" in password or "\n" in password:
        raise LabError(f"the {environment} master account needs a password of one line")
    account = f"{quote(user)}@'%'"
    statements = (
        f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY {quote(password)};\n"
        f"ALTER USER {account} IDENTIFIED BY {quote(password)};\n"
        f"GRANT {MASTER_PRIVILEGES} ON *.* TO {account} WITH GRANT OPTION;\n"
    )
    client = ["mysql", "--batch", "--protocol=socket", "--default-character-set=utf8mb4"]
    result = inside(leader(lab or Lab.from_environment()), client, stdin=statements)
    if result.returncode:
        said = result.stderr.replace(password, "********")
        raise LabError(f"the {environment} master account could not be made:\n{indent(said)}")


def quote(text: str) -> str:
    """Return `text` as a string literal of MySQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def leader(lab: Lab) -> int:
    """Return the process id of the database machine's systemd; LabError if it does not run."""
    name = lab.machine(DATABASE_HOST)
    if (pid := machines.find([name])[name].leader) is None:
        raise LabError(f"the database machine of lab {lab.name} does not run: `lab up`")
    return pid


def control(lab: Lab, verb: str) -> str:
    """Start, stop or ask for the status of the server; return what systemd says, e.g. `active`."""
    pid = leader(lab)
    # The package says which one it is: the image may have been built when MySQL could not be had.
    is_mysql = inside(pid, ["test", "-e", "/usr/lib/systemd/system/mysql.service"]).returncode == 0
    unit = "mysql.service" if is_mysql else "mariadb.service"
    if verb != "status":
        result = inside(pid, ["systemctl", verb, unit])
        if result.returncode:
            raise LabError(f"`systemctl {verb} {unit}` in {DATABASE_HOST} failed:\n{indent(result.stderr)}")
    return inside(pid, ["systemctl", "is-active", unit]).stdout.strip()
