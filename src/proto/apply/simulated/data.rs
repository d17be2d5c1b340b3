//! Entries, what they do to documents, and what a shard's documents must be after each.

use std::collections::BTreeMap;

use crate::proto::apply::Head;
use crate::proto::env::Instant;
use crate::proto::journal::Kind;
use crate::types::{ShardId, TaskPart, TaskUid};

pub type Document = BTreeMap<u8, u64>;
pub type Documents = BTreeMap<u32, Document>;

/// The field that edits count up.
const COUNTER: u8 = 9;

/// How an entry fails at the own node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    No,
    /// The request is refused at once.
    AtOnce,
    /// Its task.
    Task,
    /// The whole batch.
    Batch,
    /// The whole batch, with an error that is no verdict, until then.
    Poison(Instant),
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub kind: Kind,
    pub part: TaskPart,
    pub documents: Vec<(u32, Document)>,
    pub bad: Bad,
    pub primary_bad: bool,
    followed: bool,
}

impl Entry {
    /// Whether it has failed for all.
    pub fn is_failed(&self) -> bool {
        if self.followed { self.primary_bad } else { !matches!(self.bad, Bad::No | Bad::Poison(_)) }
    }

    /// Does it to `docs`, in a batch that began with `before`. Conditions look at what was before the batch, and a document
    /// that is only replaced if it exists takes those of the same batch with it, as on a v1.50 node.
    pub fn apply(&self, docs: &mut Documents, before: &Documents) {
        match self.kind {
            Kind::Set { skip_creation } => {
                for (id, document) in &self.documents {
                    if skip_creation && !before.contains_key(id) {
                        docs.remove(id);
                    } else {
                        docs.insert(*id, document.clone());
                    }
                }
            }
            Kind::Merge { skip_creation } => {
                for (id, document) in &self.documents {
                    if !skip_creation || before.contains_key(id) {
                        docs.entry(*id).or_default().extend(document);
                    }
                }
            }
            Kind::Delete => self.documents.iter().for_each(|(id, _)| {
                docs.remove(id);
            }),
            Kind::DeleteByFilter => {
                let found = before.iter().filter(|(_, d)| d.get(&0).is_some_and(|v| v % 3 == 0));
                found.for_each(|(id, _)| {
                    docs.remove(id);
                });
            }
            Kind::Edit => docs.values_mut().for_each(|d| *d.entry(COUNTER).or_default() += 1),
            Kind::Clear => docs.clear(),
            Kind::Empty | Kind::Refusal | Kind::Home => {}
        }
    }
}

/// The entries of all shards.
#[derive(Debug, Default)]
pub struct Journal {
    entries: BTreeMap<ShardId, Vec<Entry>>,
    states: BTreeMap<ShardId, Vec<Documents>>,
    pub floors: BTreeMap<ShardId, u64>,
    values: u64,
    tasks: u32,
}

impl Journal {
    pub fn open(&mut self, shard: ShardId) {
        self.entries.insert(shard, Vec::new());
        self.states.insert(shard, vec![Documents::new()]);
        self.floors.insert(shard, 0);
    }

    pub fn committed(&self, shard: ShardId) -> u64 {
        self.entries[&shard].len() as u64
    }

    pub fn entry(&self, shard: ShardId, seq: u64) -> &Entry {
        &self.entries[&shard][usize::try_from(seq).unwrap() - 1]
    }

    /// What its documents are after so many entries.
    pub fn state(&self, shard: ShardId, seq: u64) -> &Documents {
        &self.states[&shard][usize::try_from(seq).unwrap()]
    }

    pub fn heads(&self, shard: ShardId, from: u64, entries: usize, failed: impl Fn(u64) -> bool) -> Vec<Head> {
        if from <= self.floors[&shard] {
            return Vec::new();
        }
        let to = self.committed(shard).min(from + entries as u64 - 1);
        let head = |seq| {
            let entry = self.entry(shard, seq);
            let weight = 1 + entry.documents.len();
            Head { seq, kind: entry.kind, weight, failed: failed(seq), part: Some(entry.part) }
        };
        (from..=to).map(head).collect()
    }

    /// Whether a conditional entry stands behind `first`, up to `last`.
    pub fn has_conditional(&self, shard: ShardId, first: u64, last: u64) -> bool {
        (first + 1..=last).any(|seq| self.entry(shard, seq).kind.is_conditional())
    }

    /// A new entry.
    pub fn append(&mut self, rng: &mut fastrand::Rng, shard: ShardId, followed: bool, now: Instant) -> u64 {
        let kind = match rng.u32(0..100) {
            0..35 => Kind::Set { skip_creation: false },
            35..60 => Kind::Merge { skip_creation: false },
            60..72 => Kind::Delete,
            72..78 => Kind::Set { skip_creation: true },
            78..82 => Kind::Merge { skip_creation: true },
            82..86 => Kind::DeleteByFilter,
            86..92 => Kind::Edit,
            92..95 => Kind::Clear,
            _ => Kind::Empty,
        };
        let mut documents = Vec::new();
        for _ in 0..rng.usize(1..4) {
            self.values += 1;
            documents.push((rng.u32(0..8), [(rng.u8(0..4), self.values)].into()));
        }
        let later = now.plus(std::time::Duration::from_millis(rng.u64(0..5_000)));
        let bad = match rng.u32(0..200) {
            _ if kind == Kind::Empty => Bad::No,
            0..3 => Bad::AtOnce,
            3..7 => Bad::Task,
            7..13 => Bad::Batch,
            13..16 => Bad::Poison(later),
            _ => Bad::No,
        };
        let usual = !matches!(bad, Bad::No | Bad::Poison(_));
        let primary_bad = if rng.u32(0..40) == 0 { !usual } else { usual } && kind != Kind::Empty;
        self.tasks += rng.u32(0..2);
        let part = TaskPart { task: TaskUid(self.tasks), part: 0 };
        let entry = Entry { kind, part, documents, bad, primary_bad, followed };
        let states = self.states.get_mut(&shard).unwrap();
        let mut state = states.last().unwrap().clone();
        if !entry.is_failed() {
            let before = state.clone();
            entry.apply(&mut state, &before);
        }
        states.push(state);
        let entries = self.entries.get_mut(&shard).unwrap();
        entries.push(entry);
        entries.len() as u64
    }
}
