//! One sequence of searches: to one server, or to several nodes at once, waiting for the slowest.
//!
//! Must not know: what is measured.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use hyper::Method;
use miroir::proto::{search::SearchQuery, settings::IndexView};

use crate::mesh::Client;

const PATIENCE: Duration = Duration::from_secs(30);

/// Who is asked, and what exactly.
#[derive(Clone)]
pub struct Target {
    servers: Vec<Server>,
    /// One for each search.
    bodies: Vec<Bytes>,
}

#[derive(Clone)]
struct Server {
    address: SocketAddr,
    key: Option<String>,
    path: String,
}

impl Target {
    /// A node or a sidecar, asked as a client asks.
    pub fn one(address: SocketAddr, key: Option<&str>, index: &str, bodies: &[Bytes]) -> Self {
        Self { servers: vec![Server::new(address, key, index)], bodies: bodies.to_vec() }
    }

    /// The nodes of a mesh, asked directly for the parts that the mesh would ask them for: the floor of scattering.
    pub fn parts(nodes: &[SocketAddr], key: &str, physical: &str, bodies: &[Bytes]) -> anyhow::Result<Self> {
        let view = IndexView::default();
        let part = |body: &Bytes| -> anyhow::Result<Bytes> {
            Ok(SearchQuery::from_json(body).context("a search of the bench")?.part_body(nodes.len(), &view).into())
        };
        Ok(Self {
            servers: nodes.iter().map(|n| Server::new(*n, Some(key), physical)).collect(),
            bodies: bodies.iter().map(part).collect::<anyhow::Result<_>>()?,
        })
    }

    /// A lane to it, with connections of its own.
    pub fn lane(&self) -> Lane {
        let clients = self.servers.iter().map(|s| Client::new(s.address, s.key.as_deref())).collect();
        Lane { target: self.clone(), clients }
    }
}

impl Server {
    fn new(address: SocketAddr, key: Option<&str>, index: &str) -> Self {
        Self { address, key: key.map(str::to_owned), path: format!("/indexes/{index}/search") }
    }
}

/// See the module.
pub struct Lane {
    target: Target,
    clients: Vec<Client>,
}

impl Lane {
    /// Sends the search of this number to all and waits for the answers, each a success.
    pub async fn ask(&mut self, number: usize) -> anyhow::Result<()> {
        let body = &self.target.bodies[number % self.target.bodies.len()];
        let asked = self.clients.iter_mut().zip(&self.target.servers).map(async |(client, server)| {
            let answer = client.send(Method::POST, &server.path, "application/json", body.clone(), PATIENCE).await?;
            ensure!(answer.status == 200, "HTTP {}: {}", answer.status, answer.text());
            Ok(())
        });
        try_join_all(asked).await.map(|_| ())
    }
}
