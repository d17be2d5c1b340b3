//! The members under trial: a mesh with a host for each, faults of hosts and links, and what the members see.
//!
//! Every fault goes through here, so that the picture of what must follow is always right. Must not know: which faults a
//! scenario wants.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hyper::Method;
use miroir::net::CallError;
use miroir::wire::verbs::LeaderOrder;
use serde_json::Value;
use tokio::time::timeout;

use super::disk;
use super::faults::{Faults, Picture};
use super::forged::{self, Former};
use super::lab::Lab;
use crate::mesh::{Answer, Client, Documents, Mesh, MeshOptions, NodeChoice, create_index, load};

/// The index that is searched.
pub const INDEX: &str = "packages";
const SHARDS: u16 = 16;
/// Longer than the sidecars' time to drain.
const STOP_PATIENCE: Duration = Duration::from_secs(12);
/// A member that runs answers what is in its memory at once; this is for busy machines.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// Whether this build of Miroir has leases, by the keys of its config.
pub fn has_leases() -> bool {
    miroir::config::KEYS.iter().any(|key| key.section == "leader_election" && key.key == "lease_ttl_s")
}

/// What faults there are, shared with those who search meanwhile.
#[derive(Clone, Default)]
pub struct Pictures(Arc<Mutex<Seen>>);

/// The faults now, and those before that members may not have noticed to be over.
#[derive(Clone, Default, PartialEq)]
pub struct Seen {
    /// Now.
    pub now: Picture,
    /// Since all members last saw what there was.
    pub before: Vec<Picture>,
}

impl Pictures {
    /// What there is.
    pub fn read(&self) -> Seen {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Picture)) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = seen.now.clone();
        seen.before.push(old);
        change(&mut seen.now);
    }

    /// All members see what there is.
    pub fn settled(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).before.clear();
    }
}

/// See the module.
pub struct Members {
    mesh: Mesh,
    lab: Arc<Lab>,
    pictures: Pictures,
}

impl Members {
    /// Writes the files of a mesh with a member on each host of the lab.
    pub fn prepare(lab: Arc<Lab>, dir: &Path, more_config: &str) -> anyhow::Result<Self> {
        let count = lab.count();
        let options = MeshOptions {
            members: u16::try_from(count)?,
            groups: 1,
            rf: 2,
            shards: SHARDS,
            http_port: None,
            master_key: Some("netsim-live-master-key".into()),
            node: NodeChoice::Builtin,
            more_config: format!("[log]\nformat = \"json\"\n\n{more_config}"),
        };
        let places = (0..count).map(|host| lab.place(host)).collect();
        Ok(Self { mesh: Mesh::prepare_at(dir, &options, places)?, lab, pictures: Pictures::default() })
    }

    /// Starts everything and waits until the mesh is whole.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.mesh.start().await
    }

    /// Loads the built-in sample; how many documents it has.
    pub async fn load(&self) -> anyhow::Result<usize> {
        let mut client = self.client(0);
        create_index(&mut client, INDEX, &Documents::Sample).await?;
        load(&mut client, INDEX, &Documents::Sample, &mut |_| {}).await
    }

    /// Sends an order as `former`, which must be stopped or gone; what each of `to` answers.
    pub async fn send_as(
        &self,
        former: usize,
        mesh: &str,
        to: &[usize],
        order: &LeaderOrder,
    ) -> anyhow::Result<Vec<Result<miroir::net::Answer, CallError>>> {
        let (former, of) = (&self.mesh.members[former], |i: &usize| &self.mesh.members[*i]);
        let former = Former { id: &former.id, dir: &former.dir, bind: self.lab.outside(), mesh };
        let to: Vec<_> = to.iter().map(of).map(|m| (&*m.id, m.mesh)).collect();
        forged::send(former, &to, order).await
    }

    /// How many members there are.
    pub fn count(&self) -> usize {
        self.mesh.members.len()
    }

    /// A member's id.
    pub fn name(&self, member: usize) -> &str {
        &self.mesh.members[member].id
    }

    /// Ids for people.
    pub fn names(&self, members: &[usize]) -> String {
        members.iter().map(|m| self.name(*m)).collect::<Vec<_>>().join(", ")
    }

    /// Those that run.
    pub fn running(&self) -> Vec<usize> {
        let down = self.pictures.read().now.down;
        (0..self.count()).filter(|m| !down.contains(m)).collect()
    }

    /// What faults there are, as it changes.
    pub fn pictures(&self) -> Pictures {
        self.pictures.clone()
    }

    /// A client of a member's Meilisearch API.
    pub fn client(&self, member: usize) -> Client {
        self.mesh.client(member)
    }

    /// A client of a member's node itself, for as long as one connection lasts.
    pub async fn node_client(&self, member: usize) -> anyhow::Result<Client> {
        Client::over(self.lab.node(member)?, Some(self.mesh.node_key.as_str())).await
    }

    /// A client of a member's metrics.
    pub fn metrics(&self, member: usize) -> Client {
        Client::new(self.mesh.members[member].metrics, None)
    }

    /// What a member answers to an administrator, soon.
    pub async fn ask(&self, member: usize, path: &str) -> anyhow::Result<Value> {
        let mut client = self.mesh.admin(member);
        let answer = timeout(LOOK_PATIENCE, client.get(path)).await;
        answer.with_context(|| format!("{} does not answer", self.name(member)))??.success()?.json()
    }

    /// What a member answers to an administrator who wants something of it.
    pub async fn tell(&self, member: usize, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.mesh.admin(member).json(method, path, body).await?.success()?.json()
    }

    /// Makes `faults` the faults of links that there are.
    pub async fn set(&self, faults: Faults) -> anyhow::Result<()> {
        let script = faults.clone();
        // Before and after, so that no search in between is judged by what is not so.
        self.pictures.change(|picture| picture.faults = faults);
        self.lab.set(&script).await
    }

    /// Whether by the faults that there are two members can't go on with each other.
    pub fn separated(&self, a: usize, b: usize) -> bool {
        self.pictures.read().now.faults.separated(a, b)
    }

    /// Whether TCP passes from one host to another.
    pub fn tcp_connects(&self, from: usize, to: usize) -> anyhow::Result<bool> {
        self.lab.tcp_connects(from, to)
    }

    /// Ends a member's sidecar as a power cut does. Its node goes on.
    pub async fn kill(&mut self, member: usize) -> anyhow::Result<()> {
        self.pictures.change(|picture| {
            picture.down.insert(member);
        });
        let mut sidecar = self.mesh.take_sidecar(member).context("it runs")?;
        sidecar.kill();
        sidecar.wait().await.map(drop)
    }

    /// Asks a member's sidecar to end and waits until it has.
    pub async fn stop(&mut self, member: usize) -> anyhow::Result<()> {
        self.pictures.change(|picture| {
            picture.down.insert(member);
        });
        let mut sidecar = self.mesh.take_sidecar(member).context("it runs")?;
        sidecar.terminate();
        let Ok(status) = timeout(STOP_PATIENCE, sidecar.wait()).await else {
            bail!("{} did not end within {} s of SIGTERM", self.name(member), STOP_PATIENCE.as_secs())
        };
        let status = status?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM: {}", self.name(member), sidecar.last_words());
        Ok(())
    }

    /// Starts a member's sidecar again; it may take a while until it answers.
    pub fn restart(&mut self, member: usize) -> anyhow::Result<()> {
        self.mesh.start_sidecar(member)?;
        self.pictures.change(|picture| {
            picture.down.remove(&member);
        });
        Ok(())
    }

    /// Stops a member's sidecar where it is.
    pub fn pause(&self, member: usize) -> anyhow::Result<()> {
        self.pictures.change(|picture| {
            picture.down.insert(member);
        });
        self.mesh.sidecar(member).context("it runs")?.pause();
        Ok(())
    }

    /// Lets a member's sidecar go on.
    pub fn resume(&self, member: usize) -> anyhow::Result<()> {
        self.mesh.sidecar(member).context("it runs")?.resume();
        self.pictures.change(|picture| {
            picture.down.remove(&member);
        });
        Ok(())
    }

    /// Puts the store of a member that does not run on a disk of so many bytes.
    pub async fn give_disk(&self, member: usize, bytes: u64) -> anyhow::Result<()> {
        disk::give(&self.store(member), bytes).await
    }

    /// Fills the disk of a member's store with so many bytes, or with as many as it takes.
    pub async fn fill_disk(&self, member: usize, bytes: Option<u64>) -> anyhow::Result<u64> {
        disk::fill(self.store(member), bytes).await
    }

    /// The disk of a member's store has all its room again.
    pub fn empty_disk(&self, member: usize) -> anyhow::Result<()> {
        disk::empty(&self.store(member))
    }

    fn store(&self, member: usize) -> PathBuf {
        self.mesh.members[member].store()
    }

    /// Waits until a member's sidecar has ended by itself; the last of its log.
    pub async fn ends(&mut self, member: usize, within: Duration) -> anyhow::Result<String> {
        let mut sidecar = self.mesh.take_sidecar(member).context("it runs")?;
        let ended = timeout(within, sidecar.wait()).await;
        self.pictures.change(|picture| {
            picture.down.insert(member);
        });
        let status = ended.with_context(|| format!("{} goes on", self.name(member)))??;
        ensure!(!status.success(), "{} ended as if all were well", self.name(member));
        Ok(sidecar.last_words())
    }

    /// Waits until all members see each other again, with healthy nodes.
    pub async fn whole(&mut self) -> anyhow::Result<()> {
        self.mesh.wait_whole().await
    }

    /// Whom a member suspects.
    pub async fn suspects(&self, member: usize) -> anyhow::Result<BTreeSet<usize>> {
        suspects(&self.ask(member, "/_miroir/topology").await?)
    }

    /// Who holds each shard of the index.
    pub async fn copies(&self) -> anyhow::Result<Vec<Vec<usize>>> {
        copies(&self.ask(0, "/_miroir/topology").await?)
    }

    /// Member and log of each.
    pub fn logs(&self) -> anyhow::Result<Vec<(String, String)>> {
        let read = |m: &crate::mesh::Member| -> anyhow::Result<(String, String)> {
            let path = m.dir.join("sidecar.log");
            let log = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
            Ok((m.id.clone(), String::from_utf8_lossy(&log).into_owned()))
        };
        self.mesh.members.iter().map(read).collect()
    }

    /// A sentence for each process that ended without having been told to.
    pub fn found_dead(&mut self) -> Vec<String> {
        self.mesh.found_dead()
    }

    /// Ends all processes at once, and all faults of links.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        self.mesh.kill().await;
        self.lab.set(&Faults::none()).await
    }
}

/// The number of the member `m<i>`, from 0.
pub fn number(id: &Value) -> anyhow::Result<usize> {
    let number = id.as_str().and_then(|id| id.strip_prefix('m')?.parse::<usize>().ok()?.checked_sub(1));
    number.with_context(|| format!("expected a member's id, found {id}"))
}

fn suspects(topology: &Value) -> anyhow::Result<BTreeSet<usize>> {
    let members = topology["members"].as_array().context("expected members in the topology")?;
    // The own entry is no one's suspicion.
    let suspected = members.iter().filter(|m| m["suspect"] == true && m["id"] != topology["member"]);
    suspected.map(|m| number(&m["id"])).collect()
}

fn copies(topology: &Value) -> anyhow::Result<Vec<Vec<usize>>> {
    let shards = topology["indexes"][0]["shards"].as_array().context("expected an index with shards")?;
    let holders = |shard: &Value| shard.as_array().context("expected holders")?.iter().map(number).collect();
    shards.iter().map(holders).collect()
}

/// The shards that an answer says it lacks.
pub fn degraded(answer: &Answer) -> anyhow::Result<BTreeSet<usize>> {
    shards_missing(answer.header("x-miroir-degraded").unwrap_or_default())
}

fn shards_missing(header: &str) -> anyhow::Result<BTreeSet<usize>> {
    let parts = header.split(';').map(str::trim);
    let Some(shards) = parts.filter_map(|part| part.strip_prefix("shards=")).next() else { return Ok(BTreeSet::new()) };
    let parse = |shard: &str| shard.parse().with_context(|| format!("x-miroir-degraded: {header}"));
    shards.split(',').map(parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn topologies_are_read_by_members_numbers() {
        let topology = json!({
            "member": "m1",
            "members": [{"id": "m1", "suspect": true}, {"id": "m2", "suspect": false}, {"id": "m3", "suspect": true}],
            "indexes": [{"shards": [["m1", "m3"], ["m2"]]}],
        });
        assert_eq!(suspects(&topology).unwrap(), BTreeSet::from([2]));
        assert_eq!(copies(&topology).unwrap(), [vec![0, 2], vec![1]]);
        assert!(suspects(&json!({})).is_err() && copies(&json!({})).is_err());
        assert!(number(&json!("m0")).is_err() && number(&json!("x1")).is_err());
    }

    #[test]
    fn missing_shards_are_read_from_the_header() {
        assert_eq!(shards_missing("shards=3,7").unwrap(), BTreeSet::from([3, 7]));
        assert_eq!(shards_missing("copies=2/3; shards=1; stale").unwrap(), BTreeSet::from([1]));
        assert!(shards_missing("stale").unwrap().is_empty() && shards_missing("").unwrap().is_empty());
        assert!(shards_missing("shards=x").is_err());
    }

    #[test]
    fn a_picture_is_unsettled_until_everybody_has_seen_it() {
        let pictures = Pictures::default();
        pictures.change(|p| {
            p.down.insert(1);
        });
        pictures.change(|p| {
            p.down.insert(2);
        });
        let seen = pictures.read();
        assert_eq!((seen.now.down.len(), seen.before.len(), seen.before[1].down.len()), (2, 2, 1));
        pictures.settled();
        assert!(pictures.read().before.is_empty());
    }
}
