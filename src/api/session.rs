//! Reading one's own writes: a read that names tasks waits until every replica that is searched has applied them.
//!
//! `X-Miroir-Min-Task` names one task; `X-Miroir-Session` is a token that the answer to a write gives, and that stands for that
//! write and for those of the token that came with it. Rule: a task that has ended is applied by every replica in sync that
//! serves. One that is not there may be deleted, or not be there yet. Must not know: what is read, where tasks are kept.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;

use super::error::{ApiError, mark};
use super::routes::Api;
use super::service::mark_stale;
use crate::types::{ErrorCode, TaskUid, TraceId};

/// The token of a client's writes.
pub const SESSION: &str = "x-miroir-session";
/// One task.
pub const MIN_TASK: &str = "x-miroir-min-task";

/// Tasks of one token; while more wait, no token is given.
const TASKS_MAX: usize = 512;
/// Of so many, those that have ended are left out.
const PRUNE: usize = 16;
/// How long a read waits at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// For how much of that a task is waited for that is not there.
const ABSENT: Duration = Duration::from_secs(1);
/// Between two looks at a task, at first; doubles up to the longest.
const LOOK: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(200);
/// The answer to a write; `customMetadata` is the largest part of it.
const SUMMARY_MAX_BYTES: usize = 2 << 20;

/// The middleware.
pub async fn session(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str).unwrap_or_default();
    let reads = is_read(request.method(), route);
    if !reads && matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let tasks = match named(request.headers()) {
        Ok(tasks) => tasks,
        Err(error) => return error.into_response(),
    };
    if !reads {
        let response = next.run(request).await;
        return if response.status() == StatusCode::ACCEPTED {
            with_token(&api, tasks, response, trace).await
        } else {
            response
        };
    }
    let ended = all_ended(&tasks, PATIENCE, ABSENT, |uid, until| look(&api, uid, until, trace)).await;
    let mut response = next.run(request).await;
    if !ended {
        api.metrics.session_stale.inc();
        mark_stale(response.headers_mut());
    }
    response
}

/// Whether a route reads what indexes hold, by its pattern; no other waits for tasks.
pub fn is_read(method: &Method, route: &str) -> bool {
    match *method {
        Method::GET => matches!(
            route,
            "/stats"
                | "/indexes/{uid}/stats"
                | "/indexes/{uid}/search"
                | "/indexes/{uid}/documents"
                | "/indexes/{uid}/documents/{id}"
        ),
        Method::POST => matches!(
            route,
            "/multi-search"
                | "/indexes/{uid}/search"
                | "/indexes/{uid}/facet-search"
                | "/indexes/{uid}/documents/fetch"
        ),
        _ => false,
    }
}

/// The tasks that a request names.
fn named(headers: &HeaderMap) -> Result<BTreeSet<TaskUid>, ApiError> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("\u{fffd}").trim());
    let mut tasks = BTreeSet::new();
    if let Some(text) = text(MIN_TASK) {
        let uid = text.parse().map_err(|_| {
            let message =
                format!("Invalid header `X-Miroir-Min-Task`: expected the uid of a task, but found `{text}`.");
            ApiError::new(ErrorCode::BadRequest, message)
        })?;
        tasks.insert(TaskUid(uid));
    }
    if let Some(text) = text(SESSION).filter(|text| !text.is_empty()) {
        let uids: Result<BTreeSet<TaskUid>, _> = text.split('.').map(|uid| uid.parse().map(TaskUid)).collect();
        tasks.extend(uids.ok().filter(|uids| uids.len() <= TASKS_MAX).ok_or_else(|| {
            let message = "Invalid header `X-Miroir-Session`: expected a token as the answer to a write gives it.";
            ApiError::new(ErrorCode::BadRequest, message)
        })?);
    }
    Ok(tasks)
}

/// What a look at a task has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Ended,
    /// Or not to be had.
    Open,
    /// It was deleted or forgotten since it ended; or it is one whose end nobody could tell, and comes yet.
    Absent,
}

async fn look(api: &Api, uid: TaskUid, until: Instant, trace: TraceId) -> Found {
    match api.tasks.homes().get(uid, until, trace).await {
        Ok(None) => Found::Absent,
        Ok(Some(shown)) if shown.outcome.is_some() => Found::Ended,
        Ok(Some(_)) | Err(_) => Found::Open,
    }
}

/// Waits until tasks have ended, one after the other; `false`: some had not in time, or was not there.
async fn all_ended<F: Future<Output = Found>>(
    tasks: &BTreeSet<TaskUid>,
    patience: Duration,
    absent: Duration,
    look: impl Fn(TaskUid, Instant) -> F,
) -> bool {
    let began = Instant::now();
    let (deadline, absent) = (began + patience, began + absent.min(patience));
    let mut all = true;
    for uid in tasks {
        let mut pause = LOOK;
        loop {
            let until = match look(*uid, deadline).await {
                Found::Ended => break,
                Found::Absent => absent,
                Found::Open => deadline,
            };
            if Instant::now() + pause >= until {
                all = false;
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
        if !all && Instant::now() + LOOK >= deadline {
            break;
        }
    }
    all
}

/// Puts the token of this write, and of those before it, to the answer.
async fn with_token(api: &Api, mut tasks: BTreeSet<TaskUid>, response: Response, trace: TraceId) -> Response {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary {
        task_uid: TaskUid,
    }
    let (mut parts, body) = response.into_parts();
    let body = match axum::body::to_bytes(body, SUMMARY_MAX_BYTES).await {
        Ok(body) => body,
        Err(error) => return ApiError::new(ErrorCode::Internal, error.to_string()).into_response(),
    };
    // Other answers with this status are of operations.
    if let Ok(Summary { task_uid }) = serde_json::from_slice(&body) {
        if tasks.len() >= PRUNE {
            let until = Instant::now() + LOOK_MAX;
            let mut open = BTreeSet::new();
            for uid in tasks {
                // Who had no time to look leaves it in.
                if Instant::now() >= until || look(api, uid, until, trace).await == Found::Open {
                    open.insert(uid);
                }
            }
            tasks = open;
        }
        tasks.insert(task_uid);
        if tasks.len() > TASKS_MAX {
            return Response::from_parts(parts, Body::from(body));
        }
        let texts: Vec<String> = tasks.iter().map(TaskUid::to_string).collect();
        mark(&mut parts.headers, SESSION, &texts.join("."));
    }
    Response::from_parts(parts, Body::from(body))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn of(pairs: &[(&'static str, &'static str)]) -> Option<Vec<u32>> {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let headers = pairs.iter().map(pair).collect();
        named(&headers).ok().map(|tasks| tasks.into_iter().map(|uid| uid.0).collect())
    }

    #[test]
    fn tasks_are_named_by_uid_and_by_token() {
        assert_eq!(of(&[]), Some(vec![]));
        assert_eq!(of(&[(SESSION, "")]), Some(vec![]), "a client may begin with none");
        assert_eq!(of(&[(MIN_TASK, "7"), (SESSION, "3.12")]), Some(vec![3, 7, 12]));
        for bad in [(MIN_TASK, "x"), (MIN_TASK, ""), (SESSION, "1..2"), (SESSION, "user-7"), (SESSION, "-1")] {
            assert_eq!(of(&[bad]), None, "{bad:?}");
        }
    }

    #[test]
    fn only_reads_of_what_indexes_hold_wait() {
        let read = |method: &str, route| is_read(&method.parse().unwrap(), route);
        for (method, route) in [
            ("GET", "/indexes/{uid}/search"),
            ("POST", "/indexes/{uid}/search"),
            ("POST", "/multi-search"),
            ("POST", "/indexes/{uid}/documents/fetch"),
            ("GET", "/indexes/{uid}/documents/{id}"),
        ] {
            assert!(read(method, route), "{method} {route}");
        }
        for (method, route) in [
            ("GET", "/"),
            ("GET", "/health"),
            ("GET", "/tasks"),
            ("GET", "/_miroir/leases"),
            // Of a document with the id `search`.
            ("DELETE", "/indexes/{uid}/documents/{id}"),
            ("POST", "/indexes/{uid}/documents"),
            ("GET", ""),
        ] {
            assert!(!read(method, route), "{method} {route}");
        }
    }

    #[tokio::test]
    async fn tasks_are_waited_for_one_after_the_other_and_what_is_not_there_makes_an_answer_stale() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let tasks = |n: u32| (0..n).map(TaskUid).collect::<BTreeSet<_>>();
        let (patience, absent) = (Duration::from_millis(400), Duration::from_millis(100));
        let (under_way, looks) = (AtomicU32::new(0), AtomicU32::new(0));
        let one_by_one = |uid: TaskUid, _| {
            let (under_way, looks) = (&under_way, &looks);
            async move {
                assert_eq!(under_way.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                tokio::task::yield_now().await;
                under_way.fetch_sub(1, Ordering::SeqCst);
                let nth = looks.fetch_add(1, Ordering::SeqCst);
                if uid.0 == 0 && nth < 3 { Found::Open } else { Found::Ended }
            }
        };
        assert!(all_ended(&tasks(500), patience, absent, one_by_one).await);
        assert_eq!(looks.load(Ordering::SeqCst), 503);
        let began = Instant::now();
        let not_there = |uid: TaskUid, _| async move { if uid.0 < 4 { Found::Absent } else { Found::Ended } };
        assert!(!all_ended(&tasks(9), patience, absent, not_there).await);
        assert!(began.elapsed() < patience, "it is not waited for as long as for one that is there");
        assert!(!all_ended(&tasks(9), patience, absent, |_, _| async { Found::Open }).await);
        assert!(all_ended(&tasks(0), patience, absent, |_, _| async { Found::Open }).await);
    }
}
