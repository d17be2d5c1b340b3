//! Transports: the QUIC mesh, gossip inside it, and the HTTP client of the own node.
//!
//! The one thing that services see of the mesh is [`Peers`]; the QUIC implementation is [`peers`], and tests have one in
//! memory. Must not know: SQLite, records' meaning, what a call is for.

pub mod classes;
mod client;
mod door;
pub mod endpoint;
pub mod gossip;
mod link;
mod memory;
pub mod node;
pub mod peers;
mod server;
pub mod tls;
pub mod webhook;
mod window;

use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;

use crate::types::{MemberId, TraceId};
use crate::wire::verbs::{Refusal, Reply, Request};

/// A call to a peer.
#[derive(Debug, Clone)]
pub struct Call {
    /// The header.
    pub request: Request,
    /// The raw body, possibly empty.
    pub body: Bytes,
    /// When the caller no longer wants the answer. Travels as the time that is left.
    pub deadline: Instant,
    /// The client request that this call belongs to; logs of all members show it.
    pub trace: TraceId,
}

/// A peer's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The header.
    pub reply: Reply,
    /// The raw body, possibly empty.
    pub body: Bytes,
}

impl Answer {
    /// An answer without a body.
    pub fn of(reply: Reply) -> Self {
        Self { reply, body: Bytes::new() }
    }
}

/// Why a member that does not belong to a mesh is refused; who is refused so by most has been removed.
pub fn not_a_member(member: &MemberId) -> String {
    format!("{member} is not a member of this mesh")
}

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The request certainly did not reach the peer's handler.
    #[error("member {member} can't be reached: {reason}")]
    NotSent {
        /// The peer.
        member: MemberId,
        /// Why, for people.
        reason: String,
    },
    /// The request may have been carried out.
    #[error("no answer from member {member}: {reason}")]
    NoAnswer {
        /// The peer.
        member: MemberId,
        /// Why, for people.
        reason: String,
    },
    /// The peer refused the call before it did anything.
    #[error("member {member} refused: {refusal}")]
    Refused {
        /// The peer.
        member: MemberId,
        /// Its reason.
        refusal: Refusal,
    },
}

/// The other members, as services see them.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Sends a call and waits for its answer until the call's deadline.
    ///
    /// Cancel-safe: dropping the future resets the stream, and the peer drops the work.
    ///
    /// # Errors
    /// [`CallError`]; only `NotSent` and `Refused` say that nothing was done.
    async fn call(&self, to: &MemberId, call: Call) -> Result<Answer, CallError>;

    /// Whether probes to the member go unanswered now. The own member and strangers are not suspects.
    fn is_suspect(&self, member: &MemberId) -> bool;
}

/// What answers the calls of peers: implemented by services, given to the transport.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one call. Dropped when the caller resets its stream or the deadline passes.
    async fn handle(&self, from: &MemberId, call: Call) -> Answer;
}
