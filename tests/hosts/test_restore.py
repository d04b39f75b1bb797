"""Backups and restores of a database with all that MySQL has, made by several accounts, and one that is killed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.hosts.conftest import Converged
from tests.hosts.world import World

pytestmark = pytest.mark.lab

# The master account is the definer, as of what somebody made with it.
EVERYTHING = r"""
SET sql_mode = '';
CREATE TABLE parents (
  id INT AUTO_INCREMENT PRIMARY KEY, day DATE DEFAULT '0000-00-00', name VARCHAR(99) CHECK (name <> 'x'),
  twice VARCHAR(200) AS (CONCAT(name, name)) STORED, up VARCHAR(99) AS (UPPER(name)) VIRTUAL, data BLOB, doc JSON,
  KEY lowered ((LOWER(name))), KEY (up)
) COMMENT 'it''s
two lines';
CREATE TABLE children (
  id INT PRIMARY KEY, parent INT, CONSTRAINT belongs FOREIGN KEY (parent) REFERENCES parents (id) ON DELETE CASCADE
);
CREATE TABLE notes (note TEXT);
SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO';
INSERT INTO parents (id, day, name, data, doc) VALUES
  (0, '0000-00-00', 'é😀 \'),(\\ DEFINER=`a`@`b`', 0x00FF270A5C, '{"a": "\\"b\\", c"}'),
  (7, '2026-02-03', '/*!50013 DEFINER=`a`@`b` SQL SECURITY DEFINER */
/*!50013 DEFINER=`a`@`b` SQL SECURITY DEFINER */
', NULL, NULL);
INSERT INTO children VALUES (1, 0);
ALTER TABLE parents AUTO_INCREMENT = 500;
DELIMITER //
CREATE DEFINER=`waffle_prod`@`%` TRIGGER first BEFORE INSERT ON parents FOR EACH ROW BEGIN
  -- a note
  INSERT INTO notes VALUES ('x'); SET NEW.name = CONCAT(NEW.name, '!');
END//
CREATE DEFINER=`waffle_prod`@`%` TRIGGER second AFTER INSERT ON parents FOR EACH ROW INSERT INTO notes VALUES ('y')//
CREATE DEFINER=`nba_prod_migrate`@`%` FUNCTION more(x INT) RETURNS INT DETERMINISTIC
BEGIN /* kept */ RETURN x + 1; END//
CREATE DEFINER=`nba_prod_migrate`@`%` PROCEDURE several(x INT) BEGIN SELECT more(x); END//
CREATE DEFINER=`waffle_prod`@`%` EVENT daily ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01'
  COMMENT 'ON COMPLETION NOT PRESERVE DISABLE' DO INSERT INTO notes VALUES ('daily')//
CREATE DEFINER=`waffle_prod`@`%` EVENT idle ON SCHEDULE AT '2031-01-01' ON COMPLETION PRESERVE DISABLE
  DO BEGIN INSERT INTO notes VALUES ('idle'); END//
DELIMITER ;
CREATE DEFINER=`waffle_prod`@`%` VIEW a_view AS SELECT b.id, 'a
DEFINER=`a`@`b`' AS text FROM parents b;
CREATE DEFINER=`waffle_prod`@`%` VIEW another AS SELECT more(id) AS n FROM a_view;
"""
DAMAGE = (
    "DROP VIEW a_view; DROP TRIGGER first; DROP EVENT daily; DROP PROCEDURE several; DROP TABLE children; "
    "DELETE FROM users; CREATE TABLE later (id INT); "
    "CREATE TRIGGER of_later BEFORE INSERT ON later FOR EACH ROW SET @a = 1"
)
# Between the exchange of the tables and what is created after it.
KILLED = """
import os, sys
sys.path.insert(0, "/usr/local/lib/nba")
import backup, database
database.Database.create = lambda *_: os.kill(os.getpid(), 9)
backup.Backups(backup.Config.load()).restore("{name}")
"""
RESTORE = ("playbooks/restore.yml", "-l", "prod", "-e")


@pytest.fixture
def prod(here: World, converged: Converged) -> Iterator[World]:
    """Return the world with everything in prod's database, and leave prod without it."""
    here.write("db1", "/root/everything.sql", EVERYTHING)
    here.shell("db1", "mysql --default-character-set=utf8mb4 nba_prod </root/everything.sql")
    yield here
    here.sql(
        "nba_prod",
        "SET FOREIGN_KEY_CHECKS = 0; DROP TABLE IF EXISTS parents, children, notes, later; "
        "DROP VIEW IF EXISTS a_view, another; DROP EVENT IF EXISTS daily; DROP EVENT IF EXISTS idle; "
        "DROP FUNCTION IF EXISTS more; DROP PROCEDURE IF EXISTS several",
    )


def content(here: World) -> str:
    """Return all that is in the database of prod as SQL, without definers, and checksums of its tables."""
    dump = here.shell(
        "db1",
        "mysqldump --single-transaction --routines --events --hex-blob --skip-dump-date --no-tablespaces "
        "--set-gtid-purged=OFF nba_prod && mysql -NB nba_prod -e 'CHECKSUM TABLE users, parents, children, notes; "
        "SELECT @@character_set_database, @@collation_database'",
        check=False,
    )
    return re.sub(r"DEFINER=`(?:waffle_prod|nba_prod_migrate)`@`%` ?", "", dump)


def test_everything_survives_a_backup_and_a_restore_whoever_made_it(prod: World) -> None:
    before = content(prod)
    name = prod.shell("prod1", "nba-backup create | grep -o '2[^\"]*gz'").strip()
    prod.sql("nba_prod", DAMAGE)
    broken = content(prod)
    assert broken != before

    # A backup that does not load, as from another server: nothing is touched.
    refused = name.replace("-0001", "-torn")
    prod.shell(
        "prod1",
        f"cd /var/backups/nba && zcat {name} | sed 's/^-- Dump completed/SELECT no_such();\\n&/' | gzip >{refused}",
    )
    failed = prod.ansible(*RESTORE, f"backup={refused}")
    assert failed.code != 0 and "was not restored, and the database is as it was: " in " ".join(failed.output.split())
    assert content(prod) == broken

    prod.ansible(*RESTORE, f"backup={name}").succeeded()
    assert content(prod) == before
    assert "nba_prod-" not in prod.sql("mysql", "SHOW DATABASES")
    prod.execute("prod1", "rm", f"/var/backups/nba/{refused}")


def test_a_restore_that_is_killed_after_the_exchange_is_completed_by_the_same_command(prod: World) -> None:
    before = content(prod)
    name = prod.shell("prod1", "nba-backup create | grep -o '2[^\"]*gz'").strip()
    prod.write("prod1", "/root/killed.py", KILLED.format(name=name))
    prod.execute("prod1", "python3", "/root/killed.py", check=False)
    assert {"nba_prod-replaced", "nba_prod-restore"} <= set(prod.sql("mysql", "SHOW DATABASES").split())
    assert "TRIGGER" not in content(prod) and prod.get("prod1", "/api/health/ready").status == 200
    assert "a restore was interrupted" in prod.shell("prod1", "nba-backup create 2>&1", check=False)
    prod.ansible(*RESTORE, f"backup={name}").succeeded()
    assert content(prod) == before
    assert "nba_prod-" not in prod.sql("mysql", "SHOW DATABASES")
