//! Finds the primary of a home, and asks it until it answers.
//!
//! Rule: "there is no such task" is believed only of the primary that a majority of the voters knows: another one may have
//! been elected behind the back of whoever answers. Must not know: what a task is for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::call::{Asked, MemberQuestion, Question, Said, Told, decode, encode};
use super::driver::Input;
use super::orders::Orders;
use super::teller::Teller;
use super::{ATTEMPT, PAUSE, home_of, journal_of};
use crate::net::{Answer as NetAnswer, Call, CallError};
use crate::proto::ledger::Answer as LedgerAnswer;
use crate::proto::tasks::home::{Answer, PartRef, Refusal, Report, Swept};
use crate::proto::tasks::query::Action;
use crate::proto::tasks::{Filter, Head, Outcome, Shown, When};
use crate::services::journal::JournalHandle;
use crate::services::ledger::LedgerHandle;
use crate::services::members::Members;
use crate::services::task_ids::TaskIdsHandle;
use crate::types::{Epoch, JournalRecord, MemberId, PhysicalIndex, ShardId, TaskUid, TraceId};
use crate::wire::verbs::{Refusal as CallRefusal, Reply, Request};

/// How long a refusal to take more is waited for to pass.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Why a home has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HomeError {
    /// Its primary could not be found or asked until the deadline; what was asked may have been done.
    #[error("the home of the task could not be asked")]
    NoAnswer,
    /// It has too much to do; nothing was done.
    #[error("the home of the task has too much to do")]
    Busy,
    /// It breaks the bounds; nothing was done, and never will be.
    #[error("the home of the task refuses it")]
    Refused,
    /// Under this number something else is kept, or nothing ever will be.
    #[error("the number of the task stands for something else")]
    Other,
    /// No number was to be had; nothing was done.
    #[error("no task id could be had")]
    NoId,
    /// A page is not what a home gives.
    #[error("a home gave a page that can't be right")]
    Page,
}

/// Homes, as other services ask them; cheap to clone.
#[derive(Clone)]
pub struct Homes {
    pub(super) me: MemberId,
    pub(super) journals: JournalHandle,
    pub(super) ledger: LedgerHandle,
    pub(super) members: Members,
    pub(super) ids: TaskIdsHandle,
    pub(super) orders: Orders,
    pub(super) teller: Teller,
    pub(super) inputs: mpsc::Sender<Input>,
}

impl std::fmt::Debug for Homes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Homes").field("me", &self.me).finish_non_exhaustive()
    }
}

/// Why a member has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unheard {
    /// It was not asked, or has refused the question.
    NotAsked,
    /// There is no answer, and what was asked may have been done.
    NoAnswer,
}

/// What attempts to ask a home have come to.
#[derive(Debug, Default)]
struct Heard {
    /// Who leads it, by the newest answer.
    hint: (Epoch, Option<MemberId>),
    /// An attempt has brought no answer: what was asked may have been done.
    unsure: bool,
}

impl Heard {
    /// The answer that ends the asking, if this is one. That it is too busy says nothing of an earlier attempt.
    fn hears(&mut self, told: Result<Told, Unheard>) -> Result<Option<(Epoch, Said)>, HomeError> {
        match told {
            Ok(Told::Home(_, Said::Answer(Answer::Busy))) if self.unsure => {}
            Ok(Told::Home(epoch, said)) => return Ok(Some((epoch, said))),
            Ok(Told::NotPrimary(primary, epoch)) if epoch >= self.hint.0 => self.hint = (epoch, primary),
            Ok(Told::Malformed) => return Err(HomeError::Refused),
            Ok(_) | Err(Unheard::NotAsked) => {}
            Err(Unheard::NoAnswer) => self.unsure = true,
        }
        Ok(None)
    }
}

impl Homes {
    /// Orders that this process carries out.
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// A number for a new task.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`HomeError::NoId`].
    pub async fn next_uid(&self) -> Result<TaskUid, HomeError> {
        self.ids.next().await.map_err(|_| HomeError::NoId)
    }

    /// Has a task kept. With `Ok` it is for ever, and with all its parts committed as parts a client may be told.
    ///
    /// Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`HomeError`].
    pub async fn take(&self, uid: TaskUid, head: &Head, deadline: Instant, trace: TraceId) -> Result<(), HomeError> {
        let question = Question::Head(uid, Box::new(head.clone()));
        match self.change(home_of(uid), question, deadline, trace).await? {
            Answer::Taken => Ok(()),
            _ => Err(HomeError::Other),
        }
    }

    /// Settles what a key stands for: the task, and whether it came with the same body.
    ///
    /// Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`HomeError`].
    pub async fn settle(
        &self,
        (key, hash): (&str, [u8; 32]),
        uid: TaskUid,
        replaces: Option<TaskUid>,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<(TaskUid, bool), HomeError> {
        let question = Question::Key { key: key.to_owned(), hash, uid, replaces };
        match self.change(super::home_of_key(key), question, deadline, trace).await? {
            Answer::Settled { uid, same_body } => Ok((uid, same_body)),
            _ => Err(HomeError::Refused),
        }
    }

    /// What a key stands for, and the hash of the body that came with it; `None`: nothing, or it is not known yet to whoever
    /// was asked.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`HomeError`].
    pub(super) async fn known(
        &self,
        key: &str,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Option<(TaskUid, [u8; 32])>, HomeError> {
        match self.ask(super::home_of_key(key), Question::Known(key.to_owned()), deadline, trace).await? {
            (_, Said::Known(known)) => Ok(known),
            _ => Err(HomeError::NoAnswer),
        }
    }

    /// Makes sure that a number stands for no task, unless it does or did; says which.
    ///
    /// Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`HomeError`].
    pub async fn void(&self, uid: TaskUid, deadline: Instant, trace: TraceId) -> Result<bool, HomeError> {
        Ok(self.change(home_of(uid), Question::Void(uid), deadline, trace).await? == Answer::Void)
    }

    /// An order is being carried out; only for those who look.
    pub async fn begun(&self, uid: TaskUid, when: When, deadline: Instant, trace: TraceId) {
        drop(self.ask(home_of(uid), Question::Begun(uid, when), deadline, trace).await);
    }

    /// What became of an order is kept, unless another end is.
    ///
    /// Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`HomeError`]: it must be told again.
    pub async fn ended(
        &self,
        uid: TaskUid,
        outcome: Outcome,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<(), HomeError> {
        let question = Question::Outcome(uid, Box::new(outcome));
        self.change(home_of(uid), question, deadline, trace).await.map(drop)
    }

    /// A task; `None` if there is none, for sure.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`HomeError`].
    pub async fn get(&self, uid: TaskUid, deadline: Instant, trace: TraceId) -> Result<Option<Shown>, HomeError> {
        loop {
            match self.ask(home_of(uid), Question::Get(uid), deadline, trace).await? {
                (_, Said::Task(Some(task))) => return Ok(Some(*task)),
                (epoch, Said::Task(None)) if self.reigns(home_of(uid), epoch, deadline).await => return Ok(None),
                _ => self.pause(PAUSE, deadline).await?,
            }
        }
    }

    /// Whether no other primary of a home can have been elected before this was asked.
    async fn reigns(&self, home: u16, epoch: Epoch, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT);
        match self.ledger.read(JournalRecord::key(&PhysicalIndex::of_tasks()), left).await {
            LedgerAnswer::Read { current: Some(record) } => JournalRecord::from_json(&record.value)
                .is_ok_and(|record| record.shard(ShardId(home)).is_some_and(|state| state.epoch == epoch)),
            _ => false,
        }
    }

    /// Asks a home to sweep.
    pub(super) async fn sweep_one(
        &self,
        home: u16,
        by: TaskUid,
        action: Action,
        filter: Filter,
        deadline: Instant,
    ) -> Result<Swept, HomeError> {
        let question = Question::Sweep(by, action, Box::new(filter));
        match self.change(home, question, deadline, TraceId::default()).await? {
            Answer::Swept(swept) => Ok(swept),
            _ => Err(HomeError::Busy),
        }
    }

    /// Which of these tasks of one home are not there.
    pub(super) async fn gone(
        &self,
        home: u16,
        uids: BTreeSet<TaskUid>,
        deadline: Instant,
    ) -> Result<BTreeSet<TaskUid>, HomeError> {
        match self.ask(home, Question::Gone(uids), deadline, TraceId::default()).await? {
            (epoch, Said::Gone(gone)) if self.reigns(home, epoch, deadline).await => Ok(gone),
            _ => Err(HomeError::NoAnswer),
        }
    }

    /// Something that changes a home; waits while it has too much to do.
    async fn change(
        &self,
        home: u16,
        question: Question,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Answer, HomeError> {
        loop {
            match self.ask(home, question.clone(), deadline, trace).await? {
                (_, Said::Answer(Answer::Busy)) => {
                    self.pause(BUSY_PAUSE, deadline).await.map_err(|_| HomeError::Busy)?;
                }
                (_, Said::Answer(Answer::Refused)) => return Err(HomeError::Refused),
                (_, Said::Answer(answer)) => return Ok(answer),
                _ => return Err(HomeError::NoAnswer),
            }
        }
    }

    async fn pause(&self, pause: Duration, deadline: Instant) -> Result<(), HomeError> {
        if Instant::now() + pause >= deadline {
            return Err(HomeError::NoAnswer);
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Asks the primary of a home, whoever that is meanwhile, until it answers.
    pub(super) async fn ask(
        &self,
        home: u16,
        question: Question,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<(Epoch, Said), HomeError> {
        let asked = Asked::Home(home, question);
        let body = encode(&asked).ok_or(HomeError::Refused)?;
        let mut heard = Heard::default();
        loop {
            if let Some(to) = self.primary(home, &heard.hint) {
                let until = deadline.min(Instant::now() + ATTEMPT);
                let (index, shard) = (PhysicalIndex::of_tasks(), [ShardId(home)]);
                let told = tokio::select! {
                    told = self.attempt(&to, &asked, &body, until, trace) => told,
                    () = self.journals.replaced(&index, &shard, &to) => Err(Unheard::NoAnswer),
                };
                if let Some(said) = heard.hears(told)? {
                    return Ok(said);
                }
            }
            self.pause(PAUSE, deadline).await?;
        }
    }

    /// Who leads a home, by the newest that was heard.
    fn primary(&self, home: u16, hint: &(Epoch, Option<MemberId>)) -> Option<MemberId> {
        let record = self.journals.record(&PhysicalIndex::of_tasks());
        let state = record.as_ref().and_then(|record| record.shard(ShardId(home)));
        let known = state.and_then(|s| Some((s.epoch, s.primary.as_ref()?.member.clone())));
        match (known, hint) {
            (Some((epoch, _)), (hinted, Some(member))) if *hinted > epoch => Some(member.clone()),
            (Some((_, member)), _) => Some(member),
            (None, (_, member)) => member.clone(),
        }
    }

    async fn attempt(
        &self,
        to: &MemberId,
        asked: &Asked,
        body: &Bytes,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Told, Unheard> {
        if *to == self.me {
            let answer = tokio::time::timeout_at(deadline.into(), self.answer(&self.me, asked.clone())).await;
            return answer.map_err(|_| Unheard::NoAnswer);
        }
        let call = Call { request: Request::Home, body: body.clone(), deadline, trace };
        match self.members.call(to, call).await {
            Ok(NetAnswer { reply: Reply::Home, body }) => decode(&body).ok_or(Unheard::NoAnswer),
            Ok(_) => Err(Unheard::NoAnswer),
            Err(CallError::Refused { refusal, .. }) => {
                tracing::debug!(%to, %refusal, "a member does not answer for tasks");
                Err(Unheard::NotAsked)
            }
            Err(error) => {
                tracing::trace!(%to, %error, "a member was not asked about tasks, or did not answer");
                Err(if matches!(error, CallError::NotSent { .. }) { Unheard::NotAsked } else { Unheard::NoAnswer })
            }
        }
    }

    /// Asks a member, once.
    pub(super) async fn ask_member(&self, to: &MemberId, question: MemberQuestion) -> Option<Told> {
        self.ask_member_for(to, question, ATTEMPT).await
    }

    /// The same of a question that takes longer.
    pub(super) async fn ask_member_for(
        &self,
        to: &MemberId,
        question: MemberQuestion,
        patience: Duration,
    ) -> Option<Told> {
        let asked = Asked::Member(question);
        let body = encode(&asked)?;
        self.attempt(to, &asked, &body, Instant::now() + patience, TraceId::default()).await.ok()
    }

    /// What a member can say of parts of a task.
    pub(super) async fn parts_of(
        &self,
        to: &MemberId,
        uid: TaskUid,
        index: PhysicalIndex,
        parts: Vec<PartRef>,
    ) -> Option<Report> {
        match self.ask_member(to, MemberQuestion::Parts(uid, index, parts)).await? {
            Told::Report(report) => Some(report),
            _ => None,
        }
    }

    /// Whether a member carries out an order; if not, it never will.
    pub(super) async fn order_at(&self, to: &MemberId, uid: TaskUid) -> Option<Refusal> {
        match self.ask_member(to, MemberQuestion::Order(uid)).await? {
            Told::Order(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Answers a call of a peer: for [`Request::Home`].
    ///
    /// Dropping the future does not undo what was asked.
    pub async fn receive(&self, from: &MemberId, call: &Call) -> NetAnswer {
        let malformed = || NetAnswer::of(Reply::Refused(CallRefusal::Malformed("no question about tasks".into())));
        let Some(asked) = decode::<Asked>(&call.body) else { return malformed() };
        let told = self.answer(from, asked).await;
        match encode(&told) {
            Some(body) => NetAnswer { reply: Reply::Home, body },
            None => NetAnswer::of(Reply::Refused(CallRefusal::Other("the answer is too large".into()))),
        }
    }

    async fn answer(&self, from: &MemberId, asked: Asked) -> Told {
        match asked {
            Asked::Home(home, question) if question.is_for(home) => {
                let (tell, wait) = oneshot::channel();
                let input = Input { home, from: from.clone(), question, tell };
                match self.inputs.send(input).await {
                    Ok(()) => wait.await.unwrap_or_else(|_| self.not_primary(home)),
                    Err(_) => Told::Busy,
                }
            }
            Asked::Home(..) => Told::Malformed,
            Asked::Member(MemberQuestion::Order(uid)) => Told::Order(self.orders.refuse(uid)),
            Asked::Member(MemberQuestion::Parts(uid, index, parts)) => self.teller.parts(uid, &index, parts).await,
            Asked::Member(MemberQuestion::Heads(uids)) => self.teller.heads(&uids).await,
            Asked::Member(MemberQuestion::Copy { home, token, page }) => {
                self.teller.copies.page(&self.journals, from, home, token, page).await
            }
        }
    }

    /// Whom this member believes to lead a home.
    pub(super) fn not_primary(&self, home: u16) -> Told {
        let key = journal_of(home);
        let record = self.journals.record(&key.index);
        let state = record.as_ref().and_then(|record| record.shard(key.shard));
        let primary = state.and_then(|s| s.primary.as_ref()).map(|p| p.member.clone()).filter(|m| *m != self.me);
        Told::NotPrimary(primary, state.map_or(Epoch::ZERO, |s| s.epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_that_is_busy_ends_the_asking_only_if_nothing_was_asked_in_vain() {
        let busy = || Ok(Told::Home(Epoch::ZERO, Said::Answer(Answer::Busy)));
        let is_busy = |said| matches!(said, Ok(Some((_, Said::Answer(Answer::Busy)))));
        let mut heard = Heard::default();
        assert!(matches!(heard.hears(Ok(Told::NotPrimary(None, Epoch::ZERO))), Ok(None)));
        assert!(matches!(heard.hears(Err(Unheard::NotAsked)), Ok(None)));
        assert!(is_busy(heard.hears(busy())));
        assert!(matches!(heard.hears(Err(Unheard::NoAnswer)), Ok(None)));
        assert!(matches!(heard.hears(busy()), Ok(None)), "the attempt before may have been heard");
        let void = Ok(Told::Home(Epoch::ZERO, Said::Answer(Answer::Void)));
        assert!(matches!(heard.hears(void), Ok(Some((_, Said::Answer(Answer::Void))))));
        assert!(matches!(heard.hears(Ok(Told::Malformed)), Err(HomeError::Refused)));
    }
}
