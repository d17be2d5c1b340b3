//! One member's part of the ledger: acceptor, proposer, copies and the rest behind one interface.
//!
//! Rule: the contract of [`crate::proto`]. Must not know: sockets, clocks, SQL, what records mean.

use std::collections::VecDeque;
use std::time::Duration;

use super::effect::{Command, Config, Effect};
use super::message::Message;
use super::stored::Stored;
use crate::proto::env::{Env, Instant};
use crate::types::{MemberId, MeshId, RecordKey, Versioned, VoterList};

/// The core. See [`crate::proto`] for the order in which a driver calls it.
#[derive(Debug)]
pub struct Ledger {
    config: Config,
    stored: Stored,
    effects: VecDeque<Effect>,
}

impl Ledger {
    /// Goes on from what is durable, as a new process: `stored` has been through [`Stored::begin`], and that is durable.
    pub fn recover(config: Config, stored: Stored, _env: &mut Env) -> Self {
        Self { config, stored, effects: VecDeque::new() }
    }

    /// A message from the member `from`, as the transport has proved it.
    pub fn handle_message(&mut self, _env: &mut Env, _from: &MemberId, _message: Message) {}

    /// Time has passed: due at [`Ledger::next_wake`], harmless at any other time.
    pub fn handle_tick(&mut self, _env: &mut Env) {}

    /// Takes a command; each operation in it is answered by an [`Effect::Answer`].
    pub fn submit(&mut self, _env: &mut Env, _command: Command) {}

    /// What is to be done, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Ledger::handle_tick`] is due next.
    pub fn next_wake(&self) -> Option<Instant> {
        None
    }

    /// This member's own copy of a record: chosen and durable, perhaps not the newest.
    pub fn copy(&self, key: &RecordKey) -> Option<&Versioned> {
        self.stored.copies.get(key)
    }

    /// Whether the copies hold everything that was announced a TTL less margin ago.
    pub fn fresh(&self, _now: Instant) -> bool {
        false
    }

    /// How long the copies have been known to be whole, counted from the question; `None`: never in this process.
    pub fn fresh_for(&self, _now: Instant) -> Option<Duration> {
        None
    }

    /// The mesh to which this member belongs, once its record is known to be chosen.
    pub fn mesh(&self) -> Option<MeshId> {
        self.stored.mesh.filter(|(_, made)| *made).map(|(mesh, _)| mesh)
    }

    /// The newest voter list that this member knows.
    pub fn voters(&self) -> Option<&VoterList> {
        self.stored.list.as_deref()
    }

    /// This member.
    pub fn member(&self) -> &MemberId {
        &self.config.member
    }
}
