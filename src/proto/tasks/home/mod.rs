//! The home of tasks: shard `task id % 16` of a journal that has no node behind it.
//!
//! | file | decides |
//! | --- | --- |
//! | [`parts`] | the parts of a task, and who does them |
//! | [`body`] | what a part's entry in its shard's journal is made of |
//! | [`entry`] | what stands in a home's journal, and under which part, so that nothing happens twice |
//! | [`state`] | what every replica of a home makes of committed entries |
//! | [`primary`], `run` | what the primary is told, and what it does by itself |
//! | [`judge`] | when a task is finished, and how |
//! | `soft` | what a primary has heard, and what the next one asks for again |
//! | [`effect`] | what goes in and out |
//!
//! # What each step promises
//!
//! 1. **Key.** With an `Idempotency-Key`, the home that the key hashes to settles first which task it stands for: the first
//!    committed [`HomeEntry::Key`] does, for everybody ([`Answer::Settled`]). The same body goes on with that task; another
//!    is a conflict. Who finds a task that its home does not know has its number made void there, which can't fail but by
//!    the head having come first, and then settles the key anew, naming what is replaced. So is done with a task that
//!    ended without some of its parts. With a key the head goes before the
//!    parts; so a void number has no parts.
//! 2. **Head and parts**, in parallel. A `202` is given when the home has answered [`Answer::Taken`] *and* each part was
//!    answered as committed *as this part*. A part that was refused stands in its shard's journal under the same task and
//!    part as a refusal, so exactly one of the two stands there, whichever came first; and a sender that meets a refusal
//!    knows that there is no `202`, whatever it does.
//! 3. **`succeeded`** says: nothing was refused, nothing failed, and for each part every replica that is in sync and serves
//!    has applied it, one at least. A search at any member finds it. `failed` says which error; where parts of other shards
//!    stand all the same, its message names them.
//! 4. **Giving up.** A task with parts of which nobody has said anything by the deadline is given up: first that is
//!    committed, then each such part is refused by its shard, or found to be there. A part that is committed after it was to
//!    be refused is simply there, and a task all of whose parts are there takes its course. So no acknowledged task is ever
//!    incomplete, and no incomplete one is ever whole.
//! 5. **Canceling** marks older open tasks in the order of each home's journal, and then refuses as above: what is not
//!    committed will never be done, what is committed runs. A write that was acknowledged therefore never ends as canceled, nor
//!    does one of which anything was applied; an order (settings, indexes) does if it was not begun. What takes its course
//!    all the same is said to ([`HomeEntry::Stays`]), and the task that cancels does not wait for it.
//! 6. **Forgetting** is an entry too. The part under which a head stood is remembered by the journal, so a task can't come
//!    back. A key is forgotten when it is as old as tasks get and its task's home does not have the task any more.
//! 7. **Webhooks** are told at least once: the primary tells them of what has ended, and when they were told, or were given
//!    up, that is an entry. While a primary lives it tells once; the one after it tells again what it finds untold, which
//!    may be what was told last. A receiver knows a repetition by the task's number. At most once would lose the
//!    notification that a program waits for whenever a primary dies.
//!
//! The primary may die between any two of these. The next one begins with the state alone and asks the replicas for what
//! they have applied; every decision that was made is in the journal, every other is made anew from the same facts.
//!
//! Bounds: tasks, bytes, open tasks and keys (65,536, those settled first are forgotten) of a home, parts of a task, items of a report, entries on their way, what one entry
//! names. Must not know: how entries are committed, nodes, HTTP.

pub mod body;
pub mod effect;
pub mod entry;
pub mod judge;
pub mod parts;
pub mod primary;
mod run;
#[cfg(test)]
mod simulated;
mod soft;
pub mod state;
#[cfg(test)]
mod tests;

pub use effect::{Answer, Appended, Config, Done, Effect, OpId, Refusal, Report, Said};
pub use entry::HomeEntry;
pub use judge::Awaited;
pub use parts::{PartRef, Parts, Work};
pub use primary::Home;
pub use state::{HomeState, KeyRow, Row, StoredRow, Swept, Touched};
