//! The task that runs the core of task ids, and what asks it.
//!
//! Nothing of it is stored: a process that ends takes its ranges along. Must not know: what tasks are.

use std::collections::BTreeMap;
use std::time::Instant as Clock;

use bytes::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::leases::LeaseHandle;
use super::ledger::driver::seed;
use super::ledger::registers::{self, chosen};
use super::ledger::{LedgerHandle, Sighting, nap, now};
use super::members::Members;
use crate::net::Call;
use crate::proto::env::Env;
use crate::proto::register::{Answer, OpId};
pub use crate::proto::task_ids::{Config, NoId};
use crate::proto::task_ids::{Effect, KEY, QuestionId, TakeId, TaskIds};
use crate::types::{Holder, MemberId, RecordKey, Scope, TaskUid, TraceId};
use crate::wire::verbs::{Reply, Request};

/// Who wants ids waits here for the driver to hear of it.
const WAITING: usize = 256;

#[derive(Debug)]
enum Input {
    Take(oneshot::Sender<Result<TaskUid, NoId>>),
    Ask(u32, oneshot::Sender<Vec<TaskUid>>),
}

/// Task ids, as other services want them; cheap to clone.
#[derive(Debug, Clone)]
pub struct TaskIdsHandle {
    inputs: mpsc::Sender<Input>,
}

impl TaskIdsHandle {
    /// An id that nobody else has or gets.
    ///
    /// Cancel-safe: an id that nobody waits for any more is a hole.
    ///
    /// # Errors
    /// [`NoId`].
    pub async fn next(&self) -> Result<TaskUid, NoId> {
        let (tell, wait) = oneshot::channel();
        self.inputs.send(Input::Take(tell)).await.map_err(|_| NoId::NoMajority)?;
        wait.await.map_err(|_| NoId::NoMajority)?
    }

    /// Ids for another member; none if this one does not hand them out now.
    ///
    /// Cancel-safe: ids that nobody waits for any more are a hole.
    pub async fn answer(&self, count: u32) -> Vec<TaskUid> {
        let (tell, wait) = oneshot::channel();
        match self.inputs.send(Input::Ask(count, tell)).await {
            Ok(()) => wait.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }
}

/// What was done beside the driver.
enum Done {
    Told(QuestionId, Vec<TaskUid>),
    Drawn(OpId, Answer),
}

/// The driver, made and not yet running.
pub struct Driver {
    core: TaskIds,
    config: Config,
    rng: fastrand::Rng,
    ledger: LedgerHandle,
    leases: LeaseHandle,
    members: Members,
    inputs: mpsc::Receiver<Input>,
    takes: BTreeMap<TakeId, oneshot::Sender<Result<TaskUid, NoId>>>,
    asked: BTreeMap<QuestionId, oneshot::Sender<Vec<TaskUid>>>,
    next: u64,
    done: JoinSet<Done>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("takes", &self.takes.len()).finish_non_exhaustive()
    }
}

impl Driver {
    /// Over its parts; `start` is this process's.
    pub fn new(
        config: Config,
        start: u64,
        ledger: LedgerHandle,
        leases: LeaseHandle,
        members: Members,
    ) -> (Self, TaskIdsHandle) {
        let (inputs_in, inputs) = mpsc::channel(WAITING);
        let me = Holder { member: ledger.member().clone(), start };
        let driver = Self {
            core: TaskIds::new(config.clone(), me),
            config,
            rng: fastrand::Rng::with_seed(seed()),
            ledger,
            leases,
            members,
            inputs,
            takes: BTreeMap::new(),
            asked: BTreeMap::new(),
            next: 0,
            done: JoinSet::new(),
        };
        (driver, TaskIdsHandle { inputs: inputs_in })
    }

    /// Runs until nobody holds a handle any more, or the ledger's driver has ended.
    pub async fn run(mut self) {
        let mut sightings = self.ledger.sightings();
        let mut leases = self.leases.watch();
        self.hear_copy();
        loop {
            self.hear_holder();
            let nap = nap(self.core.next_wake());
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => self.hear(input),
                    None => return,
                },
                sighting = sightings.recv() => match sighting {
                    Ok(Sighting::Copied(key, record)) if key.as_str() == KEY => {
                        self.call(|core, env| core.handle_chosen(env, &chosen(&record)));
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => self.hear_copy(),
                    Err(RecvError::Closed) => return,
                },
                changed = leases.changed() => if changed.is_err() { return },
                Some(done) = self.done.join_next() => match done {
                    Ok(Done::Told(question, ids)) => self.call(|core, env| core.handle_told(env, question, ids)),
                    Ok(Done::Drawn(op, answer)) => self.call(|core, env| core.handle_answer(env, op, &answer)),
                    // The core gives up on what is not answered.
                    Err(error) => tracing::error!(%error, "a question about task ids failed inside"),
                },
                () = tokio::time::sleep(nap) => self.call(TaskIds::handle_tick),
            }
        }
    }

    fn hear_copy(&mut self) {
        let copies = self.ledger.copies();
        let copy = RecordKey::new(KEY).ok().and_then(|key| copies.get(&key).cloned());
        if let Some(copy) = copy {
            self.call(|core, env| core.handle_chosen(env, &chosen(&copy)));
        }
    }

    /// Tells the core who holds the scope: this member if it believes so, else whom the ledger names, unless that one is gone.
    fn hear_holder(&mut self) {
        let scope = Scope::TaskIds;
        let me = self.ledger.member();
        let own = self.leases.believes(&scope).map(|_| me.clone());
        let named = || {
            self.leases
                .rows()
                .leader(&scope, now())
                .filter(|leader| *leader != me && !self.members.is_suspect(leader))
                .cloned()
        };
        let holder = own.or_else(named);
        self.call(|core, env| core.handle_holder(env, holder));
    }

    fn hear(&mut self, input: Input) {
        self.next += 1;
        match input {
            Input::Take(tell) => {
                let take = TakeId(self.next);
                self.hear_holder();
                self.takes.insert(take, tell);
                self.call(|core, env| core.handle_take(env, take));
            }
            Input::Ask(count, tell) => {
                let question = QuestionId(self.next);
                self.asked.insert(question, tell);
                self.call(|core, env| core.handle_ask(env, question, count));
            }
        }
    }

    /// Calls the core at the instant that it is now, and carries out what it wants.
    fn call(&mut self, ask: impl FnOnce(&mut TaskIds, &mut Env<'_>)) {
        ask(&mut self.core, &mut Env { now: now(), rng: &mut self.rng });
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                // Whoever asked may have gone.
                Effect::Given { take, id } => drop(self.takes.remove(&take).map(|tell| tell.send(id))),
                Effect::Told { question, ids } => drop(self.asked.remove(&question).map(|tell| tell.send(ids))),
                Effect::Ask { to, question, count } => self.ask(to, question, count),
                Effect::Draw(change) => {
                    let (ledger, patience) = (self.ledger.clone(), self.config.draw_within);
                    self.done.spawn(async move {
                        let (op, answer) = registers::change_one(&ledger, change, patience).await;
                        Done::Drawn(op, answer)
                    });
                }
            }
        }
    }

    fn ask(&mut self, to: MemberId, question: QuestionId, count: u32) {
        let (members, deadline) = (self.members.clone(), Clock::now() + self.config.ask_within);
        self.done.spawn(async move {
            let request = Request::TaskIds(count);
            let call = Call { request, body: Bytes::new(), deadline, trace: TraceId::default() };
            let ids = match members.call(&to, call).await.map(|answer| answer.reply) {
                Ok(Reply::TaskIds(ids)) if ids.len() <= count as usize => ids,
                other => {
                    tracing::debug!(%to, ?other, "the member that hands out task ids could not be asked");
                    Vec::new()
                }
            };
            Done::Told(question, ids)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::services::testing::{World, within};

    async fn holder(world: &World) -> usize {
        within("a holder that all know", async {
            loop {
                let holds = |i: usize| world.at(i).leases.believes(&Scope::TaskIds).is_some();
                if let Some((holder, running)) = world.alive().find(|(i, _)| holds(*i)) {
                    let (me, at) = (running.ledger.member(), now());
                    let knows = |i: usize| world.at(i).leases.rows().leader(&Scope::TaskIds, at) == Some(me);
                    if world.alive().all(|(i, _)| knows(i)) {
                        return holder;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    async fn take(world: &World, i: usize) -> u32 {
        within("an id", world.at(i).task_ids.next()).await.unwrap().0
    }

    #[tokio::test]
    async fn ids_are_each_given_once_and_outlive_their_holder() {
        let mut world = World::start(3, |_, _| vec![]).await;
        let first = holder(&world).await;
        let mut given = Vec::new();
        for n in 0..60 {
            given.push(take(&world, n % 3).await);
        }
        world.kill(first).await;
        let left: Vec<usize> = world.alive().map(|(i, _)| i).collect();
        let at_once = take(&world, left[0]).await;
        given.push(at_once);
        assert_ne!(holder(&world).await, first);
        for n in 0..20 {
            given.push(take(&world, left[n % 2]).await);
        }
        world.restart(first, |_, _| vec![]).await;
        given.push(take(&world, first).await);
        assert_eq!(BTreeSet::from_iter(&given).len(), given.len(), "each once: {given:?}");
    }

    #[tokio::test]
    async fn a_member_without_a_majority_has_some_to_spare() {
        let world = World::start(3, |_, _| vec![]).await;
        holder(&world).await;
        let mut given = BTreeSet::new();
        for i in 0..3 {
            given.insert(take(&world, i).await);
        }
        // The spare range is there once the counter has moved for each of them.
        within("a spare range for each", async {
            while world.at(0).ledger.copies().get(&RecordKey::new(KEY).unwrap()).is_none_or(|c| c.version < 4) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        world.cut(0);
        for _ in 0..5 {
            assert!(given.insert(take(&world, 0).await));
        }
        world.heal();
        for i in 0..3 {
            assert!(given.insert(take(&world, i).await));
        }
    }
}
