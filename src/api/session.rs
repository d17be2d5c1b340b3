//! Reading one's own writes: a read that names tasks waits until every replica that is searched has applied them.
//!
//! `X-Miroir-Min-Task` names one task; `X-Miroir-Session` is a token that the answer to a write gives, and that stands for that
//! write and for those of the token that came with it. Rule: a task that has ended is applied by every replica in sync that
//! serves. Must not know: what is read, where tasks are kept.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
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
/// Between two looks at a task, at first; doubles up to the longest.
const LOOK: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(200);
/// The answer to a write is small.
const SUMMARY_MAX_BYTES: usize = 64 << 10;

/// The middleware.
pub async fn session(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    request: Request,
    next: Next,
) -> Response {
    let tasks = match named(request.headers()) {
        Ok(tasks) => tasks,
        Err(error) => return error.into_response(),
    };
    if !reads(&request) {
        let response = next.run(request).await;
        return if response.status() == StatusCode::ACCEPTED {
            with_token(&api, tasks, response, trace).await
        } else {
            response
        };
    }
    let deadline = Instant::now() + PATIENCE;
    let ended = join_all(tasks.iter().map(|uid| ended(&api, *uid, deadline, trace))).await;
    let mut response = next.run(request).await;
    if ended.contains(&false) {
        mark_stale(response.headers_mut());
    }
    response
}

fn reads(request: &Request) -> bool {
    let last = request.uri().path().rsplit('/').next().unwrap_or_default();
    *request.method() == Method::GET || matches!(last, "search" | "facet-search" | "multi-search" | "fetch")
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

/// Waits until a task has ended; `false`: it had not in time. One that is not there was deleted, which only ended ones are.
async fn ended(api: &Api, uid: TaskUid, deadline: Instant, trace: TraceId) -> bool {
    let mut look = LOOK;
    loop {
        match api.tasks.homes().get(uid, deadline, trace).await {
            Ok(None) => return true,
            Ok(Some(shown)) if shown.outcome.is_some() => return true,
            Ok(Some(_)) | Err(_) => {}
        }
        if Instant::now() + look >= deadline {
            return false;
        }
        tokio::time::sleep(look).await;
        look = (look * 2).min(LOOK_MAX);
    }
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
            let now = Instant::now() + LOOK_MAX;
            let looks = tasks.iter().map(|uid| async move { (*uid, ended(api, *uid, now, trace).await) });
            tasks = join_all(looks).await.into_iter().filter(|(_, ended)| !ended).map(|(uid, _)| uid).collect();
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
}
