//! Every Prometheus series, declared once and listable.
//!
//! Labels are words from closed sets: whatever a client or peer may choose freely is never one (a scope names an index or
//! alias, but is there only while this member leads it). Names are
//! `miroir_<room>_<noun>_<unit|total>`. Must not know: who counts what when.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::process;

/// Bounds of latency histograms, seconds: from a search on loopback to the longest deadline.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
/// Bounds of counts of members.
const MEMBERS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0, 128.0];

/// Makes one kind of series from name, help, labels and bounds.
trait Series: Sized + Clone + Collector + 'static {
    fn make(name: &str, help: &str, labels: &[&str], bounds: &[f64]) -> prometheus::Result<Self>;
}

macro_rules! series {
    ($type:ident, $name:ident $help:ident $labels:ident $bounds:ident => $make:expr) => {
        impl Series for $type {
            fn make($name: &str, $help: &str, $labels: &[&str], $bounds: &[f64]) -> prometheus::Result<Self> {
                $make
            }
        }
    };
}

series!(IntCounter, name help _l _b => Self::new(name, help));
series!(IntGauge, name help _l _b => Self::new(name, help));
series!(IntCounterVec, name help labels _b => Self::new(Opts::new(name, help), labels));
series!(CounterVec, name help labels _b => Self::new(Opts::new(name, help), labels));
series!(IntGaugeVec, name help labels _b => Self::new(Opts::new(name, help), labels));
series!(Histogram, name help _l bounds =>
    Self::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec())));
series!(HistogramVec, name help labels bounds =>
    Self::new(HistogramOpts::new(name, help).buckets(bounds.to_vec()), labels));

macro_rules! metrics {
    ($( $field:ident: $type:ident = $name:literal, $help:literal, [$($label:literal),*], $bounds:expr; )+) => {
        /// This member's series. One value a member, so that several members in one process don't mix.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            scraping: Mutex<()>,
            $( #[doc = $help] pub $field: $type, )+
        }

        impl Metrics {
            /// All series at zero.
            pub fn new() -> Self {
                let registry = Registry::new();
                $(
                    let $field = $type::make($name, $help, &[$($label),*], $bounds)
                        .and_then(|series| registry.register(Box::new(series.clone())).map(|()| series))
                        .expect("the names and labels below are valid and different, as a test shows");
                )+
                Self { registry, scraping: Mutex::default(), $( $field ),+ }
            }
        }

        const DECLARED: &[(&str, &str, &[&str])] = &[$( ($name, $help, &[$($label),*]) ),+];
    };
}

metrics! {
    http_requests: IntCounterVec = "miroir_http_requests_total",
        "Requests of clients that were answered, or that the client left (status cancelled)",
        ["route", "method", "status"], &[];
    http_duration: HistogramVec = "miroir_http_request_duration_seconds",
        "Time from the head of a client's request to the end of its answer", ["route"], SECONDS;
    http_in_flight: IntGauge = "miroir_http_requests_in_flight", "Requests of clients under way", [], &[];
    scatter_members: Histogram = "miroir_search_scatter_members", "Members that one search was sent to", [], MEMBERS;
    hedges: IntCounterVec = "miroir_search_hedges_total",
        "Parts asked of another replica too because they were late, by whose answer was taken (first, second)",
        ["winner"], &[];
    replans: IntCounterVec = "miroir_search_replans_total",
        "Parts planned anew inside a request (failed, not_served)", ["reason"], &[];
    partial_answers: IntCounter = "miroir_search_partial_answers_total",
        "Answers to searches that lack shards", [], &[];
    node_duration: HistogramVec = "miroir_node_request_duration_seconds",
        "Time of requests to the own node (search, documents, write, question)", ["kind"], SECONDS;
    node_failures: IntCounterVec = "miroir_node_failures_total",
        "Requests to the own node without an answer", ["kind"], &[];
    verdict_mismatches: IntCounter = "miroir_verdict_mismatch_total",
        "Entries of which the own node made something else than the primary's", [], &[];
    node_healthy: IntGauge = "miroir_node_healthy", "1 while the own node answers its probes, otherwise 0", [], &[];
    disk_free: IntGauge = "miroir_disk_free_bytes", "Bytes free on the disk of the store", [], &[];
    journal_spare: IntGauge = "miroir_journal_spare_bytes",
        "Bytes of the file of journals that hold nothing: it does not grow before they are used again", [], &[];
    disk_full: IntGauge = "miroir_disk_full",
        "1 while fewer bytes are free, on the disk and in the file of journals together, than journal.min_free_bytes says, so that \
         this member takes part in no writes", [], &[];
    shards_served: IntGauge = "miroir_shards_served",
        "Shards of all indexes that have a serving copy, as this member sees it", [], &[];
    shards_total: IntGauge = "miroir_shards_total", "Shards of all indexes", [], &[];
    shards_unserved: IntGauge = "miroir_shards_unserved",
        "Shards of which this member holds a copy that it does not serve now", [], &[];
    journal_primaries: IntGauge = "miroir_journal_primaries", "Shards whose writes this member orders", [], &[];
    journal_out_of_sync: IntGauge = "miroir_journal_out_of_sync",
        "Copies of shards, on any member, that are not in sync", [], &[];
    journals_in_memory: IntGauge = "miroir_journals_in_memory", "Journals with something to do", [], &[];
    indexes_pressed: IntGauge = "miroir_indexes_pressed",
        "Indexes of which the own node has so much to do that writes are refused", [], &[];
    mesh_calls: IntCounterVec = "miroir_mesh_calls_total",
        "Calls to peers (ok, refused, not_sent, no_answer, cancelled)", ["verb", "class", "outcome"], &[];
    mesh_duration: HistogramVec = "miroir_mesh_call_duration_seconds", "Time of calls to peers", ["class"], SECONDS;
    mesh_events: IntCounterVec = "miroir_mesh_events_total",
        "What happened on the mesh (refused_connection, connection, refused_call, probe_lost, gossip_dropped, \
         gossip_malformed, gossip_restart, tls_reload_failed)", ["event"], &[];
    mesh_served: IntCounterVec = "miroir_mesh_served_total",
        "Calls of peers answered here (ok, refused, cancelled)", ["verb", "class", "outcome"], &[];
    certificate_until: IntGauge = "miroir_certificate_expires_timestamp_seconds",
        "When this member's certificate ends, in seconds since 1970; peers refuse new connections from then on", [], &[];
    gossip_members: IntGaugeVec = "miroir_gossip_members",
        "Members by the state that they gossip (joining, active, draining, removed)", ["state"], &[];
    peers_suspect: IntGauge = "miroir_peers_suspect", "Peers whose probes go unanswered", [], &[];
    ledger_operations: IntCounterVec = "miroir_ledger_operations_total",
        "Changes and reads of this member by how they ended (changed, conflict, read, unknown, no_quorum, refused)",
        ["outcome"], &[];
    ledger_duration: HistogramVec = "miroir_ledger_operation_duration_seconds",
        "Time of this member's changes and reads", ["kind"], SECONDS;
    ledger_rounds: IntCounter = "miroir_ledger_rounds_total",
        "Rounds in which this member asked other voters; more than operations: rivals, or voters that are away", [], &[];
    ledger_conflicts: IntCounter = "miroir_ledger_conflicts_total",
        "Refusals of this member's rounds because of a rival's higher ballot", [], &[];
    ledger_messages: IntCounterVec = "miroir_ledger_messages_total",
        "Messages of the ledger (queued, dropped, delivered, refused, lost: to peers; received: from peers; not_taken: of \
         peers, but there was no room)", ["outcome"], &[];
    ledger_commit: Histogram = "miroir_ledger_commit_seconds",
        "Time to make one step of the ledger durable", [], SECONDS;
    ledger_stale: IntGauge = "miroir_ledger_stale",
        "1 while this member can't tell whether its copies of records are the newest, otherwise 0", [], &[];
    ledger_voters: IntGauge = "miroir_ledger_voters", "Voters of the newest list that this member knows", [], &[];
    ledger_list: IntGauge = "miroir_ledger_list_number", "Number of that list", [], &[];
    ledger_broken: IntCounter = "miroir_ledger_broken_invariants_total",
        "Invariants that this member found broken; the log names them", [], &[];
    leader: IntGaugeVec = "miroir_leader", "1 while this member leads the scope, otherwise absent", ["scope"], &[];
    leader_acquisitions: IntCounter = "miroir_leader_acquisitions_total", "Leases that this member came to hold", [], &[];
    lease_renewals: IntCounter = "miroir_lease_renewals_total", "Renewals of this member's leases in time", [], &[];
    lease_losses: IntCounter = "miroir_lease_losses_total",
        "Leases that this member lost otherwise than by giving them back", [], &[];
    leaderless: CounterVec = "miroir_leaderless_seconds_total",
        "Seconds in which this member knew of no leader of a standing scope", ["scope"], &[];
    operations: IntGaugeVec = "miroir_operations",
        "Operations that are not finished, as this member knows (running, paused, cancelling)", ["state"], &[];
    operations_finished: IntCounterVec = "miroir_operations_finished_total",
        "Operations that finished under this member's lead, by kind and how (done, failed, cancelled)", ["kind", "state"], &[];
    operation_runs: IntCounterVec = "miroir_operation_runs_total",
        "Runs of phases by this member as leader (complete; again: to be repeated; failed; stopped: another leads, or it was \
         paused or cancelled)", ["kind", "outcome"], &[];
    operation_orders: IntCounterVec = "miroir_operation_orders_total",
        "Orders of leaders by how they ended at this member (done; stale: the sender leads no more; not_called_for: by the \
         operation's record; behind: that record could not be had; refused)", ["outcome"], &[];
    aliases: IntGauge = "miroir_aliases", "Aliases, as this member knows", [], &[];
    alias_confirm: Histogram = "miroir_alias_confirm_seconds",
        "Time from a flip to its end under this member's lead: all active members have confirmed it, or are stale", [], SECONDS;
    jobs: IntCounterVec = "miroir_jobs_total",
        "Jobs of queues by what this member did (claimed, finished, given_back, lost: the claim was over before the job was)",
        ["event"], &[];
    records: IntGauge = "miroir_ledger_copies", "Copies of records in this member's store", [], &[];
    records_digest: IntGauge = "miroir_ledger_digest",
        "48 bits of the digest of all copies: equal on members that know the same", [], &[];
    tasks_pending: IntGauge = "miroir_tasks_pending",
        "Tasks that have not ended, of the homes that this member leads", [], &[];
    webhook_failures: IntCounter = "miroir_webhook_failures_total",
        "Calls of the webhook that were not taken; the tasks in them are not told again", [], &[];
    webhook_untold: IntCounter = "miroir_webhook_untold_total",
        "Tasks that a home forgot, because it keeps only so many, before the webhook was told of them", [], &[];
    session_stale: IntCounter = "miroir_session_reads_stale_total",
        "Reads of which a task that they named had not ended in time, or was not there", [], &[];
    writes: IntCounterVec = "miroir_writes_total",
        "Writes of clients by kind and outcome (accepted, failed, no_quorum, unknown)", ["kind", "outcome"], &[];
    build: IntGaugeVec = "miroir_build_info", "Always 1; its label is the version", ["version"], &[];
}

/// Name, help and labels of every series, in the order of the exposition's declaration.
pub fn all() -> Vec<(&'static str, &'static str, &'static [&'static str])> {
    let process = process::SERIES.iter().map(|(name, help, _)| (*name, *help, &[] as &[&str]));
    DECLARED.iter().copied().chain(process).collect()
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The exposition in Prometheus' text form, version 0.0.4.
    pub fn encode(&self) -> String {
        self.build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let mut out =
            TextEncoder::new().encode_to_string(&self.registry.gather()).expect("every series has a name and a type");
        process::encode(&mut out);
        out
    }

    /// The exposition with the scopes that this member leads at this very instant.
    pub fn encode_leading<'a>(&self, scopes: impl IntoIterator<Item = &'a str>) -> String {
        // Two scrapes at once do not take each other's away.
        let _one = self.scraping.lock().unwrap_or_else(PoisonError::into_inner);
        self.leader.reset();
        scopes.into_iter().for_each(|scope| self.leader.with_label_values(&[scope]).set(1));
        self.encode()
    }

    /// Counts a client's request from now until the guard is finished or dropped.
    ///
    /// `route` is the pattern of the router, never the path as sent.
    pub fn http_request(self: &Arc<Self>, route: &str, method: &str) -> HttpGuard {
        self.http_in_flight.inc();
        // A client may send any word as its method.
        let known = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"];
        let method = known.into_iter().find(|m| *m == method).unwrap_or("other");
        HttpGuard { metrics: Arc::clone(self), route: route.to_owned(), method, status: None, began: Instant::now() }
    }

    /// Counts a call to a peer from now until the guard is finished or dropped.
    pub fn mesh_call(self: &Arc<Self>, verb: &'static str, class: &'static str) -> CallGuard {
        CallGuard { metrics: Arc::clone(self), verb, class, outcome: "cancelled", began: Instant::now() }
    }

    /// Counts a request to the own node that was answered, and its time since `began`.
    pub fn node_answered(&self, kind: &'static str, began: Instant) {
        self.node_duration.with_label_values(&[kind]).observe(began.elapsed().as_secs_f64());
    }
}

/// A client's request under way; dropped unfinished it counts as cancelled.
#[derive(Debug)]
pub struct HttpGuard {
    metrics: Arc<Metrics>,
    route: String,
    method: &'static str,
    status: Option<u16>,
    began: Instant,
}

impl HttpGuard {
    /// The request was answered with this status.
    pub fn finish(mut self, status: u16) {
        self.status = Some(status);
    }
}

impl Drop for HttpGuard {
    fn drop(&mut self) {
        let m = &self.metrics;
        m.http_in_flight.dec();
        let status = self.status.map_or_else(|| "cancelled".to_owned(), |s| s.to_string());
        m.http_requests.with_label_values(&[self.route.as_str(), self.method, &status]).inc();
        m.http_duration.with_label_values(&[self.route.as_str()]).observe(self.began.elapsed().as_secs_f64());
    }
}

/// A call to a peer under way; dropped unfinished it counts as cancelled.
#[derive(Debug)]
pub struct CallGuard {
    metrics: Arc<Metrics>,
    verb: &'static str,
    class: &'static str,
    outcome: &'static str,
    began: Instant,
}

impl CallGuard {
    /// The call ended: `ok`, `refused`, `not_sent` or `no_answer`.
    pub fn finish(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        let m = &self.metrics;
        m.mesh_calls.with_label_values(&[self.verb, self.class, self.outcome]).inc();
        m.mesh_duration.with_label_values(&[self.class]).observe(self.began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_different_and_follow_the_rule() {
        let all = all();
        let names: BTreeSet<_> = all.iter().map(|(n, ..)| *n).collect();
        assert_eq!(names.len(), all.len());
        for (name, help, _) in all {
            assert!(name.starts_with("miroir_") || name.starts_with("process_"), "{name}");
            assert!(!help.is_empty() && !help.ends_with('.'), "{name}");
        }
        // Registering refuses a name that is taken or malformed.
        drop(Metrics::new());
    }

    #[test]
    fn exposition_has_what_was_counted() {
        let metrics = Arc::new(Metrics::new());
        metrics.http_request("/indexes/{uid}/search", "POST").finish(200);
        drop(metrics.http_request("/health", "BREW"));
        let under_way = metrics.http_request("/health", "GET");
        metrics.mesh_call("Read", "query").finish("ok");
        drop(metrics.mesh_call("Write", "replicate"));
        metrics.scatter_members.observe(3.0);
        metrics.node_answered("search", Instant::now());
        let text = metrics.encode();
        for line in [
            r#"miroir_http_requests_total{method="POST",route="/indexes/{uid}/search",status="200"} 1"#,
            r#"miroir_http_requests_total{method="other",route="/health",status="cancelled"} 1"#,
            "miroir_http_requests_in_flight 1",
            r#"miroir_mesh_calls_total{class="query",outcome="ok",verb="Read"} 1"#,
            r#"miroir_mesh_calls_total{class="replicate",outcome="cancelled",verb="Write"} 1"#,
            r#"miroir_search_scatter_members_bucket{le="3"} 1"#,
            r#"miroir_node_request_duration_seconds_count{kind="search"} 1"#,
            "miroir_search_partial_answers_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(text.contains("\nprocess_resident_memory_bytes "));
        under_way.finish(200);
        assert!(metrics.encode().contains("\nmiroir_http_requests_in_flight 0\n"));
    }

    #[test]
    fn members_in_one_process_do_not_mix() {
        let (a, b) = (Metrics::new(), Metrics::new());
        a.partial_answers.inc();
        assert_eq!((a.partial_answers.get(), b.partial_answers.get()), (1, 0));
    }
}
