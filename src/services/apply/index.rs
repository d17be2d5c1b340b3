//! The task that runs the applier of one index.
//!
//! Rule: one input after another, and what the applier wants stored is durable before anything else of the step is carried out.
//! Must not know: what an input leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::task::{AbortHandle, JoinSet};

use super::board::{Asked, Board, Level, Levels, What};
use super::driver::Common;
use super::handle::{Lag, Told};
use super::news::News;
use super::node::Times;
use super::outcomes;
use super::verdicts::{Heard, Verdicts};
use crate::proto::apply::effect::{LaneRow, Need};
use crate::proto::apply::{Applier, Copied, Head, Page, Probed, Rows, TaskRef};
use crate::proto::env::{Env, Instant};
use crate::services::ledger::{driver::seed, nap, now};
use crate::services::local::{Loss, Queued};
use crate::store::StoreError;
use crate::store::journal::ApplierRows;
use crate::types::{JournalKey, MemberId, PhysicalIndex, ShardId};

/// Times of the node's tasks that are remembered until their ends are noted.
const TIMES: usize = 4_096;

/// What was done beside the applier.
#[derive(Debug)]
pub(super) enum Done {
    Started { starts: u64, loss: Loss },
    Heads { shard: ShardId, ticket: u64, heads: Vec<Head> },
    Queued { note: u64, queued: Queued, heard: Option<bool> },
    Listed { ticket: u64, page: Option<(Page, Times)> },
    Probed { ticket: u64, probed: Option<Probed> },
    Verdicts { of: MemberId, heard: Option<Heard> },
    Taken { shard: ShardId, by: Option<TaskRef> },
}

/// The applier of one index, in memory.
pub(super) struct Task {
    pub(super) common: Arc<Common>,
    pub(super) index: PhysicalIndex,
    pub(super) core: Applier,
    pub(super) done: JoinSet<Result<Done, StoreError>>,
    pub(super) times: Times,
    pub(super) verdicts: Verdicts,
    /// Up to where the applier was told that entries are committed.
    pub(super) committed: BTreeMap<ShardId, u64>,
    /// For which of these a majority was asked for the index's record.
    pub(super) news: News,
    /// What stood on the board when it was last looked at.
    pub(super) levels: Levels,
    /// Documents of this shard are taken from its primary.
    pub(super) taking: Option<(ShardId, AbortHandle)>,
    board: Arc<Board>,
    rng: fastrand::Rng,
    /// Shards that the applier knows.
    lanes: BTreeSet<ShardId>,
    /// Learners that were said to be filled.
    filled: BTreeSet<ShardId>,
    /// The node did not answer something: once it does, it is looked at as after a start.
    shaken: bool,
    /// The node has lost the index, and the applier has noted it.
    emptied: bool,
    /// Nothing is sent before the node has settings that others have.
    early: bool,
    idle_since: Option<Instant>,
}

/// Runs the applier of an index until it has nothing to do.
///
/// Not cancel-safe for the member: an applier that stopped within a step is never used again.
///
/// # Errors
/// [`StoreError`]: the applier is ahead of its store.
pub(super) async fn run(common: Arc<Common>, index: PhysicalIndex, board: Arc<Board>) -> Result<(), StoreError> {
    let stored = common.store.applier(&index).await?;
    let positions = common.store.positions(&index).await?;
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut lags = BTreeMap::new();
    for (shard, row) in &stored.stored.lanes {
        let committed = positions.get(shard).map_or(0, |(_, commit)| *commit).max(row.applied);
        lags.insert(*shard, Lag { applied: row.applied, committed, rebuild: is_to_be_made(row) });
    }
    let lanes = lags.keys().copied().collect();
    let committed = lags.iter().map(|(shard, lag)| (*shard, lag.committed)).collect();
    let verdicts = Verdicts::of(stored.checked, &lags, common.config.verdicts_max);
    let core = Applier::recover(&mut Env { now: now(), rng: &mut rng }, common.config.core.clone(), stored.stored);
    if let Some(known) = common.shared.known().get_mut(&index) {
        (known.lags, known.runs) = (lags, true);
    }
    common.shared.note_rebuilt(&index);
    let mut task = Task {
        common,
        index,
        core,
        done: JoinSet::new(),
        times: Times::new(),
        verdicts,
        committed,
        news: News::default(),
        levels: Levels::default(),
        taking: None,
        board,
        rng,
        lanes,
        filled: BTreeSet::new(),
        shaken: false,
        emptied: false,
        early: false,
        idle_since: None,
    };
    for (shard, to) in task.committed.clone() {
        task.call(|core, env| core.handle_committed(env, shard, to));
    }
    task.drain().await?;
    task.go_on().await?;
    if let Some(known) = task.common.shared.known().get_mut(&task.index) {
        known.runs = false;
    }
    Ok(())
}

impl Task {
    async fn go_on(&mut self) -> Result<(), StoreError> {
        loop {
            self.look().await?;
            if self.levels.gone || self.may_leave() && self.board.leave() {
                return Ok(());
            }
            self.ask_for_verdicts();
            let nap = nap(self.next_wake());
            tokio::select! {
                () = self.board.changed() => {}
                Some(done) = self.done.join_next() => {
                    // One that panicked would be an answer that never comes.
                    match done {
                        Ok(done) => self.did(done?).await?,
                        Err(ended) if ended.is_cancelled() => {}
                        Err(_) => return Err(StoreError::Closed),
                    }
                }
                () = self.common.local.has_settings(&self.index), if self.early => {
                    self.early = false;
                    self.call(Applier::handle_ready);
                }
                () = tokio::time::sleep(nap) => {}
            }
            self.call(Applier::handle_tick);
            self.drain().await?;
            self.tell_filled().await;
        }
    }

    /// Says of learners whose copies are made that they are.
    async fn tell_filled(&mut self) {
        let learns = |shard: &ShardId| self.levels.shards.get(shard).is_some_and(|level| level.learner);
        self.filled.retain(learns);
        let made = |shard: &ShardId| {
            let known = self.common.shared.known();
            let lag = known.get(&self.index).and_then(|known| known.lags.get(shard));
            lag.is_some_and(|lag| !lag.rebuild)
        };
        let new = |shard: &&ShardId| learns(shard) && !self.filled.contains(shard) && made(shard);
        let filled: Vec<ShardId> = self.lanes.iter().filter(new).copied().collect();
        for shard in filled {
            self.common.journals.filled(&self.key(shard)).await;
            self.filled.insert(shard);
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        let idle = self.idle_since.map(|since| since.plus(self.common.config.linger));
        [self.core.next_wake(), self.verdicts.next_wake(), idle].into_iter().flatten().min()
    }

    /// Whether there has been nothing to do for a while.
    fn may_leave(&mut self) -> bool {
        let idle = self.done.is_empty() && (self.lanes.is_empty() || self.core.is_idle() && self.verdicts.is_idle());
        self.idle_since = if idle { self.idle_since.or(Some(now())) } else { None };
        self.idle_since.is_some_and(|since| self.lanes.is_empty() || since.plus(self.common.config.linger) <= now())
    }

    /// Tells the applier something; what it wants is carried out by the next [`Self::drain`].
    pub(super) fn call(&mut self, tell: impl FnOnce(&mut Applier, &mut Env<'_>)) {
        tell(&mut self.core, &mut Env { now: now(), rng: &mut self.rng });
    }

    /// Looks at the board.
    async fn look(&mut self) -> Result<(), StoreError> {
        let Some((levels, asked)) = self.board.look() else { return Ok(()) };
        if levels.gone {
            self.levels = levels;
            return Ok(());
        }
        let new = levels.shards.iter().any(|(shard, level)| !self.lanes.contains(shard) && !level.learner);
        let positions = if new { self.common.store.positions(&self.index).await? } else { BTreeMap::new() };
        for shard in self.lanes.clone() {
            if !levels.shards.contains_key(&shard) {
                self.stop_taking(shard);
                self.lanes.remove(&shard);
                self.committed.remove(&shard);
                self.verdicts.forget(shard);
                self.news.forget(shard);
                self.call(|core, env| core.handle_shard_gone(env, shard));
            }
        }
        for (shard, level) in &levels.shards {
            let (shard, stored) = (*shard, positions.get(shard));
            let known = self.lanes.contains(&shard);
            let before = self.levels.shards.get(&shard).copied().filter(|_| known);
            if level.learner && (!known || self.has_nothing_for(shard, before)) {
                // Whatever the node has of the shard is not from this store's journal.
                self.lanes.insert(shard);
                self.call(|core, env| core.handle_unmade(env, shard));
            } else if !known {
                let applied = stored.map_or(0, |(applied, _)| *applied);
                self.new_lane(shard, Copied { applied, ..Copied::default() });
            }
            if before.is_some_and(|before| before.epoch != level.epoch) {
                self.news.forget(shard);
            }
            if before.is_none_or(|before| before.primary != level.primary) {
                self.call(|core, env| core.handle_reign(env, shard, level.primary));
            }
            if before.is_none_or(|before| before.alone != level.alone) {
                self.call(|core, env| core.handle_alone(env, shard, level.alone));
            }
            self.is_committed(shard, level.committed.max(stored.map_or(0, |(_, commit)| *commit)));
        }
        self.judged_anew(&levels).await?;
        let node = (levels.up, levels.starts) != (self.levels.up, self.levels.starts);
        self.levels = levels;
        if node && self.levels.up {
            let (common, index, starts) = (self.common.clone(), self.index.clone(), self.levels.starts);
            self.done.spawn(async move {
                let _turn = common.asking.acquire().await.map_err(|_| StoreError::Closed)?;
                let loss = common.local.loss(&index).await;
                Ok(Done::Started { starts, loss })
            });
        } else if node {
            self.call(|core, env| core.handle_node(env, false));
        }
        self.answer(asked).await
    }

    /// Of shards that have another primary than before, all verdicts are asked for once more.
    async fn judged_anew(&mut self, levels: &Levels) -> Result<(), StoreError> {
        let mut ends = None;
        for (shard, level) in &levels.shards {
            let shard = *shard;
            let Some(checked) = self.verdicts.checked(shard) else { continue };
            let before = self.levels.shards.get(&shard).map(|level| level.epoch);
            if checked == 0 || before == Some(level.epoch) {
                continue;
            }
            if ends.is_none() {
                ends = Some(self.common.store.ends(&self.index).await?);
            }
            let Some((floor, last)) = ends.as_ref().and_then(|ends| ends.get(&shard)).copied() else { continue };
            // Under which epoch an earlier process has asked is not stored; not under a later one than that of what it asked about.
            let known = match before {
                Some(_) => None,
                None if checked >= last.seq => Some(last.epoch),
                None => {
                    self.common.journals.position(&self.key(shard), checked).await.ok().flatten().map(|at| at.epoch)
                }
            };
            if known != Some(level.epoch) {
                self.verdicts.begin_anew(shard, floor);
            }
        }
        Ok(())
    }

    /// Whether a copy that is known here, and is a learner now, can't be what it is to be filled with: it was a full one, or, where
    /// an earlier process may have seen that, nothing was ever applied to it, so that its journal contradicts nothing.
    fn has_nothing_for(&self, shard: ShardId, before: Option<Level>) -> bool {
        if let Some(before) = before {
            return !before.learner;
        }
        let known = self.common.shared.known();
        let lag = known.get(&self.index).and_then(|known| known.lags.get(&shard));
        lag.is_none_or(|lag| lag.applied == 0)
    }

    fn new_lane(&mut self, shard: ShardId, copied: Copied) {
        let applied = copied.applied;
        self.stop_taking(shard);
        self.lanes.insert(shard);
        self.news.forget(shard);
        self.verdicts.begin_at(shard, applied);
        self.call(|core, env| core.handle_copied(env, shard, copied));
        self.is_committed(shard, applied);
    }

    fn is_committed(&mut self, shard: ShardId, to: u64) {
        let known = self.committed.entry(shard).or_default();
        if to > *known {
            *known = to;
            if let Some(index) = self.common.shared.known().get_mut(&self.index) {
                let lag = index.lags.entry(shard).or_default();
                lag.committed = to;
                if !lag.rebuild {
                    self.verdicts.waits(shard, to);
                }
            }
            self.call(|core, env| core.handle_committed(env, shard, to));
        }
    }

    /// What concerns copies; of shards that are not held any more nobody is told anything.
    async fn answer(&mut self, asked: Vec<Asked>) -> Result<(), StoreError> {
        let (mut tell, mut made) = (Vec::new(), Vec::new());
        for Asked { shard, what, tell: asker } in asked {
            let Some(level) = self.levels.shards.get(&shard).copied() else { continue };
            match what {
                What::Made(copied) => {
                    made.push((shard, copied.applied));
                    self.new_lane(shard, copied);
                    self.call(|core, env| core.handle_reign(env, shard, level.primary));
                    self.is_committed(shard, level.committed);
                }
                What::Unmade => {
                    self.lanes.insert(shard);
                    self.call(|core, env| core.handle_unmade(env, shard));
                }
                What::Kept => self.keep(shard).await?,
                What::Checked => self.call(|core, env| core.handle_checked(env, shard)),
                What::Stop(stop) => self.call(|core, env| core.handle_stop(env, shard, stop)),
                What::Look => {}
            }
            tell.push((shard, asker));
        }
        self.drain().await?;
        for (shard, to) in made {
            self.common.shared.tell(Told::Applied { key: self.key(shard), to });
        }
        for (shard, asker) in tell {
            if let Some(standing) = self.core.standing(shard) {
                // Whoever asked may have gone.
                let _ = asker.send(standing);
            }
        }
        Ok(())
    }

    /// A copy that is in doubt stays as it is.
    async fn keep(&mut self, shard: ShardId) -> Result<(), StoreError> {
        self.call(|core, env| core.handle_kept(env, shard));
        let ends = self.common.store.ends(&self.index).await?;
        if let Some((floor, _)) = ends.get(&shard) {
            self.verdicts.begin_anew(shard, *floor);
        }
        Ok(())
    }

    async fn did(&mut self, done: Done) -> Result<(), StoreError> {
        match done {
            Done::Started { starts, loss } if self.levels.up && starts == self.levels.starts => {
                self.has_lost(loss);
                self.call(|core, env| core.handle_node(env, true));
            }
            Done::Started { .. } => {}
            Done::Heads { shard, ticket, heads } => {
                self.call(|core, env| core.handle_heads(env, shard, ticket, heads));
            }
            Done::Queued { note, queued, heard } => {
                // A majority was asked before, and has answered or not.
                if let Some(answered) = heard {
                    self.news.end(answered, now());
                }
                self.was_queued(note, queued);
            }
            Done::Listed { ticket, page: Some((page, times)) } => {
                self.times.extend(times);
                while self.times.len() > TIMES {
                    self.times.pop_first();
                }
                self.call(|core, env| core.handle_page(env, ticket, page));
                self.answers();
            }
            Done::Probed { ticket, probed: Some(probed) } => {
                self.call(|core, env| core.handle_probed(env, ticket, probed));
                self.answers();
            }
            Done::Listed { ticket, page: None } | Done::Probed { ticket, probed: None } => {
                self.shaken = true;
                self.call(|core, env| core.handle_unread(env, ticket));
            }
            Done::Verdicts { of, heard } => self.heard_verdicts(&of, heard).await?,
            Done::Taken { shard, by } => {
                self.taking = None;
                self.call(|core, env| core.handle_taken(env, shard, by));
            }
        }
        Ok(())
    }

    fn was_queued(&mut self, note: u64, queued: Queued) {
        let Queued { answer, why, shaken, loss, early } = queued;
        self.shaken |= shaken;
        self.early = early;
        self.has_trouble(why);
        self.call(|core, env| core.handle_answered(env, note, answer));
        self.has_lost(loss);
    }

    fn has_lost(&mut self, loss: Loss) {
        match loss {
            Loss::Nothing => {}
            Loss::Documents => {
                tracing::warn!(index = %self.index, "the node does not have the index any more; everything is applied to it again");
                self.emptied = true;
                self.call(|core, env| core.handle_emptied(env));
            }
            // Only another member's node can say how to make it: all copies are made anew.
            Loss::Settings => {
                tracing::warn!(index = %self.index, "the node does not have the index any more; its copies are made anew");
                for shard in self.lanes.clone() {
                    self.call(|core, env| core.handle_unmade(env, shard));
                }
            }
        }
    }

    /// The node has answered.
    fn answers(&mut self) {
        if std::mem::take(&mut self.shaken) {
            let up = self.levels.up;
            self.call(|core, env| core.handle_node(env, up));
        }
    }

    /// What keeps it from going on, for people; each new one is logged once.
    pub(super) fn has_trouble(&self, trouble: Option<String>) {
        let mut known = self.common.shared.known();
        let Some(before) = known.get_mut(&self.index).map(|known| &mut known.trouble) else { return };
        if let Some(trouble) = trouble.as_ref().filter(|trouble| before.as_ref() != Some(trouble)) {
            tracing::warn!(index = %self.index, trouble, "entries are not applied to the node; it is tried again");
        }
        *before = trouble;
    }

    /// Carries out everything that the applier wants.
    pub(super) async fn drain(&mut self) -> Result<(), StoreError> {
        self.core.check();
        let effects: Vec<_> = std::iter::from_fn(|| self.core.poll_effect()).collect();
        let mut rows = Rows::default();
        let mut rest = Vec::new();
        for effect in effects {
            match effect {
                crate::proto::apply::Effect::Persist(more) => merge(&mut rows, more),
                effect => rest.push(effect),
            }
        }
        let checked = self.verdicts.take_checked();
        let done = self.times_of(&rows);
        let lanes = rows.lanes.clone();
        let rows = ApplierRows { rows, checked, done };
        if rows != ApplierRows::default() {
            self.common.store.put_applier(&self.index, rows, outcomes::wall().0).await?;
        }
        self.note_lags(&lanes);
        self.carry_out(rest).await;
        if std::mem::take(&mut self.emptied) {
            self.common.local.forget_held(&self.index).await?;
        }
        Ok(())
    }

    /// When the node began and had done what is noted to have ended.
    fn times_of(&self, rows: &Rows) -> Vec<(crate::proto::apply::Span, i64, i64)> {
        let mut all = Vec::new();
        for note in rows.notes.values().flatten().filter(|note| !note.is_open()) {
            let times = note.task().and_then(|task| self.times.get(&task.uid));
            if let Some((started, finished)) = times {
                all.extend(note.spans.iter().map(|span| (*span, *started, *finished)));
            }
        }
        all
    }

    fn note_lags(&mut self, lanes: &BTreeMap<ShardId, Option<LaneRow>>) {
        for (shard, row) in lanes.iter().filter_map(|(shard, row)| Some((*shard, row.as_ref()?))) {
            let committed = self.committed.get(&shard).copied().unwrap_or(0);
            self.verdicts.applied(shard, row.applied);
            self.verdicts.waits(shard, if is_to_be_made(row) { row.applied } else { committed });
        }
        let mut known = self.common.shared.known();
        let Some(lags) = known.get_mut(&self.index).map(|known| &mut known.lags) else { return };
        for (shard, row) in lanes {
            let committed = self.committed.get(shard).copied().unwrap_or(0);
            match row {
                Some(row) => {
                    let (applied, rebuild) = (row.applied, is_to_be_made(row));
                    lags.insert(*shard, Lag { applied, committed, rebuild });
                }
                None => drop(lags.remove(shard)),
            }
        }
        drop(known);
        if !lanes.is_empty() {
            self.common.shared.note_rebuilt(&self.index);
        }
    }

    pub(super) fn key(&self, shard: ShardId) -> JournalKey {
        JournalKey { index: self.index.clone(), shard }
    }
}

/// Whether a shard's copy is to be made anew, or compared.
fn is_to_be_made(row: &LaneRow) -> bool {
    row.need == Need::Rebuild || row.unchecked
}

/// Rows that came later count.
fn merge(rows: &mut Rows, more: Rows) {
    rows.lanes.extend(more.lanes);
    rows.notes.extend(more.notes);
    rows.next_note = rows.next_note.max(more.next_note);
    rows.failed.retain(|of, _| !more.unfailed.contains(of));
    rows.unfailed.retain(|of| !more.failed.contains_key(of));
    rows.failed.extend(more.failed);
    rows.unfailed.extend(more.unfailed);
    rows.counted.extend(more.counted);
}
