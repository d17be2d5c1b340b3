//! Lists of tasks out of all homes.
//!
//! Must not know: where a task is kept.

use std::time::Instant;

use futures_util::future::join_all;
use serde::Serialize;

use super::call::{Question, Said};
use super::client::{HomeError, Homes};
use crate::proto::tasks::page::Step;
use crate::proto::tasks::query::Listing;
use crate::proto::tasks::view;
use crate::proto::tasks::{Ask, End, Merger, Page, Query, Shown};
use crate::services::Failure;
use crate::types::limits::{HOMES, MULTI_SEARCH_ANSWER_MAX_BYTES};
use crate::types::{ErrorCode, TaskUid, TraceId};

/// Largest list, as JSON.
const LIST_MAX_BYTES: usize = MULTI_SEARCH_ANSWER_MAX_BYTES;

impl Homes {
    /// Gives the tasks of a list one by one, and what stands under them.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`HomeError`], or what `each` says.
    pub async fn list<E: From<HomeError>>(
        &self,
        query: &Query,
        deadline: Instant,
        trace: TraceId,
        mut each: impl FnMut(TaskUid, Shown) -> Result<(), E> + Send,
    ) -> Result<End, E> {
        let mut merger = Merger::new(query, usize::from(HOMES));
        loop {
            match merger.step() {
                Step::Task(uid, shown) => each(uid, shown)?,
                Step::End(end) => return Ok(end),
                Step::Ask(asks) => {
                    let pages = asks.iter().map(|ask| self.page(query, *ask, deadline, trace));
                    for (ask, page) in asks.iter().zip(join_all(pages).await) {
                        merger.give(ask.home, page?).map_err(|error| {
                            tracing::warn!(%error, "a list of tasks could not be put together");
                            HomeError::Page
                        })?;
                    }
                }
            }
        }
    }

    async fn page(&self, query: &Query, ask: Ask, deadline: Instant, trace: TraceId) -> Result<Page<Shown>, HomeError> {
        let home = u16::try_from(ask.home).map_err(|_| HomeError::Page)?;
        let question = Question::Page { query: Box::new(query.clone()), from: ask.from, take: ask.take };
        match self.ask(home, question, deadline, trace).await? {
            (_, Said::Page(page)) => Ok(page),
            _ => Err(HomeError::Page),
        }
    }

    /// `GET /tasks` or `GET /batches`, as JSON.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `miroir_no_quorum` if a home can't be asked.
    pub async fn list_json(&self, query: &Query, deadline: Instant, trace: TraceId) -> Result<Vec<u8>, Failure> {
        let mut text = b"{\"results\":[".to_vec();
        let end = self
            .list(query, deadline, trace, |uid, shown| {
                if text.last() != Some(&b'[') {
                    text.push(b',');
                }
                let written = match query.listing {
                    Listing::Tasks => put(&mut text, &view::task(uid, &shown)),
                    // A batch that is listed is begun.
                    Listing::Batches => put(&mut text, &view::batch(uid, &shown)),
                };
                written?;
                if text.len() > LIST_MAX_BYTES {
                    let message = "The list is too large for one answer; ask for fewer tasks at a time.";
                    return Err(Failure::new(ErrorCode::PayloadTooLarge, message));
                }
                Ok(())
            })
            .await?;
        let end = serde_json::to_vec(&end).map_err(|e| Failure::internal(e.to_string()))?;
        text.extend_from_slice(b"],");
        text.extend_from_slice(end.get(1..).unwrap_or_default());
        Ok(text)
    }

    /// `GET /tasks/{uid}` or `GET /batches/{uid}`, as JSON; `None`: there is none.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `miroir_no_quorum` if the home can't be asked.
    pub async fn one_json(
        &self,
        listing: Listing,
        uid: TaskUid,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let Some(shown) = self.get(uid, deadline, trace).await? else { return Ok(None) };
        let mut text = Vec::new();
        match listing {
            Listing::Tasks => put(&mut text, &view::task(uid, &shown))?,
            Listing::Batches => match view::batch(uid, &shown) {
                Some(batch) => put(&mut text, &batch)?,
                None => return Ok(None),
            },
        }
        Ok(Some(text))
    }
}

fn put(text: &mut Vec<u8>, value: &impl Serialize) -> Result<(), Failure> {
    serde_json::to_writer(text, value).map_err(|e| Failure::internal(e.to_string()))
}

impl From<HomeError> for Failure {
    fn from(error: HomeError) -> Self {
        let message = match error {
            HomeError::Refused => {
                return Self::new(ErrorCode::PayloadTooLarge, "The task is larger than a task may be.");
            }
            HomeError::Other | HomeError::Page => return Self::internal(error.to_string()),
            HomeError::NoAnswer => "The members that keep the task can't be asked now. Try again.",
            HomeError::Busy => "As many tasks are under way as may be. Try again.",
            HomeError::NoId => "No task id can be had now: too few members can be reached. Nothing was done.",
        };
        Self::new(ErrorCode::MiroirNoQuorum, message)
    }
}
