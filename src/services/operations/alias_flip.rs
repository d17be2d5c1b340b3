//! The kind `alias_flip`: carries out what `proto::alias` says is next.
//!
//! Rule: every run begins with what a majority knows of names, and asks its guard before each change and each order. Must not
//! know: what an alias may be, HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;

use super::run::{OrderFailed, Run, Runner};
use crate::proto::alias::{ALIAS_FLIP, AliasError, AliasFlip, FlipAct, FlipPlan, FlipView};
use crate::proto::operation::{Kind, Operation, Outcome, Step};
use crate::rt::clock;
use crate::services::ledger::now;
use crate::services::records::{CONFIRM_ONE, CONFIRM_PAUSE, ChangeError, NAMES, Records, key_of};
use crate::telemetry::metrics::Metrics;
use crate::types::{MemberId, RecordKey, RecordVersion, Scope};
use crate::wire::verbs::{LeaderAct, RecordAt};

/// The runner. Everybody whom the mesh's record does not call removed has to know of a flip: who drains or joins takes writes,
/// too.
#[derive(Debug)]
pub struct AliasFlips {
    records: Records,
    metrics: Arc<Metrics>,
}

/// Why a run ends before its phase is complete.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    /// It can't be done.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// Another run may get further.
    #[error("{0}")]
    Again(String),
}

impl From<Stopped> for Outcome {
    fn from(stopped: Stopped) -> Self {
        // Whoever was overtaken is told so by its guard, unless it is about to hear of the epochs of a mesh that was recovered.
        let retry = matches!(stopped, Stopped::Again(_) | Stopped::Alias(AliasError::Stale { .. }));
        Self::Failed { why: stopped.to_string(), retry }
    }
}

fn again(error: impl std::fmt::Display) -> Stopped {
    Stopped::Again(error.to_string())
}

impl AliasFlips {
    /// Flips change these records.
    pub fn new(records: Records, metrics: Arc<Metrics>) -> Self {
        Self { records, metrics }
    }

    async fn phase(&self, run: &Run) -> Result<Outcome, Stopped> {
        let guard = run.guard();
        let Scope::AliasFlip(name) = guard.scope.clone() else {
            return Err(again(format!("{} is no scope of an alias", guard.scope)));
        };
        let plan: FlipPlan = run.extra().map_err(again)?;
        let flip = AliasFlip { name };
        let (since, began) = (now(), Instant::now());
        // What this member's copy lacks may be what an earlier leader has decided on.
        self.records.refresh(&key_of(NAMES)).await.map_err(again)?;
        // After the names: who is listed later than that compares its copies only once it is, and finds them there.
        self.records.refresh(&RecordKey::mesh()).await.map_err(again)?;
        let mut confirmed = BTreeMap::new();
        loop {
            let snapshot = self.records.snapshot();
            let (active, at) = (self.records.present(), clock::now_rfc3339());
            let view = FlipView {
                names: (snapshot.names().version, &snapshot.names().value),
                confirmed: &confirmed,
                active: &active,
                epoch: guard.epoch,
                now: now(),
                since,
                at: &at,
                ttl_ms: run.longest_ttl_ms(),
            };
            let step =
                if guard.undo { flip.undo(&guard.phase, &plan, &view) } else { flip.step(&guard.phase, &plan, &view) };
            let step = step?;
            if guard.phase == "confirm" && !matches!(step, Step::Do(_)) {
                self.metrics.alias_confirm.observe(began.elapsed().as_secs_f64());
            }
            match step {
                Step::Do(acts) => {
                    for act in acts {
                        self.act(run, act, &mut confirmed).await?;
                    }
                }
                Step::Next { phase, extra } => {
                    // Who has not confirmed can't be fresh any more: it resolves no alias for writing until it has caught up.
                    for member in &extra.unconfirmed {
                        tracing::warn!(%member, scope = %guard.scope, "it has not confirmed the flip, and is stale by now");
                    }
                    let extra = serde_json::to_value(extra).map_err(again)?;
                    return Ok(Outcome::Next { phase: phase.to_owned(), extra });
                }
                Step::Done => return Ok(Outcome::Done),
            }
        }
    }

    async fn act(
        &self,
        run: &Run,
        act: FlipAct,
        confirmed: &mut BTreeMap<MemberId, RecordVersion>,
    ) -> Result<(), Stopped> {
        run.check().map_err(again)?;
        match act {
            FlipAct::Write { expected, names } => match self.records.write(NAMES, expected, &names).await {
                // The copy is new then: it is decided anew.
                Ok(_) | Err(ChangeError::Conflict(_)) => Ok(()),
                Err(error) => Err(again(error)),
            },
            FlipAct::Confirm { to, version } => {
                let all = to.len() + confirmed.len();
                self.confirm(run, &to, version, confirmed).await?;
                run.progress(confirmed.len() as u64, all as u64, "members").await;
                Ok(())
            }
        }
    }

    /// Orders each of these members to know `names` at that version.
    async fn confirm(
        &self,
        run: &Run,
        to: &[MemberId],
        version: RecordVersion,
        confirmed: &mut BTreeMap<MemberId, RecordVersion>,
    ) -> Result<(), Stopped> {
        let act = LeaderAct::Know(RecordAt { key: key_of(NAMES), version });
        let orders = to.iter().map(|member| {
            let (act, deadline) = (act.clone(), Instant::now() + CONFIRM_ONE);
            async move { (member, run.order(member, act, deadline).await) }
        });
        let mut missing = false;
        for (member, done) in futures_util::future::join_all(orders).await {
            match done {
                Ok(()) => drop(confirmed.insert(member.clone(), version)),
                Err(OrderFailed::Superseded(error)) => return Err(again(error)),
                Err(OrderFailed::Call(error)) => {
                    tracing::debug!(%member, scope = %run.guard().scope, %error, "it has not confirmed the flip yet");
                    missing = true;
                }
            }
        }
        if missing {
            tokio::time::sleep(CONFIRM_PAUSE).await;
        }
        Ok(())
    }
}

#[async_trait]
impl Runner for AliasFlips {
    fn kind(&self) -> &'static Kind {
        &ALIAS_FLIP
    }

    async fn run(&self, run: &Run) -> Outcome {
        self.phase(run).await.unwrap_or_else(Outcome::from)
    }
}
