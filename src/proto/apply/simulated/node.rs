//! The node: a queue of tasks with numbers, batches, and documents.

use std::collections::{BTreeMap, BTreeSet};

use super::data::{Bad, Document, Documents, Entry};
use crate::proto::apply::{Flaw, Group, Listed, Page, Probed, Status, Tag, TaskRef};
use crate::proto::env::Instant;
use crate::proto::journal::Kind;
use crate::types::ShardId;

#[derive(Debug, Clone)]
pub enum Work {
    Entries(Vec<(ShardId, u64, Entry)>),
    /// A snapshot of a shard at a position.
    Copy(ShardId, u64, Documents),
    /// Documents as they are elsewhere, the entries that are thereby dealt with, and the position there.
    Documents(ShardId, Vec<(u32, Option<Document>)>, BTreeSet<u64>, u64),
    /// Of another index, or of another type.
    Other,
}

#[derive(Debug, Clone)]
pub struct Task {
    at: TaskRef,
    group: Group,
    tag: Tag,
    work: Work,
    status: Status,
    batch: Option<u32>,
}

/// All that goes back when a backup is put in.
#[derive(Debug, Clone, Default)]
struct Memory {
    tasks: BTreeMap<u32, Task>,
    docs: BTreeMap<ShardId, Documents>,
    /// Entries that had their effect, and how often.
    done: BTreeMap<(ShardId, u64), u32>,
    copies: BTreeMap<ShardId, u64>,
    deletion: Option<TaskRef>,
    /// Up to where some documents are ahead.
    ahead: BTreeMap<ShardId, u64>,
}

#[derive(Debug)]
pub struct Node {
    memory: Memory,
    backups: Vec<Memory>,
    rng: fastrand::Rng,
    stamps: u64,
    batches: u32,
    /// Counts restarts.
    pub life: u64,
    pub working: bool,
    pub healthy: bool,
}

impl Node {
    pub fn new(rng: fastrand::Rng) -> Self {
        let memory = Memory::default();
        Self { memory, backups: Vec::new(), rng, stamps: 0, batches: 0, life: 0, working: false, healthy: false }
    }

    pub fn enqueue(&mut self, group: Group, tag: Tag, work: Work) -> TaskRef {
        self.stamps += 1;
        let uid = self.memory.tasks.last_key_value().map_or(0, |(uid, _)| uid + 1);
        let at = TaskRef { uid, enqueued_at: format!("2026-01-01T00:00:00.{:09}Z", self.stamps) };
        let task = Task { at: at.clone(), group, tag, work, status: Status::Waiting, batch: None };
        self.memory.tasks.insert(uid, task);
        at
    }

    /// Somebody else's task takes a number.
    pub fn other(&mut self) {
        self.enqueue(Group::Addition, Tag::Other, Work::Other);
    }

    pub fn waits(&self) -> bool {
        self.memory.tasks.values().any(|task| task.status == Status::Waiting)
    }

    /// Whether a task has ended; `None`: it is not there.
    pub fn ended(&self, task: &TaskRef) -> Option<bool> {
        let known = self.memory.tasks.get(&task.uid).filter(|known| known.at == *task)?;
        Some(known.status != Status::Waiting)
    }

    /// Entries of a shard that wait.
    pub fn waiting_entries(&self, shard: ShardId) -> usize {
        let of = |task: &Task| match &task.work {
            Work::Entries(entries) if task.status == Status::Waiting => {
                entries.iter().filter(|(of, _, _)| *of == shard).count()
            }
            _ => 0,
        };
        self.memory.tasks.values().map(of).sum()
    }

    /// The last entry of a shard that waits.
    pub fn waits_for(&self, shard: ShardId) -> Option<u64> {
        let of = |task: &Task| match &task.work {
            Work::Entries(entries) if task.status == Status::Waiting => {
                entries.iter().filter(|(of, _, _)| *of == shard).map(|(_, seq, _)| *seq).max()
            }
            _ => None,
        };
        self.memory.tasks.values().filter_map(of).max()
    }

    pub fn documents(&self, shard: ShardId) -> &Documents {
        static NONE: Documents = Documents::new();
        self.memory.docs.get(&shard).unwrap_or(&NONE)
    }

    pub fn has(&self, shard: ShardId, seq: u64) -> bool {
        self.has_copy_of(shard) >= seq || self.memory.done.contains_key(&(shard, seq))
    }

    /// Up to which entry a snapshot was put in.
    pub fn has_copy_of(&self, shard: ShardId) -> u64 {
        self.memory.copies.get(&shard).copied().unwrap_or(0)
    }

    /// The last entry of a shard that had an effect.
    pub fn furthest(&self, shard: ShardId) -> u64 {
        let done = self.memory.done.range((shard, 0)..=(shard, u64::MAX)).next_back();
        done.map_or(0, |((_, seq), _)| *seq)
            .max(self.has_copy_of(shard))
            .max(self.memory.ahead.get(&shard).copied().unwrap_or(0))
    }

    pub fn list(&self, from: Option<u32>, limit: u32) -> Page {
        let all = self.memory.tasks.values().rev().filter(|t| !matches!(t.work, Work::Other));
        let mut rest = all.filter(|t| from.is_none_or(|from| t.at.uid <= from));
        let listed = |t: &Task| Listed {
            task: t.at.clone(),
            batch: t.batch,
            group: t.group,
            tag: t.tag,
            status: t.status.clone(),
            began: None,
            count: None,
        };
        let tasks: Vec<_> = rest.by_ref().take(limit as usize).map(listed).collect();
        Page { newest: tasks.first().map(|t| t.task.uid), next: rest.next().map(|t| t.at.uid), tasks }
    }

    pub fn probe(&self, uid: u32) -> Probed {
        let enqueued_at = self.memory.tasks.get(&uid).map(|t| t.at.enqueued_at.clone());
        Probed { enqueued_at, deletion: self.memory.deletion.clone() }
    }

    pub fn back_up(&mut self) {
        self.backups.push(self.memory.clone());
        if self.backups.len() > 4 {
            let gone = self.rng.usize(..self.backups.len());
            self.backups.remove(gone);
        }
    }

    /// A backup is put in; says whether there was one.
    pub fn put_back(&mut self) -> bool {
        if self.backups.is_empty() {
            return false;
        }
        let which = self.rng.usize(..self.backups.len());
        self.memory = self.backups[which].clone();
        self.backups.truncate(which);
        true
    }

    /// An operator cancels something that waits.
    pub fn cancel(&mut self) {
        let waiting: Vec<u32> = self.own_waiting();
        if !waiting.is_empty() {
            let uid = waiting[self.rng.usize(..waiting.len())];
            self.memory.tasks.get_mut(&uid).unwrap().status = Status::Canceled;
            self.other();
        }
    }

    fn own_waiting(&self) -> Vec<u32> {
        let own = |t: &&Task| t.status == Status::Waiting && matches!(t.work, Work::Entries(_));
        self.memory.tasks.values().filter(own).map(|t| t.at.uid).collect()
    }

    /// All ended tasks go from the list.
    pub fn prune(&mut self) {
        self.other();
        self.memory.deletion = self.memory.tasks.last_key_value().map(|(_, task)| task.at.clone());
        let newest = self.memory.tasks.len();
        let mut left = newest;
        self.memory.tasks.retain(|_, task| {
            left -= 1;
            left == 0 || task.status == Status::Waiting || !matches!(task.work, Work::Entries(_) | Work::Other)
        });
    }

    /// Works on what waits: one batch, of entries of any kind but edits, or one task.
    pub fn batch(&mut self, now: Instant, trouble: bool) {
        let waiting: Vec<u32> =
            self.memory.tasks.values().filter(|t| t.status == Status::Waiting).map(|t| t.at.uid).collect();
        let joins = |work: &Work| match work {
            Work::Entries(entries) => entries.iter().all(|(_, _, e)| e.kind != Kind::Edit),
            _ => false,
        };
        let Some(first) = waiting.first() else { return };
        let many = if joins(&self.memory.tasks[first].work) { self.rng.usize(1..6) } else { 1 };
        let mut uids = vec![*first];
        uids.extend(waiting[1..].iter().take_while(|uid| joins(&self.memory.tasks[uid].work)).take(many - 1));
        self.batches += 1;
        let verdict = |code: &str| Some(Flaw::new(code, "an error"));
        let bad = |work: &Work, wanted: &dyn Fn(Bad) -> bool| match work {
            Work::Entries(entries) => entries.iter().any(|(_, _, e)| wanted(e.bad)),
            _ => false,
        };
        let mut whole = None;
        for uid in &uids {
            let work = &self.memory.tasks[uid].work;
            let poisoned = bad(work, &|bad| matches!(bad, Bad::Poison(until) if until > now));
            if trouble && matches!(work, Work::Entries(_)) {
                whole = verdict("no_space_left_on_device");
            } else if poisoned {
                whole = whole.or(verdict("internal"));
            } else if bad(work, &|bad| bad == Bad::Batch) {
                whole = whole.or(verdict("invalid_document_geo_field"));
            }
        }
        let before = self.memory.docs.clone();
        for uid in &uids {
            let task = self.memory.tasks.get_mut(uid).unwrap();
            task.batch = Some(self.batches);
            let own = bad(&task.work, &|bad| bad == Bad::Task).then(|| Flaw::new("invalid_document_id", "an error"));
            if let Some(flaw) = own.or(whole.clone()) {
                task.status = Status::Failed(flaw);
                continue;
            }
            task.status = Status::Succeeded;
            let work = task.work.clone();
            self.work(work, &before);
        }
    }

    /// Does a batch and dies before it has noted that: it does it again. Says whether there was an edit in it.
    pub fn dies_done(&mut self, now: Instant) -> bool {
        let waiting: Vec<u32> =
            self.memory.tasks.values().filter(|t| t.status == Status::Waiting).map(|t| t.at.uid).collect();
        self.batch(now, false);
        let mut edited = false;
        for uid in waiting {
            let Some(task) = self.memory.tasks.get_mut(&uid) else { continue };
            let edit =
                |work: &Work| matches!(work, Work::Entries(all) if all.iter().any(|(_, _, e)| e.kind == Kind::Edit));
            edited |= task.status == Status::Succeeded && edit(&task.work);
            (task.status, task.batch) = (Status::Waiting, None);
        }
        edited
    }

    fn work(&mut self, work: Work, before: &BTreeMap<ShardId, Documents>) {
        let none = Documents::new();
        match work {
            Work::Other => {}
            Work::Copy(shard, at, documents) => {
                self.memory.docs.insert(shard, documents);
                self.memory.done.retain(|(of, _), _| *of != shard);
                self.memory.copies.insert(shard, at);
                self.memory.ahead.remove(&shard);
            }
            Work::Documents(shard, documents, dealt, at) => {
                let ahead = self.memory.ahead.entry(shard).or_default();
                *ahead = at.max(*ahead);
                let docs = self.memory.docs.entry(shard).or_default();
                for (id, document) in documents {
                    match document {
                        Some(document) => docs.insert(id, document),
                        None => docs.remove(&id),
                    };
                }
                for seq in dealt {
                    self.memory.done.insert((shard, seq), 1);
                }
            }
            Work::Entries(entries) => {
                for (shard, seq, entry) in entries {
                    let docs = self.memory.docs.entry(shard).or_default();
                    // Within a task the order is kept; conditions look at what was before the batch.
                    entry.apply(docs, before.get(&shard).unwrap_or(&none));
                    *self.memory.done.entry((shard, seq)).or_default() += 1;
                }
            }
        }
    }
}
