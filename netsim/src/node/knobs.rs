//! Knobs for tests, under `/_standin/knobs`: delays, failures, a hanging server, a stopped task queue.
//!
//! Rule: all knobs are at rest unless a test turns them, and turning one changes nothing that is stored. Must not know:
//! what the requests are that it delays or fails.

use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::error::{ApiError, Result};
use super::params::Fields;
use super::tasks::lock;

const NAMES: [&str; 8] =
    ["delay_ms", "search_delay_ms", "fail_next", "fail_status", "hang", "stop_tasks", "fail_tasks", "fail_code"];
const FAIL_CODES: [&str; 5] =
    ["internal", "io_error", "no_space_left_on_device", "vector_embedding_error", "invalid_document_id"];

#[derive(Debug, Clone, Copy)]
struct State {
    delay_ms: u64,
    search_delay_ms: u64,
    fail_next: usize,
    fail_status: u16,
    hang: bool,
    stop_tasks: bool,
    fail_tasks: usize,
    fail_code: &'static str,
}

/// The knobs.
#[derive(Debug)]
pub struct Knobs(Mutex<State>);

impl Default for Knobs {
    fn default() -> Self {
        Self(Mutex::new(State {
            delay_ms: 0,
            search_delay_ms: 0,
            fail_next: 0,
            fail_status: 500,
            hang: false,
            stop_tasks: false,
            fail_tasks: 0,
            fail_code: "internal",
        }))
    }
}

/// What to do with a request before it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Serve it after this time.
    Serve(Duration),
    /// Answer with this status.
    Fail(u16),
    /// Never answer.
    Hang,
}

impl Knobs {
    /// Sets the delay of every request.
    pub fn set_delay(&self, delay_ms: u64) {
        lock(&self.0).delay_ms = delay_ms;
    }

    /// Decides about one request.
    pub fn fate(&self, is_search: bool) -> Fate {
        let mut state = lock(&self.0);
        if state.hang {
            return Fate::Hang;
        }
        if state.fail_next > 0 {
            state.fail_next -= 1;
            return Fate::Fail(state.fail_status);
        }
        let search = if is_search { state.search_delay_ms } else { 0 };
        Fate::Serve(Duration::from_millis(state.delay_ms.saturating_add(search)))
    }

    /// Whether the task queue stands still.
    pub fn tasks_stopped(&self) -> bool {
        lock(&self.0).stop_tasks
    }

    /// The code with which the next batch is to fail, if it is to.
    pub fn take_task_failure(&self) -> Option<&'static str> {
        let mut state = lock(&self.0);
        state.fail_tasks = state.fail_tasks.checked_sub(1)?;
        Some(state.fail_code)
    }

    /// Turns the knobs that `sent` names and gives back how all of them stand.
    pub fn turn(&self, sent: &Value) -> Result<Value> {
        let code = "bad_request";
        let fields = Fields::open(sent, "", code, &NAMES)?;
        let (delay, search) = (fields.count("delay_ms", code)?, fields.count("search_delay_ms", code)?);
        let (fail, status) = (fields.count("fail_next", code)?, fields.count("fail_status", code)?);
        let (hang, stop) = (fields.boolean("hang", code)?, fields.boolean("stop_tasks", code)?);
        let (fail_tasks, fail_code) = (fields.count("fail_tasks", code)?, fields.word("fail_code", code, &FAIL_CODES)?);
        let status = match status.map(|status| u16::try_from(status).ok().filter(|s| (400..600).contains(s))) {
            Some(None) => return Err(ApiError::new(code, "`fail_status` is between 400 and 599")),
            other => other.flatten(),
        };
        let mut state = lock(&self.0);
        state.delay_ms = delay.map_or(state.delay_ms, |ms| ms as u64);
        state.search_delay_ms = search.map_or(state.search_delay_ms, |ms| ms as u64);
        state.fail_next = fail.unwrap_or(state.fail_next);
        state.fail_status = status.unwrap_or(state.fail_status);
        state.hang = hang.unwrap_or(state.hang);
        state.stop_tasks = stop.unwrap_or(state.stop_tasks);
        state.fail_tasks = fail_tasks.unwrap_or(state.fail_tasks);
        state.fail_code = fail_code.unwrap_or(state.fail_code);
        Ok(json!({
            "delay_ms": state.delay_ms, "search_delay_ms": state.search_delay_ms, "fail_next": state.fail_next,
            "fail_status": state.fail_status, "hang": state.hang, "stop_tasks": state.stop_tasks,
            "fail_tasks": state.fail_tasks, "fail_code": state.fail_code,
        }))
    }
}
