//! Relations between keys, and the files that they name.
//!
//! Runs once every single value is right. Must not know: how values were read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use super::load::Config;
use super::reader::Reader;
use super::sections::MeshConfig;
use super::values::BootstrapMember;
use crate::types::MemberId;
use crate::types::limits::MEMBERS_MAX;

impl Config {
    /// Keeps a fault for every relation that does not hold.
    pub(super) fn check(&self, reader: &mut Reader<'_>) {
        self.check_members(reader);
        self.check_ports(reader);
        self.check_times(reader);
        for (key, path) in
            [("ca_file", &self.mesh.ca_file), ("cert_file", &self.mesh.cert_file), ("key_file", &self.mesh.key_file)]
        {
            if let Err(e) = readable(path) {
                let fault = format!("[mesh] {key}: can't read {}: {e}", path.display());
                reader.fault(reader.place_of("mesh", key), fault);
            }
        }
    }

    /// What is allowed but rarely meant, one sentence each, for the start log and `check-config`.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.access.master_key.is_none() && !self.http.listen.ip().is_loopback() {
            out.push(format!(
                "[http] listen = {} is reachable from other machines and no master key is set: anybody may read and write",
                self.http.listen
            ));
        }
        out
    }

    fn check_members(&self, reader: &mut Reader<'_>) {
        let place = reader.place_of("mesh", "bootstrap");
        let mut refuse = |fault: String| reader.fault(place.clone(), format!("[mesh] bootstrap: {fault}"));
        let list = &self.mesh.bootstrap;
        if list.len() > MEMBERS_MAX {
            refuse(format!("expected at most {MEMBERS_MAX} members, found {}", list.len()));
        }
        let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        let mut groups: BTreeMap<_, usize> = BTreeMap::new();
        for member in list {
            if !ids.insert(&member.id) {
                refuse(format!("the member id `{}` stands there twice", member.id));
            }
            if !addresses.insert(&member.address) {
                refuse(format!("the address {} stands there twice", member.address));
            }
            if !member.witness {
                *groups.entry(&member.group).or_default() += 1;
            }
        }
        if !list.is_empty() && groups.is_empty() {
            refuse("expected a member with a node, found witnesses only".to_owned());
        }
        match self.mesh.entry(&self.node.id) {
            None if list.is_empty() => {}
            None => refuse(format!("expected an entry for this member, `{}` ([node] id)", self.node.id)),
            Some(own) if own.witness != self.node.witness => refuse(format!(
                "expected witness = {} for this member, `{}` ([node] witness), found {}",
                self.node.witness, self.node.id, own.witness
            )),
            Some(_) => {}
        }
        for (group, members) in groups {
            if members < usize::from(self.mesh.rf) {
                refuse(format!(
                    "group `{group}` has {members} members with a node, expected at least rf = {}",
                    self.mesh.rf
                ));
            }
        }
    }

    fn check_ports(&self, reader: &mut Reader<'_>) {
        if clash(self.http.listen, self.metrics.listen) {
            let fault = format!(
                "[metrics] listen: expected another port than [http] listen = {}, found {}",
                self.http.listen, self.metrics.listen
            );
            reader.fault(reader.place_of("metrics", "listen"), fault);
        }
        let url = &self.meilisearch.url;
        let node = match url.host() {
            "localhost" => Some(SocketAddr::from(([127, 0, 0, 1], url.port()))),
            host => host.parse().ok().map(|ip| SocketAddr::new(ip, url.port())),
        };
        for (key, listen) in [("http", self.http.listen), ("metrics", self.metrics.listen)] {
            if node.is_some_and(|node| clash(listen, node)) {
                let fault = format!("[meilisearch] url: expected the node's own address, found that of [{key}] listen");
                reader.fault(reader.place_of("meilisearch", "url"), fault);
            }
        }
    }

    fn check_times(&self, reader: &mut Reader<'_>) {
        let (probe, gossip) = (self.mesh.probe_interval_ms, self.mesh.gossip_interval_ms);
        if probe > gossip {
            let fault = format!(
                "[mesh] probe_interval_ms: expected at most gossip_interval_ms = {gossip} (a suspect must be known before \
                 gossip misses it), found {probe}"
            );
            reader.fault(reader.place_of("mesh", "probe_interval_ms"), fault);
        }
        let (renew, ttl) = (self.leader_election.renew_interval_s, self.leader_election.lease_ttl_s);
        if renew * 2 >= ttl {
            let fault = format!(
                "[leader_election] renew_interval_s: expected less than half of lease_ttl_s = {ttl} (one lost renewal must not \
                 cost a lease), found {renew}"
            );
            reader.fault(reader.place_of("leader_election", "renew_interval_s"), fault);
        }
        let (deadline, timeout) = (self.search.deadline_ms, self.meilisearch.timeout_s * 1000);
        if deadline > timeout {
            let fault = format!(
                "[search] deadline_ms: expected at most [meilisearch] timeout_s = {} (no part may take longer), found {deadline}",
                self.meilisearch.timeout_s
            );
            reader.fault(reader.place_of("search", "deadline_ms"), fault);
        }
    }
}

impl MeshConfig {
    /// A member's entry in the bootstrap list.
    pub fn entry(&self, id: &MemberId) -> Option<&BootstrapMember> {
        self.bootstrap.iter().find(|m| m.id == *id)
    }
}

/// Whether one process can't listen on both, or one of them is the other's address. Port 0 is any free port.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn readable(path: &Path) -> std::io::Result<()> {
    if std::fs::File::open(path)?.metadata()?.is_file() {
        Ok(())
    } else {
        Err(std::io::Error::other("not a regular file"))
    }
}
