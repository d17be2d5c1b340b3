//! Tells homes what this member's applier has applied, until they have heard.
//!
//! Nothing of it is stored: after a restart, homes ask for what they miss. Rule: what is told is applied, and durably so. Must
//! not know: how a home judges it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::call::{Question, Said};
use super::client::Homes;
use super::home_of;
use super::teller::in_clients_words;
use crate::proto::journal::Stands;
use crate::proto::tasks::Head;
use crate::proto::tasks::home::{PartRef, Report, Said as Word};
use crate::store::StoreError;
use crate::types::{JournalKey, TaskPart, TaskUid, TraceId};

/// Entries that are looked at in one step.
const STEP: usize = 512;
/// Items of one report, and bytes of their texts, roughly.
const ITEMS: usize = 2_048;
const TEXT_BYTES: usize = 2 << 20;
/// Items that wait to be heard, of all homes; beyond, those of the oldest tasks are left to the homes to ask for.
const PENDING_MAX: usize = 65_536;
/// Until what was just applied is told, so that much of it goes together.
const GATHER: Duration = Duration::from_millis(20);
/// Until what was not heard is told again; doubles up to the longest.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(16);
/// How long one report may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one home is to hear.
#[derive(Default)]
struct Side {
    items: BTreeMap<TaskUid, BTreeMap<PartRef, Word>>,
    wanted: BTreeSet<TaskUid>,
    due: Option<Instant>,
    pause: Option<Duration>,
    sending: bool,
}

/// What was sent to a home, and what it answered.
struct Sent {
    home: u16,
    items: Vec<(TaskUid, PartRef)>,
    heads: Vec<TaskUid>,
    /// Heard of, and wanted the heads of.
    heard: Option<(BTreeSet<TaskUid>, BTreeSet<TaskUid>)>,
}

/// Reports, made and not yet running.
pub struct Reporter {
    homes: Homes,
    applied: broadcast::Receiver<(JournalKey, u64)>,
    // Up to where each shard's entries were looked at.
    positions: BTreeMap<JournalKey, u64>,
    news: BTreeMap<JournalKey, u64>,
    sides: BTreeMap<u16, Side>,
    pending: usize,
    sending: JoinSet<Sent>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl Reporter {
    /// Hears of everything that is applied from now on.
    pub fn new(homes: Homes) -> Self {
        Self {
            applied: homes.teller.outcomes.subscribe(),
            homes,
            positions: BTreeMap::new(),
            news: BTreeMap::new(),
            sides: BTreeMap::new(),
            pending: 0,
            sending: JoinSet::new(),
        }
    }

    /// Runs until the appliers have ended.
    ///
    /// # Errors
    /// [`StoreError`]: the store has failed.
    pub async fn run(mut self) -> Result<(), StoreError> {
        for listed in self.homes.journals.stored().await? {
            self.positions.insert(listed.key, listed.applied);
        }
        loop {
            let due = self.sides.values().filter(|side| !side.sending).filter_map(|side| side.due).min();
            let until = due.unwrap_or_else(|| Instant::now() + AGAIN_MAX);
            let until = if self.news.is_empty() { until } else { Instant::now() };
            tokio::select! {
                biased;
                told = self.applied.recv() => match told {
                    Ok((key, to)) => self.hear(key, to),
                    Err(RecvError::Lagged(_)) => {
                        let known: Vec<JournalKey> = self.positions.keys().cloned().collect();
                        for key in known {
                            let to = self.homes.teller.outcomes.applied(&key);
                            self.hear(key, to);
                        }
                    }
                    Err(RecvError::Closed) => return Ok(()),
                },
                Some(sent) = self.sending.join_next() => match sent {
                    Ok(sent) => self.sent(sent),
                    Err(error) => tracing::error!(%error, "a report on tasks failed inside"),
                },
                () = tokio::time::sleep_until(until) => {
                    if let Some((key, to)) = self.news.pop_first() {
                        self.look(key, to).await?;
                    }
                    self.send().await;
                }
            }
        }
    }

    fn hear(&mut self, key: JournalKey, to: u64) {
        if !key.index.is_of_tasks() && self.positions.get(&key).is_none_or(|at| *at < to) {
            let news = self.news.entry(key).or_default();
            *news = (*news).max(to);
        }
    }

    /// Looks at entries that have been applied.
    async fn look(&mut self, key: JournalKey, to: u64) -> Result<(), StoreError> {
        let from = self.positions.get(&key).map_or(1, |at| at + 1);
        let (standing, last) = match self.homes.journals.standing(&key, from, STEP).await {
            // The copy is made anew, and what stands in it is asked for.
            Err(StoreError::Damaged { .. }) => (Vec::new(), to),
            read => read?,
        };
        let done: Vec<(TaskPart, Stands)> =
            standing.into_iter().filter(|(_, at)| at.seq <= to && !at.refused).collect();
        let seqs: Vec<u64> = done.iter().map(|(_, at)| at.seq).collect();
        let outcomes = self.homes.teller.outcomes(&key, &seqs).await;
        let unread = outcomes.is_none();
        let outcomes = outcomes.unwrap_or_else(|| vec![None; seqs.len()]);
        for ((part, at), outcome) in done.into_iter().zip(outcomes) {
            let of = PartRef { shard: key.shard.0, part: part.part };
            let Some(outcome) = outcome else {
                // The home asks again for what is only there.
                if unread {
                    self.homes.teller.remember(part.task, &key, at.seq);
                    self.put(part.task, of, Word::There);
                }
                continue;
            };
            let failed = outcome.error.is_some();
            let entry = if failed { self.homes.teller.entry(&key, at.seq).await } else { None };
            let said = Word::Done(in_clients_words(outcome, &key.index, entry.as_ref()));
            self.homes.teller.remember(part.task, &key, at.seq);
            self.put(part.task, of, said);
        }
        // Nothing behind the last is applied.
        let seen = if last == 0 { to } else { last.min(to) };
        self.positions.insert(key.clone(), seen);
        if seen < to {
            self.hear(key, to);
        }
        Ok(())
    }

    fn put(&mut self, uid: TaskUid, part: PartRef, said: Word) {
        let side = self.sides.entry(home_of(uid)).or_default();
        if side.items.entry(uid).or_default().insert(part, said).is_none() {
            self.pending += 1;
        }
        let soon = Instant::now() + GATHER;
        // What waits because it was not heard is not told sooner for that.
        side.due = Some(side.due.filter(|_| side.pause.is_some()).map_or(soon, |due| due.min(soon + AGAIN)));
        while self.pending > PENDING_MAX {
            let oldest = self.sides.values_mut().filter(|side| !side.items.is_empty());
            let Some(side) = oldest.min_by_key(|side| side.items.keys().next().copied()) else { return };
            if let Some((_, gone)) = side.items.pop_first() {
                self.pending -= gone.len();
            }
        }
    }

    /// Sends reports to all homes that are due.
    async fn send(&mut self) {
        let now = Instant::now();
        for (home, side) in &mut self.sides {
            if side.sending || side.due.is_none_or(|due| due > now) {
                continue;
            }
            side.due = None;
            let report = fill(&self.homes, side).await;
            if report.parts.is_empty() && report.heads.is_empty() {
                continue;
            }
            side.sending = true;
            let (homes, home) = (self.homes.clone(), *home);
            self.sending.spawn(async move {
                let items = report.parts.iter().map(|(uid, part, _)| (*uid, *part)).collect();
                let heads = report.heads.iter().map(|(uid, _)| *uid).collect();
                let until = (Instant::now() + PATIENCE).into_std();
                let heard = match homes.ask(home, Question::Report(report), until, TraceId::default()).await {
                    Ok((_, Said::Heard(heard, wanted))) => Some((heard, wanted)),
                    _ => None,
                };
                Sent { home, items, heads, heard }
            });
        }
    }

    fn sent(&mut self, sent: Sent) {
        let Some(side) = self.sides.get_mut(&sent.home) else { return };
        side.sending = false;
        let (heard, wanted) = sent.heard.unwrap_or_default();
        for (uid, part) in sent.items {
            if heard.contains(&uid)
                && let Some(items) = side.items.get_mut(&uid)
                && items.remove(&part).is_some()
            {
                self.pending -= 1;
                if items.is_empty() {
                    side.items.remove(&uid);
                }
            }
        }
        sent.heads.iter().for_each(|uid| {
            side.wanted.remove(uid);
        });
        let asks = !wanted.is_empty();
        side.wanted.extend(wanted);
        side.wanted.retain(|uid| side.items.contains_key(uid));
        if side.items.is_empty() {
            (side.due, side.pause) = (None, None);
            return;
        }
        // Who asks for heads, or hears, is told at once what is left.
        side.pause = match side.pause {
            _ if asks || !heard.is_empty() => None,
            Some(pause) => Some((pause * 2).min(AGAIN_MAX)),
            None => Some(AGAIN),
        };
        side.due = Some(Instant::now() + side.pause.unwrap_or(GATHER));
    }
}

/// What a home hears next: the oldest first, and the heads that it wants.
async fn fill(homes: &Homes, side: &Side) -> Report {
    let (mut report, mut bytes) = (Report::default(), 0);
    for (uid, items) in &side.items {
        if side.wanted.contains(uid)
            && bytes < TEXT_BYTES
            && let Some(head) = homes.teller.head(*uid).await
        {
            bytes += serde_json::to_vec::<Head>(&head).map_or(0, |text| text.len());
            report.heads.push((*uid, head));
        }
        for (part, said) in items {
            if report.parts.len() >= ITEMS || bytes >= TEXT_BYTES {
                return report;
            }
            bytes += match said {
                Word::Done(done) => done.error.as_ref().map_or(0, |(code, text)| code.len() + text.len()),
                Word::There => 0,
            };
            report.parts.push((*uid, *part, said.clone()));
        }
    }
    report
}
