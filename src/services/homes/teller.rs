//! What this member can say of parts: that they stand, from its journals; what became of them, from its applier.
//!
//! Rule: a part is said to be there only if it is known to be committed, and to be done only if the node has applied it and it
//! is known how.
//! Errors are said with the client's names. Must not know: who asks, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::call::Told;
use super::copies::Copies;
use super::wall;
use crate::proto::document::error_text;
use crate::proto::journal::Entry;
use crate::proto::tasks::Head;
use crate::proto::tasks::home::body::head_of;
use crate::proto::tasks::home::effect::REPORT_ITEMS_MAX;
use crate::proto::tasks::home::{Done, PartRef, Report, Said};
use crate::services::journal::JournalHandle;
use crate::store::StoreError;
use crate::types::limits::HOME_CALL_MAX_BYTES;
use crate::types::{IndexUid, JournalKey, PhysicalIndex, ShardId, TaskUid};

/// Bytes of an entry that are read beside others.
const READ_BYTES: usize = 1 << 20;
/// Tasks whose parts are remembered, so that their heads can be named.
const PLACES: usize = 16_384;

/// What this member's appliers have done.
#[async_trait]
pub trait Outcomes: Send + Sync + 'static {
    /// Up to where a shard's entries are applied from now on. Who lags too far behind loses some.
    fn subscribe(&self) -> broadcast::Receiver<(JournalKey, u64)>;

    /// Up to where they are applied, as far as is known here.
    fn applied(&self, key: &JournalKey) -> u64;

    /// What became of these entries, in their order; `None` of one that is not applied, or not remembered. Errors in them are
    /// the node's.
    ///
    /// # Errors
    /// [`StoreError`]: it can't be read.
    async fn outcomes(&self, key: &JournalKey, seqs: &[u64]) -> Result<Vec<Option<Done>>, StoreError>;
}

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Teller {
    pub(super) journals: JournalHandle,
    pub(super) outcomes: Arc<dyn Outcomes>,
    // Where parts of tasks stand of which this member has reported.
    places: Arc<Mutex<BTreeMap<TaskUid, (JournalKey, u64)>>>,
    /// For members whose copy of a home must be made anew.
    pub(super) copies: Copies,
}

impl std::fmt::Debug for Teller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Teller").finish_non_exhaustive()
    }
}

impl Teller {
    /// Over journals and what is done with them.
    pub fn new(journals: JournalHandle, outcomes: Arc<dyn Outcomes>) -> Self {
        Self { journals, outcomes, places: Arc::default(), copies: Copies::default() }
    }

    /// What became of entries; `None` if it can't be read.
    pub(super) async fn outcomes(&self, key: &JournalKey, seqs: &[u64]) -> Option<Vec<Option<Done>>> {
        let read = self.outcomes.outcomes(key, seqs).await;
        if let Err(StoreError::Damaged { journal, reason }) = &read {
            self.journals.repair(journal, reason.clone()).await;
        }
        read.inspect_err(|error| tracing::error!(%key, %error, "what became of entries can't be read")).ok()
    }

    /// One committed entry.
    pub(super) async fn entry(&self, key: &JournalKey, seq: u64) -> Option<Entry> {
        let read = self.journals.read_committed(key, seq, 1, READ_BYTES).await;
        read.ok()?.pop().filter(|entry| entry.at.seq == seq)
    }

    /// What is known of parts of a task.
    pub(super) async fn parts(&self, uid: TaskUid, index: &PhysicalIndex, parts: Vec<PartRef>) -> Told {
        if parts.len() > REPORT_ITEMS_MAX || index.is_of_tasks() {
            return Told::Malformed;
        }
        let mut report = Report::default();
        for part in parts {
            if let Some(said) = self.part(uid, index, part).await {
                report.parts.push((uid, part, said));
            }
        }
        Told::Report(report)
    }

    async fn part(&self, uid: TaskUid, index: &PhysicalIndex, part: PartRef) -> Option<Said> {
        let key = JournalKey { index: index.clone(), shard: ShardId(part.shard) };
        let stands = self.journals.find(&key, part.of(uid)).await.ok()??;
        let applied = self.outcomes.applied(&key);
        let committed = self.journals.committed(&key).unwrap_or(0).max(applied);
        // What was refused is said by the shard's primary alone.
        if stands.refused || stands.seq > committed {
            return None;
        }
        if stands.seq > applied {
            return Some(Said::There);
        }
        self.remember(uid, &key, stands.seq);
        // Done it is, but how can't be said.
        let Some(mut done) = self.outcomes(&key, &[stands.seq]).await else { return Some(Said::There) };
        let done = done.pop().flatten();
        let entry = match &done {
            Some(Done { error: Some(_), .. }) => self.entry(&key, stands.seq).await,
            _ => None,
        };
        // Applied so long ago that nothing more is known of it: every replica has it.
        let long_ago = || Done { error: None, changed: 0, started: wall(), finished: wall() };
        Some(Said::Done(in_clients_words(done.unwrap_or_else(long_ago), index, entry.as_ref())))
    }

    /// The heads of tasks of which this member has reported parts.
    pub(super) async fn heads(&self, uids: &BTreeSet<TaskUid>) -> Told {
        let (mut report, mut bytes) = (Report::default(), 0);
        for uid in uids {
            let Some(head) = self.head(*uid).await else { continue };
            bytes += serde_json::to_vec(&head).map_or(0, |text| text.len());
            if bytes > HOME_CALL_MAX_BYTES / 2 && !report.heads.is_empty() {
                break;
            }
            report.heads.push((*uid, head));
        }
        Told::Report(report)
    }

    /// The head that a part of a task names.
    pub(super) async fn head(&self, uid: TaskUid) -> Option<Head> {
        let place = self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned();
        let (key, seq) = place?;
        let entry = self.entry(&key, seq).await?;
        head_of(&entry.body.0).filter(|_| entry.part.is_some_and(|part| part.task == uid))
    }

    /// A part of this task stands there.
    pub(super) fn remember(&self, uid: TaskUid, key: &JournalKey, seq: u64) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.insert(uid, (key.clone(), seq));
        while places.len() > PLACES {
            places.pop_first();
        }
    }
}

/// What became of a part, with the client's name of the index in the text.
pub(super) fn in_clients_words(mut done: Done, index: &PhysicalIndex, entry: Option<&Entry>) -> Done {
    let head = entry.and_then(|entry| head_of(&entry.body.0));
    let uid = head.and_then(|head| head.index_uid).and_then(|uid| IndexUid::new(uid).ok());
    if let (Some((_, message)), Some(uid)) = (&mut done.error, uid) {
        *message = error_text(message, index, &uid);
    }
    done
}
