//! A client's write: its head goes to its home, its parts to their shards.
//!
//! Rule: a client is told that a write was taken only if its home keeps the task and each part stands committed as itself. What
//! is said to be not done was never appended anywhere; the task that may be kept of it ends as incomplete. With a key, the
//! head goes first, so that a number that is made void never has parts. Must not know: what payloads say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::client::{HomeError, Homes};
use super::{home_of, wall};
use crate::proto::journal::{Answer, Kind, Write};
use crate::proto::tasks::home::body::{encode_head, join};
use crate::proto::tasks::home::{PartRef, Parts, Work};
use crate::proto::tasks::{Head, Outcome, Shown, Status, Subject};
use crate::services::journal::{NotReady, Sender};
use crate::types::{ErrorCode, PhysicalIndex, ShardId, TaskUid, TraceId};

/// How often a key is settled anew because what it stood for never was.
const KEY_TRIES: usize = 8;
/// Whoever settled a key has the head of its task kept next: for so long nobody takes its number away.
const HEAD_PATIENCE: Duration = Duration::from_millis(500);
const HEAD_PAUSE: Duration = Duration::from_millis(20);

/// A write as a client wants it, checked and split.
#[derive(Debug, Clone)]
pub struct NewWrite {
    /// The index on the nodes.
    pub index: PhysicalIndex,
    /// The client's name of it.
    pub index_uid: String,
    /// What it is about.
    pub subject: Subject,
    /// What the client attached.
    pub custom_metadata: Option<String>,
    /// The `Idempotency-Key`, and the hash of the body.
    pub key: Option<(String, [u8; 32])>,
    /// What each shard is to do, several for one shard in their order. The same body is split in the same way.
    pub parts: Vec<(ShardId, Kind, Bytes)>,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// It is never lost.
    Taken {
        /// Its number.
        uid: TaskUid,
        /// The task.
        head: Box<Head>,
        /// Of the shard that has the fewest in sync: how many are.
        in_sync: usize,
        /// How many copies that shard should have.
        copies: usize,
    },
    /// The key stands for this task, which was taken before with the same body.
    Before(TaskUid, Box<Head>),
    /// The key stands for this task, of which a part was done and the rest never will be; to do all of it again could do
    /// something else than was meant.
    Half(TaskUid),
    /// The key stands for another body; nothing was done.
    KeyReused,
    /// Nothing was done.
    NotDone(NotDone),
    /// It may be done, now or later: the task will tell.
    Unknown(TaskUid),
}

/// Why nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotDone {
    /// A part is larger than an entry may be, or there are too many.
    TooLarge,
    /// Too few members are in sync, or no primary could be found.
    NoQuorum,
    /// Too much is under way.
    Busy,
    /// No task id was to be had, or nobody has room for the task.
    NoHome,
}

/// A write with its number.
struct Numbered<'a> {
    uid: TaskUid,
    head: Head,
    parts: &'a [(ShardId, Kind, Bytes)],
}

impl Numbered<'_> {
    /// What goes to the shards; `None` if it is too large.
    fn writes(&self) -> Option<Vec<(ShardId, Write)>> {
        let head = encode_head(&self.head)?;
        let mut counts: BTreeMap<u16, u32> = BTreeMap::new();
        let mut writes = Vec::with_capacity(self.parts.len());
        for (shard, kind, payload) in self.parts {
            let count = counts.entry(shard.0).or_default();
            let part = PartRef { shard: shard.0, part: *count }.of(self.uid);
            *count += 1;
            writes.push((*shard, Write { part, kind: *kind, body: join(&head, payload)? }));
        }
        Some(writes)
    }
}

impl NewWrite {
    fn head(&self) -> Head {
        let mut parts = Parts::default();
        for (shard, ..) in &self.parts {
            *parts.0.entry(shard.0).or_default() += 1;
        }
        let now = wall();
        let work = if parts.is_empty() {
            // Nothing to wait for: an empty list of documents, say.
            let (status, error) = (Status::Succeeded, None);
            Work::Nothing(Outcome { status, error, changed: 0, matched: 0, started: now, finished: now })
        } else {
            Work::Parts { index: self.index.clone(), parts }
        };
        Head {
            index_uid: Some(self.index_uid.clone()),
            subject: self.subject.clone(),
            work,
            enqueued: now,
            custom_metadata: self.custom_metadata.clone(),
            key: self.key.clone(),
        }
    }
}

impl Homes {
    /// Takes a write, or says why not.
    ///
    /// Dropping the future does not undo it.
    pub async fn submit(&self, sender: &Sender, write: NewWrite, deadline: Instant, trace: TraceId) -> Submitted {
        let Ok(uid) = self.next_uid().await else { return Submitted::NotDone(NotDone::NoHome) };
        let mut one = Numbered { uid, head: write.head(), parts: &write.parts };
        let Some(mut writes) = one.writes() else { return Submitted::NotDone(NotDone::TooLarge) };
        let shards = write.parts.iter().map(|(shard, ..)| *shard).collect();
        match sender.ready(&write.index, &shards, deadline).await {
            Ok(()) => {}
            Err(NotReady::NoQuorum) => return Submitted::NotDone(NotDone::NoQuorum),
            Err(NotReady::Pressed) => return Submitted::NotDone(NotDone::Busy),
        }
        // What stands in shards while nobody can keep the task is done, and nobody may be told: it is not sent.
        if !self.has_room(sender, uid, deadline).await {
            return Submitted::NotDone(NotDone::NoHome);
        }
        if let Some(key) = &write.key {
            if let Some(submitted) = self.keep_with_key(sender, key, &mut one, deadline, trace).await {
                return submitted;
            }
            writes.iter_mut().for_each(|(_, write)| write.part.task = one.uid);
            let answers = sender.send(&write.index, writes, deadline, trace).await;
            return said(one.uid, one.head, &answers, Ok(()));
        }
        let take = self.take(uid, &one.head, deadline, trace);
        let (taken, answers) = tokio::join!(take, sender.send(&write.index, writes, deadline, trace));
        if let Err(reason) = &taken {
            tracing::warn!(task = %uid, home = home_of(uid), %reason, "a task was not kept in time");
        }
        said(uid, one.head, &answers, taken)
    }

    /// Whether the home of a task has a primary and enough copies that have room, or gets them soon.
    pub async fn has_room(&self, sender: &Sender, uid: TaskUid, deadline: Instant) -> bool {
        let home = [ShardId(home_of(uid))].into();
        !matches!(sender.ready(&PhysicalIndex::of_tasks(), &home, deadline).await, Err(NotReady::NoQuorum))
    }

    /// The same for a task of which nothing goes to any shard, because it is over as it is taken; it may have a key.
    ///
    /// Dropping the future does not undo it.
    pub async fn submit_over(&self, sender: &Sender, head: Head, deadline: Instant, trace: TraceId) -> Submitted {
        let Ok(uid) = self.next_uid().await else { return Submitted::NotDone(NotDone::NoHome) };
        let key = head.key.clone();
        let mut one = Numbered { uid, head, parts: &[] };
        let taken = match &key {
            Some(key) => match self.keep_with_key(sender, key, &mut one, deadline, trace).await {
                Some(submitted) => return submitted,
                None => Ok(()),
            },
            None => self.take(uid, &one.head, deadline, trace).await,
        };
        said(one.uid, one.head, &[], taken)
    }

    /// What a key stands for, where that alone says what is to be answered, whatever could be done now: a task that was done,
    /// or is forgotten (then `head` is shown), or another body. `None`: the write is to be submitted, which settles the key.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`HomeError`]; nothing was done.
    pub async fn before(
        &self,
        (key, hash): &(String, [u8; 32]),
        head: Head,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Option<Submitted>, HomeError> {
        let Some((uid, known)) = self.known(key, deadline, trace).await? else { return Ok(None) };
        let shown = match self.get_soon(uid, deadline, trace).await? {
            // It never was, and never will be.
            None if self.void(uid, deadline, trace).await? => return Ok(None),
            None => self.get(uid, deadline, trace).await?,
            shown => shown,
        };
        Ok(match shown {
            _ if known != *hash => Some(Submitted::KeyReused),
            Some(shown) => is_whole(&shown).then(|| Submitted::Before(uid, Box::new(shown.head))),
            None => Some(Submitted::Before(uid, Box::new(head))),
        })
    }

    /// Settles the key, and has the task kept under its number. `None`: both are so.
    async fn keep_with_key(
        &self,
        sender: &Sender,
        key: &(String, [u8; 32]),
        one: &mut Numbered<'_>,
        deadline: Instant,
        trace: TraceId,
    ) -> Option<Submitted> {
        match self.with_key(sender, key, one, deadline, trace).await {
            Ok(None) => {}
            Ok(Some(submitted)) => return Some(submitted),
            // The key may be settled; no part was sent.
            Err(_) => return Some(Submitted::NotDone(NotDone::NoHome)),
        }
        let Err(error) = self.take(one.uid, &one.head, deadline, trace).await else { return None };
        tracing::debug!(uid = %one.uid, %error, "a task was not kept; nothing of it was sent");
        // Somebody else with the key may have taken this one for dead, and made its number void.
        match self.with_key(sender, key, one, deadline, trace).await {
            Ok(Some(submitted)) => Some(submitted),
            _ => Some(Submitted::NotDone(NotDone::NoHome)),
        }
    }

    /// Settles the key. `None`: it stands for this task, whose number may be another than before.
    async fn with_key(
        &self,
        sender: &Sender,
        (key, hash): &(String, [u8; 32]),
        one: &mut Numbered<'_>,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Option<Submitted>, HomeError> {
        let mut replaces = None;
        for _ in 0..KEY_TRIES {
            if replaces.is_some() {
                // What stands under the number before may have come too late to settle anything: that would be all that ever
                // stands there.
                one.uid = self.next_uid().await?;
            }
            let (uid, same_body) = self.settle((key, *hash), one.uid, replaces, deadline, trace).await?;
            if uid == one.uid {
                return Ok(None);
            }
            match self.get_soon(uid, deadline, trace).await? {
                Some(_) if !same_body => return Ok(Some(Submitted::KeyReused)),
                Some(shown) => match end(&shown, one) {
                    None => return Ok(Some(self.go_on(sender, uid, shown, one, deadline, trace).await)),
                    Some(End::Whole) => return Ok(Some(Submitted::Before(uid, Box::new(shown.head)))),
                    Some(End::Half) => return Ok(Some(Submitted::Half(uid))),
                    Some(End::Again) => replaces = Some(uid),
                },
                // Whoever had it is gone, or slow: from here on its head is not taken any more.
                None if self.void(uid, deadline, trace).await? => replaces = Some(uid),
                // It came meanwhile, and is looked at again; or was kept once, and is forgotten or deleted since it ended.
                None if self.get(uid, deadline, trace).await?.is_some() => {}
                None if !same_body => return Ok(Some(Submitted::KeyReused)),
                None => return Ok(Some(Submitted::Before(uid, Box::new(one.head.clone())))),
            }
        }
        Err(HomeError::NoAnswer)
    }

    /// A task that somebody else is having kept, or was.
    async fn get_soon(&self, uid: TaskUid, deadline: Instant, trace: TraceId) -> Result<Option<Shown>, HomeError> {
        let until = deadline.min(Instant::now() + HEAD_PATIENCE);
        loop {
            match self.get(uid, deadline, trace).await? {
                None if Instant::now() < until => tokio::time::sleep(HEAD_PAUSE).await,
                shown => return Ok(shown),
            }
        }
    }

    /// A task that was taken before goes on with the same body: its parts are sent again, as they were.
    async fn go_on(
        &self,
        sender: &Sender,
        uid: TaskUid,
        shown: Shown,
        one: &Numbered<'_>,
        deadline: Instant,
        trace: TraceId,
    ) -> Submitted {
        let Work::Parts { index, .. } = &shown.head.work else { return Submitted::Unknown(uid) };
        if shown.head.work != one.head.work {
            // It is split in another way by now: only its own end can tell.
            return Submitted::Unknown(uid);
        }
        let again = Numbered { uid, head: shown.head.clone(), ..*one };
        let Some(writes) = again.writes() else { return Submitted::Unknown(uid) };
        let answers = sender.send(index, writes, deadline, trace).await;
        match said(uid, shown.head.clone(), &answers, Ok(())) {
            Submitted::Taken { .. } => Submitted::Before(uid, Box::new(shown.head)),
            // The task is kept, whatever became of this attempt.
            _ => Submitted::Unknown(uid),
        }
    }
}

/// What the end of a task says to whoever sends the same again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was done, or refused by the nodes.
    Whole,
    /// Some of it was done, and may not be done twice.
    Half,
    /// It is to be done anew.
    Again,
}

/// Whether it was done, or refused by the nodes; or is as good as that, for nothing is left to be done.
fn is_whole(shown: &Shown) -> bool {
    let incomplete =
        |outcome: &Outcome| outcome.error.as_ref().is_some_and(|e| e.code == ErrorCode::MiroirIncomplete.as_str());
    match &shown.outcome {
        Some(outcome) => !incomplete(outcome) && outcome.status != Status::Canceled,
        None => matches!(shown.head.work, Work::Nothing(_)),
    }
}

/// `None`: it has not ended.
fn end(shown: &Shown, one: &Numbered<'_>) -> Option<End> {
    if is_whole(shown) {
        return Some(End::Whole);
    }
    shown.outcome.as_ref()?;
    let all = match &shown.head.work {
        Work::Parts { parts, .. } => parts.len(),
        _ => 0,
    };
    let half = shown.refused < all && one.parts.iter().any(|(_, kind, _)| is_conditional(*kind));
    Some(if half { End::Half } else { End::Again })
}

/// Whether what it does depends on what is there, so that it does something else when it is done later again.
fn is_conditional(kind: Kind) -> bool {
    match kind {
        Kind::Set { skip_creation } | Kind::Merge { skip_creation } => skip_creation,
        Kind::Delete | Kind::Clear => false,
        _ => true,
    }
}

/// What a client may be told.
fn said(uid: TaskUid, head: Head, answers: &[Answer], taken: Result<(), HomeError>) -> Submitted {
    let stands = |answer: &Answer| matches!(answer, Answer::Committed { refused: false, .. });
    if taken.is_ok() && answers.iter().all(stands) {
        let counts = answers.iter().filter_map(|answer| match answer {
            Answer::Committed { in_sync, copies, .. } => Some((*in_sync, *copies)),
            _ => None,
        });
        let (in_sync, copies) =
            counts.max_by_key(|(in_sync, copies)| copies.saturating_sub(*in_sync)).unwrap_or((0, 0));
        return Submitted::Taken { uid, head: Box::new(head), in_sync, copies };
    }
    let certain =
        |answer: &Answer| matches!(answer, Answer::NoQuorum | Answer::Busy | Answer::Refused | Answer::NotPrimary(_));
    if !answers.iter().all(certain) {
        return Submitted::Unknown(uid);
    }
    Submitted::NotDone(match answers.first() {
        None => NotDone::NoHome,
        Some(_) if answers.contains(&Answer::Refused) => NotDone::TooLarge,
        Some(_) if answers.contains(&Answer::Busy) => NotDone::Busy,
        Some(_) => NotDone::NoQuorum,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(in_sync: usize, copies: usize) -> Answer {
        Answer::Committed { seq: 1, refused: false, in_sync, copies }
    }

    #[test]
    fn a_client_hears_of_success_only_if_everything_stands() {
        let head = || Head {
            index_uid: None,
            subject: Subject::Clear,
            work: Work::Order,
            enqueued: wall(),
            custom_metadata: None,
            key: None,
        };
        let uid = TaskUid(7);
        let refused = Answer::Committed { seq: 1, refused: true, in_sync: 3, copies: 3 };
        let said = |answers: &[Answer], taken| said(uid, head(), answers, taken);
        let taken = said(&[there(3, 3), there(2, 3)], Ok(()));
        assert!(matches!(taken, Submitted::Taken { in_sync: 2, copies: 3, .. }), "{taken:?}");
        assert!(matches!(said(&[], Ok(())), Submitted::Taken { .. }));
        let unknown = Submitted::Unknown(uid);
        assert_eq!(said(&[there(3, 3), refused.clone()], Ok(())), unknown);
        assert_eq!(said(&[there(3, 3), Answer::NoQuorum], Ok(())), unknown);
        assert_eq!(said(&[there(3, 3)], Err(HomeError::NoAnswer)), unknown);
        assert_eq!(said(&[Answer::NoQuorum, Answer::Busy], Ok(())), Submitted::NotDone(NotDone::Busy));
        assert_eq!(said(&[Answer::NoQuorum], Err(HomeError::NoAnswer)), Submitted::NotDone(NotDone::NoQuorum));
        assert_eq!(said(&[], Err(HomeError::NoAnswer)), Submitted::NotDone(NotDone::NoHome));
    }
}
