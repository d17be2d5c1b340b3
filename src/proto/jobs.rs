//! Which member works on which job of a queue: functions over the queue's record.
//!
//! A claim stands as long as its member's `alive:` lease stands under the epoch of the claim, so nothing is written to keep
//! it, and nobody else takes the job before the lease core has said that the hold is over for good. Work that is claimed must
//! bear being begun again at its last cursor. Must not know: what a job is, the ledger, time but for the cursor's pace.

use std::time::Duration;

use crate::proto::lease::Lapse;
use crate::types::limits::{JOB_ERROR_MAX_BYTES, JOB_PART_MAX_BYTES, JOBS_MAX, RECORD_MAX_BYTES};
use crate::types::{Claim, Job, JobsRecord};

/// A job's cursor is written at most this often.
pub const CURSOR_EVERY: Duration = Duration::from_secs(10);

/// How long a job rests that was given back once, and at most.
const REST_FIRST: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(300);

/// How long a job that was given back so often rests before a member takes it again: twice as long each time.
pub fn rest(failures: u32) -> Duration {
    let doubled = |n: u32| REST_FIRST.saturating_mul(2_u32.saturating_pow(n));
    failures.checked_sub(1).map_or(Duration::ZERO, doubled).min(REST_MAX)
}

/// Why a queue can't be changed so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The queue, or the job, is as large as it may be.
    #[error("a queue has at most {JOBS_MAX} jobs of {JOB_PART_MAX_BYTES} bytes each")]
    Full,
    /// There is no such job: it is finished.
    #[error("job {id} not found")]
    NotFound {
        /// The job.
        id: String,
    },
    /// Another member's, or an earlier claim of one's own.
    #[error("job {id} is not claimed so")]
    NotClaimed {
        /// The job.
        id: String,
    },
}

/// What a member may do about the first job that it could work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// Write this, then begin.
    Claim {
        /// The job.
        id: String,
        /// The queue with the claim.
        queue: JobsRecord,
    },
    /// Nothing is free; these claims seem to be over, and the lease core can find out.
    Ask(Vec<Claim>),
    /// Nothing is free.
    Nothing,
}

/// The ledger's key of a queue.
pub fn record_key(queue: &str) -> String {
    format!("jobs:{queue}")
}

/// The queue with one more job; `None` if one of its id is there.
///
/// # Errors
/// There is no room.
pub fn add(queue: &JobsRecord, id: &str, work: serde_json::Value) -> Result<Option<JobsRecord>, JobError> {
    if queue.jobs.iter().any(|job| job.id == id) {
        return Ok(None);
    }
    if queue.jobs.len() >= JOBS_MAX || id.len() > JOB_PART_MAX_BYTES || work.to_string().len() > JOB_PART_MAX_BYTES {
        return Err(JobError::Full);
    }
    let mut new = queue.clone();
    new.jobs.push(Job { id: id.to_owned(), work, cursor: None, claim: None, failures: 0, error: None });
    bounded(new).map(Some)
}

/// What `me` may work on next: the first job that nobody has claimed and that does not rest, or whose claimer is over for good.
pub fn pick(queue: &JobsRecord, me: &Claim, rests: impl Fn(&Job) -> bool, lapse: impl Fn(&Claim) -> Lapse) -> Pick {
    let mut ask: Vec<Claim> = Vec::new();
    for (i, job) in queue.jobs.iter().enumerate() {
        let free = match &job.claim {
            None => !rests(job),
            Some(claim) if claim == me => continue,
            // An earlier process of one's own, or an earlier hold, is over if the present one stands.
            Some(claim) if claim.holder.member == me.holder.member && claim.epoch < me.epoch => true,
            Some(claim) => match lapse(claim) {
                Lapse::Over => true,
                Lapse::Stands => false,
                Lapse::Seems => {
                    ask.extend((!ask.contains(claim)).then(|| claim.clone()));
                    false
                }
            },
        };
        if free {
            let mut new = queue.clone();
            new.jobs[i].claim = Some(me.clone());
            return Pick::Claim { id: job.id.clone(), queue: new };
        }
    }
    if ask.is_empty() { Pick::Nothing } else { Pick::Ask(ask) }
}

/// The queue with the job's cursor moved on. Written at most every [`CURSOR_EVERY`].
///
/// # Errors
/// The job is gone or not claimed so, or the cursor is too large.
pub fn advance(queue: &JobsRecord, id: &str, me: &Claim, cursor: serde_json::Value) -> Result<JobsRecord, JobError> {
    if cursor.to_string().len() > JOB_PART_MAX_BYTES {
        return Err(JobError::Full);
    }
    let mut new = queue.clone();
    let job = claimed(&mut new, id, me)?;
    if job.cursor.as_ref() != Some(&cursor) {
        (job.cursor, job.failures) = (Some(cursor), 0);
    }
    bounded(new)
}

/// The queue with the job given back where it is, because of `why`.
///
/// # Errors
/// The job is gone or not claimed so.
pub fn give_back(queue: &JobsRecord, id: &str, me: &Claim, why: &str) -> Result<JobsRecord, JobError> {
    let mut new = queue.clone();
    let job = claimed(&mut new, id, me)?;
    job.claim = None;
    job.failures = job.failures.saturating_add(1);
    let end = why.floor_char_boundary(JOB_ERROR_MAX_BYTES);
    job.error = Some(why[..end].to_owned());
    if bounded(new.clone()).is_err() {
        // That it is free again matters more than why.
        new.jobs.iter_mut().for_each(|job| job.error = None);
    }
    Ok(new)
}

/// The queue without the finished job.
///
/// # Errors
/// The job is gone (finished before, if an answer was lost) or not claimed so.
pub fn finish(queue: &JobsRecord, id: &str, me: &Claim) -> Result<JobsRecord, JobError> {
    let mut new = queue.clone();
    claimed(&mut new, id, me)?;
    new.jobs.retain(|job| job.id != id);
    Ok(new)
}

fn claimed<'a>(queue: &'a mut JobsRecord, id: &str, me: &Claim) -> Result<&'a mut Job, JobError> {
    let job = queue.jobs.iter_mut().find(|job| job.id == id).ok_or_else(|| JobError::NotFound { id: id.to_owned() })?;
    if job.claim.as_ref() == Some(me) { Ok(job) } else { Err(JobError::NotClaimed { id: id.to_owned() }) }
}

fn bounded(queue: JobsRecord) -> Result<JobsRecord, JobError> {
    let size = serde_json::to_string(&queue).expect("jobs are always JSON").len();
    if size > RECORD_MAX_BYTES { Err(JobError::Full) } else { Ok(queue) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::types::{Epoch, Holder, MemberId};

    fn claim(member: &str, start: u64, epoch: u64) -> Claim {
        let holder = Holder { member: MemberId::new(member).unwrap(), start };
        Claim { holder, epoch: Epoch::new(epoch).unwrap() }
    }

    fn queue(n: usize) -> JobsRecord {
        (0..n).fold(JobsRecord::default(), |q, i| add(&q, &format!("j{i}"), json!({"shard": i})).unwrap().unwrap())
    }

    fn take(queue: &JobsRecord, me: &Claim, lapse: Lapse) -> (String, JobsRecord) {
        match pick(queue, me, |_| false, |_| lapse) {
            Pick::Claim { id, queue } => (id, queue),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn members_take_different_jobs_and_each_is_done_once() {
        let (a, b) = (claim("a", 1, 1), claim("b", 1, 1));
        let (first, q) = take(&queue(2), &a, Lapse::Stands);
        let (second, q) = take(&q, &b, Lapse::Stands);
        assert_eq!((first.as_str(), second.as_str()), ("j0", "j1"));
        assert_eq!(pick(&q, &claim("c", 1, 1), |_| false, |_| Lapse::Stands), Pick::Nothing);
        let q = finish(&q, "j0", &a).unwrap();
        assert_eq!(finish(&q, "j0", &a), Err(JobError::NotFound { id: "j0".into() }));
        assert_eq!(finish(&q, "j1", &a), Err(JobError::NotClaimed { id: "j1".into() }));
    }

    #[test]
    fn a_job_goes_on_at_its_cursor_only_when_its_member_is_over_for_good() {
        let (a, b) = (claim("a", 1, 1), claim("b", 1, 1));
        let (id, q) = take(&queue(1), &a, Lapse::Stands);
        let q = advance(&q, &id, &a, json!(17)).unwrap();
        assert_eq!(pick(&q, &b, |_| false, |_| Lapse::Seems), Pick::Ask(vec![a.clone()]));
        let (id, q) = take(&q, &b, Lapse::Over);
        assert_eq!(q.jobs[0].cursor, Some(json!(17)));
        assert!(advance(&q, &id, &a, json!(18)).is_err(), "the former worker moves nothing");
    }

    #[test]
    fn an_earlier_hold_of_ones_own_is_over() {
        let (_, q) = take(&queue(1), &claim("a", 1, 1), Lapse::Stands);
        assert_eq!(take(&q, &claim("a", 2, 2), Lapse::Stands).0, "j0");
        assert_eq!(pick(&q, &claim("a", 1, 1), |_| false, |_| Lapse::Over), Pick::Nothing, "it is being worked on");
    }

    #[test]
    fn a_job_that_fails_rests_longer_each_time_until_it_gets_further() {
        let a = claim("a", 1, 1);
        let (mut q, mut failures) = (queue(2), Vec::new());
        for n in 0..3 {
            let (id, claimed) = take(&q, &a, Lapse::Stands);
            assert_eq!(id, "j0");
            q = give_back(&claimed, &id, &a, &format!("{n}{}", "é".repeat(500))).unwrap();
            failures.push(q.jobs[0].failures);
        }
        assert_eq!(failures, [1, 2, 3]);
        assert!(q.jobs[0].error.as_ref().is_some_and(|e| e.starts_with('2') && e.len() <= JOB_ERROR_MAX_BYTES));
        assert_eq!([0, 1, 2, 3, 99].map(|n| rest(n).as_secs()), [0, 1, 2, 4, 300]);
        match pick(&q, &a, |job| job.failures > 0, |_| Lapse::Stands) {
            Pick::Claim { id, .. } => assert_eq!(id, "j1", "the others do not wait for it"),
            other => panic!("{other:?}"),
        }
        let (id, q) = take(&q, &a, Lapse::Stands);
        assert_eq!(advance(&q, &id, &a, json!(4)).unwrap().jobs[0].failures, 0);
    }

    #[test]
    fn a_queue_is_bounded() {
        let full = queue(JOBS_MAX);
        assert_eq!(add(&full, "more", json!(1)), Err(JobError::Full));
        assert_eq!(add(&full, "j1", json!(1)), Ok(None), "there already");
        assert_eq!(add(&queue(1), "large", json!("x".repeat(JOB_PART_MAX_BYTES))), Err(JobError::Full));
    }
}
