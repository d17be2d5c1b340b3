//! An order of a member that is gone, as if it had been on its way: sent with that member's certificate.
//!
//! Rule: the member itself has no connections meanwhile, because it is killed or has long been stopped. Must not know: who
//! leads, what becomes of the order.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use miroir::net::peers::{Mesh, MeshConfig, PeerAddress};
use miroir::net::tls::TlsFiles;
use miroir::net::{Answer, Call, CallError, Peers as _};
use miroir::types::{Epoch, MemberId, MeshId, Order, RecordKey, Scope, TraceId};
use miroir::wire::verbs::{LeaderAct, LeaderOrder, RecordAt, Request};

/// How long a receiver may take to be connected and to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who sends it.
pub struct Former<'a> {
    pub id: &'a str,
    /// With its certificate.
    pub dir: &'a Path,
    /// Where its mesh socket is now.
    pub bind: SocketAddr,
    /// The mesh, as its API shows it.
    pub mesh: &'a str,
}

/// The order to confirm `names`, as the leader of an alias's flip gave it under its epoch.
pub fn confirm(alias: &str, epoch: u64, operation: &str) -> anyhow::Result<LeaderOrder> {
    let scope: Scope = format!("alias_flip:{alias}").parse()?;
    let epoch = Epoch::new(epoch).context("an epoch is too high")?;
    let record = format!("operation:{scope}");
    Ok(LeaderOrder {
        head: Order { scope, epoch, record, version: 1 },
        operation: operation.to_owned(),
        phase: "confirm".to_owned(),
        undo: false,
        act: LeaderAct::Know(RecordAt { key: RecordKey::new("names")?, version: 1 }),
    })
}

/// Sends it to each of `to`; what each answers.
pub async fn send(
    former: Former<'_>,
    to: &[(&str, SocketAddr)],
    order: &LeaderOrder,
) -> anyhow::Result<Vec<Result<Answer, CallError>>> {
    let mesh = MeshId(u128::from_str_radix(former.mesh, 16).context("the mesh has no id")?.to_be_bytes());
    let file = |name: &str| former.dir.join(name);
    let tls = TlsFiles { ca: file("ca.pem"), cert: file("member.pem"), key: file("member-key.pem") };
    let config = MeshConfig::new(MemberId::new(former.id)?, mesh, former.bind, tls, [7; 64], 1_000);
    let peers = to.iter().map(|(id, at)| Ok(PeerAddress { id: MemberId::new(*id)?, address: at.to_string() }));
    let peers = peers.collect::<anyhow::Result<Vec<_>>>()?;
    let transport = Mesh::start(config, peers.clone(), None, tokio::runtime::Handle::current())?;
    let mut answers = Vec::new();
    for peer in &peers {
        let until = Instant::now() + PATIENCE;
        answers.push(loop {
            let deadline = Instant::now() + Duration::from_secs(5);
            let request = Request::Order(order.clone());
            let call = Call { request, body: Bytes::new(), deadline, trace: TraceId::default() };
            match transport.call(&peer.id, call).await {
                // It is not connected yet.
                Err(CallError::NotSent { .. } | CallError::NoAnswer { .. }) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                answer => break answer,
            }
        });
    }
    transport.shutdown("the order was sent").await;
    Ok(answers)
}
