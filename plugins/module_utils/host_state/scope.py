"""What is compared, and what is not and why."""

from __future__ import annotations

import fnmatch

from ansible_collections.waffle.iron.plugins.module_utils.host_state.parsing import Facts

# What is different on any two hosts, or changes by itself: the reason, and patterns of section/key.
REASONS = {
    "changes by itself": (
        "sysctl/kernel.ns_last_pid sysctl/kernel.pty.nr sysctl/fs.*-nr sysctl/fs.*-state sysctl/kernel.random.* "
        "sysctl/kernel.perf_event_max_sample_rate sysctl/net.*.nf_conntrack_count files/etc/.pwd.lock"
    ),
    "the host's own": "sysctl/kernel.hostname sysctl/net.*stable_secret sysctl/net.ipv4.tcp_fastopen_key",
    "the machine's processors": "sysctl/kernel.sched_domain.*",
    "derived from the size of the memory": (
        "sysctl/kernel.threads-max sysctl/fs.file-max sysctl/fs.epoll.max_user_watches "
        "sysctl/fs.inotify.max_user_watches sysctl/fs.fanotify.max_user_marks sysctl/net.ipv4.*_mem "
        "sysctl/net.ipv4.tcp_max_orphans sysctl/net.ipv4.tcp_max_tw_buckets sysctl/net.ipv4.tcp_max_syn_backlog "
        "sysctl/net.*nf_conntrack_*max sysctl/net.*nf_conntrack_buckets sysctl/user.max_* sysctl/vm.min_free_kbytes "
        "sysctl/vm.user_reserve_kbytes sysctl/vm.admin_reserve_kbytes sysctl/vm.lowmem_reserve_ratio "
        "limits/*processes limits/*signals limits/*DefaultLimitNPROC* limits/*DefaultLimitSIGPENDING* "
        "limits/*DefaultTasksMax*"
    ),
    "compiled from the files beside it": "files/*/__pycache__*",
    "an account file before its last change": "files/*-",
    "links to the certificates of ca-certificates": "files/etc/ssl/certs/*.[p0-9]*",
}
LEFT_OUT = [(pattern, reason) for reason, patterns in REASONS.items() for pattern in patterns.split()]
# Files whose text is compared elsewhere, or is the host's own: here only kind, mode and owner count.
CONTENT_ELSEWHERE = (
    ("/etc/hostname", "the host's name"),
    ("/etc/hosts", "the host's name and address"),
    ("/etc/machine-id", "the host's own"),
    ("/etc/iscsi/initiatorname.iscsi", "the host's own"),
    ("/etc/waffle-iron/environment", "the environment's name"),
    ("/etc/resolv.conf", "the network's"),
    ("/etc/network/*", "the network's"),
    ("/etc/netplan/*", "the network's"),
    ("/etc/adjtime", "the clock's"),
    ("/etc/ld.so.cache", "made from the libraries"),
    ("/etc/ssh/ssh_host_*", "the host's own"),
    ("/etc/ssl/private/*", "keys: never read"),
    ("/etc/letsencrypt/*", "keys and certificates: compared as what the server answers with"),
    ("/etc/nginx/*", "compared line by line, in the section nginx"),
    ("/etc/systemd/*", "compared line by line, in the section units"),
    ("/etc/sudoers*", "compared line by line, in the section sudoers"),
    ("/etc/passwd", "compared in the section users"),
    ("/etc/group", "compared in the section users"),
    ("/etc/shadow", "compared in the section users"),
    ("/etc/gshadow", "compared in the section users"),
    ("/etc/sub?id", "follows from the accounts"),
    ("*/.env", "compared key by key, in the section application"),
    ("*/.env.migrate", "compared key by key, in the section application"),
    ("*/.files/*", "compared as digests, in the section application"),
    ("*/.mysql.cnf", "compared key by key, in the section application"),
    ("*/<release>/release.json", "compared key by key, in the section application"),
    ("/opt/poetry-*/.complete", "when each of its files was made"),
    ("/usr/local/lib/*/*.json", "compared key by key, in the section application"),
)
# Of some six hundred variables of the server, those that change what a query does, or whether there is an answer.
SERVER_VARIABLES = (
    "activate_all_roles_on_login authentication_policy autocommit auto_increment_increment auto_increment_offset "
    "binlog_format binlog_row_image character_set_client character_set_database character_set_server "
    "collation_database collation_server connect_timeout default_authentication_plugin default_storage_engine "
    "event_scheduler explicit_defaults_for_timestamp foreign_key_checks group_concat_max_len init_connect "
    "innodb_autoinc_lock_mode innodb_buffer_pool_size innodb_default_row_format innodb_flush_log_at_trx_commit "
    "innodb_lock_wait_timeout innodb_strict_mode interactive_timeout local_infile lock_wait_timeout log_bin "
    "log_bin_trust_function_creators long_query_time lower_case_table_names max_allowed_packet max_connections "
    "max_execution_time max_user_connections net_read_timeout net_write_timeout partial_revokes password_history "
    "read_only require_secure_transport secure_file_priv skip_name_resolve slow_query_log sql_auto_is_null sql_mode "
    "sql_require_primary_key ssl_cipher sync_binlog system_time_zone time_zone tls_ciphersuites tls_version "
    "transaction_isolation tx_isolation validate_password.length validate_password.policy version wait_timeout"
)
# Kind of thing, its columns (two for its name, then what is compared), where they are, which rows are this database's.
SCHEMA_QUERIES = (
    (
        "database",
        "'', '', default_character_set_name, default_collation_name",
        "schemata",
        "schema_name = DATABASE()",
    ),
    (
        "table",
        "table_name, '', table_type, engine, table_collation, create_options",
        "tables",
        "table_schema = DATABASE()",
    ),
    (
        "column",
        "table_name, column_name, ordinal_position, column_type, IF(is_nullable = 'YES', 'null', 'not null'), "
        "CONCAT('default ', COALESCE(column_default, 'none')), extra, collation_name, generation_expression, "
        "column_comment",
        "columns",
        "table_schema = DATABASE()",
    ),
    (
        "index",
        "table_name, index_name, IF(MAX(non_unique) = 0, 'unique', 'not unique'), index_type, "
        "GROUP_CONCAT(COALESCE(column_name, '(expression)'), IF(sub_part IS NULL, '', CONCAT('(', sub_part, ')')), "
        "IF(collation = 'D', ' desc', '') ORDER BY seq_in_index SEPARATOR ', ')",
        "statistics",
        "table_schema = DATABASE() GROUP BY table_name, index_name, index_type",
    ),
    (
        "constraint",
        "table_name, constraint_name, constraint_type",
        "table_constraints",
        "table_schema = DATABASE()",
    ),
    ("check", "constraint_name, '', check_clause", "check_constraints", "constraint_schema = DATABASE()"),
    (
        "reference",
        "table_name, constraint_name, GROUP_CONCAT(column_name ORDER BY ordinal_position SEPARATOR ', '), 'to', "
        "referenced_table_name, GROUP_CONCAT(referenced_column_name ORDER BY ordinal_position SEPARATOR ', ')",
        "key_column_usage",
        "table_schema = DATABASE() AND referenced_table_name IS NOT NULL "
        "GROUP BY table_name, constraint_name, referenced_table_name",
    ),
    (
        "rule",
        "table_name, constraint_name, 'on update', update_rule, 'on delete', delete_rule",
        "referential_constraints",
        "constraint_schema = DATABASE()",
    ),
    ("view", "table_name, '', view_definition", "views", "table_schema = DATABASE()"),
    (
        "trigger",
        "event_object_table, trigger_name, action_timing, event_manipulation, action_statement",
        "triggers",
        "trigger_schema = DATABASE()",
    ),
    (
        "routine",
        "routine_name, '', routine_type, routine_definition",
        "routines",
        "routine_schema = DATABASE()",
    ),
)


def kept(section: str, facts: Facts) -> Facts:
    """Return the facts of a section without those that are not compared."""
    patterns = [pattern for pattern, _ in LEFT_OUT if pattern.startswith(f"{section}/")]
    return {
        key: value
        for key, value in facts.items()
        if not any(fnmatch.fnmatchcase(f"{section}/{key.lstrip('/')}", pattern) for pattern in patterns)
    }


def left_out() -> list[tuple[str, str]]:
    """Return what is not compared, and why."""
    return [*LEFT_OUT, *((f"content of {pattern}", reason) for pattern, reason in CONTENT_ELSEWHERE)]
