//! Wiring: config → store, mesh, services, API → run until a signal → drain. The only room that sees all others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::sync::watch;

use crate::api::{self, Api, ApiOptions, auth::Keys, server::Limits};
use crate::config::{Config, Secret, UnavailableShardPolicy};
use crate::net::Peers;
use crate::net::gossip::{Gossip, GossipConfig};
use crate::net::node::NodeClient;
use crate::net::peers::{Mesh, MeshConfig, PeerAddress};
use crate::net::tls::{TlsFiles, TlsStore};
use crate::net::webhook::WebhookClient;
use crate::proto::journal::Config as CoreConfig;
use crate::proto::lease::Config as LeaseConfig;
use crate::proto::ledger::{Bootstrap, Config as LedgerConfig};
use crate::proto::tasks::home::Config as HomeConfig;
use crate::rt::{Essential, Phase, Shutdown, Signal, Signals, clock, files};
use crate::services::aliases::Aliases;
use crate::services::apply::{self, ApplyHandle, Driver as ApplyDriver};
use crate::services::cluster::{Cluster, MemberState, NodeHealth, Seen};
use crate::services::disk::{self, Room};
use crate::services::documents::Documents;
use crate::services::health;
use crate::services::homes::webhooks::Webhook;
use crate::services::homes::{self, Driver as HomesDriver, Hook, Reporter};
use crate::services::indexes::Indexes;
use crate::services::journal::{
    self, Driver as JournalDriver, JournalHandle, Retention, Seen as Sighted, Sender, sight, sight::Own,
};
use crate::services::leases::{self, Driver as LeaseDriver, LeaseHandle};
use crate::services::ledger::{self, Driver, LedgerHandle};
use crate::services::local::{Local, Lost};
use crate::services::members::Members;
use crate::services::mesh::{self, List, ListEntry, MeshService};
use crate::services::operations::{self, AliasFlips, Driver as OperationsDriver, OperationsHandle, Orders, Runner};
use crate::services::reads::Reads;
use crate::services::records::Records;
use crate::services::search::{SearchOptions, Searches, coverage};
use crate::services::serve::{self, Serve};
use crate::services::serving::{self, Driver as ServingDriver, Unserved};
use crate::services::settings::Settings;
use crate::services::shards::Shards;
use crate::services::snapshot::{self, Driver as SnapshotDriver};
use crate::services::stats::{Nodes, Stats};
use crate::services::task_ids::{self, Driver as TaskIdsDriver};
use crate::services::tasks::Tasks;
use crate::services::writes::Writes;
use crate::store::{Identity, JournalStore, LedgerStore, Store, StoreError, identity};
use crate::telemetry::metrics::Metrics;
use crate::types::{
    LeaseSign, MemberId, MeshId, MeshRecord, OperationState, PhysicalIndex, RecordKey, ReplicaId, Scope, ShardSet,
    ShardState,
};
use crate::wire::frame::PROTOCOL_VERSION;
use crate::wire::gossip::{MemberGossip, Unreached};

/// The part of the time to drain in which leases are given back and the peers are told, half of it each. Never more than
/// half of the whole.
const CLOSING: Duration = Duration::from_millis(1_500);
/// The least that the peers' being told may take, even where nothing is to be waited for.
const GOODBYE: Duration = Duration::from_millis(100);
/// Connections at once of those who read metrics.
const METRICS_CONNECTIONS: usize = 64;
/// How often the gauges are brought up to date.
const GAUGES: Duration = Duration::from_secs(1);
/// How long before its certificate ends a member begins to say so.
const CERTIFICATE_WARNING: Duration = Duration::from_secs(14 * 86_400);
/// Time between two such lines.
const CERTIFICATE_WARNING_AGAIN: Duration = Duration::from_secs(86_400);
/// In so many rounds of gossip all members hear what one tells: each round brings it to three others.
const GOSSIP_ROUNDS: u32 = 5;

/// One thread for each so many cores: the node beside this member does ten times the work for a search, and threads that
/// hand requests to one another cost more than they gain while one is enough.
const CORES_PER_THREAD: usize = 4;

/// The runtime that [`run`] belongs on.
///
/// # Errors
/// The system's, if it gives no threads.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / CORES_PER_THREAD).max(1);
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// The list with which this member may make a mesh: the config's, or one that an operator gave it before.
async fn bootstrap(config: &Config, ledger: &LedgerStore) -> anyhow::Result<Option<Bootstrap>> {
    let entry = |m: &crate::config::BootstrapMember| ListEntry {
        id: m.id.clone(),
        group: m.group.clone(),
        address: m.address.to_string(),
        witness: m.witness,
    };
    let list = if config.mesh.bootstrap.is_empty() {
        let Some(text) = ledger.bootstrap().await? else { return Ok(None) };
        serde_json::from_str(&text).context("the stored bootstrap list can't be read")?
    } else {
        List {
            members: config.mesh.bootstrap.iter().map(entry).collect(),
            rf: config.mesh.rf.into(),
            shards: config.index.shards,
        }
    };
    list.check(&config.node.id, config.node.witness).map(Some).map_err(|e| anyhow!("the bootstrap list: {e}"))
}

fn ledger_config(config: &Config, bootstrap: Option<Bootstrap>) -> LedgerConfig {
    LedgerConfig {
        member: config.node.id.clone(),
        renew_interval: Duration::from_secs(config.leader_election.renew_interval_s),
        lease_ttl: Duration::from_secs(config.leader_election.lease_ttl_s),
        voter_replace_after: Duration::from_secs(config.mesh.voter_replace_after_s),
        round_timeout: LedgerConfig::ROUND_TIMEOUT,
        retry_base: LedgerConfig::RETRY_BASE,
        bootstrap,
    }
}

fn lease_config(config: &Config) -> LeaseConfig {
    let section = &config.leader_election;
    LeaseConfig {
        enabled: section.enabled,
        ttl_ms: section.lease_ttl_s * 1_000,
        renew_interval: Duration::from_secs(section.renew_interval_s),
    }
}

fn journal_config(config: &Config) -> journal::Config {
    let section = &config.journal;
    let core = CoreConfig {
        min_in_sync: (section.min_in_sync > 0).then_some(section.min_in_sync),
        in_sync_lag: Duration::from_millis(section.in_sync_lag_ms),
        ..CoreConfig::default()
    };
    journal::Config { core, ..journal::Config::default() }
}

fn retention(config: &Config) -> Retention {
    let section = &config.journal;
    Retention { age: Duration::from_secs(section.retention_s), bytes: section.retention_bytes, ..Retention::default() }
}

fn home_config(config: &Config) -> HomeConfig {
    HomeConfig { task_retention: Duration::from_secs(config.tasks.retention_s), ..HomeConfig::default() }
}

/// Whom the homes of tasks tell of tasks that have ended.
fn webhook(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Arc<dyn Hook>>> {
    let section = &config.tasks;
    if section.webhook_url.is_empty() {
        return Ok(None);
    }
    let authorization = section.webhook_authorization.as_ref().map(Secret::expose);
    let client = WebhookClient::new(&section.webhook_url, authorization).context("[tasks] webhook_url")?;
    Ok(Some(Arc::new(Webhook { client, metrics: Arc::clone(metrics) })))
}

/// When the steps of an end are to be over, from the signal on.
#[derive(Debug, PartialEq, Eq)]
struct LastSteps {
    /// What is under way.
    draining: Duration,
    /// Leases are given back.
    released: Duration,
}

impl LastSteps {
    fn within(all: Duration) -> Self {
        let closing = CLOSING.min(all / 2);
        Self { draining: all - closing, released: all - closing / 2 }
    }
}

/// The services that decide who does what.
struct Control {
    mesh: MeshService,
    leases: LeaseHandle,
    operations: OperationsHandle,
    journal: JournalHandle,
}

/// Runs a member until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or what ended it, for people and with the remedy.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::install().context("signals can't be handled")?;
    let open_files = files::raise_limit();
    let connections = api::server::connections(open_files);
    let (trigger, shutdown) = Shutdown::new();
    let essential = Essential::default();
    // First: a start that can't come to anything is not counted, and leaves nothing behind.
    check_files(&config).map_err(|e| anyhow!(e))?;
    let ledger_store = LedgerStore::open(&config.node.data_dir)?;
    let store = Store::open(&config.node.data_dir)?;
    let journals = JournalStore::open(&config.node.data_dir, &ledger_store)?;
    let (identity, stored) = identity::begin(&store, &ledger_store, &journals, &config.node.id).await?;
    let bootstrap = bootstrap(&config, &ledger_store).await?;
    let began = Instant::now();
    let http = api::server::bind(config.http.listen, "[http] listen").await?;
    let metrics_listener = api::server::bind(config.metrics.listen, "[metrics] listen").await?;
    let metrics = Arc::new(Metrics::new());
    let record = stored.copies.get(&RecordKey::mesh()).and_then(|copy| MeshRecord::from_json(&copy.value).ok());
    // Survivors that are making a new mesh belong to none meanwhile.
    let known_mesh = stored.mesh.and_then(|(mesh, made)| (made && stored.recovering.is_none()).then_some(mesh));
    let listed = mesh::topology(&config.node.id, record.as_ref(), bootstrap.as_ref());
    let known_mesh = known_mesh.unwrap_or(MeshId::NONE);
    let mesh = Arc::new(start_mesh(&config, &identity, known_mesh, mesh::addresses(&listed), &essential)?);
    let cluster = Cluster::new(listed);
    let key = config.meilisearch.key.as_ref().map(|k| k.expose());
    let node = NodeClient::new(&config.meilisearch.url.to_string(), key)?;
    let members = Members::new(config.node.id.clone(), Arc::clone(&mesh) as Arc<dyn Peers>, Arc::clone(&metrics));
    let (mut driver, ledger) = Driver::new(ledger::Parts {
        config: ledger_config(&config, bootstrap),
        configured: !config.mesh.bootstrap.is_empty(),
        stored,
        ledger: ledger_store.clone(),
        store: store.clone(),
        journals: journals.clone(),
        peers: Arc::clone(&mesh) as Arc<dyn Peers>,
        metrics: Arc::clone(&metrics),
    });
    let (lease_driver, leases, signs) = LeaseDriver::new(leases::Parts {
        config: lease_config(&config),
        start: identity.start,
        fences: store.fences().await?,
        ledger: ledger.clone(),
        store: store.clone(),
        metrics: Arc::clone(&metrics),
    });
    let records = Records::new(ledger.clone(), cluster.clone(), members.clone());
    driver.follow(records.follower());
    let me = ReplicaId { member: config.node.id.clone(), store: identity.store };
    let seen = watch::Sender::new(Arc::new(Sighted::of(
        &me,
        Own { start: identity.start, ..Own::default() },
        &BTreeMap::new(),
    )));
    let (journal_driver, journal) = JournalDriver::new(journal::Parts {
        config: journal_config(&config),
        me,
        start: identity.start,
        ledger: ledger.clone(),
        leases: leases.clone(),
        store: journals.clone(),
        peers: Arc::clone(&mesh) as Arc<dyn Peers>,
        seen: seen.subscribe(),
    });
    let (ids_driver, task_ids) = TaskIdsDriver::new(
        task_ids::Config::default(),
        identity.start,
        ledger.clone(),
        leases.clone(),
        members.clone(),
    );
    let (health_tx, health_rx) =
        watch::channel(if config.node.witness { witness_health() } else { NodeHealth::default() });
    // Nothing is served before it is known what can be.
    let (says_unserved, unserved) = watch::channel(None);
    let (tells_unserved, told_unserved) = watch::channel(None);
    let local = Local::load(
        node.clone(),
        store.clone(),
        records.clone(),
        cluster.clone(),
        health_rx.clone(),
        Duration::from_secs(config.meilisearch.timeout_s),
        Arc::clone(&metrics),
    )
    .await?
    .serving(unserved);
    let peers = Arc::clone(&mesh) as Arc<dyn Peers>;
    let (apply_driver, apply) = ApplyDriver::new(apply::Parts {
        config: apply::Config::default(),
        ledger: ledger.clone(),
        journals: journal.clone(),
        store: journals.clone(),
        local: local.clone(),
        peers: Arc::clone(&peers),
        metrics: Arc::clone(&metrics),
    });
    local.set_rebuilt(apply.rebuilt());
    let (snapshot_driver, snapshots) = SnapshotDriver::new(snapshot::Parts {
        config: snapshot::Config::default(),
        apply: apply.clone(),
        journals: journal.clone(),
        store: journals.clone(),
        local: local.clone(),
        peers: Arc::clone(&peers),
        start: identity.start,
    });
    let sender = Sender::new(journal.clone(), peers, cluster.clone());
    let (homes_driver, homes) = HomesDriver::new(homes::Parts {
        config: homes::Config { core: home_config(&config) },
        journals: journal.clone(),
        sender: sender.clone(),
        ledger: ledger.clone(),
        members: members.clone(),
        cluster: cluster.clone(),
        ids: task_ids.clone(),
        outcomes: Arc::new(apply.clone()),
        hook: webhook(&config, &metrics)?,
        metrics: Arc::clone(&metrics),
    });
    let tasks = Tasks::new(homes.clone(), sender, Arc::clone(&metrics));
    let serving = ServingDriver::new(
        serving::Parts {
            lag: Duration::from_millis(config.journal.serve_lag_ms),
            told: Duration::from_millis(config.mesh.gossip_interval_ms) * GOSSIP_ROUNDS,
            ledger: ledger.clone(),
            records: records.clone(),
            journals: journal.clone(),
            store: journals.clone(),
            apply: apply.clone(),
            members: members.clone(),
            health: health_rx.clone(),
        },
        says_unserved,
        tells_unserved,
    );
    let runners: Vec<Arc<dyn Runner>> = vec![Arc::new(AliasFlips::new(records.clone(), Arc::clone(&metrics)))];
    let orders = Orders::new(&runners, leases.clone(), records.clone(), Arc::clone(&metrics));
    let (operations_driver, operations) = OperationsDriver::new(operations::Parts {
        runners,
        ledger: ledger.clone(),
        leases: leases.clone(),
        members: members.clone(),
        store: store.clone(),
        metrics: Arc::clone(&metrics),
    });
    let serve = Arc::new(Serve::new(serve::Parts {
        records: records.clone(),
        local: local.clone(),
        apply: apply.clone(),
        snapshots,
        homes: homes.clone(),
        orders,
        journal: journal.clone(),
        task_ids,
        metrics: Arc::clone(&metrics),
    }));
    members.set_local(serve.clone());
    mesh.set_handler(serve.clone());
    essential.spawn("the ledger's driver", driver.run());
    let mesh_service = MeshService::new(
        ledger.clone(),
        cluster.clone(),
        Arc::clone(&mesh),
        store.clone(),
        identity.clone(),
        config.node.witness,
    );
    essential.spawn("following the ledger", mesh_service.clone().follow_ledger());
    essential.spawn("the watch on the own store's record", mesh_service.clone().keep_own_store());

    let own_state = watch::Sender::new(MemberState::Joining);
    if !config.node.witness {
        essential.spawn("the probe of the node", health::watch_node(node, health_tx.clone()));
    }
    let about = MemberGossip {
        http: http.local_addr()?.to_string(),
        mesh: cluster.topology().own_entry().map(|m| m.address.clone()).unwrap_or_default(),
        group: cluster.groups().get(&config.node.id).cloned(),
        version: env!("CARGO_PKG_VERSION").into(),
        protocol: PROTOCOL_VERSION,
        started_at: clock::now_rfc3339(),
        store: Some(identity.store),
        start: Some(identity.start),
        lease_ttl_ms: Some(lease_config(&config).ttl_ms),
        ..MemberGossip::default()
    };
    let gossip = Arc::new(start_gossip(&config, &mesh, &store, &about).await?);
    let founding = homes::found::found(journal.clone(), leases.clone(), cluster.clone(), seen.subscribe());
    tokio::spawn(founding);
    let (room_tx, room) = watch::channel(Room::default());
    let (dir, least) = (config.node.data_dir.clone(), config.journal.min_free_bytes);
    essential.spawn("the look at the disk", disk::watch(dir, journals.clone(), least, room_tx));
    let me = journal.me().clone();
    let picture = Picture {
        mesh: Arc::clone(&mesh),
        cluster: cluster.clone(),
        me,
        room: room.clone(),
        health: health_rx.clone(),
        seen,
    };
    essential.spawn("following the mesh", picture.follow(gossip.members(), ledger.clone()));
    essential.spawn("the driver of journals", journal_driver.run());
    essential.spawn("the driver of task ids", ids_driver.run());
    essential.spawn("the retention of journals", retention(&config).keep(journal.clone()));
    let inputs = leases::Inputs { state: own_state.subscribe(), gossip: gossip.members() };
    essential.spawn("the driver of leases", lease_driver.run(inputs));
    essential.spawn("the driver of operations", operations_driver.run());
    let says = Says {
        health: health_rx,
        state: own_state.subscribe(),
        leases: signs,
        lost: local.lost(),
        unserved: told_unserved,
        pressed: apply.watch_pressed(),
        room: room.clone(),
        suspects: mesh.suspects(),
    };
    let publish = publish(about, Arc::clone(&gossip), cluster.clone(), records.clone(), says);
    essential.spawn("telling of this member", publish);
    essential.spawn("following the records", local.clone().follow_records());
    essential.spawn("the driver of appliers", apply_driver.run());
    essential.spawn("what is served", serving.run());
    essential.spawn("the driver of copies made anew", snapshot_driver.run());
    essential.spawn("the driver of homes", homes_driver.run());
    essential.spawn("what is told to homes", Reporter::new(homes).run());

    let control = Control {
        mesh: mesh_service.clone(),
        leases: leases.clone(),
        operations: operations.clone(),
        journal: journal.clone(),
    };
    let parts = services(&config, &cluster, &members, &records, &tasks, control, &metrics);
    essential.spawn("following deletions", parts.indexes.clone().follow_deletions(leases.clone()));
    let watched = Watched {
        mesh: Arc::clone(&mesh),
        cluster: cluster.clone(),
        records: records.clone(),
        operations,
        journal: journal.clone(),
        apply: apply.clone(),
        room,
    };
    essential.spawn("keeping the gauges", keep_gauges(Arc::clone(&metrics), watched));
    let drain = Duration::from_secs(config.node.shutdown_drain_s);
    let patience = Duration::from_secs(config.http.body_timeout_s);
    let metrics_routes = axum::Router::new().route("/metrics", {
        let (metrics, leases) = (Arc::clone(&metrics), leases.clone());
        axum::routing::get(move || std::future::ready(exposition(&metrics, &leases)))
    });
    let limits = Limits { connections: METRICS_CONNECTIONS.min(connections), patience, drain };
    let metrics_server = api::server::serve(metrics_listener, metrics_routes, shutdown.clone(), limits);
    let metrics_server = essential.spawn("the server of metrics", metrics_server);
    let room = parts.room.clone();
    let http_address = http.local_addr()?;
    let router = api::router(Api::new(parts));
    let limits = Limits { connections, patience, drain: LastSteps::within(drain).draining };
    let server = api::server::serve(http, router, shutdown.clone(), limits);
    let server = essential.spawn("the HTTP server", server);

    tracing::info!(
        member = %config.node.id,
        http = %http_address,
        mesh_address = %mesh.local_addr(),
        gso_segments = mesh.gso_segments(),
        open_files,
        connections,
        start = identity.start,
        store = %identity.store,
        "started"
    );
    let entering = enter_service(mesh_service.clone(), own_state.clone(), began);

    let stores = (config.node.data_dir.as_path(), [store.fatal(), ledger_store.fatal(), journals.fatal()]);
    let ended = wait_for_end(&mut signals, &mesh, stores, &essential, entering).await;
    // All that follows is over by then, whatever hangs.
    let (told, ending) = (tokio::time::Instant::now(), LastSteps::within(drain));
    tracing::info!(seconds = drain.as_secs(), "draining");
    own_state.send_replace(MemberState::Draining);
    trigger.advance(Phase::Draining);
    if let Err(error) = server.await {
        tracing::error!(%error, "the HTTP server failed");
    }
    // Writes go on without their client, so the server does not wait for them.
    let rest = async {
        room.empty().await;
        // The last writes have gone through this member.
        journal.hand_over(ending.draining / 4).await;
        serve.drain().await;
        mesh.answered().await;
    };
    if tokio::time::timeout_at(told + ending.draining, rest).await.is_err() {
        tracing::warn!("calls of peers were still under way when the time to drain was over");
    }
    leases.shutdown((told + ending.released).duration_since(tokio::time::Instant::now())).await;
    trigger.advance(Phase::Stopped);
    metrics_server.abort();
    let rest = (told + drain).duration_since(tokio::time::Instant::now()).max(GOODBYE);
    mesh.shutdown_within("the member is shutting down", rest).await;
    ended
}

/// All series, with what is led at this very instant.
fn exposition(metrics: &Metrics, leases: &LeaseHandle) -> String {
    let view = leases.rows();
    // That a member lives is led by nobody.
    let led = view.held(leases.now()).filter(|(scope, _)| !matches!(scope, Scope::Alive(_)));
    let led: Vec<String> = led.map(|(scope, _)| scope.to_string()).collect();
    metrics.encode_leading(led.iter().map(String::as_str))
}

/// Takes the member into service when it is ready.
async fn enter_service(mesh: MeshService, state: watch::Sender<MemberState>, began: Instant) -> Result<(), StoreError> {
    if mesh::enter_service(&mesh, &state).await? {
        let id = mesh.ledger().mesh().unwrap_or(MeshId::NONE);
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let start = mesh.identity().start;
        tracing::info!(member = %mesh.ledger().member(), mesh = %id, start, after_ms = ms, "in service");
    }
    Ok(())
}

/// What a witness says of the node that it has not.
fn witness_health() -> NodeHealth {
    NodeHealth { healthy: false, version: None, error: Some("a witness has no node".into()) }
}

/// Waits for the signal to stop, or for a store or an essential task to fail; takes the member into service and reloads
/// certificates meanwhile.
async fn wait_for_end(
    signals: &mut Signals,
    mesh: &Mesh,
    stores: (&Path, [watch::Receiver<Option<StoreError>>; 3]),
    essential: &Essential,
    entering: impl Future<Output = Result<(), StoreError>>,
) -> anyhow::Result<()> {
    let (dir, [mut own, mut ledger, mut journals]) = stores;
    let in_dir = |reason| format!("{reason} (in {})", dir.display());
    let mut entering = std::pin::pin!(entering);
    let mut entered = false;
    let reason = loop {
        tokio::select! {
            biased;
            signal = signals.next() => match signal {
                Signal::Stop => return Ok(()),
                Signal::Reload => match mesh.reload_tls() {
                    Ok(()) => tracing::info!("certificates were read again"),
                    Err(error) => tracing::error!(%error, "certificates were not changed; the old ones stay in use"),
                },
            },
            done = &mut entering, if !entered => match done {
                Ok(()) => entered = true,
                Err(error) => break error.to_string(),
            },
            // First: a failed store ends tasks as well.
            reason = failed(&mut own) => break in_dir(reason),
            reason = failed(&mut ledger) => break in_dir(reason),
            reason = failed(&mut journals) => break in_dir(reason),
            reason = essential.failed() => break reason,
        }
    };
    tracing::error!(reason, "this member can't go on and turns itself off");
    Err(anyhow!("{reason}"))
}

/// Waits for the store to fail; its text.
async fn failed(fatal: &mut watch::Receiver<Option<StoreError>>) -> String {
    match fatal.wait_for(Option::is_some).await {
        Ok(error) => error.as_ref().map(ToString::to_string).unwrap_or_default(),
        Err(_) => StoreError::Closed.to_string(),
    }
}

/// Checks what the files that the configuration names hold, as a start would, without binding or changing anything.
///
/// # Errors
/// What is wrong, for people.
pub fn check_files(config: &Config) -> Result<(), String> {
    TlsStore::load(tls_files(config), config.node.id.clone()).map_err(|e| e.to_string())?;
    let dir = &config.node.data_dir;
    match std::fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Err(format!("[node] data_dir: {} is no directory", dir.display())),
        _ => Ok(()),
    }
}

fn tls_files(config: &Config) -> TlsFiles {
    TlsFiles { ca: config.mesh.ca_file.clone(), cert: config.mesh.cert_file.clone(), key: config.mesh.key_file.clone() }
}

fn start_mesh(
    config: &Config,
    identity: &Identity,
    mesh: MeshId,
    members: Vec<PeerAddress>,
    essential: &Essential,
) -> anyhow::Result<Mesh> {
    let secret = identity.reset_secret.as_slice().try_into().context("the store's reset secret has another length")?;
    let tls = tls_files(config);
    let id = config.node.id.clone();
    let mut mesh = MeshConfig::new(id, mesh, config.mesh.listen, tls, secret, identity.start);
    mesh.probe_interval = Duration::from_millis(config.mesh.probe_interval_ms);
    mesh.essential = essential.clone();
    Ok(Mesh::start(mesh, members, None, tokio::runtime::Handle::current())?)
}

fn services(
    config: &Config,
    cluster: &Cluster,
    members: &Members,
    records: &Records,
    tasks: &Tasks,
    control: Control,
    metrics: &Arc<Metrics>,
) -> api::routes::Parts {
    let writes = Writes::new(cluster.clone(), members.clone(), records.clone(), tasks.clone(), Arc::clone(metrics));
    let indexes =
        Indexes::new(cluster.clone(), records.clone(), control.journal.clone(), tasks.clone(), writes.clone());
    let options = SearchOptions {
        deadline: Duration::from_millis(config.search.deadline_ms),
        partial: config.search.unavailable_shard_policy == UnavailableShardPolicy::Partial,
        hedge_percent: if config.search.hedge { config.search.hedge_budget_percent } else { 0 },
    };
    let searches = Searches::new(cluster.clone(), members.clone(), indexes.clone(), options, Arc::clone(metrics));
    let reads = Reads::new(indexes.clone(), searches.clone());
    let nodes = Nodes::new(cluster.clone(), members.clone());
    let secret = |s: &Option<crate::config::Secret>| s.as_ref().map(|s| s.expose().to_owned());
    let max_body = usize::try_from(config.http.max_body_bytes).unwrap_or(usize::MAX);
    let topology = cluster.topology();
    let groups: std::collections::BTreeSet<_> = topology.groups().into_values().collect();
    let copies = topology.rf * groups.len();
    let (master, admin) = (secret(&config.access.master_key), secret(&config.access.admin_key));
    api::routes::Parts {
        cluster: cluster.clone(),
        mesh: control.mesh,
        aliases: Aliases::new(records.clone(), control.operations.clone(), control.leases.clone()),
        leases: control.leases,
        operations: control.operations,
        documents: Documents::new(cluster.clone(), indexes.clone(), tasks.clone(), writes.clone(), nodes.clone()),
        settings: Settings::new(cluster.clone(), indexes.clone(), writes, nodes.clone()),
        shards: Shards::new(indexes.clone(), control.journal, members.clone()),
        stats: Stats::new(indexes.clone(), nodes, reads.clone()),
        indexes,
        reads,
        searches,
        tasks: tasks.clone(),
        keys: Keys::new(master.as_deref(), admin.as_deref()),
        options: ApiOptions { max_body_bytes: max_body, body_timeout: Duration::from_secs(config.http.body_timeout_s) },
        room: api::room::Room::new(config.http.max_concurrent_requests, max_body, copies),
        metrics: Arc::clone(metrics),
    }
}

async fn start_gossip(config: &Config, mesh: &Mesh, store: &Store, about: &MemberGossip) -> anyhow::Result<Gossip> {
    let start = store.next_gossip_generation(clock::unix_seconds()).await?;
    let (store, main) = (store.clone(), tokio::runtime::Handle::current());
    let next_start = move || main.block_on(store.next_gossip_generation(clock::unix_seconds())).map_err(Into::into);
    let interval = Duration::from_millis(config.mesh.gossip_interval_ms);
    let gossip = GossipConfig { interval, start, next_start: Arc::new(next_start) };
    Ok(Gossip::start(mesh, gossip, about)?)
}

/// What probes and gossip say of the mesh.
struct Picture {
    mesh: Arc<Mesh>,
    cluster: Cluster,
    me: ReplicaId,
    room: watch::Receiver<Room>,
    health: watch::Receiver<NodeHealth>,
    // What elections go by.
    seen: watch::Sender<Arc<Sighted>>,
}

impl Picture {
    /// Keeps the picture.
    async fn follow(mut self, mut heard: watch::Receiver<BTreeMap<MemberId, MemberGossip>>, ledger: LedgerHandle) {
        let (mut suspects, mut status) = (self.mesh.suspects(), ledger.status());
        let (mut unreached, mut room) = (self.mesh.unreached(), self.room.clone());
        loop {
            let (suspects_now, heard_now) = (suspects.borrow_and_update().clone(), heard.borrow_and_update().clone());
            let record = status.borrow_and_update().record.clone();
            let (connected, told) = (self.mesh.status(), unreached.borrow_and_update().clone());
            let own = self.cluster.own();
            self.cluster.update(|seen| {
                for (id, s) in seen.iter_mut().filter(|(id, _)| *id != own) {
                    let at_work = connected.get(id).and_then(|peer| peer.start);
                    let said = heard_now.get(id).filter(|g| is_of(g, at_work));
                    *s = said.map_or_else(Seen::unknown, |g| seen_of(g, suspects_now.contains(id)));
                }
            });
            let peer = |id: &MemberId| {
                let gossip = heard_now.get(id);
                sight::Peer {
                    reached: !suspects_now.contains(id),
                    connected: connected.get(id).and_then(|peer| peer.start),
                    listed: record.as_ref().and_then(|record| record.member(id)).map(|member| member.store),
                    gossiped: gossip.and_then(|g| g.store.zip(g.start)),
                    // An answer to a probe is newer than gossip.
                    unreached: told.get(id).cloned().or_else(|| gossip.map(|g| g.unreached.clone())),
                    full: gossip.is_some_and(|g| g.disk_full),
                    idle: gossip.is_some_and(|g| !g.node_healthy),
                    unserved: gossip.map(|g| g.unserved.clone()).unwrap_or_default(),
                }
            };
            let peers = self.cluster.topology().others().map(|id| (id.clone(), peer(id))).collect();
            let own = Own {
                start: ledger.start(),
                full: room.borrow_and_update().low,
                idle: !self.health.borrow_and_update().healthy,
            };
            let picture = Sighted::of(&self.me, own, &peers);
            self.seen.send_if_modified(|before| {
                let new = **before != picture;
                if new {
                    *before = Arc::new(picture);
                }
                new
            });
            tokio::select! {
                changed = suspects.changed() => if changed.is_err() { return },
                changed = unreached.changed() => if changed.is_err() { return },
                changed = room.changed() => if changed.is_err() { return },
                changed = self.health.changed() => if changed.is_err() { return },
                changed = heard.changed() => if changed.is_err() { return },
                changed = status.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// Whether gossip is of the member's process that is connected: what an earlier one said is over, what a later one says is
/// not proved yet. Of one that is not connected the last word stands, as a suspect's.
fn is_of(g: &MemberGossip, at_work: Option<u64>) -> bool {
    g.start.is_none() || at_work.is_none() || g.start == at_work
}

fn seen_of(g: &MemberGossip, suspect: bool) -> Seen {
    Seen {
        suspect,
        state: Some(g.state),
        node: NodeHealth { healthy: g.node_healthy, version: g.node_version.clone(), error: g.node_error.clone() },
        http: Some(g.http.clone()),
        version: Some(g.version.clone()),
        unserved: g.unserved.clone(),
        pressed: g.pressed.clone(),
        pressed_all: g.pressed_all,
        lost: g.lost.clone(),
        lost_all: g.lost_all,
        disk_full: g.disk_full,
        records: Some(g.records_digest.clone()),
    }
}

/// What of this member changes.
struct Says {
    health: watch::Receiver<NodeHealth>,
    state: watch::Receiver<MemberState>,
    leases: watch::Receiver<Vec<LeaseSign>>,
    lost: watch::Receiver<Lost>,
    unserved: watch::Receiver<Unserved>,
    pressed: watch::Receiver<BTreeSet<PhysicalIndex>>,
    room: watch::Receiver<Room>,
    suspects: watch::Receiver<BTreeSet<MemberId>>,
}

/// Tells the others, and the own picture, what changes about this member.
async fn publish(about: MemberGossip, gossip: Arc<Gossip>, cluster: Cluster, records: Records, says: Says) {
    let Says { mut health, mut state, mut leases, mut lost, mut unserved, mut pressed, mut room, mut suspects } = says;
    let mut changes = records.watch();
    loop {
        let (node, lacks) = (health.borrow_and_update().clone(), lost.borrow_and_update().clone());
        let lives = *state.borrow_and_update();
        // Before it is known what is served, nothing is.
        let early = lives == MemberState::Active && unserved.borrow().is_none();
        let says = MemberGossip {
            state: if early { MemberState::Joining } else { lives },
            unserved: serving::together(&lacks, &unserved.borrow_and_update()),
            lost: lacks.keys().cloned().collect(),
            pressed: pressed.borrow_and_update().clone(),
            disk_full: room.borrow_and_update().low,
            unreached: Unreached::Some(suspects.borrow_and_update().clone()),
            node_healthy: node.healthy,
            node_version: node.version,
            node_error: node.error,
            records_digest: records.snapshot().digest(),
            leases: leases.borrow_and_update().clone(),
            ..about.clone()
        }
        .bounded();
        cluster.update(|seen| {
            seen.insert(cluster.own().clone(), seen_of(&says, false));
        });
        if let Err(error) = gossip.publish(&says) {
            tracing::error!(%error, "this member's state could not be gossiped");
        }
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            changed = state.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            changed = leases.changed() => if changed.is_err() { return },
            changed = lost.changed() => if changed.is_err() { return },
            changed = unserved.changed() => if changed.is_err() { return },
            changed = pressed.changed() => if changed.is_err() { return },
            changed = room.changed() => if changed.is_err() { return },
            changed = suspects.changed() => if changed.is_err() { return },
        }
    }
}

/// Brings the mesh's own counters into the series.
fn count_events(metrics: &Metrics, mesh: &Mesh) {
    let c = mesh.counters();
    let events = [
        ("refused_connection", &c.refused_connections),
        ("connection", &c.connections),
        ("refused_call", &c.refused_calls),
        ("probe_lost", &c.probes_lost),
        ("gossip_dropped", &c.gossip_dropped),
        ("gossip_malformed", &c.gossip_malformed),
        ("gossip_restart", &c.gossip_restarts),
        ("tls_reload_failed", &c.tls_reloads_failed),
    ];
    for (event, count) in events {
        let series = metrics.mesh_events.with_label_values(&[event]);
        series.inc_by(count.load(Ordering::Relaxed).saturating_sub(series.get()));
    }
}

/// What the gauges show.
struct Watched {
    mesh: Arc<Mesh>,
    cluster: Cluster,
    records: Records,
    operations: OperationsHandle,
    journal: JournalHandle,
    apply: ApplyHandle,
    room: watch::Receiver<Room>,
}

/// Brings the gauges up to date.
async fn keep_gauges(metrics: Arc<Metrics>, watched: Watched) {
    let Watched { mesh, cluster, records, operations, journal, apply, room } = watched;
    let mut tick = tokio::time::interval(GAUGES);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut warned: Option<Instant> = None;
    loop {
        tick.tick().await;
        let seen = cluster.seen();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.node_healthy.set(i64::from(seen.get(cluster.own()).is_some_and(|s| s.node.healthy)));
        metrics
            .peers_suspect
            .set(count(cluster.topology().others().filter(|m| seen.get(m).is_none_or(|s| s.suspect)).count()));
        for state in [MemberState::Joining, MemberState::Active, MemberState::Draining, MemberState::Removed] {
            let members = seen.values().filter(|s| s.state == Some(state)).count();
            metrics.gossip_members.with_label_values(&[state.as_str()]).set(count(members));
        }
        count_events(&metrics, &mesh);
        let Room { free, spare, low } = *room.borrow();
        metrics.disk_free.set(free.map_or(0, |free| i64::try_from(free).unwrap_or(i64::MAX)));
        metrics.journal_spare.set(i64::try_from(spare).unwrap_or(i64::MAX));
        metrics.disk_full.set(i64::from(low));
        let until = mesh.certificate_valid_until();
        metrics.certificate_until.set(i64::try_from(until).unwrap_or(i64::MAX));
        if until.saturating_sub(clock::unix_seconds()) > CERTIFICATE_WARNING.as_secs() {
            warned = None;
        } else if warned.is_none_or(|at| at.elapsed() >= CERTIFICATE_WARNING_AGAIN) {
            warned = Some(Instant::now());
            let ends = clock::rfc3339_at(until);
            tracing::warn!(
                ends,
                "this member's certificate ends soon or has ended: peers refuse new connections from then on. Issue \
                a new one (`miroir-ctl ca issue`) and replace the files; no restart is needed"
            );
        }
        let snapshot = records.snapshot();
        let (mut total, mut served) = (0, 0);
        let (mut primaries, mut outside) = (0, 0);
        for index in snapshot.indexes().filter(|i| !i.value.deleted) {
            total += index.value.shards.len();
            served += index.value.shards.len() - coverage(&index.value, &cluster).missing.len();
            let Some(record) = journal.record(&index.value.physical) else { continue };
            let own = |state: &&ShardState| state.primary.as_ref().is_some_and(|p| p.member == *cluster.own());
            primaries += record.shards.iter().filter(own).count();
            outside += record.shards.iter().map(ShardState::out_of_sync).sum::<usize>();
        }
        metrics.journal_primaries.set(count(primaries));
        metrics.journal_out_of_sync.set(count(outside));
        metrics.journals_in_memory.set(count(journal.in_memory()));
        metrics.indexes_pressed.set(count(apply.watch_pressed().borrow().len()));
        let unserved = seen.get(cluster.own()).map_or(0, |own| own.unserved.values().map(ShardSet::len).sum());
        metrics.shards_unserved.set(count(unserved));
        metrics.shards_total.set(count(total));
        metrics.shards_served.set(count(served));
        metrics.aliases.set(count(snapshot.names().value.aliases.len()));
        let open: Vec<OperationState> =
            operations.view().records().filter_map(|(_, record)| record.current.as_ref().map(|op| op.state)).collect();
        for state in [OperationState::Running, OperationState::Paused, OperationState::Cancelling] {
            let open = open.iter().filter(|s| **s == state).count();
            metrics.operations.with_label_values(&[state.as_str()]).set(count(open));
        }
        let copies = records.ledger().copies();
        metrics.records.set(count(copies.len()));
        metrics.ledger_stale.set(i64::from(!records.ledger().fresh()));
        metrics.records_digest.set(i64::try_from(copies.digest() >> 16).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_the_end_has_its_time_within_what_is_configured() {
        let ms = Duration::from_millis;
        assert_eq!(LastSteps::within(ms(10_000)), LastSteps { draining: ms(8_500), released: ms(9_250) });
        assert_eq!(LastSteps::within(ms(1_000)), LastSteps { draining: ms(500), released: ms(750) });
        assert_eq!(LastSteps::within(ms(0)), LastSteps { draining: ms(0), released: ms(0) });
    }

    #[test]
    fn a_mesh_has_the_times_of_the_proof_of_its_failover_unless_it_is_configured_otherwise() {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        // Any file does that is there.
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let files = ["MIROIR_MESH__CA_FILE", "MIROIR_MESH__CERT_FILE", "MIROIR_MESH__KEY_FILE"].map(|key| (key, file));
        let config = Config::load(None, files.into_iter().chain([("MIROIR_NODE__ID", "m0")]).map(own)).unwrap();
        assert_eq!(Duration::from_millis(config.mesh.probe_interval_ms), crate::proto::probe::INTERVAL);
        assert_eq!(format!("{:?}", journal_config(&config).core), format!("{:?}", CoreConfig::default()));
        let ledger = ledger_config(&config, None);
        let times = [ledger.renew_interval, ledger.lease_ttl, ledger.voter_replace_after];
        assert_eq!(times, [3, 10, 600].map(Duration::from_secs));
    }

    #[test]
    fn what_a_former_process_gossiped_is_not_believed_of_the_one_at_work() {
        let gossip = MemberGossip { start: Some(7), ..MemberGossip::default() };
        assert!(is_of(&gossip, Some(7)) && is_of(&gossip, None));
        assert!(!is_of(&gossip, Some(8)), "a former process");
        assert!(!is_of(&gossip, Some(6)), "its connection is about to end");
        assert!(is_of(&MemberGossip::default(), Some(8)), "it says nothing of its process");
    }
}
