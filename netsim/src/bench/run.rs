//! The bench from its arguments to its report.
//!
//! A single node runs throughout; each mesh comes, is measured against it and goes, so that nothing else uses the machine.
//! Must not know: how numbers are taken.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use hyper::Method;
use serde_json::Value;

use super::lane::Target;
use super::measure::{Compared, Effort, latencies, throughput};
use super::queries::Queries;
use super::report::{Report, Table};
use super::writes::{self, WritesArguments};
use crate::mesh::{
    Client, Documents, Mesh, MeshOptions, NodeChoice, SingleNode, Stop, create_index, load, say, task_uid,
    wait_for_task,
};

const INDEX: &str = "bench";

/// What `netsim bench` takes.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArguments {
    #[command(subcommand)]
    of: Option<Of>,
    /// Sizes of the meshes to measure.
    #[arg(long, value_delimiter = ',', default_value = "1,3")]
    members: Vec<u16>,
    /// Documents to load, NDJSON, plain or gzip. By default a built-in sample.
    #[arg(long, value_name = "FILE.ndjson[.gz]")]
    docs: Option<PathBuf>,
    /// The nodes: the path of a Meilisearch, or `builtin`. By default as for `demo`.
    #[arg(long, value_name = "PATH|builtin")]
    node: Option<String>,
    /// Requests of each side of a latency measurement.
    #[arg(long, default_value_t = 1_500)]
    requests: usize,
    /// Rounds A-B-A of a throughput measurement.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Seconds of each third of a round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Connections of a throughput measurement.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Write the result as JSON to this file, too; `-`: to stdout, and the tables to stderr.
    #[arg(long, value_name = "FILE|-")]
    json: Option<String>,
}

/// What else than searches can be measured.
#[derive(Debug, clap::Subcommand)]
enum Of {
    /// Writes: latency, documents per second, bytes on disk.
    Writes(WritesArguments),
}

/// Runs the bench.
pub async fn run(arguments: BenchArguments) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let work = async {
        match &arguments.of {
            Some(Of::Writes(arguments)) => writes::measure(arguments).await,
            None => Bench::new(&arguments, effort(&arguments)?)?.run(&arguments.members).await,
        }
    };
    let report = tokio::select! {
        report = work => report?,
        // Children end with the values that hold them.
        () = stop.asked() => bail!("interrupted"),
    };
    let json = serde_json::to_string_pretty(&report)?;
    let to = match &arguments.of {
        Some(Of::Writes(arguments)) => arguments.json.as_deref(),
        None => arguments.json.as_deref(),
    };
    match to {
        Some("-") => {
            say(&report.text());
            println!("{json}");
        }
        Some(file) => {
            println!("{}", report.text());
            std::fs::write(file, json).with_context(|| format!("--json: can't write {file}"))?;
        }
        None => println!("{}", report.text()),
    }
    Ok(())
}

fn effort(arguments: &BenchArguments) -> anyhow::Result<Effort> {
    ensure!(arguments.requests > 0, "--requests: expected at least 1");
    ensure!(arguments.rounds > 0, "--rounds: expected at least 1");
    ensure!((1..=256).contains(&arguments.connections), "--connections: expected 1 to 256");
    ensure!((0.01..=60.0).contains(&arguments.seconds), "--seconds: expected 0.01 to 60");
    Ok(Effort {
        requests: arguments.requests,
        rounds: arguments.rounds,
        third: Duration::from_secs_f64(arguments.seconds),
        connections: arguments.connections,
    })
}

struct Bench {
    node: NodeChoice,
    documents: Documents,
    count: usize,
    queries: Queries,
    effort: Effort,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(arguments: &BenchArguments, effort: Effort) -> anyhow::Result<Self> {
        let documents = Documents::of(arguments.docs.clone());
        Ok(Self {
            node: NodeChoice::of(arguments.node.as_deref())?,
            count: documents.count()?,
            queries: Queries::of(&documents)?,
            documents,
            effort,
            dir: tempfile::Builder::new().prefix("miroir-bench-").tempdir()?,
        })
    }

    async fn run(&self, sizes: &[u16]) -> anyhow::Result<Report> {
        say(&format!("loading {} documents into a single node", self.count));
        let mut node = SingleNode::start(&self.dir.path().join("node"), &self.node).await?;
        let first_s = self.fill(&mut node.client(), INDEX).await?;
        let mut tables = Vec::new();
        let mut loading = Vec::new();
        for size in sizes {
            let dir = self.dir.path().join(format!("mesh{size}"));
            let (of_size, seconds) = self.measure_mesh(&dir, *size, &node).await?;
            tables.extend(of_size);
            loading.push((*size, seconds));
        }
        say("loading the documents into the single node once more");
        let again_s = self.fill(&mut node.client(), "again").await?;
        node.end().await;

        let a = (first_s + again_s) / 2.0;
        for (size, b) in loading {
            let row = Compared { what: "indexing s", a, b, ratio: b / a, a_over_a: again_s / first_s };
            tables.push(Table { a: "one node".to_owned(), b: mesh_name(size), rows: vec![row] });
        }
        Ok(Report {
            node: self.node.describe(),
            documents: self.count,
            cores: std::thread::available_parallelism()?.get(),
            machine_cores: None,
            requests: self.effort.requests,
            rounds: self.effort.rounds,
            connections: self.effort.connections,
            tables,
        })
    }

    /// Starts a mesh, loads it, compares it with the single node and with its own nodes asked directly, and ends it. Gives
    /// the seconds that loading took, too.
    async fn measure_mesh(&self, dir: &Path, size: u16, node: &SingleNode) -> anyhow::Result<(Vec<Table>, f64)> {
        say(&format!("loading them into {}", mesh_name(size)));
        let options = MeshOptions {
            members: size,
            groups: 1,
            rf: 1,
            shards: 64,
            http_port: None,
            master_key: None,
            node: self.node.clone(),
            more_config: String::new(),
        };
        let mut mesh = Mesh::prepare(dir, &options)?;
        mesh.start().await?;
        let seconds = self.fill(&mut mesh.client(0), INDEX).await?;

        let bodies = &self.queries.bodies;
        let of_mesh = Target::one(mesh.members[0].http, None, INDEX, bodies);
        let of_node = Target::one(node.address, Some(node.key()), INDEX, bodies);
        let mut tables = vec![self.compare("one node".to_owned(), &of_node, mesh_name(size), &of_mesh).await?];
        if size > 1 {
            let nodes: Vec<SocketAddr> = mesh.members.iter().map(|m| m.node).collect();
            let physical = physical_index(nodes[0], &mesh.node_key).await?;
            let parts = Target::parts(&nodes, &mesh.node_key, &physical, bodies)?;
            let name = format!("its {size} nodes, asked directly for the same parts at once");
            tables.push(self.compare(name, &parts, mesh_name(size), &of_mesh).await?);
        }
        let dead = mesh.found_dead();
        ensure!(dead.is_empty(), "{}", dead.join("\n"));
        mesh.end().await;
        Ok((tables, seconds))
    }

    async fn compare(&self, a_name: String, a: &Target, b_name: String, b: &Target) -> anyhow::Result<Table> {
        say(&format!("{b_name} against {a_name}"));
        let mut rows = latencies(a, b, self.effort).await?;
        rows.push(throughput(a, b, self.effort).await?);
        Ok(Table { a: a_name, b: b_name, rows })
    }

    /// Creates an index, and loads everything into it; the seconds that the loading took.
    async fn fill(&self, client: &mut Client, index: &str) -> anyhow::Result<f64> {
        create_index(client, index, &self.documents).await?;
        let path = format!("/indexes/{index}/settings");
        let answer = client.json(Method::PATCH, &path, &self.queries.settings).await?.success()?;
        wait_for_task(client, task_uid(&answer.json()?)?).await?;
        let began = Instant::now();
        load(client, index, &self.documents, &mut |_| {}).await?;
        Ok(began.elapsed().as_secs_f64())
    }
}

fn mesh_name(size: u16) -> String {
    format!("a mesh of {size}")
}

/// The name of the one index on a mesh's node.
async fn physical_index(node: SocketAddr, key: &str) -> anyhow::Result<String> {
    let indexes: Value = Client::new(node, Some(key)).get("/indexes").await?.success()?.json()?;
    let name = indexes["results"][0]["uid"].as_str();
    name.map(str::to_owned).with_context(|| format!("expected one index on a node, found {indexes}"))
}
