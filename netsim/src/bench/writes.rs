//! `netsim bench writes`: how soon a write is acknowledged, how fast documents become searchable, and what sidecars write to
//! disk, against one node directly.
//!
//! Must not know: how processes are started (`mesh`), how numbers are shown.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use hyper::Method;

use super::machines::Machine;
use super::measure::{Compared, compared, percentiles};
use super::report::{Report, Table};
use crate::mesh::{
    Client, Documents, Member, Mesh, MeshOptions, NodeChoice, SingleNode, create_index, load, say, task_uid,
    wait_for_task,
};

const INDEX: &str = "latency";
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// What `netsim bench writes` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct WritesArguments {
    /// Meshes to measure, as members:copies.
    #[arg(long, value_delimiter = ',', default_value = "1:1,3:1,3:2")]
    meshes: Vec<String>,
    /// Documents to load, NDJSON, plain or gzip. By default a built-in sample.
    #[arg(long, value_name = "FILE.ndjson[.gz]")]
    docs: Option<PathBuf>,
    /// The nodes: the path of a Meilisearch, or `builtin`. By default as for `demo`.
    #[arg(long, value_name = "PATH|builtin")]
    node: Option<String>,
    /// Writes of each side whose latency is taken.
    #[arg(long, default_value_t = 200)]
    requests: usize,
    /// Documents of each of these.
    #[arg(long, default_value_t = 10)]
    batch: usize,
    /// Rounds A-B-A in which all documents are loaded.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Gives each machine (a node, with its sidecar) so many cores of its own by a control group, as if it were alone. Needs root.
    #[arg(long, value_name = "CORES", value_parser = cores)]
    machine_cores: Option<f64>,
    /// Write the result as JSON to this file, too; `-`: to stdout, and the tables to stderr.
    #[arg(long, value_name = "FILE|-")]
    pub(super) json: Option<String>,
}

/// One side: who is written to, and the processes whose disk writes count.
struct Side {
    client: Client,
    pids: Vec<u32>,
    loads: usize,
}

/// One loading of all documents.
#[derive(Clone, Copy)]
struct Load {
    /// Documents per second until all were searchable.
    rate: f64,
    /// Bytes written to disk for each byte of the documents.
    disk: f64,
}

/// Measures; the report's numbers of connections are 1.
pub async fn measure(arguments: &WritesArguments) -> anyhow::Result<Report> {
    ensure!(arguments.requests > 0, "--requests: expected at least 1");
    ensure!(arguments.batch > 0, "--batch: expected at least 1");
    ensure!(arguments.rounds > 0, "--rounds: expected at least 1");
    let meshes = arguments.meshes.iter().map(|mesh| shape(mesh)).collect::<anyhow::Result<Vec<_>>>()?;
    let documents = Documents::of(arguments.docs.clone());
    let (count, choice) = (documents.count()?, NodeChoice::of(arguments.node.as_deref())?);
    let dir = tempfile::Builder::new().prefix("miroir-bench-").tempdir()?;
    let mut node = SingleNode::start(&dir.path().join("node"), &choice).await?;
    let machine = |name: String, pids: &[u32]| arguments.machine_cores.map(|cores| Machine::of(&name, cores, pids));
    let alone = machine("node".to_owned(), &[node.pid()]).transpose()?;
    let mut single = Side { client: node.client(), pids: vec![node.pid()], loads: 0 };
    // What a node does only once, it does here.
    fill(&mut single, &documents, count).await?;
    let mut tables = Vec::new();
    for (members, copies) in meshes {
        let name = format!("a mesh of {members}, {copies} copies");
        let mut mesh = start(&dir.path().join(format!("mesh{members}-{copies}")), members, copies, &choice).await?;
        let pids = mesh.members.iter().map(|m| m.sidecar_pid()).collect();
        let of = |(i, m): (usize, &Member)| machine(format!("m{i}"), &[m.node_pid(), m.sidecar_pid()]);
        let machines = mesh.members.iter().enumerate().filter_map(of).collect::<anyhow::Result<Vec<_>>>()?;
        let mut whole = Side { client: mesh.client(0), pids, loads: 0 };
        fill(&mut whole, &documents, count).await?;
        say(&format!("{name} against one node: latencies"));
        let mut rows = latencies(&mut single, &mut whole, &documents, arguments).await?;
        say(&format!("{name} against one node: loading"));
        rows.extend(loading(&mut single, &mut whole, &documents, count, arguments.rounds).await?);
        tables.push(Table { a: "one node".to_owned(), b: name, rows });
        let dead = mesh.found_dead();
        ensure!(dead.is_empty(), "{}", dead.join("\n"));
        mesh.end().await;
        drop(machines);
    }
    node.end().await;
    drop(alone);
    Ok(Report {
        node: choice.describe(),
        documents: count,
        cores: std::thread::available_parallelism()?.get(),
        machine_cores: arguments.machine_cores,
        requests: arguments.requests,
        rounds: arguments.rounds,
        connections: 1,
        tables,
    })
}

fn cores(text: &str) -> Result<f64, String> {
    let cores = text.parse().ok().filter(|cores| (0.05..=1_024.0).contains(cores));
    cores.ok_or_else(|| "expected 0.05 to 1024".to_owned())
}

fn shape(mesh: &str) -> anyhow::Result<(u16, u8)> {
    let parsed = mesh.split_once(':').and_then(|(m, c)| Some((m.parse().ok()?, c.parse().ok()?)));
    parsed.with_context(|| format!("--meshes: expected members:copies, found {mesh}"))
}

async fn start(dir: &Path, members: u16, copies: u8, node: &NodeChoice) -> anyhow::Result<Mesh> {
    let options = MeshOptions {
        members,
        groups: 1,
        rf: copies,
        shards: 64,
        http_port: None,
        master_key: None,
        node: node.clone(),
        more_config: String::new(),
    };
    let mut mesh = Mesh::prepare(dir, &options)?;
    mesh.start().await?;
    Ok(mesh)
}

/// p50 and p99 of the time to an acknowledgement, one write after the other, in turn.
async fn latencies(
    a: &mut Side,
    b: &mut Side,
    documents: &Documents,
    arguments: &WritesArguments,
) -> anyhow::Result<Vec<Compared>> {
    let first = documents.first(arguments.batch * 20)?;
    let bodies: Vec<Bytes> = first
        .chunks(arguments.batch)
        .map(|some| serde_json::to_vec(some).map(Bytes::from))
        .collect::<Result<_, _>>()?;
    let mut newest = Vec::new();
    for side in [&mut *a, &mut *b] {
        let index = format!("{INDEX}-{}", side.loads);
        create_index(&mut side.client, &index, documents).await?;
        newest.push((format!("/indexes/{index}/documents"), 0));
    }
    let mut taken: [Vec<f64>; 3] = Default::default();
    for i in 0..arguments.requests {
        for lane in (0..3).map(|k| (i + k) % 3) {
            let which = lane % 2;
            let side = if which == 0 { &mut *a } else { &mut *b };
            let body = bodies[i % bodies.len()].clone();
            let began = Instant::now();
            let answer = side.client.send(Method::POST, &newest[which].0, "application/json", body, PATIENCE).await?;
            taken[lane].push(began.elapsed().as_secs_f64() * 1e3);
            newest[which].1 = task_uid(&answer.success()?.json()?)?;
        }
    }
    for (side, (_, task)) in [a, b].into_iter().zip(newest) {
        wait_for_task(&mut side.client, task).await?;
    }
    Ok(percentiles(taken, &[("202 p50 ms", 0.50), ("202 p99 ms", 0.99)]))
}

/// Documents per second and bytes on disk, of loadings in rounds A-B-A.
async fn loading(
    a: &mut Side,
    b: &mut Side,
    documents: &Documents,
    count: usize,
    rounds: usize,
) -> anyhow::Result<Vec<Compared>> {
    let mut all = Vec::new();
    for _ in 0..rounds {
        let first = fill(a, documents, count).await?;
        let middle = fill(b, documents, count).await?;
        all.push([first, middle, fill(a, documents, count).await?]);
    }
    let of = |what: fn(&Load) -> f64| all.iter().map(|round| round.each_ref().map(what)).collect::<Vec<_>>();
    Ok(vec![compared("documents/s", &of(|load| load.rate)), compared("disk B/B", &of(|load| load.disk))])
}

/// Loads everything into a new index, and deletes that.
async fn fill(side: &mut Side, documents: &Documents, count: usize) -> anyhow::Result<Load> {
    side.loads += 1;
    let index = format!("load-{}", side.loads);
    create_index(&mut side.client, &index, documents).await?;
    let bytes: usize = documents.batches()?.map(|batch| batch.map(|b| b.ndjson.len())).sum::<anyhow::Result<_>>()?;
    let before = written(&side.pids)?;
    let began = Instant::now();
    load(&mut side.client, &index, documents, &mut |_| {}).await?;
    let seconds = began.elapsed().as_secs_f64();
    let disk = (written(&side.pids)? - before) as f64 / bytes as f64;
    let path = format!("/indexes/{index}");
    let answer = side.client.send(Method::DELETE, &path, "", Bytes::new(), PATIENCE).await?.success()?;
    wait_for_task(&mut side.client, task_uid(&answer.json()?)?).await?;
    Ok(Load { rate: count as f64 / seconds, disk })
}

/// Bytes that processes have had written to storage.
fn written(pids: &[u32]) -> anyhow::Result<u64> {
    let of = |pid: &u32| -> anyhow::Result<u64> {
        let path = format!("/proc/{pid}/io");
        let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        line.and_then(|n| n.trim().parse().ok()).with_context(|| format!("expected write_bytes in {path}"))
    };
    pids.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_members_and_copies() {
        assert_eq!(shape("3:2").unwrap(), (3, 2));
        for wrong in ["3", "3:", "x:1", ""] {
            assert!(shape(wrong).unwrap_err().to_string().starts_with("--meshes: "), "{wrong}");
        }
    }

    #[test]
    fn what_a_process_writes_is_counted() {
        assert!(written(&[std::process::id()]).is_ok());
        assert!(written(&[u32::MAX]).unwrap_err().to_string().contains("can't read"));
    }
}
