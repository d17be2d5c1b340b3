//! Tasks: one number for the client, whatever many members do for it.
//!
//! | file | decides |
//! | --- | --- |
//! | [`kind`] | a task's status and type, in Meilisearch's words |
//! | [`when`] | times by the wall clock, as clients read and write them |
//! | [`query`] | what `GET /tasks`, `GET /batches`, `DELETE /tasks` and `POST /tasks/cancel` ask for, and which error they get |
//! | [`suggest`] | which parameter was probably meant |
//! | [`filter`] | which tasks a query is about |
//! | [`page`] | one list out of the pages of many homes |
//! | [`task`] | what is known of a task |
//! | [`view`] | tasks and batches as clients see them |
//! | [`home`] | who keeps a task, and when it is finished |
//!
//! Must not know: how members speak, how anything is stored, HTTP.

pub mod filter;
pub mod home;
pub mod kind;
pub mod page;
pub mod query;
#[cfg(test)]
mod query_tests;
pub mod suggest;
pub mod task;
pub mod view;
pub mod when;

pub use filter::{Facts, Filter, Span};
pub use home::{Home, HomeEntry, HomeState};
pub use kind::{Status, TaskKind};
pub use page::{Ask, End, Merger, Page};
pub use query::{Listing, Query, QueryError};
pub use task::{Head, Outcome, Shown, Subject, TaskError};
pub use when::When;
