//! What other services see of the ledger.
//!
//! Rule: whatever is told here has been durable before. Must not know: how the core is run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use twox_hash::XxHash64;

use super::inbox::{Inbox, NotTaken};
use crate::proto::env::Instant;
use crate::proto::ledger::{Answer, Bootstrap, Notice};
use crate::rt::clock;
use crate::store::StoreError;
use crate::types::{MemberId, MeshId, MeshRecord, RecordKey, Value, Versioned, VoterList};

/// Notices that are kept for the status page.
const NOTICES: usize = 64;
/// Sightings that a subscriber may lag behind.
const SIGHTINGS: usize = 4_096;

/// The longest nap: timers of the runtime do not run while the machine sleeps.
const NAP: Duration = Duration::from_secs(1);

/// How long a driver sleeps whose core wants a tick at `wake`.
pub fn nap(wake: Option<Instant>) -> Duration {
    wake.map_or(NAP, |wake| wake.since(now()).min(NAP))
}

/// The instant on the clock that the ledger and leases go by.
pub fn now() -> Instant {
    Instant::default().plus(clock::since_boot())
}

/// One change that is wanted.
#[derive(Debug, Clone)]
pub struct ChangeRequest {
    /// Which record.
    pub key: RecordKey,
    /// The version that is to be replaced; 0 for a record that has none.
    pub expected: u64,
    /// The new value.
    pub value: Value,
    /// Not pushed and not in digests: a lease's renewal.
    pub quiet: bool,
}

/// This member's copies of all records at one moment; cheap to hold.
#[derive(Debug, Clone, Default)]
pub struct Copies {
    records: BTreeMap<RecordKey, Versioned>,
    // The hashes of keys and announced versions, XORed.
    sum: u64,
}

impl Copies {
    pub(super) fn new(records: BTreeMap<RecordKey, Versioned>) -> Self {
        let sum = records.iter().fold(0, |sum, (key, record)| sum ^ hash(key, record));
        Self { records, sum }
    }

    pub(super) fn put(&mut self, key: RecordKey, record: Versioned) {
        self.sum ^= hash(&key, &record);
        if let Some(old) = self.records.insert(key.clone(), record) {
            self.sum ^= hash(&key, &old);
        }
    }

    /// The copy of one record.
    pub fn get(&self, key: &RecordKey) -> Option<&Versioned> {
        self.records.get(key)
    }

    /// All copies in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&RecordKey, &Versioned)> {
        self.records.iter()
    }

    /// The copies whose keys begin so, in the order of keys.
    pub fn beginning_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a RecordKey, &'a Versioned)> {
        let from = RecordKey::new(prefix).ok();
        let all = from.into_iter().flat_map(|from| self.records.range(from..));
        all.take_while(move |(key, _)| key.as_str().starts_with(prefix))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Equal on members that have the same copies, quiet changes aside.
    pub fn digest(&self) -> u64 {
        self.sum
    }

    /// The same of some of the copies only.
    pub fn digest_of(&self, wanted: impl Fn(&RecordKey) -> bool) -> u64 {
        self.records.iter().filter(|(key, _)| wanted(key)).fold(0, |sum, (key, record)| sum ^ hash(key, record))
    }
}

fn hash(key: &RecordKey, record: &Versioned) -> u64 {
    let mut bytes = record.announced.to_le_bytes().to_vec();
    bytes.extend_from_slice(key.as_str().as_bytes());
    XxHash64::oneshot(0, &bytes)
}

/// A sign of a record.
#[derive(Debug, Clone)]
pub enum Sighting {
    /// This voter has accepted the value, chosen or not: its writer lives, and nothing more.
    Accepted(RecordKey, Versioned),
    /// The value is chosen, and this member's copy.
    Copied(RecordKey, Versioned),
}

/// Hears of new copies before the change that made them is answered.
pub trait Follower: Send + Sync {
    /// These copies have been replaced; `now` are all of them.
    fn copied(&self, news: &[(RecordKey, Versioned)], now: &Copies);
}

/// What people and other services may know of the ledger.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The mesh, once its record is known to be chosen.
    pub mesh: Option<MeshId>,
    /// The mesh record's copy, if it can be read.
    pub record: Option<Arc<MeshRecord>>,
    /// The newest voter list.
    pub voters: Option<Arc<VoterList>>,
    /// Whether somebody has given this member a list to make a mesh with.
    pub bootstrap: bool,
    /// What to do about a store that is older than it was; this member neither votes nor changes anything.
    pub rolled_back: Option<String>,
    /// The members that this process waits for before it votes and changes records; `None` once it does.
    pub waits_to_vote: Option<Vec<MemberId>>,
    /// The operator's order under which this member has left its mesh, until it belongs to the new one.
    pub recovering: Option<Recovery>,
    /// The last notices with their times (RFC 3339), oldest first.
    pub notices: VecDeque<(String, Notice)>,
}

/// Survivors are making a new mesh; until it is made this member belongs to none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// The mesh that is being made.
    #[serde(serialize_with = "as_text")]
    pub new: MeshId,
    /// Who makes it.
    pub leader: MemberId,
    /// Everyone who takes part.
    pub survivors: BTreeSet<MemberId>,
    /// Who has not handed over its records; known to the leader only.
    pub missing: BTreeSet<MemberId>,
}

fn as_text<S: serde::Serializer>(mesh: &MeshId, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(mesh)
}

impl Status {
    pub(super) fn note(&mut self, notice: Notice) {
        if self.notices.len() >= NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back((clock::now_rfc3339(), notice));
    }
}

/// A notice for people.
pub fn words(notice: &Notice) -> String {
    match notice {
        Notice::OtherMesh { member, mesh } => {
            format!("{member} belongs to another mesh, {mesh}; nothing is exchanged with it")
        }
        Notice::OtherBootstrap { member } => {
            format!(
                "the bootstrap list of {member} differs from this member's; no mesh is made until they are the same"
            )
        }
        Notice::StoreRolledBack { member } => {
            format!(
                "the store of {member} is older than it was, and is refused; move it away and let it start with an empty one"
            )
        }
        Notice::Malformed { member, error } => format!("a ledger message of {member} was dropped: {error}"),
        Notice::Waiting { members } if members.is_empty() => {
            "all members of the bootstrap list have answered".to_owned()
        }
        Notice::Waiting { members } => {
            let names: Vec<&str> = members.iter().map(MemberId::as_str).collect();
            format!("the mesh is not made yet: {} have not answered", names.join(", "))
        }
        Notice::Recovering { new, leader, missing } if missing.is_empty() => {
            format!("on an operator's order this member has left its mesh; {leader} makes the new one, {new}")
        }
        Notice::Recovering { new, missing, .. } => {
            let names: Vec<&str> = missing.iter().map(MemberId::as_str).collect();
            let names = names.join(", ");
            format!("the survivors go on as mesh {new} when all of them take part: waiting for {names}")
        }
        Notice::VotersChanging { number } => format!("the voters are being changed to list {number}"),
        Notice::VotersSettled { number } => format!("voter list {number} has taken over"),
        Notice::Broken { invariant, key } => format!("the record `{key}` broke the invariant {invariant}"),
    }
}

/// What the driver is told by this process.
#[derive(Debug)]
pub(super) enum Input {
    Change(Vec<ChangeRequest>, Instant, oneshot::Sender<Vec<Answer>>),
    Read(Vec<RecordKey>, Instant, oneshot::Sender<Vec<Answer>>),
    Peers(BTreeSet<MemberId>),
    Recover(BTreeSet<MemberId>),
    Init(Box<Bootstrap>, String, oneshot::Sender<Result<(), InitError>>),
}

/// Why a bootstrap list was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InitError {
    /// It belongs to a mesh.
    #[error("this member belongs to mesh {0} already")]
    Member(MeshId),
    /// It has the list of its configuration.
    #[error("this member makes a mesh with the list of its configuration ([mesh] bootstrap), which is another")]
    Configured,
    /// The driver has ended.
    #[error("this member's ledger has ended")]
    Ended,
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What handle and driver share.
#[derive(Debug)]
pub(super) struct Shared {
    // Readers take the Arc out; the lock is held for a pointer's copy only.
    pub(super) copies: RwLock<Arc<Copies>>,
    pub(super) changed: watch::Sender<u64>,
    pub(super) status: watch::Sender<Status>,
    /// The instant until which the copies are fresh.
    pub(super) fresh_until: watch::Sender<Instant>,
    pub(super) sightings: broadcast::Sender<Sighting>,
}

impl Shared {
    pub(super) fn new(copies: Copies, status: Status) -> Self {
        Self {
            copies: RwLock::new(Arc::new(copies)),
            changed: watch::Sender::new(0),
            status: watch::Sender::new(status),
            fresh_until: watch::Sender::new(Instant::default()),
            sightings: broadcast::Sender::new(SIGHTINGS),
        }
    }

    pub(super) fn copies(&self) -> Arc<Copies> {
        Arc::clone(&self.copies.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The ledger, as other services use it; cheap to clone.
#[derive(Debug, Clone)]
pub struct LedgerHandle {
    pub(super) member: MemberId,
    pub(super) start: u64,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) inbox: Inbox,
    pub(super) shared: Arc<Shared>,
}

impl LedgerHandle {
    /// This member.
    pub fn member(&self) -> &MemberId {
        &self.member
    }

    /// This process's number in its store: with the member it names the process.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Changes one record; gives up after `patience`.
    ///
    /// Dropping the future does not undo it: the change goes on.
    pub async fn change(&self, change: ChangeRequest, patience: Duration) -> Answer {
        self.change_many(vec![change], patience).await.pop().unwrap_or(Answer::Unknown)
    }

    /// Changes several records, each on its own, in one message to each voter; the answers come in the same order, once
    /// all are there.
    ///
    /// Dropping the future does not undo them: the changes go on.
    pub async fn change_many(&self, changes: Vec<ChangeRequest>, patience: Duration) -> Vec<Answer> {
        let count = changes.len();
        self.ask(count, patience, |deadline, answer| Input::Change(changes, deadline, answer)).await
    }

    /// Reads one record from a majority.
    ///
    /// Cancel-safe.
    pub async fn read(&self, key: RecordKey, patience: Duration) -> Answer {
        let answers = self.ask(1, patience, |deadline, answer| Input::Read(vec![key], deadline, answer));
        answers.await.pop().unwrap_or(Answer::NoQuorum)
    }

    /// Reads several records from a majority, in one message to each voter.
    ///
    /// Cancel-safe.
    pub async fn read_many(&self, keys: Vec<RecordKey>, patience: Duration) -> Vec<Answer> {
        let count = keys.len();
        self.ask(count, patience, |deadline, answer| Input::Read(keys, deadline, answer)).await
    }

    async fn ask(
        &self,
        count: usize,
        patience: Duration,
        input: impl FnOnce(Instant, oneshot::Sender<Vec<Answer>>) -> Input,
    ) -> Vec<Answer> {
        let (answer, wait) = oneshot::channel();
        // Nobody waits at the door for longer than for the answer.
        match self.inputs.send_timeout(input(now().plus(patience), answer), patience).await {
            Ok(()) => wait.await.unwrap_or_else(|_| vec![Answer::Unknown; count]),
            Err(_) => vec![Answer::NoQuorum; count],
        }
    }

    /// Hands over a peer's message, encoded.
    ///
    /// # Errors
    /// [`NotTaken`]; the message is dropped then, which its sender must be ready for anyway.
    pub fn deliver(&self, from: &MemberId, body: &Bytes) -> Result<(), NotTaken> {
        self.inbox.put(from, body)
    }

    /// The copies now.
    pub fn copies(&self) -> Arc<Copies> {
        self.shared.copies()
    }

    /// Wakes whenever a copy changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Every sign of a record from now on. Who lags too far behind loses some, and looks at the copies instead.
    pub fn sightings(&self) -> broadcast::Receiver<Sighting> {
        self.shared.sightings.subscribe()
    }

    /// Whether the copies hold everything that was announced a TTL less margin ago.
    pub fn fresh(&self) -> bool {
        now() < *self.shared.fresh_until.borrow()
    }

    /// Until when the copies are fresh, as far as is known; wakes whenever that changes.
    pub fn fresh_until(&self) -> watch::Receiver<Instant> {
        self.shared.fresh_until.subscribe()
    }

    /// Waits until the copies are fresh.
    ///
    /// Cancel-safe.
    pub async fn wait_fresh(&self) {
        // The sender lives in `self`.
        let _ = self.shared.fresh_until.subscribe().wait_for(|until| now() < *until).await;
    }

    /// The mesh, once its record is known to be chosen.
    pub fn mesh(&self) -> Option<MeshId> {
        self.shared.status.borrow().mesh
    }

    /// The newest voter list.
    pub fn voters(&self) -> Option<Arc<VoterList>> {
        self.shared.status.borrow().voters.clone()
    }

    /// What people and other services may know; wakes whenever it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Says whom to ask about a mesh, and to compare with, besides those in the bootstrap list.
    pub async fn set_peers(&self, members: BTreeSet<MemberId>) {
        // Without its driver the process is about to end.
        drop(self.inputs.send(Input::Peers(members)).await);
    }

    /// An operator's order: the named members, this one among them, go on without the others as a new mesh.
    pub async fn recover(&self, survivors: BTreeSet<MemberId>) {
        drop(self.inputs.send(Input::Recover(survivors)).await);
    }

    /// Gives this member, which belongs to no mesh, the list with which one is made; `text` is stored for later starts.
    ///
    /// # Errors
    /// [`InitError`]; nothing has changed then.
    pub async fn init(&self, list: Bootstrap, text: String) -> Result<(), InitError> {
        let (answer, wait) = oneshot::channel();
        self.inputs.send(Input::Init(Box::new(list), text, answer)).await.map_err(|_| InitError::Ended)?;
        wait.await.unwrap_or(Err(InitError::Ended))
    }
}
