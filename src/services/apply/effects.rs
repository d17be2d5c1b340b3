//! What an applier wants done, after everything that it wants stored is durable.
//!
//! Rule: whatever takes time is done beside the applier, and comes back as an input. Must not know: what an input leads to.

use super::counts::{self, Deletions, Uncounted};
use super::driver::Common;
use super::handle::Told;
use super::index::{Done, Task};
use super::request::{self, Built};
use super::{node, take};
use crate::proto::apply::{Answer, Effect, Flaw, Request};
use crate::proto::journal::Kind;
use crate::services::ledger::now;
use crate::services::local::{Queued, Work};
use crate::store::StoreError;
use crate::types::{PhysicalIndex, ShardId};

/// Bytes of entries that one look at a journal goes through.
const HEADS_BYTES: usize = 8 << 20;

/// Counts what a request deletes, durably, before it is sent. Says why that can't be done now.
async fn counted(
    common: &Common,
    index: &PhysicalIndex,
    work: &Work,
    deletions: &Deletions,
) -> Result<Option<String>, StoreError> {
    if deletions.is_empty() {
        return Ok(None);
    }
    match counts::count(&common.local, index, work.kind, deletions).await {
        Ok(counts) => common.store.put_counted(index, counts).await.map(|()| None),
        Err(Uncounted::Never) => Ok(None),
        Err(Uncounted::Later(why)) => Ok(Some(why)),
    }
}

impl Task {
    pub(super) async fn carry_out(&mut self, effects: Vec<Effect>) {
        let (mut applied, mut unapplied) = (Vec::new(), Vec::new());
        for effect in effects {
            match effect {
                Effect::Applied { shard, to } => {
                    let key = self.key(shard);
                    self.common.shared.tell(Told::Applied { key: key.clone(), to });
                    // The last position counts.
                    applied.retain(|(of, _)| *of != key);
                    applied.push((key, to));
                }
                Effect::Unapplied { shard, to } => {
                    let key = self.key(shard);
                    self.common.shared.tell(Told::Unapplied { key: key.clone(), to });
                    applied.retain(|(of, _)| *of != key);
                    unapplied.push((key, to));
                }
                other => {
                    // Before anything else is sent.
                    if matches!(&other, Effect::Trouble { flaw, .. } if flaw.code == "index_not_found") {
                        self.common.local.doubt_index(&self.index).await;
                    }
                    self.carry_out_one(other);
                }
            }
        }
        self.common.journals.tell_applied(applied, unapplied).await;
    }

    fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(_) | Effect::Applied { .. } | Effect::Unapplied { .. } => {}
            Effect::Enqueue(request) => self.enqueue(request),
            Effect::List { ticket, from, limit } => {
                let (common, index) = (self.common.clone(), self.index.clone());
                self.done.spawn(async move {
                    let _turn = common.asking.acquire().await.map_err(|_| StoreError::Closed)?;
                    let store = common.journals.me().store;
                    let page = node::list(&common.local, &store, &index, from, limit).await;
                    Ok(Done::Listed { ticket, page })
                });
            }
            Effect::Probe { ticket, uid } => {
                let common = self.common.clone();
                self.done.spawn(async move {
                    let _turn = common.asking.acquire().await.map_err(|_| StoreError::Closed)?;
                    Ok(Done::Probed { ticket, probed: node::probe(&common.local, uid).await })
                });
            }
            Effect::Load { ticket, shard, from, entries } => self.load(ticket, shard, from, entries),
            Effect::Verdict { shard, seq, flaw } => {
                let key = self.key(shard);
                tracing::debug!(%key, seq, code = flaw.code, "an entry failed, and so it does everywhere");
                self.common.shared.tell(Told::Verdict { key, seq, flaw });
            }
            Effect::AskVerdict { shard, seq } => self.verdicts.want(shard, seq),
            Effect::Doubtful { shard, seq } => {
                let key = self.key(shard);
                tracing::warn!(
                    %key, seq,
                    "the node went away while it edited documents by a function, and may have edited some twice; there is no other copy"
                );
            }
            Effect::Untaken { shard, seqs } => {
                let key = self.key(shard);
                tracing::warn!(
                    %key, ?seqs,
                    "the node did something else with entries than a primary did that is gone; there is no other copy, so this one stays"
                );
            }
            Effect::Mismatch { shard, seq } => {
                let key = self.key(shard);
                self.common.metrics.verdict_mismatches.inc();
                tracing::warn!(%key, seq, "the node here made something else of an entry than the primary's");
            }
            Effect::Take { shard, seqs } => {
                let job = take::take(self.common.clone(), self.key(shard), seqs);
                let job = self.done.spawn(async move { Ok(Done::Taken { shard, by: job.await }) });
                self.taking = Some((shard, job));
            }
            Effect::Rebuild { shard } => {
                self.stop_taking(shard);
                let key = self.key(shard);
                tracing::warn!(%key, "the copy of a shard must be made anew; no entries are applied to it until then");
                self.common.shared.tell(Told::Rebuild(key));
            }
            Effect::Trouble { flaw: Flaw { code, message }, alone } => {
                let of = alone.map_or(String::new(), |(shard, seq)| format!(" (entry {seq} of shard {shard})"));
                self.has_trouble(Some(format!("{code}{of}: {message}")));
            }
            Effect::Trusted(trusted) => {
                if let Some(known) = self.common.shared.known().get_mut(&self.index) {
                    known.trusted = trusted;
                }
                self.common.shared.tell(Told::Trusted(self.index.clone(), trusted));
            }
            Effect::Pressure(pressed) => self.common.shared.tell(Told::Pressure(self.index.clone(), pressed)),
        }
    }

    fn enqueue(&mut self, request: Request) {
        let (common, index) = (self.common.clone(), self.index.clone());
        // What they may name was settled before they were written, and who was away may not have heard of that yet.
        let asks =
            matches!(request.kind, Kind::DeleteByFilter | Kind::Edit) && self.news.are_wanted(&request.spans, now());
        if asks {
            self.news.begin(&self.committed);
        }
        self.done.spawn(async move {
            let note = request.note;
            let heard = if asks { Some(common.local.refresh(&index).await) } else { None };
            let tag = node::tag(&common.journals.me().store, note);
            let queued = match request::build(&common.store, &common.journals, &index, &request, tag).await? {
                Built::Work(work, deletions) => match counted(&common, &index, &work, &deletions).await? {
                    None => common.local.queue(&index, &work).await,
                    Some(why) => Queued::not_sent(why),
                },
                Built::Refused(flaw) => Queued::said(Answer::Refused(flaw)),
                Built::NotThere(why) => Queued::not_sent(why),
            };
            Ok(Done::Queued { note, queued, heard })
        });
    }

    fn load(&mut self, ticket: u64, shard: ShardId, from: u64, entries: usize) {
        let (common, key) = (self.common.clone(), self.key(shard));
        let to = self.committed.get(&shard).copied().unwrap_or(0);
        self.done.spawn(async move {
            let heads = match common.store.heads(&key, from, to, entries, HEADS_BYTES).await {
                Err(StoreError::Damaged { reason, .. }) => {
                    common.journals.repair(&key, reason).await;
                    Vec::new()
                }
                read => read?,
            };
            Ok(Done::Heads { shard, ticket, heads })
        });
    }

    /// What is taken of a shard is not wanted any more.
    pub(super) fn stop_taking(&mut self, shard: ShardId) {
        if let Some((_, job)) = self.taking.take_if(|(of, _)| *of == shard) {
            job.abort();
        }
    }
}
