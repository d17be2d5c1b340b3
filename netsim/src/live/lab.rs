//! Hosts on one machine: a network namespace each, on a bridge, and the packet filter between them.
//!
//! Host *i* (from 0) has the address 10.77.0.*i+1*; this process has 10.77.0.254 and reaches every host whatever the
//! faults, because they act on what the bridge forwards from host to host. Rule: only to be built inside namespaces of its
//! own (see `outside`). Must not know: what runs on the hosts.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::faults::{Faults, TABLE};
use crate::mesh::{Network, Place};

/// What the lab runs, with the Debian package of each.
pub const TOOLS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("nft", "nftables"), ("unshare", "util-linux"), ("mount", "mount")];
/// Directories of tools that an ordinary user's PATH lacks.
const TOOL_DIRS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
const TOOL_PATIENCE: Duration = Duration::from_secs(10);
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);

/// See the module.
pub struct Lab {
    hosts: Vec<Arc<Network>>,
}

impl Lab {
    /// Makes the hosts, their links and a packet filter without faults.
    pub async fn build(count: usize) -> anyhow::Result<Self> {
        tool(
            "ip",
            &["-batch", "-"],
            "link set lo up\nlink add br0 type bridge\nlink set br0 up\naddr add 10.77.0.254/24 dev br0\n",
            None,
        )
        .await?;
        let mut hosts = Vec::new();
        for host in 0..count {
            let network = Network::make()?;
            let (link, address, own) = (link(host), address(host), std::process::id());
            let inside = format!(
                "link set lo up\nlink add eth0 type veth peer name {link} netns {own}\n\
                 addr add {address}/24 dev eth0\nlink set eth0 up\n"
            );
            tool("ip", &["-batch", "-"], &inside, Some(&network)).await?;
            tool("ip", &["link", "set", &link, "master", "br0", "up"], "", None).await?;
            hosts.push(Arc::new(network));
        }
        tool("nft", &["-f", "-"], TABLE, None).await?;
        Ok(Self { hosts })
    }

    /// A socket address of this process, from which every host is reached; the system chooses the port.
    pub fn outside(&self) -> SocketAddr {
        SocketAddr::from(([10, 77, 0, 254], 0))
    }

    /// How many hosts there are.
    pub fn count(&self) -> usize {
        self.hosts.len()
    }

    /// Makes `faults` the faults that there are, in one step.
    pub async fn set(&self, faults: &Faults) -> anyhow::Result<()> {
        tool("nft", &["-f", "-"], &faults.script(), None).await
    }

    /// Where the member of a host listens: the usual ports, its node on the host's loopback.
    pub fn place(&self, host: usize) -> Place {
        let at = |port: u16| SocketAddr::from((address(host), port));
        Place {
            http: at(7780),
            mesh: at(7781),
            metrics: at(9780),
            node: SocketAddr::from((Ipv4Addr::LOCALHOST, 7700)),
            network: Some(Arc::clone(&self.hosts[host])),
        }
    }

    /// A connection to the node of a host, which nobody else reaches.
    pub fn node(&self, host: usize) -> anyhow::Result<TcpStream> {
        let address = self.place(host).node;
        let stream = self.hosts[host].inside(move || TcpStream::connect_timeout(&address, CONNECT_PATIENCE))?;
        stream.with_context(|| format!("the node of host {} can't be reached", host + 1))
    }

    /// Whether a TCP connection from one host to the HTTP port of another comes about.
    pub fn tcp_connects(&self, from: usize, to: usize) -> anyhow::Result<bool> {
        let address = self.place(to).http;
        self.hosts[from].inside(move || TcpStream::connect_timeout(&address, CONNECT_PATIENCE).is_ok())
    }
}

/// The end of a host's cable at the bridge.
pub fn link(host: usize) -> String {
    format!("v{}", host + 1)
}

fn address(host: usize) -> Ipv4Addr {
    // The number of hosts is checked where the arguments are.
    Ipv4Addr::new(10, 77, 0, u8::try_from(host + 1).expect("a lab has fewer than 254 hosts"))
}

/// Where a tool is; also where only root's PATH leads.
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(TOOL_DIRS.map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Runs a tool to its end, in a network if one is given.
///
/// # Errors
/// It is not there, takes too long, or fails; with what it said.
pub async fn tool(name: &str, arguments: &[&str], input: &str, network: Option<&Network>) -> anyhow::Result<()> {
    let path = find_tool(name).with_context(|| format!("`{name}` is missing"))?;
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    network.map_or(Ok(()), |network| network.enter(&mut command))?;
    let mut child = command.spawn().with_context(|| format!("can't run {name}"))?;
    let mut stdin = child.stdin.take().context("its stdin was asked for")?;
    let run = async {
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        child.wait_with_output().await
    };
    let what = || format!("{name} {}", arguments.join(" "));
    let Ok(output) = tokio::time::timeout(TOOL_PATIENCE, run).await else {
        bail!("{}: not done after {} s", what(), TOOL_PATIENCE.as_secs())
    };
    let output = output.with_context(what)?;
    ensure!(
        output.status.success(),
        "{} ({}): {}\n{input}",
        what(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_addresses_and_links_of_their_own() {
        assert_eq!((address(0).to_string(), link(0)), ("10.77.0.1".into(), "v1".into()));
        assert_eq!((address(4).to_string(), link(4)), ("10.77.0.5".into(), "v5".into()));
    }

    #[tokio::test]
    async fn a_tool_that_fails_says_why() {
        let error = tool("sh", &["-c", "cat >&2; exit 3"], "no such bridge", None).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such bridge"), "{error}");
        assert!(
            tool("no-such-tool", &[], "", None).await.unwrap_err().to_string().contains("`no-such-tool` is missing")
        );
        tool("sh", &["-c", "exit 0"], "", None).await.unwrap();
    }
}
