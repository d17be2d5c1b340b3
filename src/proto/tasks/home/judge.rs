//! When a task is finished, and how.
//!
//! Rule: the same reports of the same replicas give the same outcome, in whatever order they came. A part is done when
//! every replica that is awaited has done it, and at least one has; a part that was refused never is. Must not know: who is
//! asked, and when.

use std::collections::{BTreeMap, BTreeSet};

use super::super::kind::Status;
use super::super::task::{Head, Outcome, TaskError};
use super::super::when::When;
use super::effect::Done;
use super::parts::{PartRef, Parts};
use super::state::Row;
use crate::types::{ErrorCode, MemberId};

/// Shards that a message names.
const NAMED_MAX: usize = 32;

/// Who is to apply what of an index: for each shard the replicas that are in sync and have not said that they don't serve
/// it. `None`: the index is gone.
pub type Awaited = Option<BTreeMap<u16, BTreeSet<MemberId>>>;

/// What replicas said of a task's parts.
pub(super) type Reports = BTreeMap<PartRef, BTreeMap<MemberId, Done>>;

/// What is known of the parts of a task that waits.
pub(super) struct Known<'a> {
    pub(super) parts: &'a Parts,
    pub(super) reports: &'a Reports,
    /// Committed, as far as was heard.
    pub(super) there: &'a BTreeSet<PartRef>,
    pub(super) awaited: &'a Awaited,
}

impl Known<'_> {
    /// The awaited replicas that have not done a part.
    pub(super) fn missing(&self, part: PartRef) -> Vec<&MemberId> {
        let done = self.reports.get(&part);
        let awaited = self.awaited.as_ref().and_then(|shards| shards.get(&part.shard));
        awaited.into_iter().flatten().filter(|m| done.is_none_or(|done| !done.contains_key(*m))).collect()
    }

    /// What the replicas that count say of a part, once it is done.
    fn done(&self, part: PartRef) -> Option<Vec<&Done>> {
        let reports = self.reports.get(&part);
        let Some(shards) = self.awaited else {
            // Whatever was to become of it went with the index.
            let heard = reports.is_some() || self.there.contains(&part);
            return heard.then(|| reports.into_iter().flat_map(|r| r.values()).collect());
        };
        let reports = reports.filter(|_| self.missing(part).is_empty())?;
        let counts = |member: &MemberId| shards.get(&part.shard).is_some_and(|awaited| awaited.contains(member));
        let awaited: Vec<&Done> = reports.iter().filter(|(m, _)| counts(m)).map(|(_, done)| done).collect();
        Some(if awaited.is_empty() { reports.values().collect() } else { awaited })
    }
}

/// The outcome of a task whose parts are known so far; `None` if it waits.
pub(super) fn judge(row: &Row, known: &Known<'_>, wall: When) -> Option<Outcome> {
    let (mut changed, mut error) = (0_u64, None);
    let (mut started, mut finished) = (None, None);
    let mut applied = BTreeSet::new();
    for part in known.parts.iter().filter(|part| !row.refused.contains(part)) {
        let done = known.done(part)?;
        let failed = done.iter().filter_map(|d| d.error.as_ref()).min();
        match failed {
            Some(failed) => error = Some(error.map_or(failed, |known: &(String, String)| known.min(failed))),
            None => {
                applied.insert(part.shard);
                changed = changed.saturating_add(done.iter().map(|d| d.changed).max().unwrap_or(0));
            }
        }
        started = started.into_iter().chain(done.iter().map(|d| d.started)).min();
        finished = finished.into_iter().chain(done.iter().map(|d| d.finished)).max();
    }
    let error = error.map(|(code, message)| TaskError::of_node(code, &partly(message, &applied)));
    let refused = !row.refused.is_empty();
    let (status, error) = match (refused, row.cancel, error) {
        (false, _, None) => (Status::Succeeded, None),
        (_, _, Some(error)) => (Status::Failed, Some(error)),
        (true, Some(_), None) if applied.is_empty() => (Status::Canceled, None),
        (true, _, None) => (Status::Failed, Some(incomplete(row, known.parts, &applied))),
    };
    if status == Status::Succeeded {
        changed = row.head.subject.changes().unwrap_or(changed);
    }
    let finished = finished.unwrap_or(wall).max(row.head.enqueued);
    Some(Outcome { status, error, changed, matched: 0, started: started.unwrap_or(finished).min(finished), finished })
}

/// What becomes of an order that nobody will carry out.
pub(super) fn refused_order(row: &Row, wall: When) -> Outcome {
    let text = "The member that took this request ended, or is cut off, and has not told what became of it. Look at what was to be \
                changed, and send the request again where it is not.";
    let (status, error) = match row.cancel {
        Some(_) => (Status::Canceled, None),
        None => (Status::Failed, Some(TaskError::of(ErrorCode::MiroirIncomplete, text))),
    };
    ended_now(&row.head, status, error, wall)
}

/// An end that nobody reported.
pub(super) fn ended_now(head: &Head, status: Status, error: Option<TaskError>, wall: When) -> Outcome {
    let now = wall.max(head.enqueued);
    Outcome { status, error, changed: 0, matched: 0, started: now, finished: now }
}

fn incomplete(row: &Row, parts: &Parts, applied: &BTreeSet<u16>) -> TaskError {
    let (refused, all) = (row.refused.len(), parts.len());
    let why = match row.cancel {
        Some(by) => format!("had not arrived when task {by} canceled it"),
        None => "never arrived".to_owned(),
    };
    let text = format!("{refused} of the {all} parts of this write {why}; it was not acknowledged. Send it again.");
    let text = if applied.is_empty() { format!("{text} Nothing of it was applied.") } else { partly(&text, applied) };
    TaskError::of(ErrorCode::MiroirIncomplete, &text)
}

/// Tells what stands all the same.
fn partly(message: &str, applied: &BTreeSet<u16>) -> String {
    if applied.is_empty() {
        return message.to_owned();
    }
    let named: Vec<_> = applied.iter().take(NAMED_MAX).map(u16::to_string).collect();
    let rest =
        if applied.len() > NAMED_MAX { format!(" and {} others", applied.len() - NAMED_MAX) } else { String::new() };
    format!("{message} What belongs to these shards was applied: {}{rest}.", named.join(", "))
}
