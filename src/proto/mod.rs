//! Pure cores: no I/O, no clock, no randomness, no hash-ordered maps. Values and an instant in, decisions out.
//!
//! | core | decides |
//! | --- | --- |
//! | [`json`] | where the parts of a JSON text begin and end, without building trees |
//! | [`placement`] | a document's shard, a shard's members |
//! | [`document`] | how a body splits into documents, which primary key, which ids are valid |
//! | [`settings`] | what nodes are told instead of the client's settings, and back |
//! | [`missed`] | which changes of settings a member that was away has yet to get |
//! | [`alias`] | what an alias may be, and how it is pointed at another index |
//! | [`jobs`] | which member works on which job of a queue |
//! | [`operation`] | phases, each recorded before the next begins; resuming, pausing, undoing |
//! | [`lease`] | who leads a scope, until when, and which orders are too old |
//! | [`search`] | which members for which shards, and one list out of many |
//! | [`journal`] | the order of a shard's writes, who stores them, and who orders them next |
//! | [`apply`] | what goes to the own node next, and what the node's tasks prove |
//! | [`probe`] | when a peer is taken for gone |
//! | [`serving`] | whether a replica may be asked by searches |
//! | [`snapshot`] | how a copy is made anew from another while writes go on |
//! | [`tasks`] | what a task is, who keeps it, when it is finished, how it is listed |
//! | [`ledger`] | what is agreed on by majority |
//! | [`task_ids`] | which number a task gets |
//!
//! # State machines
//!
//! Some cores are functions; those that live on between inputs keep one contract:
//!
//! - `handle_*(&mut self, env, input)` and `submit` take one input: a message, a tick, a command. [`env::Env`] is the
//!   instant and the dice, never kept.
//! - `poll_effect(&mut self)` gives what is to be done, one by one, until `None`.
//! - `next_wake(&self)` says when `handle_tick` is due; an earlier or a later tick does no harm, a missing one no damage.
//! - `recover(config, stored, env)` builds the core from what was made durable, and from nothing else.
//!
//! A driver's step, always in this order: hear one input; call the core; drain the effects; make all `Persist` effects of
//! that drain durable in one transaction; only then carry out the others (publish, send, answer). Instants never go back.
//! The process may end between any two of these, and effects after the transaction may be carried out in part. If the
//! transaction fails, nothing else of the drain may be carried out and the core must be dropped: it is ahead of its store.
//!
//! A core that speaks to itself does so inside the step: what it told itself is durable before anyone else hears of it.

pub mod alias;
pub mod apply;
pub mod document;
pub mod env;
#[cfg(test)]
mod failover;
pub mod invariant;
pub mod jobs;
pub mod journal;
pub mod json;
pub mod lease;
pub mod ledger;
pub mod missed;
pub mod operation;
pub mod placement;
pub mod probe;
pub mod register;
pub mod search;
pub mod serving;
pub mod settings;
pub mod snapshot;
pub mod task_ids;
pub mod tasks;
