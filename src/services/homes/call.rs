//! What is asked of homes and members about tasks, and the answers, as they travel: JSON in the body of a call.
//!
//! Rule: what a peer sends is bounded, and each question to a home is one that this home is for. Must not know: who answers.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{home_of, home_of_key};
use crate::proto::journal::Stands;
use crate::proto::tasks::home::{Answer, PartRef, Refusal, Report, StoredRow};
use crate::proto::tasks::query::Action;
use crate::proto::tasks::{Filter, Head, Outcome, Page, Query, Shown, When};
use crate::types::limits::{HOME_CALL_MAX_BYTES, HOMES};
use crate::types::{Epoch, MemberId, PhysicalIndex, Position, TaskPart, TaskUid};

/// A question of one member to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Asked {
    /// To the primary of a home.
    Home(u16, Question),
    /// To a member.
    Member(MemberQuestion),
}

/// A question to the primary of a home. Asking again changes nothing more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Question {
    /// Keep this task.
    Head(TaskUid, Box<Head>),
    /// Never keep a task of this number.
    Void(TaskUid),
    /// Settle what a key stands for.
    Key {
        /// The key.
        key: String,
        /// Hash of the body that came with it.
        hash: [u8; 32],
        /// The task that it is to stand for.
        uid: TaskUid,
        /// A task that it stands for and that never was, or is forgotten.
        replaces: Option<TaskUid>,
    },
    /// What a key stands for, if anything.
    Known(String),
    /// An order has ended so.
    Outcome(TaskUid, Box<Outcome>),
    /// An order is being carried out since then.
    Begun(TaskUid, When),
    /// What the asking member has applied.
    Report(Report),
    /// Sweep for a task.
    Sweep(TaskUid, Action, Box<Filter>),
    /// A page of the tasks here.
    Page {
        /// Of which.
        query: Box<Query>,
        /// From where on.
        from: Option<u32>,
        /// How many.
        take: usize,
    },
    /// One task.
    Get(TaskUid),
    /// Which of these are not here.
    Gone(BTreeSet<TaskUid>),
}

/// A question to any member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MemberQuestion {
    /// What it knows of parts of a task.
    Parts(TaskUid, PhysicalIndex, Vec<PartRef>),
    /// The heads of tasks of which it has reported.
    Heads(BTreeSet<TaskUid>),
    /// Whether it carries out an order. If it does not, it never will.
    Order(TaskUid),
    /// What the member's copy of a home has applied, page by page.
    Copy {
        /// Which home.
        home: u16,
        /// As the first answer said; none: a copy is to be made.
        token: Option<u64>,
        /// Which page, from 0.
        page: usize,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Told {
    /// This member does not answer for the home now; whom it believes to.
    NotPrimary(Option<MemberId>, Epoch),
    /// The primary of this epoch says so.
    Home(Epoch, Said),
    /// A member reports.
    Report(Report),
    /// What became of an order.
    Order(Refusal),
    /// A part of a copy.
    Copy(Box<Copied>),
    /// Not now.
    Busy,
    /// That is no question.
    Malformed,
}

/// What a home's primary says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Said {
    /// To what changes something.
    Answer(Answer),
    /// To a report: these tasks need not be reported again, and of these the heads are wanted.
    Heard(BTreeSet<TaskUid>, BTreeSet<TaskUid>),
    /// A page.
    Page(Page<Shown>),
    /// A task, if there is one.
    Task(Option<Box<Shown>>),
    /// These are not here.
    Gone(BTreeSet<TaskUid>),
    /// The task that a key stands for, and the hash of the body that came with it.
    Known(Option<(TaskUid, [u8; 32])>),
}

/// A page of a home's copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Copied {
    /// Under which the other pages are had.
    pub token: u64,
    /// All pages: as it is after this entry.
    pub at: Position,
    /// Some of its rows.
    pub rows: Vec<StoredRow>,
    /// Some of the parts that stand in its journal.
    pub parts: Vec<(TaskPart, Stands)>,
    /// How many pages follow.
    pub left: usize,
}

impl Question {
    /// Whether this home is for it.
    pub(super) fn is_for(&self, home: u16) -> bool {
        home < HOMES
            && match self {
                Self::Head(uid, _) | Self::Void(uid) | Self::Outcome(uid, _) | Self::Begun(uid, _) | Self::Get(uid) => {
                    home_of(*uid) == home
                }
                Self::Key { key, .. } | Self::Known(key) => home_of_key(key) == home,
                Self::Report(report) => {
                    let parts = report.parts.iter().map(|(uid, ..)| *uid);
                    parts.chain(report.heads.iter().map(|(uid, _)| *uid)).all(|uid| home_of(uid) == home)
                }
                Self::Gone(uids) => uids.iter().all(|uid| home_of(*uid) == home),
                Self::Sweep(..) | Self::Page { .. } => true,
            }
    }
}

/// As it travels; `None` if it is too large.
pub(super) fn encode(what: &impl Serialize) -> Option<Bytes> {
    let bytes = serde_json::to_vec(what).ok()?;
    (bytes.len() <= HOME_CALL_MAX_BYTES).then(|| bytes.into())
}

/// What has travelled; `None` if it is nothing of the kind.
pub(super) fn decode<T: DeserializeOwned>(body: &Bytes) -> Option<T> {
    let fits = body.len() <= HOME_CALL_MAX_BYTES;
    fits.then(|| serde_json::from_slice(body).ok()).flatten()
}

/// Cuts a page so that it can travel; what is cut off follows.
pub(super) fn cut(page: &mut Page<Shown>) {
    let mut bytes = 0;
    let fits = |(_, task): &(TaskUid, Shown)| {
        bytes += serde_json::to_vec(task).map_or(HOME_CALL_MAX_BYTES, |text| text.len() + 16);
        bytes <= HOME_CALL_MAX_BYTES / 2
    };
    // One always fits: a task is smaller than an entry of a home.
    let keep = page
        .tasks
        .iter()
        .take_while({
            let mut fits = fits;
            move |task| fits(task)
        })
        .count()
        .max(1);
    if keep < page.tasks.len() {
        page.tasks.truncate(keep);
        page.more = true;
    }
}
