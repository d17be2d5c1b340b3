//! The applier: what it is told, and what follows from that.
//!
//! It always does one thing of: reading the node's list because it doubts what it knows; letting everything under way end
//! because something failed; sending with care, each request waited for; sending freely. Rule: nothing is sent while it
//! doubts, while an answer is awaited, or behind something that failed. Must not know: bodies, HTTP, SQL.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::effect::{Answer, Config, Copied, Effect, Head, LaneRow, Need, Request, Rows, Standing, Stop, Stored};
use super::lane::{Busy, Hold, Lane};
use super::merge;
use super::notes::{Note, Notes, Span, State, TaskRef};
use super::reading::Look;
use super::verdict::{Care, Failure, Flaw, is_own_fault};
use crate::proto::env::{Env, Instant};
use crate::proto::journal::log::Bounds;
use crate::types::ShardId;

/// So many times as long as for other requests is waited for entries that are being looked at.
const GATHER_MOST: u32 = 20;
/// A small request to a node with much to do waits so many times twice as long.
const GATHER_DOUBLINGS: u32 = 8;

/// The applier of one physical index on one member; see the module.
#[derive(Debug, Clone)]
pub struct Applier {
    pub(super) config: Config,
    pub(super) lanes: BTreeMap<ShardId, Lane>,
    pub(super) notes: Notes,
    pub(super) look: Look,
    /// The request whose answer is awaited.
    pub(super) asking: Option<u64>,
    /// Nothing is sent until all under way has ended; then everything not proved is sent again.
    pub(super) drain: bool,
    pub(super) failure: Option<Failure>,
    pub(super) care: Option<Care>,
    /// Nothing is sent before.
    pub(super) pause: Option<Instant>,
    /// Since then what is little waits for more.
    gather: Option<Instant>,
    /// Own troubles since the last success.
    pub(super) attempts: u32,
    /// The driver copies documents from a primary.
    pub(super) taking: Option<(ShardId, BTreeSet<u64>)>,
    /// Where the next request begins to look for entries, so that no shard waits for ever.
    cursor: ShardId,
    pressed: bool,
    /// Counts what was asked for from the journal.
    loads: u64,
    pub(super) rows: Rows,
    pub(super) changed_lanes: BTreeSet<ShardId>,
    effects: VecDeque<Effect>,
    wake: Option<Instant>,
}

impl Applier {
    /// Begins with what is durable. The node is taken to be away until [`Applier::handle_node`] says otherwise; which of the
    /// shards have this member as primary, and what is committed, must be told again.
    pub fn recover(env: &mut Env, config: Config, stored: Stored) -> Self {
        let lanes: BTreeMap<_, _> = stored.lanes.into_iter().map(|(shard, row)| (shard, Lane::of(row))).collect();
        let mut applier = Self {
            config,
            lanes,
            notes: Notes::recover(stored.notes, stored.next_note),
            look: Look::default(),
            asking: None,
            drain: true,
            failure: None,
            care: None,
            pause: None,
            gather: None,
            attempts: 0,
            taking: None,
            cursor: ShardId(0),
            pressed: false,
            loads: 0,
            rows: Rows::default(),
            changed_lanes: BTreeSet::new(),
            effects: VecDeque::new(),
            wake: None,
        };
        if applier.notes.sent().is_some() {
            applier.look.lost_since = Some(env.now);
        }
        let unchecked: Vec<_> = applier.lanes.iter().filter(|(_, l)| l.row.unchecked).map(|(s, _)| *s).collect();
        unchecked.into_iter().for_each(|shard| applier.rebuild(shard));
        for span in applier.notes.rows().values().flat_map(|note| &note.spans) {
            if let Some(lane) = applier.lanes.get_mut(&span.shard) {
                lane.row.furthest = lane.row.furthest.max(span.last);
            }
        }
        if applier.notes.rows().values().any(|note| note.state == State::GivenUp) {
            applier.watch(env.now);
        }
        applier.run(env);
        applier
    }

    /// The member holds a shard, with a copy that is as after entry `applied`; whatever was known of an earlier copy is
    /// forgotten. If something else than entries made the copy, `made_by` is the last task that did, and it has ended.
    pub fn handle_shard(&mut self, env: &mut Env, shard: ShardId, applied: u64, made_by: Option<TaskRef>) {
        self.handle_copied(env, shard, Copied { applied, by: made_by, ..Copied::default() });
    }

    /// The same, with what else is known of the copy.
    pub fn handle_copied(&mut self, env: &mut Env, shard: ShardId, copied: Copied) {
        let Copied { applied, by, failed, compare_at } = copied;
        self.notes.strip(shard);
        let made = by.map_or(0, |task| self.notes.add(Note::anchor(task)));
        let (primary, alone) = self.lanes.get(&shard).map_or((false, false), |lane| (lane.primary, lane.alone));
        let committed = self.lanes.get(&shard).map_or(applied, |lane| lane.committed.max(applied));
        let spoiled = self.lanes.get(&shard).is_some_and(|lane| lane.spoiled);
        let unchecked = compare_at.is_some();
        let row = LaneRow { applied, base: applied, made, unchecked, ..LaneRow::default() };
        let mut lane = Lane { primary, alone, committed, ..Lane::of(row) };
        if let Some(seq) = compare_at {
            lane.stop_behind(seq);
        }
        self.lanes.insert(shard, lane);
        self.rows.failed.extend(failed.into_iter().map(|(seq, flaw)| ((shard, seq), flaw)));
        self.changed_lanes.insert(shard);
        self.forget_taking(shard);
        // What is under way of the old copy must have ended before the new one gets entries.
        self.drain = true;
        if spoiled {
            self.rebuild(shard);
        }
        self.run(env);
    }

    /// The copy is of no use: it must be made anew. Said by [`Effect::Rebuild`] when nothing of the shard is under way any more,
    /// also if it was said before.
    pub fn handle_unmade(&mut self, env: &mut Env, shard: ShardId) {
        self.lanes.entry(shard).or_insert_with(|| Lane::of(LaneRow::default()));
        self.rebuild(shard);
        self.lanes.entry(shard).and_modify(|lane| lane.said = false);
        self.drain = true;
        self.run(env);
    }

    /// Nobody has a better copy than this one, which is in doubt ([`Standing::doubtful`]) and idle: it stays. What was said of
    /// verdicts meanwhile must be said again.
    pub fn handle_kept(&mut self, env: &mut Env, shard: ShardId) {
        if self.standing(shard).is_some_and(|standing| standing.doubtful && standing.idle)
            && let Some(lane) = self.lanes.get_mut(&shard)
        {
            (lane.row.need, lane.row.doubtful) = (Need::Nothing, false);
            (lane.said, lane.loading) = (false, None);
            self.changed_lanes.insert(shard);
            // What was under way when the doubt came is not proved.
            self.drain = true;
        }
        self.run(env);
    }

    /// The copy was compared with another, and is the same.
    pub fn handle_checked(&mut self, env: &mut Env, shard: ShardId) {
        if let Some(lane) = self.lanes.get_mut(&shard).filter(|lane| lane.row.unchecked) {
            lane.row.unchecked = false;
            lane.stop = None;
            self.changed_lanes.insert(shard);
        }
        self.run(env);
    }

    /// Has a shard wait until then, or lets it go on. A copy that is to be compared waits for that alone.
    pub fn handle_stop(&mut self, env: &mut Env, shard: ShardId, stop: Option<(Stop, Instant)>) {
        if let Some(lane) = self.lanes.get_mut(&shard).filter(|lane| !lane.row.unchecked) {
            match stop {
                Some((how, until)) => lane.stop(how, Some(until)),
                None => lane.stop = None,
            }
        }
        self.run(env);
    }

    /// How a shard's copy stands.
    pub fn standing(&self, shard: ShardId) -> Option<Standing> {
        let lane = self.lanes.get(&shard)?;
        let known = self.look.up && self.look.trusted && !self.look.doubt;
        let idle = !self.busy().contains_key(&shard);
        let quiet = idle && lane.furthest() <= lane.row.applied && lane.hold.is_none();
        Some(Standing {
            applied: lane.row.applied,
            conditional: lane.row.conditional,
            quiet: quiet && known,
            sound: known && lane.row.need == Need::Nothing && !lane.row.unchecked,
            rebuild: lane.row.need == Need::Rebuild,
            doubtful: lane.is_doubtful(),
            idle,
            stopped: lane.stop.is_some(),
        })
    }

    /// The member does not hold the shard any more.
    pub fn handle_shard_gone(&mut self, env: &mut Env, shard: ShardId) {
        self.notes.strip(shard);
        self.lanes.remove(&shard);
        self.changed_lanes.insert(shard);
        self.forget_taking(shard);
        self.run(env);
    }

    /// Entries up to `to` are committed, and durable here.
    pub fn handle_committed(&mut self, env: &mut Env, shard: ShardId, to: u64) {
        if let Some(lane) = self.lanes.get_mut(&shard) {
            lane.committed = lane.committed.max(to);
        }
        self.run(env);
    }

    /// Whether this member is the shard's primary, so that its verdicts count.
    pub fn handle_reign(&mut self, env: &mut Env, shard: ShardId, primary: bool) {
        if let Some(lane) = self.lanes.get_mut(&shard) {
            lane.primary = primary;
            if primary && let Some(Hold::Ask { seq, flaw, .. }) = lane.hold.clone() {
                lane.hold = None;
                self.judge(env, shard, seq, flaw);
            }
        }
        self.run(env);
    }

    /// Whether no other copy of the shard is in sync, so that this one can't be made anew.
    pub fn handle_alone(&mut self, env: &mut Env, shard: ShardId, alone: bool) {
        if let Some(lane) = self.lanes.get_mut(&shard) {
            lane.alone = alone;
        }
        self.run(env);
    }

    /// What [`Effect::Load`] asked for, in order; none if the journal begins later.
    pub fn handle_heads(&mut self, env: &mut Env, shard: ShardId, ticket: u64, heads: Vec<Head>) {
        if self.lanes.get_mut(&shard).is_some_and(|lane| !lane.take_heads(heads, ticket)) {
            // Entries that are committed and not applied are not in the journal any more.
            self.rebuild(shard);
        }
        self.run(env);
    }

    /// What became of the request with this note.
    pub fn handle_answered(&mut self, env: &mut Env, note: u64, answer: Answer) {
        if self.asking != Some(note) {
            return;
        }
        self.asking = None;
        match answer {
            Answer::Taken(task) => self.took(env, note, task),
            Answer::Unknown => {
                self.look.lost_since = Some(env.now);
                self.look.soon(env.now);
            }
            Answer::NotSent => {
                self.unsend(note);
                self.attempts = self.attempts.saturating_add(1);
                self.pause_for(env);
            }
            Answer::Refused(flaw) => {
                if let Some(refused) = self.notes.remove(note) {
                    self.fail(&refused, flaw, refused.alone);
                }
            }
        }
        self.run(env);
    }

    /// What kept requests from being sent is over: none waits any longer for that alone.
    pub fn handle_ready(&mut self, env: &mut Env) {
        (self.pause, self.attempts) = (None, 0);
        self.run(env);
    }

    fn took(&mut self, env: &mut Env, note: u64, task: TaskRef) {
        // Numbers only grow, unless the node was put back.
        if self.look.newest.is_some_and(|newest| task.uid <= newest) {
            self.look.doubt = true;
        }
        self.look.step = self.config.poll_min;
        self.look.at = self.look.at.min(env.now.plus(self.config.poll_min));
        self.has_task(note, task);
    }

    /// A request is in the node's queue.
    pub(super) fn has_task(&mut self, id: u64, task: TaskRef) {
        self.look.saw(task.uid);
        self.notes.set(id, State::Task(task));
        if self.look.doubted.remove(&id) {
            self.may_be_done_twice(id);
        }
        let spans = self.notes.get(id).map(|note| note.spans.clone()).unwrap_or_default();
        for span in spans {
            // It was meant for the copy before, and comes behind what made this one.
            if self.lanes.get(&span.shard).is_some_and(|lane| span.first <= lane.row.base) {
                self.rebuild(span.shard);
            }
        }
    }

    /// The node answers (again), or does not any more. Told at every start of the node, also if it was never seen to be away.
    pub fn handle_node(&mut self, env: &mut Env, up: bool) {
        self.look.up = up;
        self.look.reading = None;
        self.doubt_edits();
        if up {
            self.look.doubt = true;
            self.trust(false);
            self.look.soon(env.now);
        }
        self.run(env);
    }

    /// The node has no document of the index: everything is applied again from the journals' beginnings, and where those are
    /// not there any more, from a snapshot.
    pub fn handle_emptied(&mut self, env: &mut Env) {
        let shards: Vec<_> = self.lanes.keys().copied().collect();
        for shard in shards {
            if let Some(lane) = self.lanes.get_mut(&shard).filter(|lane| lane.row.doubtful) {
                lane.row.doubtful = false;
                self.changed_lanes.insert(shard);
            }
            if let Some(lane) = self.lanes.get_mut(&shard).filter(|lane| lane.row.need != Need::Rebuild) {
                lane.row.need = Need::Nothing;
                lane.row.made = 0;
                lane.row.base = 0;
                self.back(shard, 0);
            }
        }
        let ended: Vec<_> = self.notes.rows().keys().copied().filter(|id| self.asking != Some(*id)).collect();
        for id in ended {
            self.notes.remove(id);
        }
        self.taking = None;
        self.look.lost_since = None;
        self.look.doubt = true;
        self.trust(false);
        self.drain = true;
        self.look.soon(env.now);
        self.run(env);
    }

    /// Time has passed: due at [`Applier::next_wake`], harmless at any other time.
    pub fn handle_tick(&mut self, env: &mut Env) {
        self.run(env);
    }

    /// What is to be done next; see [`super::effect`].
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Applier::handle_tick`] is due.
    pub fn next_wake(&self) -> Option<Instant> {
        self.wake
    }

    /// Up to where the node has applied a shard's entries.
    pub fn applied(&self, shard: ShardId) -> Option<u64> {
        self.lanes.get(&shard).map(|lane| lane.row.applied)
    }

    /// Whether what the node has is what was noted.
    pub fn is_trusted(&self) -> bool {
        self.look.trusted
    }

    /// Whether nothing waits and nothing is under way, so that it may be taken out of memory.
    pub fn is_idle(&self) -> bool {
        let done = |lane: &Lane| {
            let made = lane.row.need == Need::Nothing && !lane.row.unchecked;
            lane.row.applied == lane.committed && made && lane.stop.is_none()
        };
        self.is_drained() && self.lanes.values().all(done) && !self.look.doubt && self.effects.is_empty()
    }

    pub(super) fn is_drained(&self) -> bool {
        self.asking.is_none() && self.notes.sent().is_none() && self.notes.rows().values().all(|n| !n.is_open())
    }

    pub(super) fn emit(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    /// A request did not reach the queue: what it carried is to be sent again.
    pub(super) fn unsend(&mut self, id: u64) -> Option<Note> {
        let note = self.notes.remove(id)?;
        self.look.doubted.remove(&id);
        for span in &note.spans {
            if let Some(lane) = self.lanes.get_mut(&span.shard) {
                lane.next = lane.next.min(span.first).max(lane.row.applied + 1);
            }
        }
        Some(note)
    }

    /// A request ended without effect. Nothing more is sent until all under way has ended.
    pub(super) fn fail(&mut self, note: &Note, flaw: Flaw, alone: bool) {
        self.drain = true;
        if let Some(failure) = &mut self.failure {
            failure.requests += 1;
            return;
        }
        let own_fault = is_own_fault(note.kind, &flaw);
        let (entries, first) = (note.entries, note.first);
        self.failure = Some(Failure { requests: 1, entries, first, alone, flaw, own_fault });
    }

    /// What follows from the input.
    pub(super) fn run(&mut self, env: &mut Env) {
        for lane in self.lanes.values_mut() {
            lane.stop = lane.stop.filter(|stop| stop.until.is_none_or(|until| until > env.now));
        }
        self.after_drain(env);
        self.look(env);
        self.pass_over();
        self.end_care();
        self.try_held(env);
        self.take_documents();
        self.send(env);
        self.load();
        self.press();
        self.flush(env);
    }

    /// What of which shard is with the node.
    fn busy(&self) -> BTreeMap<ShardId, Busy> {
        let mut busy = BTreeMap::new();
        for note in self.notes.rows().values().filter(|n| n.is_open() || n.state == State::Sent) {
            let how = if note.kind.is_conditional() { Busy::Conditional } else { Busy::Plain };
            busy.extend(note.spans.iter().map(|span| (span.shard, how)));
        }
        busy
    }

    /// Entries at which nothing is to be done.
    fn pass_over(&mut self) {
        if self.drain {
            return;
        }
        let busy = self.busy();
        let idle =
            self.lanes.iter().filter(|(shard, lane)| !busy.contains_key(shard) && lane.idle_until() >= lane.next);
        let idle: Vec<_> = idle.map(|(shard, lane)| (*shard, lane.idle_until())).collect();
        for (shard, to) in idle {
            self.advance(shard, to, &|_| true);
        }
    }

    fn may_send(&self, now: Instant) -> bool {
        let free = self.asking.is_none() && self.notes.sent().is_none() && self.taking.is_none();
        let calm = self.pause.is_none_or(|until| until <= now);
        free && calm && self.look.up && !self.look.doubt && !self.drain
    }

    fn send(&mut self, env: &mut Env) {
        if !self.may_send(env.now) {
            return;
        }
        let open = self.notes.open().len();
        let careful = self.care.as_ref().map(|care| (care.limit, &care.until));
        let (bounds, until) = match careful {
            Some(_) if open > 0 => return,
            Some((limit, until)) => {
                (Bounds { entries: limit.min(self.config.payload.entries), ..self.config.payload }, Some(until))
            }
            None if open >= self.config.under_way || self.awaits_quiet(env.now) => return,
            None => (self.config.payload, None),
        };
        let from = if until.is_some() { ShardId(0) } else { self.cursor };
        let Some(plan) = merge::plan(&self.lanes, &self.busy(), bounds, from, until) else {
            self.gather = None;
            return;
        };
        // A node takes all that waits in its queue into one batch, and each batch costs time whatever is in it. So it gets what is
        // little neither in many requests nor too late for its next batch, unless what follows is of another kind already.
        let small = plan.entries < bounds.entries / 2 && plan.bytes < bounds.bytes / 2;
        let followed = |span: &Span| self.lanes.get(&span.shard).is_some_and(|lane| lane.has_behind(span.last));
        if small && self.care.is_none() && (open == 0 || !plan.spans.iter().any(followed)) {
            let since = *self.gather.get_or_insert(env.now);
            if env.now < since.plus(self.gathers(open)) {
                return;
            }
        }
        self.gather = None;
        self.cursor = ShardId(plan.spans.last().map_or(0, |span| span.shard.0.saturating_add(1)));
        for span in &plan.spans {
            let lane = self.lanes.get_mut(&span.shard).expect("the plan was made of these lanes");
            lane.next = span.last + 1;
            if plan.kind.is_conditional() {
                lane.row.conditional = span.last;
                self.changed_lanes.insert(span.shard);
            }
        }
        let note = self.notes.add(Note::of(&plan, self.look.newest, open == 0 && self.care.is_some()));
        self.asking = Some(note);
        self.emit(Effect::Enqueue(Request { note, kind: plan.kind, spans: plan.spans, without: plan.without }));
    }

    /// How long a small request waits for more. The parts of a client's request are committed one after the other; a node with
    /// nothing to do would begin with the first. The longer it has been busy, the longer it may be yet.
    fn gathers(&self, open: usize) -> Duration {
        if open == 0 {
            let more = self.lanes.values().any(|lane| lane.loading.is_some());
            return if more { self.config.gather * GATHER_MOST } else { self.config.gather };
        }
        let doubled = u32::try_from(open).map_or(GATHER_DOUBLINGS, |open| (open + 1).min(GATHER_DOUBLINGS));
        self.config.gather * 2_u32.pow(doubled)
    }

    /// Heads of what is committed are fetched, so that requests can be planned.
    fn load(&mut self) {
        let share = (self.config.heads_total / self.lanes.len().max(1)).clamp(16, self.config.heads.max(16));
        for (shard, lane) in &mut self.lanes {
            if let Some((from, entries)) = lane.ask_for_heads(self.loads + 1, share) {
                self.loads += 1;
                self.effects.push_back(Effect::Load { ticket: self.loads, shard: *shard, from, entries });
            }
        }
    }

    fn press(&mut self) {
        let behind = |lane: &Lane| lane.committed.saturating_sub(lane.row.applied);
        // What waits for a copy that is being made waits in the journal alone. What others lead their nodes take, and of that, too, no
        // more is in memory than some heads of each shard.
        let goes_on = |lane: &&Lane| lane.primary && lane.row.need != Need::Rebuild && !lane.row.unchecked;
        // Nor does what waits for a node that is down: others lead its shards, and it applies all when it is back.
        let behind = match self.look.up {
            true => self.lanes.values().filter(goes_on).map(behind).fold(0, u64::saturating_add),
            false => 0,
        };
        let pressed = behind > if self.pressed { self.config.behind / 2 } else { self.config.behind };
        if pressed != self.pressed {
            self.pressed = pressed;
            self.emit(Effect::Pressure(pressed));
        }
    }

    fn flush(&mut self, env: &Env) {
        self.notes.forget(self.config.history);
        self.rows.notes = self.notes.take_changes();
        self.rows.next_note = self.notes.next;
        for shard in std::mem::take(&mut self.changed_lanes) {
            self.rows.lanes.insert(shard, self.lanes.get(&shard).map(|lane| lane.row.clone()));
        }
        let rows = std::mem::take(&mut self.rows);
        if !rows.is_empty() {
            self.effects.push_front(Effect::Persist(rows));
        }
        let holds = self.lanes.values().filter_map(|lane| match &lane.hold {
            Some(Hold::Trouble { again, .. } | Hold::Ask { again, .. }) => Some(*again),
            None => None,
        });
        let gather = self.gather.map(|at| at.plus(self.gathers(self.notes.open().len())));
        let stops = self.lanes.values().filter_map(|lane| lane.stop?.until);
        let times = holds.chain(self.pause).chain(gather).chain(self.look.due()).chain(stops);
        self.wake = times.filter(|at| *at > env.now).min();
    }
}
