//! The sections and their keys: name, type, default and what is expected, each stated once.
//!
//! The list makes the structs, the reader of each, and [`KEYS`], which the example file is compared with. Must not know:
//! TOML, the environment, relations between keys (`check`).

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::reader::Reader;
use super::secret::Secret;
use super::values::{BootstrapMember, LogFilter, LogFormat, NodeUrl, UnavailableShardPolicy};
use crate::types::MemberId;
use crate::types::limits::{
    BODY_DEFAULT_MAX_BYTES, CALL_BODY_MAX_BYTES, LEASE_TTL_MAX_MS, LEASE_TTL_MIN_MS, SHARDS_DEFAULT, SHARDS_MAX,
};

/// What holds where a key is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyDefault {
    /// This TOML value.
    Value(&'static str),
    /// Nothing: the key is optional.
    Unset,
    /// Nothing: the key must be set.
    Required,
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its section.
    pub section: &'static str,
    /// Its name there.
    pub key: &'static str,
    /// What holds without it.
    pub default: KeyDefault,
    /// What may stand there, as the end of "expected …".
    pub expected: &'static str,
    /// Whether it is a secret: taken from the environment only, beside the file that `<key>_file` names.
    pub secret: bool,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.section, self.key)
    }
}

macro_rules! sections {
    ($(
        $(#[$about:meta])*
        $section:ident $struct:ident {
            $( $(#[$doc:meta])* $key:ident: $type:ty = $default:expr, $expected:literal, $check:expr; )*
            $( @secret $(#[$sdoc:meta])* $secret:ident $secret_file:ident $form:ident($min:literal); )*
        }
    )+) => {
        $(
            $(#[$about])*
            #[derive(Debug, Clone, PartialEq)]
            pub struct $struct {
                $( $(#[$doc])* pub $key: $type, )*
                $( $(#[$sdoc])* pub $secret: Option<Secret>, )*
            }

            impl $struct {
                /// Reads all keys of the section, also after a fault, so that all faults are found.
                pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
                    $( let $key: Option<$type> = reader.key(&sections!(@key $section $key $default, $expected), $check); )*
                    $(
                        let _: Option<Option<PathBuf>> =
                            reader.key(&sections!(@file $section $secret_file), |_| true);
                        let $secret = reader.secret(stringify!($section), stringify!($secret), Secret::$form, $min);
                    )*
                    Some(Self { $( $key: $key?, )* $( $secret, )* })
                }
            }
        )+

        /// Every key there is, section by section.
        pub const KEYS: &[Key] = &[$(
            $( sections!(@key $section $key $default, $expected), )*
            $(
                sections!(@file $section $secret_file),
                Key {
                    section: stringify!($section),
                    key: stringify!($secret),
                    default: KeyDefault::Unset,
                    expected: "a secret",
                    secret: true,
                },
            )*
        )+];
    };
    (@key $section:ident $key:ident $default:expr, $expected:literal) => {
        Key {
            section: stringify!($section),
            key: stringify!($key),
            default: $default,
            expected: $expected,
            secret: false,
        }
    };
    (@file $section:ident $file:ident) => {
        sections!(@key $section $file KeyDefault::Unset, "the path of a file that holds the secret")
    };
}

use KeyDefault::{Required, Value};

/// Takes every value that its type takes.
fn any<T>(_: &T) -> bool {
    true
}

// The reader hands out what it read.
#[allow(clippy::ptr_arg)]
fn is_path(p: &PathBuf) -> bool {
    !p.as_os_str().is_empty()
}

sections! {
    /// `[node]`: this member.
    node NodeConfig {
        /// The member's id: stable, never given to another member.
        id: MemberId = Required, "a member id: 1 to 63 lower-case letters, digits and inner hyphens, not digits only (it is a name in a certificate)", any;
        /// The directory of the member's store; made if it is not there.
        data_dir: PathBuf = Value("'/var/lib/miroir'"), "the path of a directory", is_path;
        /// This sidecar has no node: it votes and holds no documents.
        witness: bool = Value("false"), "true or false", any;
        /// Seconds that requests under way get to end after SIGTERM.
        shutdown_drain_s: u64 = Value("10"), "a number of seconds from 0 to 600", |v| *v <= 600;
    }

    /// `[meilisearch]`: the node beside this member.
    meilisearch MeilisearchConfig {
        /// Where the node listens.
        url: NodeUrl = Value("'http://127.0.0.1:7700'"), "a URL such as http://127.0.0.1:7700, without a path", any;
        /// Seconds that one request to the node may take.
        timeout_s: u64 = Value("60"), "a number of seconds from 1 to 3600", |v| (1..=3600).contains(v);
        @secret
        /// The node's master key, or a key of it that allows everything; `None`: the node is open.
        key key_file new(1);
    }

    /// `[http]`: the Meilisearch API for clients.
    http HttpConfig {
        /// Where clients are served (TCP).
        listen: SocketAddr = Value("'127.0.0.1:7780'"), "an IP address with a port, such as 127.0.0.1:7780", any;
        /// Largest body of a request in bytes, after decompression.
        max_body_bytes: u64 = Value("100000000"), "a number of bytes from 1024 to 536870911",
            |v| (1024..CALL_BODY_MAX_BYTES as u64).contains(v);
        /// Seconds without a byte of the body or headers after which a client is cut off.
        body_timeout_s: u64 = Value("30"), "a number of seconds from 1 to 3600", |v| (1..=3600).contains(v);
        /// Requests under way at once; further ones get 503.
        max_concurrent_requests: usize = Value("1024"), "a number from 1 to 65536", |v| (1..=65_536).contains(v);
    }

    /// `[mesh]`: the other members.
    mesh MeshConfig {
        /// Where the mesh port listens (UDP).
        listen: SocketAddr = Value("'0.0.0.0:7781'"), "an IP address with a port, such as 0.0.0.0:7781", any;
        /// All members that the mesh begins with: the same list, in the same order, on all. Empty: this member waits for
        /// `miroir-ctl mesh init`.
        bootstrap: Vec<BootstrapMember> = Value("[]"),
            "a list such as [{ id = \"m1\", group = \"g1\", address = \"10.0.0.1:7781\" }]",
            |v: &Vec<BootstrapMember>| v.iter().all(|m| m.address.is_reachable());
        /// Seconds of silence after which a voter is replaced by another member, or left out while more than three vote.
        voter_replace_after_s: u64 = Value("600"), "a number of seconds from 10 to 604800",
            |v| (10..=604_800).contains(v);
        /// Copies of each shard inside one group.
        rf: u8 = Value("1"), "a number from 1 to 16", |v| (1..=16).contains(v);
        /// The certificate of the mesh's own CA, PEM.
        ca_file: PathBuf = Value("'/etc/miroir/ca.pem'"), "the path of a PEM file", is_path;
        /// This member's certificate, PEM.
        cert_file: PathBuf = Value("'/etc/miroir/member.pem'"), "the path of a PEM file", is_path;
        /// The private key of this member's certificate, PEM.
        key_file: PathBuf = Value("'/etc/miroir/member-key.pem'"), "the path of a PEM file", is_path;
        /// Milliseconds between two rounds of gossip.
        gossip_interval_ms: u64 = Value("1000"), "a number of milliseconds from 50 to 60000",
            |v| (50..=60_000).contains(v);
        /// Milliseconds between two probes of a peer, half of that behind an unanswered one; three unanswered make a suspect.
        probe_interval_ms: u64 = Value("300"), "a number of milliseconds from 20 to 10000",
            |v| (20..=10_000).contains(v);
    }

    /// `[leader_election]`: who leads what is led by one member at a time.
    leader_election LeaderElectionConfig {
        /// False: this member leads nothing; it votes all the same.
        enabled: bool = Value("true"), "true or false", any;
        /// Seconds that a lease lasts without being renewed; with it, how old copies of records may be before it is said.
        lease_ttl_s: u64 = Value("10"), "a number of seconds from 3 to 600", |v| (3..=600).contains(v);
        /// Seconds between two renewals of this member's leases.
        renew_interval_s: u64 = Value("3"), "a number of seconds from 1 to 299", |v| (1..=299).contains(v);
    }

    /// `[journal]`: how the writes of each shard are kept and brought to the nodes.
    journal JournalConfig {
        /// Copies of a shard that must be in sync for a write to be taken; 0: a majority of the copies, but 1 of 2.
        min_in_sync: usize = Value("0"), "a number from 0 to 16", |v| *v <= 16;
        /// Milliseconds after which a copy that leaves a write unanswered is counted in sync no more.
        in_sync_lag_ms: u64 = Value("2000"), "a number of milliseconds from 200 to 60000",
            |v| (200..=60_000).contains(v);
        /// Milliseconds that a node may be behind the furthest copy of a shard before the shard is not searched there any more.
        serve_lag_ms: u64 = Value("5000"), "a number of milliseconds from 500 to 600000",
            |v| (500..=600_000).contains(v);
        /// Seconds that writes are kept in the journals, so that a member that was away so long need not copy whole shards.
        retention_s: u64 = Value("86400"), "a number of seconds from 60 to 31536000",
            |v| (60..=31_536_000).contains(v);
        /// The same in bytes of all journals together; what a copy in sync that gets on still needs is kept beyond it.
        retention_bytes: u64 = Value("4294967296"), "a number of bytes from 1048576 to 1099511627776",
            |v| (1 << 20..=1 << 40).contains(v);
        /// Bytes that must be free on the disk of the store; with fewer, other members order and store the writes. 0: never looked at.
        min_free_bytes: u64 = Value("268435456"), "a number of bytes up to 1099511627776", |v| *v <= 1 << 40;
    }

    /// `[tasks]`: what is kept of tasks, and who is told of them.
    tasks TasksConfig {
        /// Seconds that a task can be looked at after it has ended.
        retention_s: u64 = Value("604800"), "a number of seconds from 60 to 315360000",
            |v| (60..=315_360_000).contains(v);
        /// Where tasks that have ended are told, as a node's `--task-webhook-url`; empty: nowhere.
        webhook_url: String = Value("''"), "a URL such as http://127.0.0.1:8080/hook or https://example.org/hook",
            |v: &String| v.is_empty() || v.starts_with("http://") || v.starts_with("https://");
        @secret
        /// The `Authorization` header that the webhook gets.
        webhook_authorization webhook_authorization_file header(1);
    }

    /// `[metrics]`: the Prometheus exposition.
    metrics MetricsConfig {
        /// Where it is served (TCP).
        listen: SocketAddr = Value("'127.0.0.1:9780'"), "an IP address with a port, such as 127.0.0.1:9780", any;
    }

    /// `[access]`: who may do what.
    access AccessConfig {
        @secret
        /// Clients must send it as Bearer; `None`: the mesh is open.
        master_key master_key_file new(16);
        @secret
        /// For `/_miroir/*`; `None`: the master key.
        admin_key admin_key_file new(16);
    }

    /// `[index]`: what a new index gets.
    index IndexConfig {
        /// Shards of a new index.
        shards: u16 = Value("64"), "a number from 1 to 1024", |v| (1..=SHARDS_MAX).contains(v);
    }

    /// `[search]`: how searches deal with slow and missing members.
    search SearchConfig {
        /// What happens when no copy of a shard can be had.
        unavailable_shard_policy: UnavailableShardPolicy = Value("'partial'"), "`partial` or `error`", any;
        /// Milliseconds that a whole search may take.
        deadline_ms: u64 = Value("30000"), "a number of milliseconds from 100 to 600000",
            |v| (100..=600_000).contains(v);
        /// Whether a late part is asked of another replica too.
        hedge: bool = Value("true"), "true or false", any;
        /// At most so many hedged parts in a hundred searches.
        hedge_budget_percent: u8 = Value("5"), "a number from 0 to 100", |v| *v <= 100;
    }

    /// `[log]`: what is written to stderr.
    log LogConfig {
        /// The form of a line.
        format: LogFormat = Value("'text'"), "`text` or `json`", any;
        /// Which lines.
        filter: LogFilter = Value("'info'"), "a filter such as `info` or `warn,miroir::net=debug`", any;
    }
}

// Defaults and texts are literals, so that they can stand in `KEYS`; these keep them true.
const _: () = assert!(BODY_DEFAULT_MAX_BYTES == 100_000_000);
const _: () = assert!(CALL_BODY_MAX_BYTES == 536_870_912);
const _: () = assert!(LEASE_TTL_MIN_MS <= 3_000 && LEASE_TTL_MAX_MS == 600_000);
const _: () = assert!(SHARDS_DEFAULT == 64 && SHARDS_MAX == 1_024);
