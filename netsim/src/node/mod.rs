//! The stand-in node: a small server that speaks the part of Meilisearch v1.50's HTTP API that the mesh uses.
//!
//! It is for trials and tests where no real node can be had, and says so in `/version`. The same cases as data
//! (`tests/golden/`) hold it to what a real node answers. It knows nothing of the mesh.

mod apply;
mod documents;
mod edit;
mod error;
mod facets;
mod filter;
mod format;
mod http;
mod http_documents;
mod http_tasks;
mod index;
mod knobs;
mod params;
mod query;
mod rank;
mod search;
mod settings;
mod special;
mod storage;
mod tasks;
mod text;
mod vector;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::net::TcpListener;

/// How to run a stand-in node.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7700")]
    pub http_addr: SocketAddr,
    /// Where the data lie.
    #[arg(long, default_value = "./data.ms")]
    pub db_path: PathBuf,
    /// The key that requests must bring.
    #[arg(long, env = "MEILI_MASTER_KEY", hide_env_values = true)]
    pub master_key: Option<String>,
    /// Answers each request this many milliseconds later.
    #[arg(long, default_value_t = 0)]
    pub delay_ms: u64,
}

/// A node that listens but does not answer yet.
pub struct Node {
    listener: TcpListener,
    server: Arc<http::Server>,
}

impl Node {
    /// Opens the data and binds the port.
    pub async fn open(args: &Args) -> Result<Self> {
        let listener =
            TcpListener::bind(args.http_addr).await.with_context(|| format!("cannot listen on {}", args.http_addr))?;
        let engine = tasks::Engine::open(storage::Store::open(&args.db_path)?)?;
        engine.knobs.set_delay(args.delay_ms);
        Ok(Self { listener, server: Arc::new(http::Server { engine, master_key: args.master_key.clone() }) })
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().context("the listener has no address")
    }

    /// Serves until `shutdown` is done.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let engine = Arc::clone(&self.server.engine);
        let served = axum::serve(self.listener, http::router(self.server)).with_graceful_shutdown(shutdown).await;
        engine.stop();
        served.context("the server failed")
    }
}

/// Runs a stand-in node until SIGINT or SIGTERM.
pub async fn run(args: Args) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let node = Node::open(&args).await?;
    eprintln!("stand-in node on http://{} (not a real Meilisearch)", node.address()?);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    node.serve(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
    .await
}
