//! The demo from its arguments to its end.
//!
//! stdout has the result only (with `--json` exactly one line); how far things are goes to stderr. Whatever happens, no
//! process is left behind. Must not know: how a mesh is made.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::interval;

use super::progress::Bar;
use super::show;
use crate::mesh::{Dir, Documents, Mesh, MeshOptions, NodeChoice, Stop, create_index, load, say};

const INDEX: &str = "packages";

/// What `netsim demo` takes.
#[derive(Debug, clap::Args)]
pub struct DemoArguments {
    /// Members in all: a sidecar and a node each.
    #[arg(long, default_value_t = 3)]
    members: u16,
    /// Replica groups; each holds a full copy. Member i is in group (i − 1) mod groups.
    #[arg(long, default_value_t = 1)]
    groups: u16,
    /// Copies of each shard inside one group.
    #[arg(long, default_value_t = 1)]
    rf: u8,
    /// Shards of the index.
    #[arg(long, default_value_t = 64)]
    shards: u16,
    /// Member i serves HTTP on this port + 10 · (i − 1).
    #[arg(long, default_value_t = 7780)]
    http_port: u16,
    /// The key that clients must send. Without it the mesh is open.
    #[arg(long)]
    master_key: Option<String>,
    /// The nodes: the path of a Meilisearch, or `builtin`. By default MEILISEARCH_BIN, or `meilisearch` on the PATH, or
    /// the built-in stand-in.
    #[arg(long, value_name = "PATH|builtin")]
    node: Option<String>,
    /// Documents to load, NDJSON, plain or gzip. By default a built-in sample.
    #[arg(long, value_name = "FILE.ndjson[.gz]")]
    docs: Option<PathBuf>,
    /// Where everything lies; made if it is not there, and kept. By default a temporary directory, which is removed.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print one line of JSON once the mesh is ready, and nothing else, to stdout.
    #[arg(long)]
    json: bool,
}

/// Runs the demo until SIGINT or SIGTERM.
pub async fn run(arguments: DemoArguments) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let options = MeshOptions {
        members: arguments.members,
        groups: arguments.groups,
        rf: arguments.rf,
        shards: arguments.shards,
        http_port: Some(arguments.http_port),
        master_key: arguments.master_key.clone(),
        node: NodeChoice::of(arguments.node.as_deref())?,
        more_config: String::new(),
    };
    options.check()?;
    let documents = Documents::of(arguments.docs.clone());
    let count = documents.count()?;
    // Kept until the end: dropping it removes the directory.
    let dir = Dir::make(arguments.dir.as_deref(), "miroir-demo-")?;

    let mut mesh = Mesh::prepare(dir.path(), &options)?;
    let work = work(&arguments, &options, &mut mesh, &documents, count, dir.path());
    let result = tokio::select! {
        result = work => result,
        () = stop.asked() => Ok(()),
    };
    say("ending all processes");
    tokio::select! {
        () = mesh.end() => {}
        // Asked twice: no patience.
        () = stop.asked() => mesh.kill().await,
    }
    result
}

async fn work(
    arguments: &DemoArguments,
    options: &MeshOptions,
    mesh: &mut Mesh,
    documents: &Documents,
    count: usize,
    dir: &Path,
) -> anyhow::Result<()> {
    say(&format!(
        "starting {} members in {} groups, each a sidecar and {}, in {}",
        options.members,
        options.groups,
        options.node.describe(),
        dir.display()
    ));
    mesh.start().await?;
    let source = documents.describe();
    say(&format!("the mesh is whole; loading {count} documents of {source} through {}", mesh.members[0].id));
    let mut client = mesh.client(0);
    create_index(&mut client, INDEX, documents).await?;
    let mut bar = Bar::new(count);
    let mut progress = |done| bar.show(done);
    let filling = load(&mut client, INDEX, documents, &mut progress);
    let loaded = watch(mesh, filling).await?;

    let master_key = arguments.master_key.as_deref();
    let text = if arguments.json {
        format!("{}\n", show::json_line(mesh, INDEX, loaded, master_key, dir))
    } else {
        let searches = show::searches(mesh, INDEX, documents).await?;
        let pointers = show::pointers(mesh, INDEX, master_key);
        format!(
            "\n{loaded} documents over {} members. Searches:\n{searches}\nThe Meilisearch API is at\n{pointers}\nEverything lies in {}. \
             Ctrl-C ends it.\n",
            mesh.members.len(),
            dir.display()
        )
    };
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("can't write to stdout")?;
    watch(mesh, std::future::pending()).await
}

/// Waits for `work` and meanwhile says which children have died.
async fn watch<T>(mesh: &mut Mesh, work: impl Future<Output = T>) -> T {
    let mut look = interval(Duration::from_millis(200));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = look.tick() => mesh.found_dead().iter().for_each(|sentence| say(sentence)),
        }
    }
}
