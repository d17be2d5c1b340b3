//! One way to ask any member: the own one directly, the others through the mesh.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;

use crate::net::{Answer, Call, CallError, Handler, Peers};
use crate::telemetry::metrics::Metrics;
use crate::types::MemberId;
use crate::wire::verbs::{Class, Reply};

/// How often a call that takes longer looks whether its peer has become a suspect.
const SUSPECT_LOOK: Duration = Duration::from_millis(100);

/// All members, the own one included.
#[derive(Clone)]
pub struct Members {
    own: MemberId,
    peers: Arc<dyn Peers>,
    // Set once the services stand; they need `Members` themselves.
    local: Arc<OnceLock<Arc<dyn Handler>>>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Members {
    /// Members as seen from `own`.
    pub fn new(own: MemberId, peers: Arc<dyn Peers>, metrics: Arc<Metrics>) -> Self {
        Self { own, peers, local: Arc::new(OnceLock::new()), metrics }
    }

    /// Says who answers the calls to the own member. Later calls change nothing.
    pub fn set_local(&self, handler: Arc<dyn Handler>) {
        drop(self.local.set(handler));
    }

    /// Whether probes of a peer go unanswered; never so of the own member.
    pub fn is_suspect(&self, member: &MemberId) -> bool {
        *member != self.own && self.peers.is_suspect(member)
    }

    /// Asks `to`, by the same rules for the own member as for a peer.
    ///
    /// Cancel-safe: dropping the future drops the work, also on the other side.
    ///
    /// # Errors
    /// [`CallError`]; a [`Reply::Refused`] becomes `CallError::Refused`.
    pub async fn call(&self, to: &MemberId, call: Call) -> Result<Answer, CallError> {
        if *to != self.own {
            let guard = self.metrics.mesh_call(call.request.name(), call.request.class().as_str());
            let answer = self.call_peer(to, call).await;
            guard.finish(match &answer {
                Ok(_) => "ok",
                Err(CallError::Refused { .. }) => "refused",
                Err(CallError::NotSent { .. }) => "not_sent",
                Err(CallError::NoAnswer { .. }) => "no_answer",
            });
            return answer;
        }
        let member = || self.own.clone();
        let Some(handler) = self.local.get() else {
            return Err(CallError::NotSent { member: member(), reason: "this member is starting".into() });
        };
        let deadline = call.deadline;
        match tokio::time::timeout_at(deadline.into(), handler.handle(&self.own, call)).await {
            Ok(Answer { reply: Reply::Refused(refusal), .. }) => Err(CallError::Refused { member: member(), refusal }),
            Ok(answer) => Ok(answer),
            Err(_) => Err(CallError::NoAnswer { member: member(), reason: "the deadline passed".into() }),
        }
    }
}

impl Members {
    /// A question is given up as soon as the peer is a suspect: somebody else is asked, and nothing is lost. All else waits,
    /// because a peer that is only slow may have done it.
    async fn call_peer(&self, to: &MemberId, call: Call) -> Result<Answer, CallError> {
        let question = call.request.class() == Class::Query;
        let mut answer = std::pin::pin!(self.peers.call(to, call));
        if !question {
            return answer.await;
        }
        loop {
            match tokio::time::timeout(SUSPECT_LOOK, &mut answer).await {
                Ok(answer) => return answer,
                Err(_) if self.peers.is_suspect(to) => {
                    let reason = "its probes are unanswered".into();
                    return Err(CallError::NoAnswer { member: to.clone(), reason });
                }
                Err(_) => {}
            }
        }
    }
}

/// A mesh of one: nobody else can be asked.
#[derive(Debug)]
pub struct NoPeers;

#[async_trait]
impl Peers for NoPeers {
    async fn call(&self, to: &MemberId, _: Call) -> Result<Answer, CallError> {
        Err(CallError::NotSent { member: to.clone(), reason: "this mesh has one member".into() })
    }

    fn is_suspect(&self, _: &MemberId) -> bool {
        false
    }
}
