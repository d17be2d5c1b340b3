//! Starts a mesh process by process, waits until it is whole, and ends it.
//!
//! Everything lies in one directory: `ca/`, and for each member `m<i>/` with its config, certificates, keys, data and logs.
//! Must not know: what is asked of the mesh.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use miroir::pki;
use miroir::types::MemberId;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::child::{self, Child};
use super::http::Client;
use super::network::Network;
use super::options::{MeshOptions, NodeChoice};
use super::ports::{Ports, is_free};

/// The hidden subcommand that is `miroir`'s `main`.
pub const SIDECAR_COMMAND: &str = "sidecar";

const START_PATIENCE: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// A sidecar drains for so long; with the two below, a mesh ends within 16 s.
const DRAIN_S: u64 = 6;
const SIDECAR_PATIENCE: Duration = Duration::from_secs(DRAIN_S + 4);
const NODE_PATIENCE: Duration = Duration::from_secs(6);
const CERTIFICATE_DAYS: u32 = 365;

/// Where a member's processes listen, and in which network.
pub struct Place {
    /// The Meilisearch API.
    pub http: SocketAddr,
    /// The Prometheus exposition.
    pub metrics: SocketAddr,
    /// The mesh port.
    pub mesh: SocketAddr,
    /// The node.
    pub node: SocketAddr,
    /// A network of its own; `None`: this process's.
    pub network: Option<Arc<Network>>,
}

/// One member: where it listens and what runs.
pub struct Member {
    /// `m1`, `m2`, …
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
    /// The Meilisearch API.
    pub http: SocketAddr,
    /// The Prometheus exposition.
    pub metrics: SocketAddr,
    /// The mesh port.
    pub mesh: SocketAddr,
    /// Its node.
    pub node: SocketAddr,
    network: Option<Arc<Network>>,
    sidecar: Option<Child>,
    node_process: Option<Child>,
}

impl Member {
    /// The sidecar's process id, 0 before it was started.
    pub fn sidecar_pid(&self) -> u32 {
        self.sidecar.as_ref().map_or(0, Child::pid)
    }

    /// Where its sidecar's store lies.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// The node's process id, 0 before it was started.
    pub fn node_pid(&self) -> u32 {
        self.node_process.as_ref().map_or(0, Child::pid)
    }
}

/// A mesh; [`Mesh::prepare`] makes its files, [`Mesh::start`] its processes.
pub struct Mesh {
    /// All members, in order.
    pub members: Vec<Member>,
    /// The key of `/_miroir/*`.
    pub admin_key: String,
    /// The one master key of all nodes.
    pub node_key: String,
    options: MeshOptions,
}

impl Mesh {
    /// Chooses ports on loopback and writes certificates, keys and configs.
    pub fn prepare(dir: &Path, options: &MeshOptions) -> anyhow::Result<Self> {
        options.check()?;
        let wanted: Vec<Option<u16>> =
            (0..options.members).map(|i| options.http_port.map(|port| port + 10 * i)).collect();
        for port in wanted.iter().flatten() {
            ensure!(is_free(*port), "port {port} is taken: choose others with --http-port");
        }
        let mut ports = Ports::new(wanted.iter().flatten().copied());
        let mut places = Vec::new();
        for http_port in wanted {
            let http = match http_port {
                Some(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                None => ports.free()?,
            };
            places.push(Place {
                http,
                metrics: ports.free()?,
                mesh: ports.free()?,
                node: ports.free()?,
                network: None,
            });
        }
        Self::prepare_at(dir, options, places)
    }

    /// Writes certificates, keys and configs for members at these places, one for each.
    pub fn prepare_at(dir: &Path, options: &MeshOptions, places: Vec<Place>) -> anyhow::Result<Self> {
        options.check()?;
        ensure!(
            places.len() == usize::from(options.members),
            "{} places for {} members",
            places.len(),
            options.members
        );
        let member = |(i, place): (usize, Place)| Member {
            id: format!("m{i}"),
            dir: dir.join(format!("m{i}")),
            http: place.http,
            metrics: place.metrics,
            mesh: place.mesh,
            node: place.node,
            network: place.network,
            sidecar: None,
            node_process: None,
        };
        let members = (1..).zip(places).map(member).collect();
        let mesh = Self { members, admin_key: random_key(), node_key: random_key(), options: options.clone() };
        mesh.write_files(dir)?;
        Ok(mesh)
    }

    fn write_files(&self, dir: &Path) -> anyhow::Result<()> {
        let ca = pki::create_ca("Miroir demo CA", CERTIFICATE_DAYS)?;
        let ca_dir = dir.join("ca");
        make_dir(&ca_dir)?;
        pki::write_new(&ca_dir.join("ca.pem"), ca.cert_pem.as_bytes(), pki::PUBLIC_MODE)?;
        pki::write_new(&ca_dir.join("ca-key.pem"), ca.key_pem.as_bytes(), pki::KEY_MODE)?;
        for member in &self.members {
            make_dir(&member.dir.join("node"))?;
            let pair = pki::issue(&ca.cert_pem, &ca.key_pem, &MemberId::new(&*member.id)?, &[], CERTIFICATE_DAYS)?;
            let write = |name: &str, text: &str, mode| pki::write_new(&member.dir.join(name), text.as_bytes(), mode);
            write("ca.pem", &ca.cert_pem, pki::PUBLIC_MODE)?;
            write("member.pem", &pair.cert_pem, pki::PUBLIC_MODE)?;
            write("member-key.pem", &pair.key_pem, pki::KEY_MODE)?;
            write("node.key", &self.node_key, pki::KEY_MODE)?;
            write("admin.key", &self.admin_key, pki::KEY_MODE)?;
            if let Some(key) = &self.options.master_key {
                write("master.key", key, pki::KEY_MODE)?;
            }
            write("miroir.toml", &self.config_of(member)?, pki::PUBLIC_MODE)?;
        }
        Ok(())
    }

    fn config_of(&self, member: &Member) -> anyhow::Result<String> {
        let path = |name: &str| -> anyhow::Result<String> {
            let path = member.dir.join(name);
            // JSON's escapes are TOML's, too.
            Ok(Value::from(path.to_str().context("--dir: expected a path in UTF-8")?).to_string())
        };
        let bootstrap: String = (0..)
            .zip(&self.members)
            .map(|(i, m)| {
                let group = i % self.options.groups + 1;
                format!("  {{ id = \"{}\", group = \"g{group}\", address = \"{}\" }},\n", m.id, m.mesh)
            })
            .collect();
        let master_key = match self.options.master_key {
            Some(_) => format!("master_key_file = {}\n", path("master.key")?),
            None => String::new(),
        };
        Ok(format!(
            "[node]\nid = \"{id}\"\ndata_dir = {store}\nshutdown_drain_s = {DRAIN_S}\n\n\
             [meilisearch]\nurl = \"http://{node}\"\nkey_file = {node_key}\n\n\
             [http]\nlisten = \"{http}\"\n\n\
             [mesh]\nlisten = \"{mesh}\"\nbootstrap = [\n{bootstrap}]\nrf = {rf}\nca_file = {ca}\ncert_file = {cert}\n\
             key_file = {key}\n\n\
             [metrics]\nlisten = \"{metrics}\"\n\n\
             [access]\n{master_key}admin_key_file = {admin_key}\n\n\
             [index]\nshards = {shards}\n\n{more}",
            id = member.id,
            store = path("store")?,
            node = member.node,
            node_key = path("node.key")?,
            http = member.http,
            mesh = member.mesh,
            rf = self.options.rf,
            ca = path("ca.pem")?,
            cert = path("member.pem")?,
            key = path("member-key.pem")?,
            metrics = member.metrics,
            admin_key = path("admin.key")?,
            shards = self.options.shards,
            more = self.options.more_config,
        ))
    }

    /// Starts nodes and sidecars and waits until every sidecar sees the whole mesh with healthy nodes. After an error, or
    /// if dropped, [`Mesh::end`] ends what was started.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.node_process = Some(start_node(
                &format!("member {}: the node", member.id),
                &self.options.node,
                member.node,
                &self.node_key,
                &member.dir,
                member.network.as_deref(),
            )?);
        }
        // One in a network of its own listens on a loopback that is not this process's.
        let nodes: Vec<SocketAddr> = self.members.iter().filter(|m| m.network.is_none()).map(|m| m.node).collect();
        for node in nodes {
            self.wait_for("every node to answer", async || is_healthy(node).await).await?;
        }
        for member in 0..self.members.len() {
            self.start_sidecar(member)?;
        }
        self.wait_whole().await
    }

    /// Waits until every sidecar sees the whole mesh with healthy nodes.
    pub async fn wait_whole(&mut self) -> anyhow::Result<()> {
        let (count, key) = (self.members.len(), self.admin_key.clone());
        let sidecars: Vec<SocketAddr> = self.members.iter().map(|m| m.http).collect();
        for http in sidecars {
            self.wait_for("the mesh to be whole", async || sees_all(http, &key, count).await).await?;
        }
        Ok(())
    }

    /// Starts one member's sidecar, at first or again.
    pub fn start_sidecar(&mut self, member: usize) -> anyhow::Result<()> {
        let member = &mut self.members[member];
        member.sidecar = Some(start_sidecar(member)?);
        Ok(())
    }

    /// One member's sidecar, if it was started.
    pub fn sidecar(&self, member: usize) -> Option<&Child> {
        self.members[member].sidecar.as_ref()
    }

    /// Takes one member's sidecar: the mesh no longer minds it, and whoever has it ends it.
    pub fn take_sidecar(&mut self, member: usize) -> Option<Child> {
        self.members[member].sidecar.take()
    }

    /// A client of one member's `/_miroir/*`.
    pub fn admin(&self, member: usize) -> Client {
        Client::new(self.members[member].http, Some(&self.admin_key))
    }

    /// A client of one member's API, with the mesh's key if there is one.
    pub fn client(&self, member: usize) -> Client {
        Client::new(self.members[member].http, self.options.master_key.as_deref())
    }

    /// One sentence for each child found ended since the last call.
    pub fn found_dead(&mut self) -> Vec<String> {
        self.children().filter_map(Child::found_dead).collect()
    }

    /// Ends all processes: the sidecars in order, then the nodes.
    pub async fn end(&mut self) {
        let mut sidecars: Vec<&mut Child> = self.members.iter_mut().filter_map(|m| m.sidecar.as_mut()).collect();
        child::end(&mut sidecars, SIDECAR_PATIENCE).await;
        let mut nodes: Vec<&mut Child> = self.members.iter_mut().filter_map(|m| m.node_process.as_mut()).collect();
        child::end(&mut nodes, NODE_PATIENCE).await;
    }

    /// Ends all processes at once.
    pub async fn kill(&mut self) {
        let mut all: Vec<&mut Child> = self.children().collect();
        all.iter().for_each(|c| c.kill());
        child::end(&mut all, NODE_PATIENCE).await;
    }

    fn children(&mut self) -> impl Iterator<Item = &mut Child> {
        self.members.iter_mut().flat_map(|m| m.sidecar.iter_mut().chain(m.node_process.iter_mut()))
    }

    async fn wait_for(&mut self, what: &str, mut ready: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        while !ready().await {
            for child in self.children() {
                if let Some(sentence) = child.found_dead() {
                    bail!("{sentence}\n{}", child.last_words());
                }
            }
            if began.elapsed() > START_PATIENCE {
                let logs: Vec<String> = self.children().map(|c| c.log().display().to_string()).collect();
                bail!("waited {} s for {what}; logs: {}", START_PATIENCE.as_secs(), logs.join(", "));
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// A node without a sidecar.
pub struct SingleNode {
    /// Where it listens.
    pub address: SocketAddr,
    key: String,
    process: Child,
}

impl SingleNode {
    /// Starts a node in `dir` and waits until it answers.
    pub async fn start(dir: &Path, node: &NodeChoice) -> anyhow::Result<Self> {
        make_dir(&dir.join("node"))?;
        let (address, key) = (Ports::new([]).free()?, random_key());
        let mut process = start_node("the single node", node, address, &key, dir, None)?;
        let began = Instant::now();
        while !is_healthy(address).await {
            if let Some(sentence) = process.found_dead() {
                bail!("{sentence}\n{}", process.last_words());
            }
            ensure!(
                began.elapsed() < START_PATIENCE,
                "the single node does not answer; its log is {}",
                process.log().display()
            );
            sleep(POLL_INTERVAL).await;
        }
        Ok(Self { address, key, process })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its master key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(self.address, Some(&self.key))
    }

    /// Ends it.
    pub async fn end(&mut self) {
        child::end(&mut [&mut self.process], NODE_PATIENCE).await;
    }
}

fn start_node(
    name: &str,
    node: &NodeChoice,
    at: SocketAddr,
    key: &str,
    dir: &Path,
    network: Option<&Network>,
) -> anyhow::Result<Child> {
    let mut command = match node {
        NodeChoice::Meilisearch(path) => Command::new(path),
        NodeChoice::Builtin => {
            let mut own = own_executable();
            own.arg0("netsim").arg("node");
            own
        }
    };
    // Whatever the caller's environment says to its own node must not reach this one.
    without(&mut command, "MEILI_");
    let data = dir.join("node");
    command.arg("--http-addr").arg(at.to_string()).arg("--db-path").arg(data.join("data.ms"));
    command.env("MEILI_MASTER_KEY", key).env("MEILI_NO_ANALYTICS", "true").current_dir(data);
    network.map_or(Ok(()), |network| network.enter(&mut command))?;
    Child::start(name.to_owned(), command, dir.join("node.log"))
}

fn start_sidecar(member: &Member) -> anyhow::Result<Child> {
    let mut command = own_executable();
    without(&mut command, "MIROIR_");
    command.arg0("miroir").arg(SIDECAR_COMMAND).arg("--config").arg(member.dir.join("miroir.toml"));
    command.current_dir(&member.dir);
    member.network.as_ref().map_or(Ok(()), |network| network.enter(&mut command))?;
    Child::start(format!("member {}: the sidecar", member.id), command, member.dir.join("sidecar.log"))
}

/// This very executable, also if its file has been replaced since it was started.
fn own_executable() -> Command {
    Command::new("/proc/self/exe")
}

fn without(command: &mut Command, prefix: &str) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(prefix)) {
        command.env_remove(name);
    }
}

async fn is_healthy(address: SocketAddr) -> bool {
    Client::new(address, None).get("/health").await.is_ok_and(|a| a.status == 200)
}

/// Whether a sidecar sees all members active, with healthy nodes.
async fn sees_all(http: SocketAddr, admin_key: &str, count: usize) -> bool {
    let topology = async { Client::new(http, Some(admin_key)).get("/_miroir/topology").await?.success()?.json() };
    topology.await.is_ok_and(|topology| is_whole(&topology, count))
}

fn is_whole(topology: &Value, count: usize) -> bool {
    let sound = |m: &Value| m["state"] == "active" && m["serving"] == true;
    topology["members"].as_array().is_some_and(|members| members.len() == count && members.iter().all(sound))
}

fn make_dir(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("can't make {}", path.display()))
}

fn random_key() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options() -> MeshOptions {
        MeshOptions {
            members: 5,
            groups: 2,
            rf: 2,
            shards: 8,
            http_port: None,
            master_key: Some("sixteen-bytes-or-more".into()),
            node: NodeChoice::Builtin,
            more_config: "[log]\nformat = \"json\"\n".into(),
        }
    }

    #[test]
    fn every_config_is_valid_and_says_what_was_asked_for() {
        let dir = tempfile::Builder::new().prefix("with \"quotes\" ü").tempdir().unwrap();
        let mesh = Mesh::prepare(dir.path(), &options()).unwrap();
        for (i, member) in mesh.members.iter().enumerate() {
            let config = miroir::config::Config::load(Some(&member.dir.join("miroir.toml")), std::iter::empty());
            let config = config.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(config.node.id.as_str(), member.id);
            assert_eq!((config.http.listen, config.metrics.listen), (member.http, member.metrics));
            let own = config.mesh.entry(&config.node.id).expect("the own entry");
            assert_eq!(own.address.to_string(), member.mesh.to_string());
            assert_eq!(config.mesh.bootstrap[i].group.as_str(), ["g1", "g2"][i % 2]);
            assert_eq!((config.mesh.bootstrap.len(), config.mesh.rf, config.index.shards), (5, 2, 8));
            assert!(config.access.master_key.unwrap().is("sixteen-bytes-or-more"));
            assert!(config.access.admin_key.unwrap().is(&mesh.admin_key));
            assert!(config.meilisearch.key.unwrap().is(&mesh.node_key));
            assert_eq!(config.node.data_dir, member.dir.join("store"));
            assert_eq!(config.log.format, miroir::config::LogFormat::Json);
        }
    }

    #[test]
    fn taken_http_port_names_its_flag() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let options = MeshOptions { members: 1, groups: 1, rf: 1, http_port: Some(port), ..options() };
        let error = Mesh::prepare(dir.path(), &options).err().unwrap().to_string();
        assert_eq!(error, format!("port {port} is taken: choose others with --http-port"));
    }

    #[test]
    fn mesh_is_whole_when_all_members_are_there_and_well() {
        let m = |state: &str, healthy: bool| json!({ "state": state, "serving": healthy });
        let of = |members: Vec<Value>| json!({ "members": members });
        assert!(is_whole(&of(vec![m("active", true), m("active", true)]), 2));
        assert!(!is_whole(&of(vec![m("active", true)]), 2));
        assert!(!is_whole(&of(vec![m("active", true), m("joining", true)]), 2));
        assert!(!is_whole(&of(vec![m("active", true), m("active", false)]), 2));
        assert!(!is_whole(&json!({}), 0));
    }
}
