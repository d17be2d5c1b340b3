//! What a home that reigns wants done.
//!
//! Rule: what does not come back is asked for again by the home; what comes back after the reign is passed over. Must not
//! know: what a home is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::call::{Said, Told};
use super::driver::{Done, Driver, ForReign};
use super::slot::Core;
use super::{ATTEMPT, home_of, journal_of};
use crate::proto::journal::{Answer as JournalAnswer, Body, Kind, Write};
use crate::proto::tasks::Head;
use crate::proto::tasks::home::body::{encode_head, join};
use crate::proto::tasks::home::{Appended, Effect, HomeEntry, PartRef, Refusal, Report};
use crate::services::ledger::now;
use crate::types::{Epoch, MemberId, PhysicalIndex, ShardId, TaskPart, TaskUid, TraceId};

/// How long an append may take before the home looks again.
const APPEND: Duration = Duration::from_secs(5);
/// How long shards are asked to refuse parts.
const REFUSE: Duration = Duration::from_secs(5);

/// What a report is answered with: tasks that were heard of, and tasks whose heads are wanted.
type Heard = (BTreeSet<TaskUid>, BTreeSet<TaskUid>);

impl Driver {
    /// Carries out everything that a home wants.
    pub(super) fn drain(&mut self, home: u16) {
        drop(self.drain_for(home, None));
    }

    /// The same after a report; what is meant for its sender is the answer.
    fn drain_for(&mut self, home: u16, reports: Option<&MemberId>) -> Heard {
        let (mut appends, mut heard) = (Vec::new(), Heard::default());
        while let Some(slot) = self.slots.get_mut(&home) {
            let Core::Reigns(epoch, core) = &mut slot.core else { break };
            let epoch = *epoch;
            let Some(effect) = core.poll_effect() else { break };
            match effect {
                Effect::Append { part, entry } => appends.push((part, entry)),
                Effect::Answer { op, answer } => {
                    if let Some(tell) = slot.asking.remove(&op) {
                        // Whoever asked may have gone.
                        drop(tell.send(Told::Home(epoch, Said::Answer(answer))));
                    }
                }
                Effect::Heard { member, uids } if reports == Some(&member) => heard.0.extend(uids),
                Effect::WantHead { member, uid } if reports == Some(&member) => {
                    heard.1.insert(uid);
                }
                // It was asked, and does not wait for this.
                Effect::Heard { .. } => {}
                other => self.carry_out(home, epoch, other),
            }
        }
        self.append(home, appends);
        heard
    }

    /// Takes a report in, and says what its sender is to know.
    pub(super) fn report(&mut self, home: u16, from: &MemberId, report: Report) -> Heard {
        let Some(Core::Reigns(_, core)) = self.slots.get_mut(&home).map(|slot| &mut slot.core) else {
            return Heard::default();
        };
        let mut env = crate::proto::env::Env { now: now(), rng: &mut self.rng };
        core.handle_report(&mut env, super::wall(), from, report);
        self.drain_for(home, Some(from))
    }

    /// Puts entries into the journal, all of them at once.
    fn append(&mut self, home: u16, appends: Vec<(TaskPart, Box<HomeEntry>)>) {
        let Some(Core::Reigns(epoch, _)) = self.slots.get(&home).map(|slot| &slot.core) else { return };
        if appends.is_empty() {
            return;
        }
        let (epoch, journals) = (*epoch, self.journals.clone());
        self.done.spawn(async move {
            let key = journal_of(home);
            let mut answers = Vec::new();
            let mut writes = Vec::new();
            for (part, entry) in appends {
                match entry.encode() {
                    Some(body) => {
                        writes.push((key.shard, Write { part, kind: Kind::Home, body: Body(body.into()) }));
                    }
                    None => answers.push((part, JournalAnswer::Refused)),
                }
            }
            let parts: Vec<TaskPart> = writes.iter().map(|(_, write)| write.part).collect();
            let told = journals.write(&key.index, writes, Instant::now() + APPEND).await;
            answers.extend(parts.into_iter().zip(told));
            Ok((home, Done::Reign(epoch, ForReign::Appended(answers))))
        });
    }

    /// Something that the home waits for, while it reigns.
    fn spawn(&mut self, home: u16, epoch: Epoch, work: impl Future<Output = Option<ForReign>> + Send + 'static) {
        self.done.spawn(async move {
            let done = work.await.unwrap_or(ForReign::Nothing);
            Ok((home, Done::Reign(epoch, done)))
        });
    }

    fn carry_out(&mut self, home: u16, epoch: Epoch, effect: Effect) {
        let homes = self.homes.clone();
        match effect {
            Effect::Ask { member, uid, index, parts } => self.spawn(home, epoch, async move {
                let report = homes.parts_of(&member, uid, index, parts).await?;
                Some(ForReign::Reported(member, report))
            }),
            Effect::WantHead { member, uid } => self.spawn(home, epoch, async move {
                let question = super::call::MemberQuestion::Heads([uid].into());
                match homes.ask_member(&member, question).await? {
                    Told::Report(report) => Some(ForReign::Reported(member, report)),
                    _ => None,
                }
            }),
            Effect::WantAwaited(index) => self.look_awaited(&index, Some(home)),
            Effect::Refuse { uid, index, parts } => self.refuse(home, epoch, uid, index, parts),
            Effect::RefuseOrder { uid, late } => {
                let members: Vec<MemberId> = self.cluster.topology().ids().cloned().collect();
                let away = if late { self.long_away() } else { BTreeSet::new() };
                self.spawn(home, epoch, async move {
                    // Of all processes that may have it, none will ever carry it out, or one does. Of one that is away for long
                    // nobody will hear what became of it: its host may never come back.
                    let asked = join_all(members.iter().map(|member| homes.order_at(member, uid))).await;
                    let there = asked.contains(&Some(Refusal::There));
                    let all = asked.iter().zip(&members).all(|(said, member)| said.is_some() || away.contains(member));
                    let refusal = if there { Refusal::There } else { Refusal::Refused };
                    (there || all).then_some(ForReign::OrderRefused(uid, refusal))
                });
            }
            Effect::Sweep { home: other, by, action, filter } => self.spawn(home, epoch, async move {
                let swept = homes.sweep_one(other, by, action, *filter, Instant::now() + ATTEMPT).await.ok()?;
                Some(ForReign::Swept(by, other, swept))
            }),
            Effect::Hook(tasks) => {
                let (hook, uids) = (self.hook.clone(), tasks.iter().map(|(uid, _)| *uid).collect());
                self.spawn(home, epoch, async move {
                    if let Some(hook) = hook {
                        hook.tell(tasks).await;
                    }
                    Some(ForReign::Hooked(uids))
                });
            }
            Effect::AskGone(uids) => {
                let mut by_home: BTreeMap<u16, BTreeSet<TaskUid>> = BTreeMap::new();
                for uid in uids {
                    by_home.entry(home_of(uid)).or_default().insert(uid);
                }
                self.spawn(home, epoch, async move {
                    let until = Instant::now() + ATTEMPT;
                    let asked = by_home.into_iter().map(|(home, uids)| homes.gone(home, uids, until));
                    let gone: BTreeSet<TaskUid> = join_all(asked).await.into_iter().flatten().flatten().collect();
                    Some(ForReign::Gone(gone))
                });
            }
            Effect::Broken { uid, part } => {
                tracing::error!(%uid, ?part, "a part was reported as applied that was refused for ever");
            }
            // Taken care of by whoever drains.
            Effect::Append { .. } | Effect::Answer { .. } | Effect::Heard { .. } => {}
        }
    }

    /// Tells a home who is to apply what of an index, as far as that is known.
    pub(super) fn say_awaited(&mut self, home: u16, index: &PhysicalIndex) {
        if let Some(is) = self.awaiting.get(index).cloned().flatten() {
            self.call(home, |core, env, wall| core.handle_awaited(env, wall, index.clone(), is));
        }
    }

    /// Has the shards refuse parts. Of an index that is gone nothing can be refused any more: what was to become of its parts
    /// went with it, and a part that was acknowledged may have been among them, so they count as there.
    fn refuse(&mut self, home: u16, epoch: Epoch, uid: TaskUid, index: PhysicalIndex, parts: Vec<PartRef>) {
        let Some(Core::Reigns(_, core)) = self.slots.get(&home).map(|slot| &slot.core) else { return };
        let Some(head) = core.state().task(uid).map(|row| row.head.clone()) else { return };
        let gone = self.journals.record(&index).is_some_and(|record| record.shards.is_empty());
        let sender = self.sender.clone();
        self.spawn(home, epoch, async move {
            if gone {
                let there = parts.into_iter().map(|part| (part, Refusal::There)).collect();
                return Some(ForReign::Refused(uid, there));
            }
            let body = refusal_body(&head)?;
            let write = |part: &PartRef| Write { part: part.of(uid), kind: Kind::Refusal, body: body.clone() };
            let writes = parts.iter().map(|part| (ShardId(part.shard), write(part))).collect();
            let answers = sender.send(&index, writes, Instant::now() + REFUSE, TraceId::default()).await;
            let said = |(part, answer): (PartRef, JournalAnswer)| match answer {
                JournalAnswer::Committed { refused: true, .. } => Some((part, Refusal::Refused)),
                JournalAnswer::Committed { refused: false, .. } => Some((part, Refusal::There)),
                _ => None,
            };
            Some(ForReign::Refused(uid, parts.into_iter().zip(answers).filter_map(said).collect()))
        });
    }

    /// What a home that reigned under this epoch has asked for.
    pub(super) fn did_for(&mut self, home: u16, epoch: Epoch, what: ForReign) {
        let core = self.slots.get(&home).map(|slot| &slot.core);
        if !matches!(core, Some(Core::Reigns(now, _)) if *now == epoch) {
            return;
        }
        match what {
            ForReign::Appended(answers) => self.call(home, |core, env, _| {
                for (part, answer) in answers {
                    let appended = match answer {
                        JournalAnswer::Committed { seq, .. } => Appended::Committed(seq),
                        JournalAnswer::Refused => Appended::Refused,
                        _ => Appended::Later,
                    };
                    core.handle_appended(env, part, appended);
                }
            }),
            ForReign::Reported(member, report) => drop(self.report(home, &member, report)),
            ForReign::Refused(uid, parts) => {
                self.call(home, |core, env, wall| core.handle_refusals(env, wall, uid, &parts));
            }
            ForReign::OrderRefused(uid, refusal) => {
                self.call(home, |core, env, wall| core.handle_order_refusal(env, wall, uid, refusal));
            }
            ForReign::Swept(by, other, swept) => {
                self.call(home, |core, env, wall| core.handle_swept(env, wall, by, other, swept));
            }
            ForReign::Hooked(uids) => self.call(home, |core, env, _| core.handle_hooked(env, &uids)),
            ForReign::Gone(uids) => self.call(home, |core, env, wall| core.handle_gone(env, wall, &uids)),
            ForReign::Nothing => {}
        }
    }
}

/// A refusal names the whole task, as the part would have.
fn refusal_body(head: &Head) -> Option<Body> {
    join(&encode_head(head)?, &[])
}
